// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network card, with a datagram socket for a wire.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::Ring;
use hvkit_virtio_devices::net::{LinkState, MacAddress, Net, Options, OptionsError, Wire};

use crate::support::END;
use crate::support::guest::{Guest, TRANSPORTS, Transport};

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

fn card() -> (Net, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    for end in [&ours, &theirs] {
        end.set_nonblocking(true).unwrap();
    }
    let options = Options::new()
        .with_mac(MAC)
        .unwrap()
        .with_mtu(1400)
        .unwrap();
    (Net::new(options, Wire::Frames(OwnedFd::from(theirs))), ours)
}

/// VIRTIO_NET_F_MRG_RXBUF, by its number (5.1.3).
const MRG_RXBUF: u64 = 1 << 15;

fn frame(mark: u8) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend((0..100).map(|i| i ^ mark));
    frame
}

#[test]
fn configuration_says_what_was_asked_for() {
    for transport in TRANSPORTS {
        let (net, _wire) = card();
        let link = net.link();
        let mut guest = Guest::new(Box::new(net), transport);
        // CTRL_MAC_ADDR, GUEST_ANNOUNCE, CTRL_RX_EXTRA, CTRL_VLAN, CTRL_RX, CTRL_VQ, STATUS, MRG_RXBUF, MAC, MTU; no offload,
        // which a socket cannot do.
        let filters = 1 << 23 | 1 << 20 | 1 << 19 | 1 << 18;
        let expected = filters | 1 << 21 | 1 << 17 | 1 << 16 | 1 << 15 | 1 << 5 | 1 << 3;
        assert_eq!(guest.offered() & 0x00ff_ffff, expected);
        assert_eq!(guest.config(0, 6), 0x5634_1200_5452);
        assert_eq!(guest.config(6, 2), 1, "link up");
        assert_eq!(guest.config(10, 2), 1400);
        assert_eq!(guest.config(12, 8), 0);
        guest.set_config(0, &[9; 6]);
        assert_eq!(guest.config(0, 6), 0x5634_1200_5452);
        link.set(LinkState::Down);
        assert_eq!(guest.config(6, 2), 0);
        assert_eq!(link.state(), LinkState::Down);
    }
}

#[test]
fn options_that_no_card_has() {
    for mac in [[1, 0, 0, 0, 0, 1], [0xff; 6], [0; 6]] {
        let error = Options::new().with_mac(MacAddress(mac)).unwrap_err();
        assert_eq!(error, OptionsError::Mac { mac });
    }
    assert_eq!(
        Options::new().with_mtu(67).unwrap_err(),
        OptionsError::Mtu { mtu: 67 }
    );
    Options::new().with_mtu(68).unwrap();
}

#[test]
fn frames_go_out_as_they_are_however_they_are_cut() {
    for transport in TRANSPORTS {
        let (net, wire) = card();
        let counters = net.counters().to_vec();
        let mut guest = Guest::new(Box::new(net), transport);
        let mut rings = guest.start(u64::MAX, &[0, 1]);
        let sent = frame(0x5a);
        guest.write(0x8000, &sent);
        rings[1].submit(&[Readable(0x8000, 112)]);
        rings[1].submit(&[
            Readable(0x8000, 5),
            Readable(0x8005, 0),
            Readable(0x8005, 107),
        ]);
        guest.run(1);
        for _ in 0..2 {
            let mut received = [0; 200];
            assert_eq!(wire.recv(&mut received).unwrap(), 112);
            assert_eq!(received[..112], sent);
            assert_eq!(rings[1].take().unwrap().length, 0);
        }
        assert_eq!(counters[1].read().bytes, 224);
        assert_eq!(counters[0].read().bytes, 0);
    }
}

/// A driver that shares its processor with the card's worker has not sent all that it is about to. It is spared notifications
/// (VIRTQ_USED_F_NO_NOTIFY, 2.7.10; avail_event, 2.7.10.1) until the worker has let it run and found nothing more.
#[test]
fn a_driver_that_sends_need_not_notify_until_it_pauses() {
    const EVENT_IDX: u64 = 1 << 29;
    for transport in TRANSPORTS {
        for features in [u64::MAX, !EVENT_IDX] {
            let (net, wire) = card();
            let mut guest = Guest::new(Box::new(net), transport);
            let mut rings = guest.start(features, &[0, 1]);
            let ring = &mut rings[1];
            let event = ring.used + 4 + 8 * u64::from(ring.size);
            // Whether the driver is to notify when it has made so many available.
            let wanted = |ring: &Ring, made: u16| match features & EVENT_IDX {
                0 => ring.get16(ring.used) == 0,
                _ => ring.get16(event) == made - 1,
            };
            guest.write(0x8000, &frame(7));
            let mut received = [0; 200];
            guest.step();
            assert!(wanted(ring, 1), "nothing was sent yet");
            ring.submit(&[Readable(0x8000, 112)]);
            guest.kick(1);
            for made in 2..5 {
                // Sent at once, and nothing asked for.
                assert_eq!(guest.workers.step(1), 1);
                assert_eq!(wire.recv(&mut received).unwrap(), 112);
                assert!(ring.take().is_some());
                assert!(!wanted(ring, made), "{made}");
                // As a driver does that was told not to notify.
                ring.submit(&[Readable(0x8000, 112)]);
            }
            guest.workers.step(1);
            assert_eq!(wire.recv(&mut received).unwrap(), 112);
            assert!(!wanted(ring, 5));
            guest.step();
            assert!(wanted(ring, 5), "nobody would look again");
            assert!(wire.recv(&mut received).is_err());
        }
    }
}

#[test]
fn frames_come_in_one_a_chain() {
    for transport in TRANSPORTS {
        let (net, wire) = card();
        let mut guest = Guest::new(Box::new(net), transport);
        let mut rings = guest.start(u64::MAX, &[0, 1]);
        // Before there is a buffer, and after.
        wire.send(&frame(1)).unwrap();
        guest.step();
        rings[0].submit(&[Writable(0x8000, 12), Writable(0x9000, 2000)]);
        rings[0].submit(&[Writable(0xa000, 2000)]);
        guest.run(0);
        assert_eq!(rings[0].take().unwrap().length, 112);
        assert_eq!(rings[0].take(), None, "a buffer was used for nothing");
        assert_eq!(guest.read(0x9000, 100), frame(1)[12..]);
        assert_eq!(
            guest.read(0x8000, 12),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
            "num_buffers"
        );
        wire.send(&frame(2)).unwrap();
        guest.step();
        assert_eq!(rings[0].take().unwrap().length, 112);
        assert_eq!(guest.read(0xa000 + 12, 100), frame(2)[12..]);
    }
}

#[test]
fn what_is_no_frame_is_lost_and_the_card_lives() {
    let (net, wire) = card();
    let link = net.link();
    let mut guest = Guest::new(Box::new(net), Transport::Pci);
    let mut rings = guest.start(u64::MAX, &[0, 1]);
    guest.write(0x8000, &frame(3));
    let mut lost = |guest: &mut Guest, buffers: &[_]| {
        rings[1].submit(buffers);
        guest.run(1);
        assert_eq!(rings[1].take().unwrap().length, 0);
        assert!(wire.recv(&mut [0; 8]).is_err(), "{buffers:?} went out");
    };
    lost(&mut guest, &[Readable(0x8000, 0)]);
    lost(&mut guest, &[Readable(0x8000, 12)]);
    lost(&mut guest, &[Readable(0x8000, 0x2_0000)]);
    lost(&mut guest, &[Readable(END, 112)]);
    lost(&mut guest, &[Readable(0x8000, 20), Readable(END - 50, 100)]);
    lost(&mut guest, &[Writable(0x8000, 112)]);
    link.set(LinkState::Down);
    lost(&mut guest, &[Readable(0x8000, 112)]);
    link.set(LinkState::Up);
    rings[1].submit(&[Readable(0x8000, 112)]);
    guest.run(1);
    assert_eq!(wire.recv(&mut [0; 200]).unwrap(), 112);
    assert!(
        guest.told.lock().unwrap().is_empty(),
        "a guest's fault is not the host's"
    );
}

#[test]
fn nothing_comes_in_while_the_link_is_down() {
    let (net, wire) = card();
    let link = net.link();
    let mut guest = Guest::new(Box::new(net), Transport::Pci);
    let mut rings = guest.start(u64::MAX, &[0, 1]);
    rings[0].submit(&[Writable(0x8000, 2000)]);
    guest.run(0);
    guest.vectors.take();
    link.set(LinkState::Down);
    assert_eq!(guest.vectors.delivered(), [0], "the configuration's vector");
    wire.send(&frame(1)).unwrap();
    guest.step();
    assert_eq!(rings[0].take(), None);
    link.set(LinkState::Up);
    wire.send(&frame(2)).unwrap();
    guest.step();
    assert_eq!(rings[0].take().unwrap().length, 112);
    assert_eq!(guest.read(0x8000 + 12, 100), frame(2)[12..]);
}

#[test]
fn a_receive_buffer_outside_memory_costs_only_itself() {
    let (net, wire) = card();
    let mut guest = Guest::new(Box::new(net), Transport::Mmio);
    let mut rings = guest.start(!MRG_RXBUF, &[0, 1]);
    rings[0].submit(&[Writable(END, 2000)]);
    rings[0].submit(&[Writable(0x8000, 2000)]);
    wire.send(&frame(1)).unwrap();
    guest.run(0);
    assert_eq!(rings[0].take().unwrap().length, 0);
    assert_eq!(rings[0].take().unwrap().length, 112);
    // No room for more than a header: the driver may not do that (5.1.6.3.1).
    rings[0].submit(&[Writable(0x8000, 12)]);
    guest.run(0);
    assert_ne!(guest.status() & 0x40, 0);
}

#[test]
fn a_wire_whose_other_end_is_gone_is_told() {
    let (net, wire) = card();
    let mut guest = Guest::new(Box::new(net), Transport::Pci);
    let mut rings = guest.start(u64::MAX, &[0, 1]);
    drop(wire);
    guest.write(0x8000, &frame(3));
    rings[1].submit(&[Readable(0x8000, 112)]);
    guest.run(1);
    assert_eq!(rings[1].take().unwrap().length, 0);
    rings[0].submit(&[Writable(0x8000, 2000)]);
    guest.run(0);
    let told = guest.told.lock().unwrap();
    assert!(told.iter().any(|t| t.contains("queue 1")), "{told:?}");
}

#[test]
fn half_a_card_does_not_run() {
    for queue in [0, 1] {
        let (net, _wire) = card();
        let mut guest = Guest::new(Box::new(net), Transport::Mmio);
        let memory = guest.memory.clone();
        crate::support::guest::on_bus!(guest, driver => {
            driver.negotiate(u64::MAX);
            driver.queue(queue, &memory, 0x1000, 16);
        });
        assert_eq!(guest.set_status(0xf) & 0x44, 0x44);
    }
}
