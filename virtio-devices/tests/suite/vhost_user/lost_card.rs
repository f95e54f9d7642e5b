// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network card whose back end is gone, and which is saved then: where its queues go on, and what its driver is told elsewhere.

use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use hvkit_virtio_devices::device::{Device, StateError};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::queue::Position;
use hvkit_virtio_devices::transport::pci::PciState;
use hvkit_virtio_devices::transport::state::SaveError;
use hvkit_virtio_devices::vhost_user::Options;

use super::again::{Peer, honest, use_up, without_notes};
use super::liar::Liar;
use super::{DATA, HEADER, device, guest, shared_memory, until};
use crate::moved::moved;
use crate::support::guest::{Bus, Guest, Memory};

const ALL: u64 = u64::MAX;
const IN_ORDER: u64 = 1 << 35;
const PACKED: u64 = 1 << 34;
/// VIRTIO_NET_F_MQ.
const MQ: u64 = 1 << 22;

/// A card of one pair that `liar` serves.
fn card(liar: Liar, options: Options) -> (Guest, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = Peer::new(liar, theirs);
    (guest(ours, options), peer)
}

/// One that notes what it has begun, in memory, and uses chains as it likes.
fn noting() -> Liar {
    let mut liar = honest();
    liar.features &= !IN_ORDER;
    liar
}

fn die(guest: &mut Guest, peer: &Peer) {
    peer.die();
    until(guest, "link down", |guest| {
        (guest.config(6, 2) == 0).then_some(())
    });
    guest.step();
}

pub(super) fn save(guest: &mut Guest) -> Result<PciState, SaveError> {
    guest.pause();
    let Bus::Pci(driver) = &mut guest.bus else {
        unreachable!()
    };
    driver.function.save()
}

fn is_unfinished(guest: &mut Guest) -> bool {
    let saved = save(guest);
    matches!(saved, Err(SaveError::Device(StateError::Unfinished)))
}

#[test]
fn a_card_goes_on_behind_the_frames_that_it_was_given() {
    // By the order, by our ledger, by notes.
    for liar in [honest, without_notes, noting] {
        let (mut guest, first) = card(liar(), Options::net(None, None));
        let mut rings = guest.start(ALL, &[0, 1]);
        let buffers = [0, 1, 2, 3, 4, 5].map(|at| {
            let room = Writable(DATA + 0x1000 * at, 2048);
            rings[0].submit(&[room])
        });
        use_up(&guest, &rings[0], &mut 0, &buffers[..3]);
        // A frame that nobody sends any more.
        rings[1].submit(&[Readable(HEADER, 72)]);
        die(&mut guest, &first);
        assert!(rings[1].take().is_some());
        let at = |index| Position {
            available: index,
            used: index,
        };
        let state = save(&mut guest).unwrap();
        let positions = state.session.queues.iter().map(|queue| queue.position);
        assert_eq!(positions.collect::<Vec<_>>(), [Some(at(3)), Some(at(1))]);
        // Elsewhere the link is up, and the driver, which was told of the contrary, is told.
        let (ours, theirs) = UnixStream::pair().unwrap();
        let second = Peer::new(liar(), theirs);
        let new = device(ours, Options::net(None, None), &guest.memory).unwrap();
        let mut new = moved(&mut guest, Box::new(new));
        assert_eq!(new.config(6, 2), 1);
        assert!(new.vectors.delivered().contains(&0), "nobody was told");
        assert_eq!(second.bases(), [[0, 3], [1, 1]]);
    }
}

#[test]
fn a_card_that_was_served_is_told_nothing() {
    let (mut guest, _first) = card(honest(), Options::net(None, None));
    guest.start(ALL, &[0, 1]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let _second = Peer::new(honest(), theirs);
    let new = device(ours, Options::net(None, None), &guest.memory).unwrap();
    let mut new = moved(&mut guest, Box::new(new));
    assert_eq!(new.config(6, 2), 1);
    assert!(!new.vectors.delivered().contains(&0));
}

/// Whoever went on at the used index would not find what is in flight, and would fill buffers that are the driver's again.
#[test]
fn a_card_is_not_saved_where_nobody_knows_what_is_in_flight() {
    let buffers = |guest: &mut Guest| {
        let mut rings = guest.start(ALL, &[0, 1]);
        let heads = [0, 1, 2].map(|at| {
            let room = Writable(DATA + 0x1000 * at, 2048);
            rings[0].submit(&[room])
        });
        (rings, heads)
    };
    // Out of turn, by our ledger.
    let (mut guest, first) = card(without_notes(), Options::net(None, None));
    let (rings, heads) = buffers(&mut guest);
    use_up(&guest, &rings[0], &mut 0, &heads[2..]);
    die(&mut guest, &first);
    assert!(is_unfinished(&mut guest));
    // A driver that begins anew has nothing in flight.
    guest.resume();
    assert_eq!(guest.set_status(0), 0);
    assert!(save(&mut guest).is_ok());
    guest.resume();
    guest.start(ALL, &[0, 1]);
    assert!(save(&mut guest).is_ok());

    // Begun, by notes: version 1, 64 descriptors; then 16 bytes for each.
    let liar = noting();
    let notes = liar.in_flight.try_clone().unwrap();
    let (mut guest, first) = card(liar, Options::net(None, None));
    let (_rings, [_, second, _]) = buffers(&mut guest);
    let mut area = vec![0; 16 + 16 * 64];
    (area[8], area[10]) = (1, 64);
    area[16 + 16 * usize::from(second)] = 1;
    notes.write_all_at(&area, 0).unwrap();
    die(&mut guest, &first);
    assert!(is_unfinished(&mut guest));

    // Packed queues show nothing of what was begun.
    let mut liar = without_notes();
    liar.features |= PACKED;
    let options = Options::net(None, None).with_packed_rings();
    let (mut guest, first) = card(liar, options);
    assert_ne!(guest.negotiate(ALL) & PACKED, 0);
    for queue in [0, 1u16] {
        let at = 0x1_0000 + 0x4000 * u64::from(queue);
        guest.place(queue, [at, at + 0x2000, at + 0x3000]);
    }
    assert_eq!(guest.set_status(0xf), 0xf);
    die(&mut guest, &first);
    assert!(is_unfinished(&mut guest));
}

#[test]
fn what_is_restored_is_not_believed() {
    let memory = shared_memory();
    let restore = |options: Options, state: &[u8]| {
        let mut liar = honest();
        liar.features |= MQ;
        let mut device = device(liar.serve(), options, &memory).unwrap();
        Device::<Memory>::restore(&mut device, state)
    };
    let length = |saved, expected| Err(StateError::Length { saved, expected });
    let content = |at| Err(StateError::Content { at });
    let net = || Options::net(None, None);
    for (state, expected) in [
        (&[][..], Ok(())),
        (&[1], Ok(())),
        (&[0], content(0)),
        (&[2], content(0)),
        (&[1, 1], length(2, 0)),
    ] {
        assert_eq!(restore(net(), state), expected, "{state:?}");
    }
    // How many pairs, first.
    for (state, expected) in [
        (&[1, 0][..], Ok(())),
        (&[2, 0, 1], Ok(())),
        (&[3, 0], content(0)),
        (&[2, 0, 2], content(2)),
        (&[2, 0, 1, 1], length(4, 2)),
        (&[1], length(1, 2)),
        (&[], length(0, 2)),
    ] {
        assert_eq!(restore(net().with_queues(2), state), expected, "{state:?}");
    }
    assert_eq!(restore(Options::block(), &[]), Ok(()));
    assert_eq!(restore(Options::block(), &[1]), length(1, 0));
}
