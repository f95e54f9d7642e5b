// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A back end that does what it should.

use super::peer::{Disk, serve};
use super::{DATA, device, guest, request, shared_memory, submit, taken};
use crate::support::guest::{Bus, ring_at};
use crate::support::pattern;
use hvkit_virtio_devices::vhost_user::{Options, SharedMemory};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const ALL: u64 = u64::MAX;
const SECTORS: u64 = 128;

fn disk() -> Disk {
    Disk::new(pattern(0, SECTORS * 512))
}

#[test]
fn a_disk_is_read_and_written() {
    let (serving, socket) = serve(disk());
    let mut guest = guest(socket, Options::block().with_queues(2));
    // Capacity is the back end's, the number of queues ours.
    assert_eq!(guest.config(0, 8), SECTORS);
    assert_eq!(guest.config(0x22, 2), 2);
    // No packed queues and no writable cache mode, though the back end has both.
    let offered = guest.offered();
    assert_eq!(offered & (1 << 34 | 1 << 11), 0, "{offered:#x}");
    assert_eq!(
        offered & (1 << 28 | 1 << 29 | 1 << 32 | 1 << 2 | 1 << 12),
        { 1 << 28 | 1 << 29 | 1 << 32 | 1 << 2 | 1 << 12 }
    );
    let mut rings = guest.start(ALL, &[0, 1]);
    guest.vectors.take();
    for round in 0..80u64 {
        let ring = &mut rings[0];
        assert_eq!(request(&mut guest, ring, 0, round, 1024), 0);
        assert_eq!(
            guest.read(DATA, 1024),
            pattern(round * 512, 1024),
            "{round}"
        );
    }
    guest.write(DATA, &[0xab; 512]);
    assert_eq!(request(&mut guest, &mut rings[0], 1, 5, 512), 0);
    assert_eq!(
        serving.disk.sectors.lock().unwrap()[5 * 512..6 * 512],
        [0xab; 512]
    );
    // Each by its own queue's vector, and nothing else was told to anybody.
    let delivered = guest.vectors.delivered();
    assert!(
        !delivered.is_empty() && delivered.iter().all(|v| *v == 1),
        "{delivered:?}"
    );
    assert!(guest.told.lock().unwrap().is_empty());
    // Settled: with the protocol's own bit.
    let acked = *serving.disk.acked.lock().unwrap();
    assert_eq!(acked & (1 << 30 | 1 << 32 | 1 << 34), 1 << 30 | 1 << 32);
}

#[test]
fn a_pause_stops_the_back_end_and_a_reset_begins_anew() {
    let (serving, socket) = serve(disk());
    let mut guest = guest(socket, Options::block());
    let mut rings = guest.start(ALL, &[0]);
    assert_eq!(request(&mut guest, &mut rings[0], 0, 1, 512), 0);
    for _ in 0..3 {
        guest.pause();
        // Made available while nobody serves.
        guest.write(DATA, &[0; 512]);
        let head = submit(&mut guest, &mut rings[0], 0, 7, 512);
        guest.kick(0);
        std::thread::sleep(std::time::Duration::from_millis(20));
        guest.step();
        assert_eq!(rings[0].take(), None, "served while it was paused");
        guest.resume();
        assert_eq!(taken(&mut guest, &mut rings[0]).head, u32::from(head));
        assert_eq!(guest.read(DATA, 512), pattern(7 * 512, 512));
    }
    // A queue of another size, at another place, that begins at 0.
    assert_eq!(guest.set_status(0), 0);
    let mut rings = guest.start(ALL & !(1 << 29), &[0]);
    assert_eq!(request(&mut guest, &mut rings[0], 0, 2, 512), 0);
    assert_eq!(guest.read(DATA, 512), pattern(2 * 512, 512));
    assert_eq!(*serving.disk.acked.lock().unwrap() & 1 << 29, 0);
    assert!(guest.told.lock().unwrap().is_empty());
}

#[test]
fn a_paused_disk_goes_on_in_another_machine() {
    let (_first, socket) = serve(disk());
    let mut old = guest(socket, Options::block());
    let mut rings = old.start(ALL, &[0]);
    for sector in 0..3 {
        assert_eq!(request(&mut old, &mut rings[0], 0, sector, 512), 0);
    }
    old.pause();
    let Bus::Pci(driver) = &old.bus else {
        unreachable!("made so")
    };
    let state = driver.function.save().unwrap();
    // Another process serves the other one, over the same memory.
    let (_second, socket) = serve(disk());
    let device = device(socket, Options::block(), &old.memory).unwrap();
    let mut new = crate::support::guest::Guest::in_memory(
        Box::new(device),
        crate::support::guest::Transport::Pci,
        old.memory.clone(),
    );
    new.pause();
    let Bus::Pci(driver) = &mut new.bus else {
        unreachable!("made so")
    };
    driver.function.restore(&state).unwrap();
    new.resume();
    assert_eq!(request(&mut new, &mut rings[0], 0, 9, 512), 0);
    assert_eq!(new.read(DATA, 512), pattern(9 * 512, 512));
    assert_eq!(state.session.queues[0].config.descriptor_area, ring_at(0));
    assert_eq!(state.session.queues[0].position.unwrap().available, 3);
}

#[test]
fn what_cannot_be_asked_for() {
    let ask = |options: Options| {
        let (_serving, socket) = serve(disk());
        device(socket, options, &shared_memory())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        ask(Options::block().with_queues(0)),
        "0 queues; a device of this kind has 1 to 64"
    );
    assert_eq!(
        ask(Options::block().with_queues(5)),
        "5 queues, and the back end has 4"
    );
    assert_eq!(
        ask(Options::block().with_queue_size(3)),
        "3 descriptors in a queue; it must be a power of two from 4 to 32768"
    );
    let tag = |tag: &str| Options::file_system(tag).unwrap_err().to_string();
    assert_eq!(
        tag(""),
        "a tag of 0 bytes; it must have 1 to 36, and no zero among them"
    );
    assert_eq!(tag("a\0").split(';').next(), Some("a tag of 2 bytes"));
    assert_eq!(
        tag(&"x".repeat(37)).split(';').next(),
        Some("a tag of 37 bytes")
    );
    assert!(Options::file_system(&"x".repeat(36)).is_ok());
}

#[test]
fn memory_that_no_other_process_can_have() {
    let anonymous = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x1000), 0x1000)]).unwrap();
    let error = SharedMemory::of(&anonymous).unwrap_err().to_string();
    assert_eq!(
        error,
        "memory at 0x1000 is in no file, so no other process can be given it"
    );
    let error = SharedMemory::of(&GuestMemoryMmap::<()>::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "0 regions of memory; a back end is told of at most 8"
    );
    let shared = SharedMemory::of(&*shared_memory()).unwrap();
    let ranges: Vec<_> = shared.ranges().collect();
    assert_eq!(ranges, [(0, 0x10_0000), (0x10_0000, 0x10_0000)]);
}
