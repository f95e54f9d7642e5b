// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a driver says of the frames that it wants, and what it is then given, on raw words.
//!
//! "Packet Receive Filtering" (5.1.6.5.1), "Setting MAC Address Filtering" (5.1.6.5.2), "VLAN Filtering" (5.1.6.5.3).

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use hvkit_virtio_devices::device::{Device, StateError};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::Ring;
use hvkit_virtio_devices::net::{
    Duplex, FrameStream, LinkState, MacAddress, Net, Options, OptionsError, Wire,
};

use crate::moved::moved;
use crate::support::END;
use crate::support::guest::{Bus, Guest, Memory, TRANSPORTS, Transport};

/// Features by their numbers (5.1.3).
const MAC: u64 = 1 << 5;
const MRG_RXBUF: u64 = 1 << 15;
const CTRL_VQ: u64 = 1 << 17;
const CTRL_RX: u64 = 1 << 18;
const CTRL_VLAN: u64 = 1 << 19;
const CTRL_RX_EXTRA: u64 = 1 << 20;
const CTRL_MAC_ADDR: u64 = 1 << 23;
const SPEED_DUPLEX: u64 = 1 << 63;

/// Commands: class, command.
const PROMISC: [u8; 2] = [0, 0];
const ALLMULTI: [u8; 2] = [0, 1];
const MAC_TABLE_SET: [u8; 2] = [1, 0];
const MAC_ADDR_SET: [u8; 2] = [1, 1];
const VLAN_ADD: [u8; 2] = [2, 0];
const VLAN_DEL: [u8; 2] = [2, 1];

/// VIRTIO_NET_OK, VIRTIO_NET_ERR.
const OK: u8 = 0;
const ERR: u8 = 1;

const OWN: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const OTHER: [u8; 6] = [0x52, 0x54, 0, 0xab, 0xcd, 0xef];
const LISTED: [u8; 6] = [2, 0, 0, 0, 0, 9];
const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
const LISTED_GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 2];
const ALL: [u8; 6] = [0xff; 6];

const COMMAND: u64 = 0x8000;
const ACK: u64 = 0x8f00;

/// Where frames come from.
#[derive(Clone, Copy, Debug)]
enum From {
    Datagrams,
    Stream,
}

enum End {
    Datagrams(UnixDatagram),
    Stream(UnixStream),
}

struct Card {
    guest: Guest,
    rings: Vec<Ring>,
    end: End,
    mark: u8,
    /// Whether a chain waits for a frame.
    offered: bool,
}

fn options() -> Options {
    Options::new().with_mac(MacAddress(OWN)).unwrap()
}

fn net(from: From, options: Options) -> (Box<Net>, End) {
    let (wire, end) = match from {
        From::Datagrams => {
            let (ours, theirs) = UnixDatagram::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            (Wire::Frames(OwnedFd::from(theirs)), End::Datagrams(ours))
        }
        From::Stream => {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let wire = Wire::Stream(FrameStream::new(theirs).unwrap());
            (wire, End::Stream(ours))
        }
    };
    (Box::new(Net::new(options, wire)), end)
}

impl Card {
    fn new(transport: Transport, features: u64) -> Self {
        Self::on(From::Datagrams, transport, features, options())
    }

    fn on(from: From, transport: Transport, features: u64, options: Options) -> Self {
        let (net, end) = net(from, options);
        let mut guest = Guest::new(net, transport);
        let queues: &[u16] = match features & CTRL_VQ {
            0 => &[0, 1],
            _ => &[0, 1, 2],
        };
        let rings = guest.start(features, queues);
        Self {
            guest,
            rings,
            end,
            mark: 0,
            offered: false,
        }
    }

    /// What the device answers to a command.
    fn command(&mut self, command: [u8; 2], data: &[u8]) -> u8 {
        let bytes = [&command, data].concat();
        self.guest.write(COMMAND, &bytes);
        self.guest.write(ACK, &[0xee]);
        let ring = &mut self.rings[2];
        ring.submit(&[Readable(COMMAND, bytes.len() as u32), Writable(ACK, 1)]);
        self.guest.run(2);
        assert_eq!(self.rings[2].take().unwrap().length, 1);
        self.guest.read(ACK, 1)[0]
    }

    /// Whether a frame that begins so reaches the driver.
    fn gets_frame(&mut self, begin: &[u8]) -> bool {
        // A mark, so that no frame is taken for another.
        self.mark = self.mark.wrapping_add(1);
        let mut frame = begin.to_vec();
        frame.resize(60, self.mark);
        match &mut self.end {
            End::Datagrams(end) => {
                let whole = [&[0; 12][..], &frame].concat();
                end.send(&whole).unwrap();
            }
            End::Stream(end) => {
                end.write_all(&60u32.to_be_bytes()).unwrap();
                end.write_all(&frame).unwrap();
            }
        }
        if !std::mem::replace(&mut self.offered, true) {
            self.rings[0].submit(&[Writable(0x4_0000, 20), Writable(0x4_1000, 2000)]);
            self.guest.kick(0);
        }
        self.guest.step();
        let Some(used) = self.rings[0].take() else {
            return false;
        };
        self.offered = false;
        assert_eq!(used.length, 72);
        let came = [
            self.guest.read(0x4_0000 + 12, 8),
            self.guest.read(0x4_1000, 52),
        ]
        .concat();
        assert_eq!(came, frame, "another frame");
        assert_eq!(self.rings[0].take(), None);
        true
    }

    /// Whether a frame to that address does.
    fn gets(&mut self, to: [u8; 6]) -> bool {
        self.gets_frame(&[&to[..], &[2, 0, 0, 0, 0, 1, 8, 0]].concat())
    }

    /// Which of these it gets, in their order.
    fn all(&mut self) -> [bool; 6] {
        [OWN, OTHER, LISTED, GROUP, LISTED_GROUP, ALL].map(|to| self.gets(to))
    }

    /// A frame of VLAN `tag`, with the tag's priority.
    fn gets_tagged(&mut self, to: [u8; 6], kind: u16, tag: u16) -> bool {
        let rest = [
            [2, 0],
            [0, 0],
            [0, 1],
            kind.to_be_bytes(),
            tag.to_be_bytes(),
        ];
        self.gets_frame(&[&to[..], rest.as_flattened()].concat())
    }
}

/// The tables of VIRTIO_NET_CTRL_MAC_TABLE_SET.
fn tables(single: &[[u8; 6]], groups: &[[u8; 6]]) -> Vec<u8> {
    let one = |table: &[[u8; 6]]| {
        let count = (table.len() as u32).to_le_bytes();
        [&count, table.as_flattened()].concat()
    };
    [one(single), one(groups)].concat()
}

#[test]
fn filters_are_offered_and_the_speed_if_there_is_one() {
    let filters = CTRL_RX | CTRL_VLAN | CTRL_RX_EXTRA | CTRL_MAC_ADDR;
    for transport in TRANSPORTS {
        let mut plain = Guest::new(net(From::Stream, options()).0, transport);
        assert_eq!(plain.offered() & (filters | SPEED_DUPLEX), filters);
        assert_eq!([plain.config(12, 4), plain.config(16, 1)], [0, 0]);
        for (duplex, raw) in [(Duplex::Half, 0), (Duplex::Full, 1)] {
            let options = options().with_speed(0x0001_86a0, duplex).unwrap();
            let mut fast = Guest::new(net(From::Stream, options).0, transport);
            assert_eq!(fast.offered() & SPEED_DUPLEX, SPEED_DUPLEX);
            let config = [fast.config(12, 4), fast.config(16, 1), fast.config(17, 4)];
            assert_eq!(config, [100_000, raw, 0]);
        }
    }
    let megabits = 1 << 31;
    let error = Options::new().with_speed(megabits, Duplex::Full);
    assert_eq!(error.unwrap_err(), OptionsError::Speed { megabits });
    Options::new()
        .with_speed(megabits - 1, Duplex::Full)
        .unwrap();
}

/// The sentences of "Packet Receive Filtering", one after the other: for every state of the six modes, every kind of frame.
#[test]
fn every_mode_does_what_is_said_of_it() {
    for from in [From::Datagrams, From::Stream] {
        for merged in [0, MRG_RXBUF] {
            let mut card = Card::on(from, Transport::Pci, !MRG_RXBUF | merged, options());
            let table = tables(&[LISTED], &[LISTED_GROUP]);
            assert_eq!(card.command(MAC_TABLE_SET, &table), OK);
            for modes in 0..64u8 {
                for command in 0..6 {
                    let on = modes >> command & 1;
                    assert_eq!(card.command([0, command], &[on]), OK);
                }
                let [promisc, allmulti, alluni, nomulti, nouni, nobcast] =
                    [0, 1, 2, 3, 4, 5].map(|mode| modes >> mode & 1 == 1);
                // "matches neither the mac (or that set with VIRTIO_NET_CTRL_MAC_ADDR_SET) nor the MAC filtering table".
                let mut expected = [true, false, true, false, true, true];
                if allmulti {
                    (expected[3], expected[4]) = (true, true);
                }
                if alluni {
                    expected[..3].fill(true);
                }
                // "This SHOULD take effect even if ALLMULTI is on", "SHOULD NOT apply to broadcast packets".
                if nomulti {
                    (expected[3], expected[4]) = (false, false);
                }
                if nouni {
                    expected[..3].fill(false);
                }
                if nobcast {
                    expected[5] = false;
                }
                // "This SHOULD take effect even if one of the other modes is on."
                if promisc {
                    expected.fill(true);
                }
                assert_eq!(card.all(), expected, "{from:?}, {merged:#x}, {modes:#08b}");
            }
        }
    }
}

/// A driver that knows nothing of it, or has no control queue to say it on, is given everything.
#[test]
fn who_asks_for_nothing_gets_everything() {
    let filters = CTRL_RX | CTRL_VLAN | CTRL_RX_EXTRA;
    for transport in TRANSPORTS {
        for features in [!filters, !CTRL_VQ] {
            let mut card = Card::new(transport, features);
            assert_eq!(card.all(), [true; 6]);
            assert!(card.gets_tagged(OTHER, 0x8100, 5));
            if features & CTRL_VQ != 0 {
                for command in [PROMISC, ALLMULTI, [0, 2], [0, 5]] {
                    assert_eq!(card.command(command, &[1]), ERR);
                }
                assert_eq!(card.command(MAC_TABLE_SET, &tables(&[], &[])), ERR);
                assert_eq!(card.command(VLAN_ADD, &[1, 0]), ERR);
            }
        }
        // Each class belongs to its feature.
        let mut card = Card::new(transport, !CTRL_RX);
        assert_eq!(card.command(PROMISC, &[0]), ERR);
        assert_eq!(card.command([0, 4], &[1]), OK);
        assert_eq!(card.all(), [false, false, false, true, true, true]);
        let mut card = Card::new(transport, !CTRL_RX_EXTRA);
        assert_eq!(card.command([0, 2], &[1]), ERR);
        assert_eq!(card.all(), [true, false, false, false, false, true]);
        let mut card = Card::new(transport, !(CTRL_RX | CTRL_MAC_ADDR));
        assert_eq!(card.command(MAC_ADDR_SET, &LISTED), ERR);
    }
}

/// No frame of which there is not enough to say whom it is for is kept back.
#[test]
fn a_frame_too_short_for_an_address_is_let_through() {
    let mut card = Card::new(Transport::Pci, u64::MAX);
    let End::Datagrams(end) = &card.end else {
        unreachable!()
    };
    end.send(&[&[0; 12][..], &OTHER[..5]].concat()).unwrap();
    card.rings[0].submit(&[Writable(0x4_0000, 2000)]);
    // What lies behind it in memory is not of it.
    card.guest.write(0x4_0000, &[0xaa; 64]);
    card.guest.run(0);
    assert_eq!(card.rings[0].take().unwrap().length, 17);
}

#[test]
fn malformed_commands_are_errors_and_change_nothing() {
    for transport in TRANSPORTS {
        let mut card = Card::new(transport, u64::MAX);
        let table = tables(&[LISTED], &[LISTED_GROUP]);
        assert_eq!(card.command(MAC_TABLE_SET, &table), OK);
        assert_eq!(card.command(VLAN_ADD, &[7, 0]), OK);
        for command in 0..6 {
            for data in [&[][..], &[2], &[0xff], &[1, 0], &[0, 0, 0]] {
                assert_eq!(card.command([0, command], data), ERR, "{command}, {data:?}");
            }
        }
        for command in [[0, 6], [1, 2], [2, 2], [5, 0], [0xff, 0xff]] {
            assert_eq!(card.command(command, &[1]), ERR, "{command:?}");
        }
        let mut longer = table.clone();
        longer.push(0);
        let mut shorter = table.clone();
        shorter.pop();
        let mut counts = table.clone();
        counts[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut all_groups = table.clone();
        all_groups[10..14].copy_from_slice(&u32::MAX.to_le_bytes());
        for data in [
            &[][..],
            &[0, 0, 0],
            // The second table is missing.
            &[0; 4],
            &[0; 7],
            &longer,
            &shorter,
            &counts,
            &all_groups,
            &tables(&[GROUP], &[]),
            &tables(&[], &[OTHER]),
        ] {
            assert_eq!(card.command(MAC_TABLE_SET, data), ERR, "{data:?}");
        }
        for data in [
            &[][..],
            &OWN[..5],
            &[&OWN[..], &[0]].concat(),
            &[0; 6],
            &GROUP,
            &ALL,
        ] {
            assert_eq!(card.command(MAC_ADDR_SET, data), ERR, "{data:?}");
        }
        for command in [VLAN_ADD, VLAN_DEL] {
            for data in [&[][..], &[7], &[7, 0, 0], &[0, 0x10], &[0xff, 0xff]] {
                assert_eq!(card.command(command, data), ERR, "{data:?}");
            }
        }
        // Not in memory: the end of a table.
        card.guest
            .write(COMMAND, &[&MAC_TABLE_SET[..], &table[..5]].concat());
        let buffers = [
            Readable(COMMAND, 7),
            Readable(END - 3, 15),
            Writable(ACK, 1),
        ];
        card.rings[2].submit(&buffers);
        card.guest.run(2);
        card.rings[2].take().unwrap();
        assert_eq!(card.guest.read(ACK, 1), [ERR]);
        assert_eq!(card.guest.status() & 0x40, 0);
        // It is all as it was.
        assert_eq!(card.all(), [true, false, true, false, true, true]);
        let vlans = [7, 8].map(|vlan| card.gets_tagged(OWN, 0x8100, vlan));
        assert_eq!(vlans, [true, false]);
        assert_eq!(card.guest.config(0, 6), 0x5634_1200_5452);
    }
}

/// However a command is cut.
#[test]
fn a_command_may_lie_in_any_pieces() {
    let mut card = Card::new(Transport::Pci, u64::MAX);
    let bytes = [&MAC_TABLE_SET[..], &tables(&[LISTED], &[LISTED_GROUP])].concat();
    for cut in 1..bytes.len() {
        assert_eq!(card.command(MAC_TABLE_SET, &tables(&[], &[])), OK);
        assert_eq!([card.gets(LISTED), card.gets(LISTED_GROUP)], [false; 2]);
        card.guest.write(COMMAND, &bytes[..cut]);
        card.guest.write(0xc000, &bytes[cut..]);
        let rest = (bytes.len() - cut) as u32;
        card.rings[2].submit(&[
            Readable(COMMAND, cut as u32),
            Readable(0xc000, rest),
            Writable(ACK, 1),
        ]);
        card.guest.run(2);
        card.rings[2].take().unwrap();
        assert_eq!(card.guest.read(ACK, 1), [OK]);
        assert_eq!([card.gets(LISTED), card.gets(LISTED_GROUP)], [true; 2]);
    }
}

/// 64 of each, as documented; beyond that all of the kind.
#[test]
fn tables_are_bounded_and_what_is_beyond_them_lets_all_through() {
    let many = |first: u8, count: u8| {
        (0..count)
            .map(|at| [first, 0, 0, 0, 1, at])
            .collect::<Vec<_>>()
    };
    let mut card = Card::new(Transport::Mmio, u64::MAX);
    let set = |card: &mut Card, single: u8, groups: u8| {
        let table = tables(&many(2, single), &many(3, groups));
        assert_eq!(card.command(MAC_TABLE_SET, &table), OK);
    };
    set(&mut card, 64, 64);
    assert_eq!(card.all(), [true, false, false, false, false, true]);
    assert!(card.gets([2, 0, 0, 0, 1, 63]) && card.gets([3, 0, 0, 0, 1, 63]));
    set(&mut card, 65, 64);
    assert_eq!(card.all(), [true, true, true, false, false, true]);
    set(&mut card, 64, 65);
    assert_eq!(card.all(), [true, false, false, true, true, true]);
    set(&mut card, 0, 0);
    assert_eq!(card.all(), [true, false, false, false, false, true]);
}

#[test]
fn a_card_takes_the_address_that_it_is_given() {
    for transport in TRANSPORTS {
        let generation = |card: &mut Card| match &mut card.guest.bus {
            Bus::Pci(driver) => driver.get(driver.common, 0x15, 1),
            Bus::Mmio(driver) => driver.get(0x0fc).into(),
        };
        let mut card = Card::new(transport, u64::MAX);
        let before = generation(&mut card);
        assert_eq!(card.command(MAC_ADDR_SET, &LISTED), OK);
        // Read in parts, it must not be taken for a mixture (2.5.2).
        assert_ne!(generation(&mut card), before);
        assert_eq!(card.guest.config(0, 6), 0x0900_0000_0002);
        assert_eq!(card.all(), [false, false, true, false, false, true]);
        // The next driver finds the card's own.
        card.guest.set_status(0);
        assert_eq!(card.guest.config(0, 6), 0x5634_1200_5452);
        card.rings = card.guest.start(u64::MAX, &[0, 1, 2]);
        card.offered = false;
        assert_eq!(card.all(), [true, false, false, false, false, true]);
        // One that knows of no address in the configuration has given none, and may.
        let mut card = Card::new(transport, !MAC);
        assert_eq!(card.all(), [true, true, true, false, false, true]);
        assert_eq!(card.command(MAC_ADDR_SET, &OTHER), OK);
        assert_eq!(card.all(), [false, true, false, false, false, true]);
        // And a card without has none to show.
        let mut card = Card::on(From::Datagrams, transport, u64::MAX, Options::new());
        assert_eq!(card.command(MAC_ADDR_SET, &OTHER), OK);
        assert_eq!(card.guest.config(0, 6), 0);
        assert_eq!(card.all(), [false, true, false, false, false, true]);
    }
}

#[test]
fn a_tagged_frame_comes_if_its_vlan_is_in_the_table() {
    for transport in TRANSPORTS {
        let mut card = Card::new(transport, u64::MAX);
        let vlans =
            |card: &mut Card| [1, 64, 0xfff, 2].map(|vlan| card.gets_tagged(OWN, 0x8100, vlan));
        assert_eq!(vlans(&mut card), [false; 4], "an empty table");
        for vlan in [1u16, 64, 0xfff] {
            assert_eq!(card.command(VLAN_ADD, &vlan.to_le_bytes()), OK);
        }
        assert_eq!(vlans(&mut card), [true, true, true, false]);
        // A priority, and the bit before the number.
        assert!(card.gets_tagged(OWN, 0x8100, 0xf001));
        assert!(!card.gets_tagged(OWN, 0x8100, 0xf002));
        assert!(card.gets_tagged(OWN, 0x8100, 0xe000), "of no VLAN");
        // Only frames with tags have any.
        assert!(card.gets_tagged(OWN, 0x0800, 2));
        // The address counts as well.
        assert!(!card.gets_tagged(OTHER, 0x8100, 1));
        assert_eq!(card.command(VLAN_DEL, &64u16.to_le_bytes()), OK);
        assert_eq!(card.command(VLAN_DEL, &2u16.to_le_bytes()), OK);
        assert_eq!(vlans(&mut card), [true, false, true, false]);
        assert_eq!(card.command(PROMISC, &[1]), OK);
        assert_eq!(vlans(&mut card), [true; 4]);
        // Without the feature, all tags come.
        let mut card = Card::new(transport, !CTRL_VLAN);
        assert_eq!(vlans(&mut card), [true; 4]);
    }
}

/// Frames that are wanted are not held up by those that are not.
#[test]
fn unwanted_frames_cost_no_buffers() {
    for merged in [0, MRG_RXBUF] {
        let mut card = Card::new(Transport::Pci, !MRG_RXBUF | merged);
        let End::Datagrams(end) = &card.end else {
            unreachable!()
        };
        let send = |to: [u8; 6], mark| {
            end.send(&[&[0; 12][..], &to, &[mark; 54]].concat())
                .unwrap();
        };
        for _ in 0..20 {
            send(OTHER, 1);
        }
        send(OWN, 2);
        card.rings[0].submit(&[Writable(0x4_0000, 2000)]);
        card.guest.run(0);
        assert_eq!(card.rings[0].take().unwrap().length, 72);
        assert_eq!(card.guest.read(0x4_0000 + 18, 54), [2; 54]);
    }
}

#[test]
fn what_a_driver_wants_goes_along_with_a_machine() {
    for transport in TRANSPORTS {
        let mut card = Card::new(transport, u64::MAX);
        let table = tables(&[LISTED], &[LISTED_GROUP]);
        assert_eq!(card.command(MAC_TABLE_SET, &table), OK);
        assert_eq!(card.command(MAC_ADDR_SET, &OTHER), OK);
        assert_eq!(card.command([0, 5], &[1]), OK);
        assert_eq!(card.command(VLAN_ADD, &[0x34, 2]), OK);
        let go = |card: Card| {
            let (new, end) = net(From::Datagrams, options());
            let mut guest = card.guest;
            Card {
                guest: moved(&mut guest, new),
                end,
                ..card
            }
        };
        let mut card = go(card);
        assert_eq!(card.all(), [false, true, true, false, true, false]);
        assert_eq!(card.guest.config(0, 6), 0xefcd_ab00_5452);
        let vlans = [0x234, 0x235].map(|vlan| card.gets_tagged(OTHER, 0x8100, vlan));
        assert_eq!(vlans, [true, false]);
        // A table that was too long is so there.
        let long = tables(&[LISTED; 65], &[]);
        assert_eq!(card.command(MAC_TABLE_SET, &long), OK);
        let mut card = go(card);
        assert_eq!(card.all(), [true, true, true, false, false, false]);
    }
}

/// A state is checked like a driver's words: its layout is in `Net::save`'s documentation.
#[test]
fn states_that_no_card_saves_are_refused() {
    let modes = |modes: u8| vec![0, modes, 0, 0, 0, 0, 0, 0, 0, 0];
    let given = |given: [u8; 6]| [&[0, 0][..], &given, &[0, 0]].concat();
    let table = |single: &[u8], groups: &[u8]| [&[0; 8][..], single, groups].concat();
    let one = |address: [u8; 6]| [&[1][..], &address].concat();
    let too_many = [&[65][..], [LISTED; 65].as_flattened()].concat();
    let good = [
        vec![0],
        modes(0x3f),
        given(OWN),
        table(&one(OTHER), &one(GROUP)),
        table(&[255], &[255]),
        [&modes(0)[..], &[0xff, 0x0f, 1, 0]].concat(),
    ];
    for state in good {
        Device::<Memory>::restore(&mut *net(From::Stream, options()).0, &state).unwrap();
    }
    let bad = [
        vec![0, 0],
        modes(0x40),
        given(GROUP),
        table(&one(GROUP), &[0]),
        table(&[0], &one(OTHER)),
        table(&too_many, &[0]),
        table(&[1, 2], &[]),
        // VLANs: half of one, one that there is not, one twice.
        [&modes(0)[..], &[1]].concat(),
        [&modes(0)[..], &[0, 0x10]].concat(),
        [&modes(0)[..], &[1, 0, 1, 0]].concat(),
    ];
    for state in bad {
        let (mut net, _end) = net(From::Stream, options());
        net.link().set(LinkState::Down);
        let error = Device::<Memory>::restore(&mut *net, &state).unwrap_err();
        assert_eq!(error, StateError::Content { at: 1 }, "{state:?}");
        assert_eq!(net.link().state(), LinkState::Down, "it is as it was");
    }
    // A driver that asked for nothing has left nothing.
    let state = Device::<Memory>::save(&*net(From::Stream, options()).0).unwrap();
    assert_eq!(state, [0]);
}
