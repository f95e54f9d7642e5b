// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network card with several pairs of queues, and its control queue.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::Ring;
use hvkit_virtio_devices::net::{MAX_PAIRS, Net, Options, OptionsError, Wire};

use crate::moved::moved;
use crate::support::END;
use crate::support::guest::{Guest, TRANSPORTS, Transport};

/// VIRTIO_NET_F_CTRL_VQ and VIRTIO_NET_F_MQ, by their numbers (5.1.3).
const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;

/// Without VIRTIO_NET_F_CTRL_RX: frames to anybody come.
const ANY: u64 = !(1 << 18);

const COMMAND: u64 = 0x8000;
const ACK: u64 = 0x8100;

fn wires(pairs: usize) -> (Vec<Wire>, Vec<UnixDatagram>) {
    let pair = |_| {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).unwrap();
        }
        (Wire::Frames(OwnedFd::from(theirs)), ours)
    };
    (0..pairs).map(pair).unzip()
}

/// A card of three pairs.
pub(crate) fn card() -> (Box<Net>, Vec<UnixDatagram>) {
    let (wires, ends) = wires(3);
    let net = Net::with_pairs(Options::new(), wires).unwrap();
    (Box::new(net), ends)
}

fn frame(mark: u8) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([mark; 60]);
    frame
}

/// Gives a command to the control queue `ring`, number `queue`: what the device acknowledges.
fn command(guest: &mut Guest, ring: &mut Ring, queue: u16, bytes: &[u8]) -> u8 {
    guest.write(COMMAND, bytes);
    guest.write(ACK, &[0xee]);
    ring.submit(&[Readable(COMMAND, bytes.len() as u32), Writable(ACK, 1)]);
    guest.run(queue);
    assert_eq!(ring.take().unwrap().length, 1);
    guest.read(ACK, 1)[0]
}

/// VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
fn pairs(count: u16) -> [u8; 4] {
    let [low, high] = count.to_le_bytes();
    [4, 0, low, high]
}

#[test]
fn a_card_says_how_many_pairs_it_has() {
    for transport in TRANSPORTS {
        let (net, _ends) = card();
        let mut guest = Guest::new(net, transport);
        assert_eq!(guest.offered() & (CTRL_VQ | MQ), CTRL_VQ | MQ);
        assert_eq!(guest.config(8, 2), 3, "max_virtqueue_pairs");
    }
    let (one, _ends) = wires(1);
    let net = Net::with_pairs(Options::new(), one).unwrap();
    let mut guest = Guest::new(Box::new(net), Transport::Pci);
    assert_eq!(guest.offered() & (CTRL_VQ | MQ), CTRL_VQ);
    assert_eq!(guest.config(8, 2), 0);
    for count in [0, usize::from(MAX_PAIRS) + 1] {
        let error = Net::with_pairs(Options::new(), wires(count).0).unwrap_err();
        assert_eq!(error, OptionsError::Pairs { pairs: count });
    }
}

#[test]
fn frames_come_from_as_many_wires_as_the_driver_says() {
    for transport in TRANSPORTS {
        let (net, ends) = card();
        let mut guest = Guest::new(net, transport);
        let mut rings = guest.start(ANY, &[0, 1, 2, 3, 4, 5, 6]);
        for (at, queue) in (0..3).zip([0usize, 2, 4]) {
            for buffer in 0..4 {
                rings[queue].submit(&[Writable(0x4_0000 + 0x1000 * (4 * at + buffer), 2000)]);
            }
            guest.kick(queue as u16);
            ends[at as usize].send(&frame(at as u8)).unwrap();
        }
        let came = |guest: &Guest, rings: &mut Vec<Ring>| {
            guest.step();
            [0, 2, 4].map(|queue: usize| rings[queue].take().map(|used| used.length))
        };
        // One pair, until the driver knows of more.
        assert_eq!(came(&guest, &mut rings), [Some(72), None, None]);
        // Then also what came before.
        assert_eq!(command(&mut guest, &mut rings[6], 6, &pairs(2)), 0);
        assert_eq!(came(&guest, &mut rings), [None, Some(72), None]);
        assert_eq!(guest.read(0x4_4000 + 12, 60), [1; 60]);
        assert_eq!(command(&mut guest, &mut rings[6], 6, &pairs(3)), 0);
        assert_eq!(came(&guest, &mut rings), [None, None, Some(72)]);
        // And none for those that it gives up.
        assert_eq!(command(&mut guest, &mut rings[6], 6, &pairs(1)), 0);
        for end in &ends {
            end.send(&frame(9)).unwrap();
        }
        assert_eq!(came(&guest, &mut rings), [Some(72), None, None]);
        // A reset begins with one.
        assert_eq!(command(&mut guest, &mut rings[6], 6, &pairs(3)), 0);
        assert_eq!(came(&guest, &mut rings), [None, Some(72), Some(72)]);
        assert_eq!(guest.set_status(0), 0);
        let mut rings = guest.start(ANY, &[0, 1, 2, 3, 4, 5, 6]);
        rings[2].submit(&[Writable(0x4_0000, 2000)]);
        guest.kick(2);
        ends[1].send(&frame(7)).unwrap();
        assert_eq!(came(&guest, &mut rings), [None; 3]);
    }
}

#[test]
fn each_pair_sends_on_its_own_wire() {
    let (net, ends) = card();
    let counters = net.counters().to_vec();
    let mut guest = Guest::new(net, Transport::Pci);
    let mut rings = guest.start(ANY, &[0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(command(&mut guest, &mut rings[6], 6, &pairs(3)), 0);
    for (at, queue) in [1usize, 3, 5].into_iter().enumerate() {
        guest.write(0x9000, &frame(at as u8));
        rings[queue].submit(&[Readable(0x9000, 72)]);
        guest.run(queue as u16);
        for (end, socket) in ends.iter().enumerate() {
            let mut heard = [0; 100];
            match socket.recv(&mut heard) {
                Ok(count) => assert_eq!((end, &heard[..count]), (at, &frame(at as u8)[..])),
                Err(_) => assert_ne!(end, at),
            }
        }
    }
    let sent = [1, 3, 5].map(|queue: usize| counters[queue].read().bytes);
    assert_eq!(sent, [72; 3]);
}

#[test]
fn commands_that_no_driver_may_give_are_refused() {
    for transport in TRANSPORTS {
        let (net, _ends) = card();
        let mut guest = Guest::new(net, transport);
        let mut rings = guest.start(ANY, &[0, 1, 6]);
        let ring = &mut rings[2];
        for bytes in [
            &pairs(0)[..],
            &pairs(4),
            &pairs(u16::MAX),
            // Another command, another class, too short, too long.
            &[4, 1, 1, 0],
            &[0, 0, 1, 0],
            &[3, 1],
            &[3, 0, 0],
            &[4, 0, 1],
            &[4],
            &[4, 0, 1, 0, 0],
        ] {
            assert_eq!(command(&mut guest, ring, 6, bytes), 1, "{bytes:?}");
        }
        // Not in memory: the command, then the acknowledgement.
        guest.write(ACK, &[0xee]);
        ring.submit(&[Readable(END, 4), Writable(ACK, 1)]);
        guest.run(6);
        assert_eq!(ring.take().unwrap().length, 1);
        assert_eq!(guest.read(ACK, 1), [1]);
        ring.submit(&[Readable(COMMAND, 4), Writable(END, 1)]);
        guest.run(6);
        assert_eq!(ring.take().unwrap().length, 0);
        assert_eq!(command(&mut guest, ring, 6, &pairs(1)), 0);
        assert_eq!(guest.status() & 0x40, 0);
        // No room for an acknowledgement.
        ring.submit(&[Readable(COMMAND, 4)]);
        guest.run(6);
        assert_ne!(guest.status() & 0x40, 0);
    }
}

#[test]
fn a_driver_that_knows_of_one_pair_has_its_control_queue_behind_it() {
    let (net, ends) = card();
    let mut guest = Guest::new(net, Transport::Pci);
    let mut rings = guest.start(ANY & !MQ, &[0, 1, 2]);
    assert_eq!(command(&mut guest, &mut rings[2], 2, &pairs(2)), 1);
    assert_eq!(command(&mut guest, &mut rings[2], 2, &pairs(1)), 0);
    rings[0].submit(&[Writable(0x9000, 2000)]);
    guest.kick(0);
    ends[0].send(&frame(5)).unwrap();
    guest.step();
    assert_eq!(rings[0].take().unwrap().length, 72);
    // And one that knows of no control queue has two queues.
    assert_eq!(guest.set_status(0), 0);
    let mut rings = guest.start(!(MQ | CTRL_VQ), &[0, 1]);
    rings[0].submit(&[Writable(0x9000, 2000)]);
    guest.kick(0);
    ends[0].send(&frame(6)).unwrap();
    guest.step();
    assert_eq!(rings[0].take().unwrap().length, 72);
}

#[test]
fn the_pairs_that_are_used_go_along_with_a_machine() {
    for transport in TRANSPORTS {
        let (old, _ends) = card();
        let mut guest = Guest::new(old, transport);
        let mut rings = guest.start(ANY, &[0, 1, 2, 3, 6]);
        assert_eq!(command(&mut guest, &mut rings[4], 6, &pairs(2)), 0);
        let (new, ends) = card();
        let guest = moved(&mut guest, new);
        rings[2].submit(&[Writable(0x9000, 2000)]);
        ends[1].send(&frame(3)).unwrap();
        let mut guest = guest;
        guest.run(2);
        assert_eq!(rings[2].take().unwrap().length, 72);
        assert_eq!(guest.read(0x9000 + 12, 60), [3; 60]);
    }
}
