// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packed queues at both ends: what is said of them in raw words, disks of ours for guests of ours, and what becomes of them when a
//! back end is gone.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::PackedRing;
use hvkit_virtio_devices::vhost_user::Options;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::again::{Peer, Place, begin, begun, honest};
use super::liar::{Liar, Lie};
use super::ours::serve;
use super::{PATIENCE, device, guest, shared_memory, until};
use crate::support::guest::{Bus, Guest, Memory, Transport, ring_at};
use crate::support::{header, image, pattern};

const ALL: u64 = u64::MAX;
const IN_ORDER: u64 = 1 << 35;
const PACKED: u64 = 1 << 34;
const NEEDS_RESET: u8 = 0x40;
const IO_ERROR: u8 = 1;
/// Of no power of two, so that a request of three descriptors lies across the end in every way.
const SIZE: u16 = 7;
/// Where a request has its parts: so far from the next one's.
const REQUESTS: u64 = 0x8_0000;
const STRIDE: u64 = 0x2000;

/// Goes to DRIVER_OK with one packed queue.
fn start(guest: &mut Guest, features: u64) -> PackedRing {
    let memory = guest.memory.clone();
    let Bus::Pci(driver) = &mut guest.bus else {
        unreachable!("made so")
    };
    assert_ne!(driver.negotiate_packed(features) & PACKED, 0);
    let ring = driver.queue_packed(0, &memory, ring_at(0), SIZE);
    driver.enable_msix();
    assert_eq!(guest.set_status(0xf), 0xf);
    ring
}

/// Makes request number `at` available: to read one sector, in three descriptors.
fn submit(memory: &Memory, ring: &mut PackedRing, at: u64, sector: u64) -> u16 {
    let base = REQUESTS + STRIDE * at;
    let put = |at, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).unwrap();
    put(base, &header(0, sector));
    put(base + 0x100, &[0xee]);
    put(base + 0x200, &[0; 512]);
    ring.submit(&[
        Readable(base, 16),
        Writable(base + 0x200, 512),
        Writable(base + 0x100, 1),
    ])
}

fn status(guest: &Guest, at: u64) -> u8 {
    guest.read(REQUESTS + STRIDE * at + 0x100, 1)[0]
}

/// Reads a sector, and sees that it is that sector.
fn read(guest: &mut Guest, ring: &mut PackedRing, sector: u64) {
    let memory = guest.memory.clone();
    let id = submit(&memory, ring, 0, sector);
    guest.kick(0);
    let used = until(guest, "answer", |_| ring.take());
    assert_eq!((used.head, used.length), (u32::from(id), 513));
    assert_eq!(status(guest, 0), 0);
    let data = guest.read(REQUESTS + 0x200, 512);
    assert_eq!(data, pattern(sector * 512, 512), "{sector}");
}

fn packed() -> Options {
    Options::block().with_packed_rings()
}

fn liar(at: u32, lie: Lie) -> Liar {
    let mut liar = Liar::new(at, lie);
    liar.features |= PACKED;
    liar
}

#[test]
fn our_disk_for_our_guest() {
    let image = image(128);
    for features in [ALL, ALL & !IN_ORDER, ALL & !(1 << 28 | 1 << 29)] {
        let (socket, serving) = serve(&image);
        let mut guest = guest(socket, packed());
        let mut ring = start(&mut guest, features);
        let mut positions = Vec::new();
        for round in 0..40 {
            read(&mut guest, &mut ring, round);
            if round % 3 == 1 {
                // In the middle of the ring, with either wrap counter.
                guest.pause();
                positions.push(ring.free);
                let memory = guest.memory.clone();
                submit(&memory, &mut ring, 1, 7);
                guest.kick(0);
                thread::sleep(Duration::from_millis(2));
                guest.step();
                assert_eq!(ring.take(), None, "served while it was paused");
                guest.resume();
                until(&mut guest, "answer", |_| ring.take());
                assert_eq!(status(&guest, 1), 0);
            }
        }
        let wraps = positions.iter().filter(|(slot, wrap)| *slot > 0 && *wrap);
        assert!(
            (1..positions.len()).contains(&wraps.count()),
            "{positions:?}"
        );
        // A reset begins anew, and a driver may have split queues.
        assert_eq!(guest.set_status(0), 0);
        let mut ring = start(&mut guest, features);
        read(&mut guest, &mut ring, 3);
        assert_eq!(guest.set_status(0), 0);
        let mut rings = guest.start(features, &[0]);
        assert_eq!(super::request(&mut guest, &mut rings[0], 0, 5, 512), 0);
        assert!(guest.told.lock().unwrap().is_empty());
        drop(guest);
        assert_eq!(serving.join().unwrap(), "hung up; ");
    }
}

#[test]
fn only_who_asks_for_packed_queues_has_them() {
    let (socket, _) = serve(&image(8));
    assert_eq!(guest(socket, Options::block()).offered() & PACKED, 0);
    let (socket, _) = serve(&image(8));
    assert_eq!(guest(socket, packed()).offered() & PACKED, PACKED);
    // A back end without; one that notes nothing, where another is to go on.
    let refused = |liar: Liar, options| {
        let made = device(liar.serve(), options, &shared_memory());
        made.unwrap_err().to_string()
    };
    assert_eq!(
        refused(honest(), packed()),
        "the back end has no packed queues (VIRTIO_F_RING_PACKED)"
    );
    let place = Place::new();
    let without_notes = || {
        let mut liar = liar(99, Lie::HangUp);
        liar.protocol &= !(1 << 12);
        liar
    };
    assert_eq!(
        refused(
            without_notes(),
            packed().with_reconnection(place.reconnection())
        ),
        "the back end has no memory for what is in flight (VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD), without which no other \
         back end goes on with packed queues"
    );
    // Where none is, nobody needs the notes.
    assert!(device(without_notes().serve(), packed(), &shared_memory()).is_ok());
}

/// What our front end says, and what it makes of where a queue is said to go on.
#[test]
fn raw_words_of_our_front_end() {
    for (said, next) in [
        // Place 3 in the round with wrap counter 0, and 6 in that with 1.
        (0x0003_0003u64, 0x0003_0003u32),
        (0x8006_8006, 0x8006_8006),
        // As DPDK says it: nothing of what is used.
        (0x0000_8002, 0x8002_8002),
        (0x0000_0005, 0x0005_0005),
    ] {
        let liar = liar(11, Lie::Value(said << 32));
        let heard = liar.heard.clone();
        let mut guest = guest(liar.serve(), packed());
        let ring = start(&mut guest, ALL);
        guest.pause();
        guest.resume();
        let heard = heard.lock().unwrap().clone();
        let told = |request: u32| -> Vec<Vec<u8>> {
            let told = heard.iter().filter(|(number, _)| *number == request);
            told.map(|(_, payload)| payload.clone()).collect()
        };
        let words = |payload: &[u8]| -> Vec<u32> {
            let words = payload.as_chunks().0.iter();
            words.map(|word| u32::from_ne_bytes(*word)).collect()
        };
        let features = u64::from_ne_bytes(told(2)[0].as_slice().try_into().unwrap());
        assert_eq!(features & (1 << 32 | PACKED), 1 << 32 | PACKED);
        assert_eq!(words(&told(8)[0]), [0, SIZE.into()]);
        // Both wrap counters are 1 at first.
        let bases: Vec<_> = told(10).iter().map(|base| words(base)).collect();
        assert_eq!(bases, [[0, 0x8000_8000], [0, next]]);
        // Descriptors, the device's events, the driver's events.
        let host = |address| {
            let host = guest.memory.get_host_address(GuestAddress(address));
            host.unwrap() as u64
        };
        let place = [0, host(ring.ring), host(ring.device), host(ring.driver), 0];
        assert_eq!(told(9)[0], place.map(u64::to_ne_bytes).concat());
        assert!(guest.told.lock().unwrap().is_empty());
    }
}

#[test]
fn a_packed_queue_that_does_not_stop_as_it_should() {
    for (said, what) in [
        (
            0x8007_8007u64,
            "GET_VRING_BASE with 0x8007800700000000, which is no place in that packed queue",
        ),
        (
            0x8000_0007,
            "GET_VRING_BASE with 0x8000000700000000, which is no place in that packed queue",
        ),
        (0x7fff_8000, "which is no place in that packed queue"),
        // Taken up to place 3, and used up to place 1.
        (
            0x8001_8003,
            "the back end stopped queue 0 at 32771, and has finished only what is before 32769",
        ),
    ] {
        let liar = liar(11, Lie::Value(said << 32));
        let options = packed().with_patience(Duration::from_millis(50));
        let mut guest = guest(liar.serve(), options);
        start(&mut guest, ALL);
        guest.pause();
        let told = guest.told.lock().unwrap().clone();
        assert!(
            told.len() == 1 && told[0].contains(what),
            "{said:#x}: {told:?}"
        );
    }
}

/// rust-vmm's front end, which says of a queue's position what sixteen bits have room for.
#[test]
fn our_disk_for_rust_vmms_front_end() {
    let memory = shared_memory();
    let mut ring = PackedRing::new(memory.clone(), 0x1_0000, SIZE);
    // A driver that has been there before: in its second round, at place 4.
    (ring.free, ring.seen) = ((4, false), (4, false));
    // What it has in the ring since then: all used in the round before.
    for slot in 0..SIZE {
        let marks = if slot < 4 { 0 } else { 0x8080 };
        ring.descriptor(ring.ring, slot, (0, 0, 0, marks));
    }
    let (mut front, kick) = front_end(&memory, &ring);
    let mut base = 4;
    for (sector, next) in [
        (3, 0x8000_8000u32),
        (9, 0x8003_8003),
        (1, 0x8006_8006),
        (2, 0x0002_0002),
    ] {
        begin_at(&mut front, &kick, base);
        let id = submit(&memory, &mut ring, 0, sector);
        kick.write(1).unwrap();
        assert_eq!(used(&mut ring), u32::from(id));
        let mut data = vec![0; 512];
        let at = GuestAddress(REQUESTS + 0x200);
        memory.read_slice(&mut data, at).unwrap();
        assert_eq!(data, pattern(sector * 512, 512));
        // Used in one half, available in the other, each with its wrap counter.
        assert_eq!(front.get_vring_base(0).unwrap(), next);
        base = next as u16;
    }
}

/// Says `messages` to a disk of ours; how serving ended.
fn say(messages: &[(u32, Vec<u8>)]) -> String {
    let image = image(8);
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let (mut socket, serving) = serve(&image);
    for (request, payload) in messages {
        let head = [*request, 1, payload.len() as u32];
        let message = [head.map(u32::to_ne_bytes).as_flattened(), payload].concat();
        let files: &[_] = if *request == 12 {
            &[event.as_raw_fd()]
        } else {
            &[]
        };
        // It may have hung up.
        let _ = socket.send_with_fds(&[&message[..]], files);
    }
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let _ = socket.read_to_end(&mut Vec::new());
    serving.join().unwrap()
}

#[test]
fn places_that_no_queue_has_are_refused_by_our_back_end() {
    let state = |value: u32| [0, value].map(u32::to_ne_bytes).concat();
    let features = (2, (1u64 << 32 | PACKED).to_ne_bytes().to_vec());
    let (size, base) = ((8, state(16)), |value| (10, state(value)));
    for value in [0x8000_8000, 0, 0x000f_800f, 0x0000_800f, 0x8001_8002] {
        assert_eq!(
            say(&[features.clone(), size.clone(), base(value)]),
            "hung up; ",
            "{value:#x}"
        );
    }
    for value in [
        0x8010_8010,
        0x0000_0010,
        0x8000_8010,
        0x8010_8000,
        0xffff_ffff,
    ] {
        assert_eq!(
            say(&[features.clone(), size.clone(), base(value)]),
            "the VMM's SET_VRING_BASE of 8 bytes makes no sense",
            "{value:#x}"
        );
        // The other way round, it is refused when it is to start, at the latest.
        let end = say(&[
            features.clone(),
            base(value),
            size.clone(),
            (12, 0u64.to_ne_bytes().to_vec()),
            (18, state(1)),
        ]);
        assert!(end.ends_with("makes no sense"), "{value:#x}: {end}");
    }
    // A split queue has an index and nothing else.
    assert_eq!(
        say(&[size, base(0x8000_8000)]),
        "the VMM's SET_VRING_BASE of 8 bytes makes no sense"
    );
}

#[test]
fn a_paused_disk_goes_on_in_another_machine() {
    let image = image(64);
    let (socket, _) = serve(&image);
    let mut old = guest(socket, packed());
    let mut ring = start(&mut old, ALL);
    for sector in 0..4 {
        read(&mut old, &mut ring, sector);
    }
    old.pause();
    let Bus::Pci(driver) = &old.bus else {
        unreachable!("made so")
    };
    let state = driver.function.save().unwrap();
    // Twelve descriptors in a ring of seven: place 5 of the second round.
    let position = state.session.queues[0].position.unwrap();
    assert_eq!((position.available, position.used), (5, 5));
    // Of the same content: the first is still locked.
    let image = crate::support::image(64);
    let (socket, _) = serve(&image);
    let device = device(socket, packed(), &old.memory).unwrap();
    let mut new = Guest::in_memory(Box::new(device), Transport::Pci, old.memory.clone());
    new.pause();
    let Bus::Pci(driver) = &mut new.bus else {
        unreachable!("made so")
    };
    driver.function.restore(&state).unwrap();
    new.resume();
    for sector in 9..20 {
        read(&mut new, &mut ring, sector);
    }
}

/// The notes of a queue whose driver has made three requests of `count` descriptors available, by a process that is killed in the
/// middle: the third was used, and shown; the second was begun before the first.
fn noted(ring: &PackedRing, count: u16) -> Vec<u8> {
    let size = ring.size;
    let mut area = vec![0; 32 + 32 * usize::from(size)];
    let mut put = |at: usize, bytes: &[u8]| area[at..at + bytes.len()].copy_from_slice(bytes);
    // Version and descriptors; the free list, which begins with what the third had; the place of the next used descriptor.
    let free = 2 * count;
    for (at, word) in [
        (8, 1),
        (10, size),
        (12, free),
        (14, free),
        (16, count),
        (18, count),
    ] {
        put(at, &word.to_ne_bytes());
    }
    put(20, &[1, 1]);
    // Each in the entry of its place.
    for entry in 0..size {
        let (address, length, id, flags) = ring.words(ring.ring, entry);
        let at = 32 + 32 * usize::from(entry);
        let is_head = entry % count == 0 && entry < free;
        put(at, &[u8::from(is_head), 0]);
        let last = entry + count - 1;
        for (at, word) in [(at + 2, entry + 1), (at + 4, last), (at + 6, count)] {
            put(at, &word.to_ne_bytes());
        }
        let counter = if entry == count { 8u64 } else { 9 };
        put(at + 8, &counter.to_ne_bytes());
        put(at + 16, &id.to_ne_bytes());
        put(at + 18, &flags.to_ne_bytes());
        put(at + 20, &length.to_ne_bytes());
        put(at + 24, &address.to_ne_bytes());
    }
    area
}

/// Notes that, and leaves the ring as that process does: behind the used descriptor of the third, it was about to show those of the
/// other two, of which the first is not marked yet and the second is.
fn leave(ring: &PackedRing, in_flight: &File, count: u16, ids: [u16; 3]) {
    in_flight.write_all_at(&noted(ring, count), 0).unwrap();
    ring.descriptor(ring.ring, 0, (0, 1, ids[2], 0x8082));
    let (address, _, _, flags) = ring.words(ring.ring, count);
    ring.descriptor(ring.ring, count, (address, 1, ids[1], flags));
    ring.descriptor(ring.ring, 2 * count, (0, 1, ids[0], 0x8082));
}

/// A request of two descriptors: to flush.
fn flush(guest: &Guest, ring: &mut PackedRing, at: u64) -> u16 {
    let base = REQUESTS + STRIDE * at;
    guest.write(base, &header(4, 0));
    guest.write(base + 0x100, &[0xee]);
    ring.submit(&[Readable(base, 16), Writable(base + 0x100, 1)])
}

#[test]
fn what_a_killed_process_has_begun_is_answered_with_errors() {
    let liar = liar(99, Lie::HangUp);
    let in_flight = liar.in_flight.try_clone().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let first = Peer::new(liar, theirs);
    let mut guest = guest(ours, packed());
    let mut ring = start(&mut guest, ALL & !IN_ORDER);
    let ids = [0, 1, 2].map(|at| flush(&guest, &mut ring, at));
    leave(&ring, &in_flight, 2, ids);
    first.die();
    // The third as it was used; the second, which was begun before the first; and that, whose descriptors are only noted.
    let order = [0; 3].map(|_| until(&mut guest, "answer", |_| ring.take()).head);
    assert_eq!(order, [ids[2], ids[1], ids[0]].map(u32::from));
    let statuses = [0, 1, 2].map(|at| status(&guest, at));
    assert_eq!(statuses, [IO_ERROR, IO_ERROR, 0xee]);
    assert_eq!(ring.take(), None);
    // And whatever comes later, around the end and back.
    for _ in 0..9 {
        let id = flush(&guest, &mut ring, 3);
        guest.kick(0);
        let used = until(&mut guest, "answer", |_| ring.take());
        assert_eq!((used.head, status(&guest, 3)), (id.into(), IO_ERROR));
    }
    assert_eq!(guest.status() & NEEDS_RESET, 0);
}

#[test]
fn what_is_not_noted_nobody_knows() {
    // No notes; notes that make no sense; notes that were never written, although something was used.
    for wrong in 0..3 {
        let mut liar = liar(99, Lie::HangUp);
        if wrong == 0 {
            liar.protocol &= !(1 << 12);
        }
        let in_flight = liar.in_flight.try_clone().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let first = Peer::new(liar, theirs);
        let mut guest = guest(ours, packed());
        let mut ring = start(&mut guest, ALL);
        let id = flush(&guest, &mut ring, 0);
        if wrong == 1 {
            in_flight.write_all_at(&2u16.to_ne_bytes(), 8).unwrap();
        } else {
            ring.descriptor(ring.ring, 0, (0, 1, id, 0x8082));
        }
        first.die();
        until(&mut guest, "DEVICE_NEEDS_RESET", |guest| {
            (guest.status() & NEEDS_RESET != 0).then_some(())
        });
        // From its reset on, there are errors.
        assert_eq!(guest.set_status(0), 0);
        let mut ring = start(&mut guest, ALL);
        let id = flush(&guest, &mut ring, 0);
        guest.kick(0);
        let used = until(&mut guest, "answer", |_| ring.take());
        assert_eq!((used.head, status(&guest, 0)), (id.into(), IO_ERROR));
    }
}

/// "Inflight I/O tracking": the area that the first was given is the next one's, which begins where the notes say.
#[test]
fn notes_are_handed_on() {
    let place = Place::new();
    let first = liar(99, Lie::HangUp);
    let in_flight = first.in_flight.try_clone().unwrap();
    let (mut guest, first) = begin(&place, first, packed());
    let mut ring = start(&mut guest, ALL & !IN_ORDER);
    let ids = [0, 1, 2].map(|at| flush(&guest, &mut ring, at));
    leave(&ring, &in_flight, 2, ids);
    first.die();
    assert_eq!(
        until(&mut guest, "answer", |_| ring.take()).head,
        u32::from(ids[2])
    );
    // It cannot be saved meanwhile: what is in flight is in those notes alone.
    guest.pause();
    let Bus::Pci(driver) = &mut guest.bus else {
        unreachable!()
    };
    assert!(driver.function.save().is_err());
    guest.resume();
    // One without packed queues does not do.
    let without = place.accept(&mut guest, honest());
    until(&mut guest, "word of it", |_| {
        let said = place.said();
        said.last()?.contains("0x400000000").then_some(())
    });
    drop(without);
    let second = place.accept(&mut guest, liar(99, Lie::HangUp));
    begun(&mut guest, &second);
    assert!(second.told(31).is_empty());
    assert_eq!(second.told(32), first.told(32));
    assert_eq!(second.file(32), first.file(32));
    assert_eq!(first.bases(), [[0, 0x8000_8000]]);
    assert_eq!(second.bases(), [[0, 0x8002_8002]]);
    // It uses the two, which takes it to the last place but one; and dies between two batches.
    let mut area = noted(&ring, 2);
    for (at, word) in [(16, 6u16), (18, 6)] {
        area[at..at + 2].copy_from_slice(&word.to_ne_bytes());
    }
    (area[32], area[32 + 64]) = (0, 0);
    in_flight.write_all_at(&area, 0).unwrap();
    ring.descriptor(ring.ring, 2, (0, 1, ids[1], 0x8082));
    ring.descriptor(ring.ring, 4, (0, 1, ids[0], 0x8082));
    second.die();
    let order = [0; 2].map(|_| until(&mut guest, "answer", |_| ring.take()).head);
    assert_eq!(order, [ids[1], ids[0]].map(u32::from));
    let third = place.accept(&mut guest, liar(99, Lie::HangUp));
    begun(&mut guest, &third);
    assert_eq!(third.bases(), [[0, 0x8006_8006]]);
    assert!(guest.told.lock().unwrap().is_empty());
}

/// The disk's half of it, with rust-vmm's front end at the other.
#[test]
fn our_disk_notes_what_it_does_and_finishes_what_another_has_begun() {
    const SIZE: u16 = 16;
    const AREA: u64 = 32 + 32 * SIZE as u64;
    let memory = shared_memory();
    let ring = PackedRing::new(memory.clone(), 0x1_0000, SIZE);
    let (mut front, kick) = front_end(&memory, &ring);
    let asked = VhostUserInflight::new(0, 0, 2, SIZE);
    let (told, file) = front.get_inflight_fd(&asked).unwrap();
    assert_eq!({ told.mmap_size }, 2 * AREA.next_multiple_of(64));
    front.set_inflight_fd(&told, file.as_raw_fd()).unwrap();
    let mut ring = ring;
    begin_at(&mut front, &kick, 0x8000);
    let id = submit(&memory, &mut ring, 0, 3);
    kick.write(1).unwrap();
    assert_eq!(used(&mut ring), u32::from(id));
    assert_eq!(front.get_vring_base(0).unwrap(), 0x8003_8003);
    let mut area = vec![0; AREA as usize];
    file.read_exact_at(&mut area, 0).unwrap();
    let word = |at: usize| u16::from_ne_bytes([area[at], area[at + 1]]);
    // Version, descriptors, both ends of the free list, both used places; both wrap counters; and nothing in flight.
    let words = [8, 10, 12, 14, 16, 18].map(word);
    assert_eq!(words, [1, SIZE, 0, 0, 3, 3]);
    assert_eq!(area[20..22], [1, 1]);
    assert!((0..usize::from(SIZE)).all(|entry| area[32 + 32 * entry] == 0));
    // The three entries that it had: linked, the last of them, how many; the driver's identifier, flags, length and address.
    assert_eq!([34, 66, 98, 130, 36, 38].map(word), [1, 2, 3, 4, 2, 3]);
    assert_eq!([48, 50].map(word), [id, 0x81]);
    assert_eq!(area[52..56], 16u32.to_ne_bytes());
    assert_eq!(area[56..64], REQUESTS.to_ne_bytes());
    drop(front);

    // Another process, which comes after one that was killed. What it is told of where the queue goes on is not up to date.
    let mut ring = PackedRing::new(memory.clone(), 0x1_0000, SIZE);
    let ids = [1, 2, 3].map(|at| submit(&memory, &mut ring, at, at + 10));
    leave(&ring, &file, 3, ids);
    for at in [12, 14] {
        // As one that notes in its own way: nothing in the list that is free.
        file.write_all_at(&SIZE.to_ne_bytes(), at).unwrap();
    }
    let (mut front, kick) = front_end(&memory, &ring);
    let told = VhostUserInflight::new(AREA, 0, 1, SIZE);
    front.set_inflight_fd(&told, file.as_raw_fd()).unwrap();
    begin_at(&mut front, &kick, 0x8000);
    let next = submit(&memory, &mut ring, 4, 20);
    kick.write(1).unwrap();
    let order = [0; 4].map(|_| used(&mut ring));
    assert_eq!(order, [ids[2], ids[1], ids[0], next].map(u32::from));
    for (at, sector) in [(1, 11), (2, 12), (4, 20)] {
        let mut data = vec![0; 512];
        let from = GuestAddress(REQUESTS + STRIDE * at + 0x200);
        memory.read_slice(&mut data, from).unwrap();
        assert_eq!(data, pattern(sector * 512, 512), "{sector}");
    }
    // The third was not done again.
    let mut data = vec![0; 512];
    let from = GuestAddress(REQUESTS + STRIDE * 3 + 0x200);
    memory.read_slice(&mut data, from).unwrap();
    assert_eq!(data, [0; 512]);
    assert_eq!(front.get_vring_base(0).unwrap(), 0x800c_800c);
    drop(front);

    // Notes of the other layout, or that make no sense, are served by nobody.
    for (features, version) in [
        (1u64 << 30 | 1 << 32, 1u16),
        (1 << 30 | 1 << 32 | PACKED, 3),
    ] {
        let (mut front, kick) = front_end(&memory, &ring);
        file.write_all_at(&version.to_ne_bytes(), 8).unwrap();
        front.set_inflight_fd(&told, file.as_raw_fd()).unwrap();
        front.set_features(features).unwrap();
        let _ = front.set_vring_kick(0, &kick);
        let _ = front.set_vring_enable(0, true);
        assert!(front.get_vring_base(0).is_err(), "{features:#x} {version}");
    }
}

/// A front end of rust-vmm's that has settled everything but where queue 0 goes on.
fn front_end(memory: &Memory, ring: &PackedRing) -> (Frontend, EventFd) {
    let (socket, _) = serve(&image(64));
    let mut front = Frontend::from_stream(socket, 2);
    front.get_features().unwrap();
    front.set_owner().unwrap();
    let protocol = front.get_protocol_features().unwrap();
    front.set_protocol_features(protocol).unwrap();
    front.set_features(1 << 30 | 1 << 32 | PACKED).unwrap();
    let regions: Vec<_> = memory
        .iter()
        .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
        .collect();
    front.set_mem_table(&regions).unwrap();
    let host = |address| memory.get_host_address(GuestAddress(address)).unwrap() as u64;
    let place = VringConfigData {
        queue_max_size: 256,
        queue_size: ring.size,
        flags: 0,
        desc_table_addr: host(ring.ring),
        used_ring_addr: host(ring.device),
        avail_ring_addr: host(ring.driver),
        log_addr: None,
    };
    front.set_vring_num(0, ring.size).unwrap();
    front.set_vring_addr(0, &place).unwrap();
    (front, EventFd::new(EFD_NONBLOCK).unwrap())
}

fn begin_at(front: &mut Frontend, kick: &EventFd, base: u16) {
    front.set_vring_base(0, base).unwrap();
    front.set_vring_kick(0, kick).unwrap();
    front.set_vring_enable(0, true).unwrap();
    kick.write(1).unwrap();
}

/// The identifier of what is used next.
fn used(ring: &mut PackedRing) -> u32 {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(used) = ring.take() {
            return used.head;
        }
        assert!(Instant::now() < end, "no answer");
        thread::sleep(Duration::from_millis(1));
    }
}
