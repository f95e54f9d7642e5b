// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames over several chains (VIRTIO_NET_F_MRG_RXBUF), with a datagram socket for a wire.
//!
//! "Processing of Incoming Packets" (5.1.6.4).

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use hvkit_virtio_devices::fake::Buffer::Writable;
use hvkit_virtio_devices::fake::{Ring, Used};
use hvkit_virtio_devices::net::{Net, Options, Wire};
use proptest::prelude::*;

use crate::support::END;
use crate::support::guest::{Guest, TRANSPORTS, Transport};

/// Where chains lie, each this far from the last.
const FIRST: u64 = 0x4_0000;
const APART: u64 = 0x3000;

struct Card {
    guest: Guest,
    rings: Vec<Ring>,
    wire: UnixDatagram,
    /// Chains offered so far: the address of each by its head.
    places: Vec<(u16, u64)>,
}

impl Card {
    fn new(transport: Transport) -> Self {
        let (wire, theirs) = UnixDatagram::pair().unwrap();
        for end in [&wire, &theirs] {
            end.set_nonblocking(true).unwrap();
        }
        let net = Net::new(Options::new(), Wire::Frames(OwnedFd::from(theirs)));
        let mut guest = Guest::new(Box::new(net), transport);
        let rings = guest.start(u64::MAX, &[0, 1]);
        Self {
            guest,
            rings,
            wire,
            places: Vec::new(),
        }
    }

    /// Offers a chain of `length` bytes in two buffers.
    fn offer(&mut self, length: u32) {
        let at = FIRST + APART * (self.places.len() as u64 % 64);
        let (first, second) = (length / 3, length - length / 3);
        let buffers = [Writable(at, first), Writable(at + u64::from(first), second)];
        let head = self.rings[0].submit(&buffers);
        self.places.push((head, at));
    }

    fn take(&mut self) -> Option<Used> {
        self.rings[0].take()
    }

    /// The next frame as a driver puts it together, and the chains it was in.
    fn frame(&mut self) -> Option<(Vec<u8>, u16)> {
        let mut whole = Vec::new();
        let mut chains = 1;
        let mut taken = 0;
        while taken < chains {
            let used = self.take();
            let Some(used) = used else {
                assert_eq!(taken, 0, "num_buffers says {chains}");
                return None;
            };
            let place = self
                .places
                .iter()
                .rfind(|place| u32::from(place.0) == used.head);
            let bytes = self.guest.read(place.unwrap().1, used.length as usize);
            whole.extend(bytes);
            if taken == 0 {
                chains = u16::from_le_bytes([whole[10], whole[11]]);
                assert_ne!(chains, 0);
            }
            taken += 1;
        }
        whole.drain(..12);
        Some((whole, chains))
    }

    fn send(&self, mark: u8, length: usize) -> Vec<u8> {
        let frame: Vec<u8> = (0..length).map(|at| (at % 251) as u8 ^ mark).collect();
        let mut whole = vec![0; 12];
        whole.extend(&frame);
        self.wire.send(&whole).unwrap();
        frame
    }

    /// The driver's index at which it is to notify the device.
    fn avail_event(&self) -> u16 {
        let ring = &self.rings[0];
        ring.get16(ring.used + 4 + 8 * u64::from(ring.size))
    }
}

#[test]
fn a_frame_is_in_as_many_chains_as_it_needs() {
    for transport in TRANSPORTS {
        let mut card = Card::new(transport);
        for _ in 0..4 {
            card.offer(1000);
        }
        let sent = card.send(1, 2500);
        card.guest.run(0);
        let used: Vec<u32> = (0..3).map(|_| card.take().unwrap().length).collect();
        // 2512 with the header; only the last may be left with room.
        assert_eq!(used, [1000, 1000, 512]);
        assert_eq!(card.take(), None, "the fourth was not needed");
        assert_eq!(card.guest.read(FIRST + 10, 2), [3, 0], "num_buffers");
        let mut got = card.guest.read(FIRST + 12, 988);
        got.extend(card.guest.read(FIRST + APART, 1000));
        got.extend(card.guest.read(FIRST + 2 * APART, 512));
        assert_eq!(got, sent);
        // And the fourth is next.
        let sent = card.send(2, 60);
        card.guest.step();
        assert_eq!(card.frame(), Some((sent, 1)));
    }
}

#[test]
fn a_frame_waits_for_chains_and_the_driver_is_asked_for_them() {
    let mut card = Card::new(Transport::Pci);
    // What it has had once, it may have again.
    for _ in 0..3 {
        card.offer(1000);
    }
    let sent = card.send(1, 2600);
    card.guest.run(0);
    assert_eq!(card.frame(), Some((sent, 3)));
    card.offer(1000);
    card.offer(1000);
    let long = card.send(2, 2000);
    let short = card.send(3, 60);
    card.guest.run(0);
    assert_eq!(card.frame(), None);
    assert_eq!(
        card.avail_event(),
        5,
        "the sixth chain is worth a notification"
    );
    card.offer(1000);
    card.guest.run(0);
    assert_eq!(card.frame(), Some((long, 3)));
    card.offer(72);
    card.guest.run(0);
    assert_eq!(card.frame(), Some((short, 1)));
}

#[test]
fn what_the_driver_never_had_room_for_is_lost() {
    let mut card = Card::new(Transport::Pci);
    card.offer(1000);
    card.offer(1000);
    card.send(1, 3000);
    let sent = card.send(2, 1500);
    card.guest.run(0);
    assert_eq!(card.frame(), Some((sent, 2)));
}

#[test]
fn a_driver_that_has_less_room_than_it_had_loses_a_frame_and_goes_on() {
    let mut card = Card::new(Transport::Mmio);
    for _ in 0..3 {
        card.offer(1000);
    }
    card.send(1, 2600);
    card.guest.run(0);
    assert!(card.frame().is_some());
    card.offer(1000);
    card.send(2, 2600);
    let sent = card.send(3, 60);
    // It is waited for, but not for ever.
    for _ in 0..2000 {
        card.guest.run(0);
    }
    assert_eq!(card.frame(), Some((sent, 1)));
}

#[test]
fn chains_that_are_not_in_memory_or_too_short() {
    let mut card = Card::new(Transport::Pci);
    // The second of a frame's chains is nowhere: what has come is lost, a chain at a time.
    card.offer(100);
    card.rings[0].submit(&[Writable(END, 2000)]);
    card.offer(100);
    card.send(1, 150);
    card.guest.run(0);
    assert_eq!(card.take().unwrap().length, 0);
    let sent = card.send(2, 60);
    card.guest.run(0);
    assert_eq!(card.take().unwrap().length, 0);
    assert_eq!(card.frame(), Some((sent, 1)));
    // Each has to have room for a header (5.1.6.3.1).
    card.offer(12);
    card.send(3, 60);
    card.guest.run(0);
    assert_eq!(card.guest.status() & 0x40, 0);
    card.offer(11);
    card.guest.run(0);
    assert_ne!(card.guest.status() & 0x40, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the sizes, a driver that has room in the end gets every frame, whole and in order.
    #[test]
    fn frames_arrive_whole_and_in_order(
        frames in prop::collection::vec(prop_oneof![1usize..200, 1usize..9000], 1..12),
        chains in prop::collection::vec(12u32..9000, 12..40),
    ) {
        let mut card = Card::new(Transport::Pci);
        // Room for the largest, once: then no frame is given up.
        for _ in 0..8 {
            card.offer(9000);
        }
        let first = card.send(0xff, 9000);
        card.guest.run(0);
        prop_assert_eq!(card.frame().unwrap().0, first);
        let mut chains = chains.into_iter().cycle();
        for (mark, length) in (0u8..).zip(frames) {
            let sent = card.send(mark, length);
            card.guest.step();
            let mut offered = 0;
            let got = loop {
                if let Some((got, _)) = card.frame() {
                    break got;
                }
                prop_assert!(offered < 800, "a frame of {} does not come", length);
                card.offer(chains.next().unwrap());
                offered += 1;
                card.guest.run(0);
            };
            prop_assert_eq!(got, sent);
        }
    }
}
