// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A back end that dies, with and without knowledge of what it had begun.

use std::time::{Duration, Instant};

use super::again::without_notes;
use super::liar::{Liar, Lie};
use super::lost_card::save;
use super::peer::{Disk, serve};
use super::{PATIENCE, STATUS, guest, request, submit, taken, until};
use crate::support::pattern;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::vhost_user::Options;

const ALL: u64 = u64::MAX;
const IN_ORDER: u64 = 1 << 35;
const IO_ERROR: u8 = 1;
const NEEDS_RESET: u8 = 0x40;

fn disk(features: u64) -> Disk {
    let mut disk = Disk::new(pattern(0, 64 * 512));
    disk.features |= features;
    disk
}

#[test]
fn a_disk_in_order_answers_with_errors() {
    let (serving, socket) = serve(disk(IN_ORDER));
    let mut guest = guest(socket, Options::block());
    let mut rings = guest.start(ALL, &[0]);
    let ring = &mut rings[0];
    for sector in 0..10 {
        assert_eq!(request(&mut guest, ring, 0, sector, 512), 0);
    }
    // Two that it takes and never finishes, and it is gone.
    *serving.disk.ignored.lock().unwrap() = 2;
    let heads = [
        submit(&mut guest, ring, 0, 1, 512),
        submit(&mut guest, ring, 1, 2, 512),
    ];
    guest.kick(0);
    until(&mut guest, "request that is not answered", |_| {
        (*serving.disk.ignored.lock().unwrap() == 0).then_some(())
    });
    guest.vectors.take();
    serving.die();
    for head in heads {
        assert_eq!(taken(&mut guest, ring).head, u32::from(head));
    }
    assert_eq!(guest.read(STATUS, 1)[0], IO_ERROR);
    assert!(guest.vectors.delivered().contains(&1), "nobody was told");
    // The device goes on, with errors; nothing asks for a reset.
    for _ in 0..100 {
        assert_eq!(request(&mut guest, ring, 1, 3, 512), IO_ERROR);
    }
    assert_eq!(guest.status() & NEEDS_RESET, 0);
    let told = guest.told.lock().unwrap().clone();
    assert_eq!(
        told,
        ["queue 0: 2 requests failed on the host, the last one so: the back end is gone"]
    );
    // Through a pause, and from a reset on.
    guest.pause();
    guest.resume();
    assert_eq!(request(&mut guest, ring, 0, 3, 512), IO_ERROR);
    assert_eq!(guest.set_status(0), 0);
    let mut rings = guest.start(ALL, &[0]);
    assert_eq!(request(&mut guest, &mut rings[0], 0, 3, 512), IO_ERROR);
}

/// Neither in order nor noted by the back end: by our own account.
#[test]
fn a_disk_in_any_order_answers_with_errors_too() {
    let (serving, socket) = serve(disk(0));
    let mut guest = guest(socket, Options::block());
    let mut rings = guest.start(ALL, &[0]);
    let ring = &mut rings[0];
    *serving.disk.ignored.lock().unwrap() = 1;
    let stays = submit(&mut guest, ring, 0, 1, 512);
    guest.kick(0);
    // Others come and go, while the first one stays.
    for sector in 0..20 {
        assert_eq!(request(&mut guest, ring, 0, sector, 512), 0);
    }
    serving.die();
    assert_eq!(taken(&mut guest, ring).head, u32::from(stays));
    assert_eq!(guest.read(STATUS, 1)[0], IO_ERROR);
    for _ in 0..10 {
        assert_eq!(request(&mut guest, ring, 1, 3, 512), IO_ERROR);
    }
    assert_eq!(guest.status() & NEEDS_RESET, 0);
}

#[test]
fn where_nobody_knows_what_was_begun_the_driver_is_to_reset() {
    let (serving, socket) = serve(disk(0));
    let mut guest = guest(socket, Options::block());
    let mut rings = guest.start(ALL, &[0]);
    let ring = &mut rings[0];
    *serving.disk.ignored.lock().unwrap() = 1;
    submit(&mut guest, ring, 0, 1, 512);
    // So many answers, while the driver did not want to be told, that nobody saw them all.
    for sector in 0..64 {
        submit(&mut guest, ring, 0, sector % 8, 512);
        guest.kick(0);
        let end = Instant::now() + PATIENCE;
        while ring.take().is_none() {
            assert!(Instant::now() < end, "no answer");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    serving.die();
    until(&mut guest, "DEVICE_NEEDS_RESET", |guest| {
        (guest.status() & NEEDS_RESET != 0).then_some(())
    });
    assert_eq!(
        *guest.told.lock().unwrap(),
        ["the process that serves the device is lost: the back end is gone"]
    );
    // Then it is known: nothing.
    assert_eq!(guest.set_status(0), 0);
    let mut rings = guest.start(ALL, &[0]);
    assert_eq!(request(&mut guest, &mut rings[0], 0, 3, 512), IO_ERROR);
    assert_eq!(guest.status() & NEEDS_RESET, 0);
}

#[test]
fn a_back_end_that_dies_while_the_machine_is_paused() {
    let (serving, socket) = serve(disk(0));
    let mut guest = guest(socket, Options::block());
    let mut rings = guest.start(ALL, &[0]);
    assert_eq!(request(&mut guest, &mut rings[0], 0, 0, 512), 0);
    guest.pause();
    serving.die();
    let head = submit(&mut guest, &mut rings[0], 0, 0, 512);
    guest.kick(0);
    guest.resume();
    // Nothing was in flight, so no feature is needed for errors.
    assert_eq!(taken(&mut guest, &mut rings[0]).head, u32::from(head));
    assert_eq!(guest.read(STATUS, 1)[0], IO_ERROR);
}

/// One that hangs up when it is to stop the queue after `stopped` others, and that notes nothing.
fn dies_behind(stopped: usize) -> Liar {
    let mut liar = Liar::new(11, Lie::HangUp);
    let silent = without_notes();
    (liar.features, liar.protocol) = (silent.features, silent.protocol);
    liar.spared = stopped;
    liar
}

/// A queue that has stopped has nothing in flight, whatever becomes of the next.
#[test]
fn a_back_end_that_dies_between_two_queues_that_it_stops() {
    let socket = dies_behind(1).serve();
    let mut guest = guest(socket, Options::block().with_queues(2));
    let mut rings = guest.start(ALL, &[0, 1]);
    guest.pause();
    let head = submit(&mut guest, &mut rings[0], 0, 0, 512);
    guest.kick(0);
    guest.resume();
    assert_eq!(guest.status() & NEEDS_RESET, 0);
    assert_eq!(taken(&mut guest, &mut rings[0]).head, u32::from(head));
    assert_eq!(guest.read(STATUS, 1)[0], IO_ERROR);
    let head = submit(&mut guest, &mut rings[1], 0, 0, 512);
    guest.kick(1);
    assert_eq!(taken(&mut guest, &mut rings[1]).head, u32::from(head));
    assert_eq!(guest.read(STATUS, 1)[0], IO_ERROR);
}

/// What a card is to send is drained, and the card can be saved.
#[test]
fn the_same_of_a_card() {
    const MQ: u64 = 1 << 22;
    let mut liar = dies_behind(2);
    liar.features |= MQ;
    let mut guest = guest(liar.serve(), Options::net(None, None).with_queues(2));
    let mut rings = guest.start(ALL, &[0, 1, 2, 3, 4]);
    guest.pause();
    rings[1].submit(&[Readable(0x8_0000, 64)]);
    guest.kick(1);
    guest.resume();
    assert_eq!(taken(&mut guest, &mut rings[1]).length, 0);
    assert_eq!(guest.config(6, 2), 0, "the link is up");
    assert!(save(&mut guest).is_ok());
}

#[test]
fn a_file_system_is_not_connected_any_more() {
    let (serving, socket) = serve(disk(0));
    let options = Options::file_system("shared").unwrap().with_queues(2);
    let mut guest = guest(socket, options);
    // The tag, and the queues of requests.
    assert_eq!(guest.config(0, 8), u64::from_le_bytes(*b"shared\0\0"));
    assert_eq!(guest.config(36, 4), 2);
    serving.die();
    let mut rings = guest.start(ALL, &[0, 1, 2]);
    let ring = &mut rings[1];
    // FUSE_INIT by "struct fuse_in_header": length, operation, a number of its own, a node.
    let mut asked = [0; 40];
    asked[..4].copy_from_slice(&40u32.to_le_bytes());
    asked[4..8].copy_from_slice(&26u32.to_le_bytes());
    asked[8..16].copy_from_slice(&0x1122_3344_5566_7788u64.to_le_bytes());
    guest.write(0x8_0000, &asked);
    ring.submit(&[Readable(0x8_0000, 40), Writable(0x8_1000, 80)]);
    // One that has no answer (FUSE_FORGET).
    ring.submit(&[Readable(0x8_0000, 40)]);
    guest.kick(1);
    assert_eq!(taken(&mut guest, ring).length, 16);
    assert_eq!(taken(&mut guest, ring).length, 0);
    // Length, -ENOTCONN, the same number.
    let answer = guest.read(0x8_1000, 17);
    assert_eq!(answer[..4], 16u32.to_le_bytes());
    assert_eq!(answer[4..8], (-107i32).to_le_bytes());
    assert_eq!(answer[8..16], 0x1122_3344_5566_7788u64.to_le_bytes());
    assert_eq!(answer[16], 0);
}

#[test]
fn the_link_of_a_card_goes_down() {
    let (serving, socket) = serve(disk(1 << 15 | 1 << 17 | 1 << 22));
    let mut guest = guest(socket, Options::net(None, Some(1400)));
    // MTU and STATUS are ours; merged buffers and what this disk calls otherwise (11, 12: segmentation) the back end's;
    // no control queue and no more pairs, though it has both.
    let offered = guest.offered();
    let expected = 1 << 3 | 1 << 11 | 1 << 12 | 1 << 15 | 1 << 16;
    assert_eq!(offered & 0xff_ffff, expected, "{offered:#x}");
    assert_eq!(
        (guest.config(6, 2), guest.config(8, 2), guest.config(10, 2)),
        (1, 1, 1400)
    );
    guest.start(ALL, &[0, 1]);
    guest.vectors.take();
    serving.die();
    until(&mut guest, "link down", |guest| {
        (guest.config(6, 2) == 0).then_some(())
    });
    assert!(
        guest.vectors.delivered().contains(&0),
        "the driver was not told"
    );
    assert_eq!(guest.status() & NEEDS_RESET, 0);
    // After a reset what it sends is dropped, and what it would receive does not come.
    assert_eq!(guest.set_status(0), 0);
    let mut rings = guest.start(ALL, &[0, 1]);
    rings[0].submit(&[Writable(0x8_0000, 2048)]);
    rings[1].submit(&[Readable(0x8_0000, 64)]);
    guest.kick(0);
    guest.kick(1);
    assert_eq!(taken(&mut guest, &mut rings[1]).length, 0);
    assert_eq!(rings[0].take(), None);
    assert_eq!(guest.config(6, 2), 0);
}
