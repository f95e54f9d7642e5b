// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Network cards of several pairs of queues that another process serves: what that is told, in raw words, and our own back end.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::Ring;
use hvkit_virtio_devices::net::{self, FrameStream, Net, Wire};
use hvkit_virtio_devices::vhost_user::{Options, Reconnection};

use super::liar::{Liar, Lie, Message};
use super::ours::serve_device;
use super::{DATA, HEADER, PATIENCE, device, guest, shared_memory, taken, until};
use crate::support::guest::{Bus, Guest};
use crate::support::pattern;

const ALL: u64 = u64::MAX;
/// VIRTIO_NET_F_CTRL_VQ and VIRTIO_NET_F_MQ, by their numbers (5.1.3).
const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;
const COMMAND: u64 = 0x6000;
const ACK: u64 = 0x6100;

fn liar() -> Liar {
    let mut liar = Liar::new(99, Lie::HangUp);
    liar.features |= MQ;
    liar
}

/// Queue and 0 or 1, as SET_VRING_ENABLE had them since the last time, and forgets them.
fn enabled(heard: &Mutex<Vec<Message>>) -> Vec<[u32; 2]> {
    let mut heard = heard.lock().unwrap();
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
    let told = heard.iter().filter(|(request, _)| *request == 18);
    let told = told.map(|(_, state)| [word(&state[..4]), word(&state[4..])]);
    let told: Vec<_> = told.collect();
    heard.clear();
    told
}

/// Gives a command to the control queue: what is acknowledged.
fn command(guest: &mut Guest, queue: u16, ring: &mut Ring, bytes: &[u8]) -> u8 {
    guest.write(COMMAND, bytes);
    guest.write(ACK, &[0xee]);
    ring.submit(&[Readable(COMMAND, bytes.len() as u32), Writable(ACK, 1)]);
    guest.kick(queue);
    assert_eq!(taken(guest, ring).length, 1);
    guest.read(ACK, 1)[0]
}

/// VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
fn pairs(count: u16) -> [u8; 4] {
    let [low, high] = count.to_le_bytes();
    [4, 0, low, high]
}

#[test]
fn pairs_are_enabled_as_the_driver_says() {
    let liar = liar();
    let heard = liar.heard.clone();
    let mut guest = guest(liar.serve(), Options::net(None, None).with_queues(3));
    assert_eq!(guest.offered() & (CTRL_VQ | MQ), CTRL_VQ | MQ);
    assert_eq!(guest.config(8, 2), 3, "max_virtqueue_pairs");
    let mut rings = guest.start(ALL, &[0, 1, 2, 3, 4, 5, 6]);
    // It is told where six queues are, and of the control queue nothing, nor of its feature.
    let told = |request: u32| -> Vec<Vec<u8>> {
        let heard = heard.lock().unwrap();
        let told = heard.iter().filter(|(number, _)| *number == request);
        told.map(|(_, payload)| payload.clone()).collect()
    };
    for request in [8, 9, 10] {
        let queues: Vec<_> = told(request).iter().map(|state| state[0]).collect();
        assert_eq!(queues, [0, 1, 2, 3, 4, 5], "{request}");
    }
    let features = u64::from_ne_bytes(told(2)[0][..].try_into().unwrap());
    assert_eq!(features & (CTRL_VQ | MQ), MQ);
    assert_eq!(enabled(&heard), [[0, 1], [1, 1]]);
    let control = &mut rings[6];
    assert_eq!(command(&mut guest, 6, control, &pairs(3)), 0);
    assert_eq!(enabled(&heard), [[2, 1], [3, 1], [4, 1], [5, 1]]);
    assert_eq!(command(&mut guest, 6, control, &pairs(2)), 0);
    assert_eq!(enabled(&heard), [[4, 0], [5, 0]]);
    assert_eq!(command(&mut guest, 6, control, &pairs(2)), 0);
    // None, more than there are, another command, half a one.
    for wrong in [
        &pairs(0)[..],
        &pairs(4),
        &[4, 1, 2, 0],
        &[0, 0, 2, 0],
        &[4, 0, 2],
    ] {
        assert_eq!(command(&mut guest, 6, control, wrong), 1);
    }
    assert_eq!(enabled(&heard), [[0; 2]; 0]);
    // After a pause, as it was; after a reset, one.
    guest.pause();
    let Bus::Pci(driver) = &mut guest.bus else {
        unreachable!()
    };
    assert_eq!(driver.function.save().unwrap().session.device, [2, 0]);
    heard.lock().unwrap().clear();
    guest.resume();
    assert_eq!(enabled(&heard), [[0, 1], [1, 1], [2, 1], [3, 1]]);
    assert_eq!(guest.set_status(0), 0);
    heard.lock().unwrap().clear();
    guest.start(ALL, &[0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(enabled(&heard), [[0, 1], [1, 1]]);
    // A driver that knows of one pair has its control queue behind that.
    assert_eq!(guest.set_status(0), 0);
    heard.lock().unwrap().clear();
    let mut rings = guest.start(!MQ, &[0, 1, 2]);
    assert_eq!(enabled(&heard), [[0, 1], [1, 1]]);
    assert_eq!(command(&mut guest, 2, &mut rings[2], &pairs(1)), 0);
    assert_eq!(command(&mut guest, 2, &mut rings[2], &pairs(2)), 1);
    assert_eq!(enabled(&heard), [[0; 2]; 0]);
}

#[test]
fn pairs_that_cannot_be_had() {
    let made = |liar: Liar, pairs| {
        let options = Options::net(None, None).with_queues(pairs);
        let made = device(liar.serve(), options, &shared_memory());
        made.map_or_else(|error| error.to_string(), |_| "made".to_owned())
    };
    // It has four.
    assert_eq!(made(liar(), 4), "made");
    assert_eq!(made(liar(), 5), "5 queues, and the back end has 4");
    let mut one = liar();
    one.features &= !MQ;
    assert_eq!(
        made(one, 2),
        "the back end has no several pairs of queues (VIRTIO_NET_F_MQ)"
    );
    for wrong in [0, 65] {
        assert_eq!(
            made(liar(), wrong),
            format!("{wrong} queues; a device of this kind has 1 to 64")
        );
    }
    // One pair is as it was.
    let mut guest = guest(liar().serve(), Options::net(None, None));
    assert_eq!(guest.offered() & (CTRL_VQ | MQ), 0);
    assert_eq!(guest.config(8, 2), 1);
}

#[test]
fn another_back_end_is_told_how_many_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (ours, theirs) = UnixStream::pair().unwrap();
    let hang_up = theirs.try_clone().unwrap();
    let first = liar();
    std::thread::spawn(move || first.run(theirs));
    let reconnection = Reconnection::new(&path, Duration::from_millis(20));
    let options = Options::net(None, None).with_queues(2);
    let mut guest = guest(ours, options.with_reconnection(reconnection));
    let mut rings = guest.start(ALL, &[0, 1, 2, 3, 4]);
    hang_up.shutdown(std::net::Shutdown::Both).unwrap();
    until(&mut guest, "link down", |guest| {
        (guest.config(6, 2) == 0).then_some(())
    });
    // Said while nobody is there.
    assert_eq!(command(&mut guest, 4, &mut rings[4], &pairs(2)), 0);
    let second = liar();
    let heard = second.heard.clone();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || second.run(listener.accept().unwrap().0));
    until(&mut guest, "link", |guest| {
        (guest.config(6, 2) == 1).then_some(())
    });
    assert_eq!(enabled(&heard), [[0, 1], [1, 1], [2, 1], [3, 1]]);
}

#[test]
fn our_card_of_two_pairs_for_our_guest() {
    let (mut ends, mut wires) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        ends.push(ours);
        wires.push(Wire::Stream(FrameStream::new(theirs).unwrap()));
    }
    let card = Net::with_pairs(net::Options::new(), wires).unwrap();
    let (socket, serving) = serve_device(Box::new(card));
    let mut guest = guest(socket, Options::net(None, None).with_queues(2));
    let mut rings = guest.start(ALL, &[0, 1, 2, 3, 4]);
    for (at, queue) in (0..).zip([0usize, 2]) {
        rings[queue].submit(&[Writable(DATA + 0x1000 * at, 2048)]);
        guest.kick(queue as u16);
    }
    let frame = |mark, length: u32| {
        let frame = pattern(mark, length.into());
        [&length.to_be_bytes()[..], &frame].concat()
    };
    ends[1].write_all(&frame(3, 100)).unwrap();
    ends[0].write_all(&frame(5, 80)).unwrap();
    assert_eq!(taken(&mut guest, &mut rings[0]).length, 92);
    // The second is the driver's when it says so, with what came before.
    assert_eq!(rings[2].take(), None);
    assert_eq!(command(&mut guest, 4, &mut rings[4], &pairs(2)), 0);
    assert_eq!(taken(&mut guest, &mut rings[2]).length, 112);
    assert_eq!(guest.read(DATA + 0x1000 + 12, 100), pattern(3, 100));
    // And out, by either.
    guest.write(HEADER, &[0; 12]);
    for (at, queue) in [1usize, 3].into_iter().enumerate() {
        let frame = pattern(7 * at as u64, 60);
        guest.write(DATA, &frame);
        rings[queue].submit(&[Readable(HEADER, 12), Readable(DATA, 60)]);
        guest.kick(queue as u16);
        taken(&mut guest, &mut rings[queue]);
        let mut came = [0; 64];
        ends[at].read_exact(&mut came).unwrap();
        assert_eq!(came[4..], frame);
    }
    drop(guest);
    assert_eq!(serving.join().unwrap(), "hung up; ");
}
