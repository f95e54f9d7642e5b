// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk as its driver sees it: every request type, however it is cut, and what the image holds after.

use std::fs;
use std::io::Write;

use crate::support::{END, MIDDLE, Machine, header, image, pattern};
use hvkit_virtio_devices::block::{Access, Options};
use hvkit_virtio_devices::fake::{Buffer, Ring, Used};

use proptest::prelude::*;

use Buffer::{Readable, Writable};

const ALL: u64 = u64::MAX;
const VERSION_1: u64 = 1 << 32;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x9000;
const DATA: u64 = 0x1_0000;

/// Sends one request of the usual shape; returns its status byte and the used length.
fn request(
    machine: &mut Machine,
    ring: &mut Ring,
    kind: u32,
    sector: u64,
    data: &[Buffer],
) -> (u8, u32) {
    machine.write(HEADER, &header(kind, sector));
    machine.write(STATUS, &[0xee]);
    let mut buffers = vec![Readable(HEADER, 16)];
    buffers.extend(data.iter().filter(|b| matches!(b, Readable(..))));
    buffers.extend(data.iter().filter(|b| matches!(b, Writable(..))));
    buffers.push(Writable(STATUS, 1));
    let head = ring.submit(&buffers);
    machine.run();
    let used = ring.take().expect("the request was not answered");
    assert_eq!(used.head, u32::from(head));
    assert_eq!(ring.take(), None, "answered twice");
    (machine.read(STATUS, 1)[0], used.length)
}

#[test]
fn reads_and_writes_where_it_is_told() {
    let file = image(64);
    let mut machine = Machine::with_disk(Options::new(file.path()));
    let mut ring = machine.start(ALL);

    let read = request(&mut machine, &mut ring, IN, 3, &[Writable(DATA, 1024)]);
    assert_eq!(read, (OK, 1025));
    assert_eq!(machine.read(DATA, 1024), pattern(3 * 512, 1024));
    assert_eq!(machine.read(DATA + 1024, 1), [0], "wrote past the buffer");

    machine.write(DATA, &[0xab; 512]);
    let written = request(&mut machine, &mut ring, OUT, 63, &[Readable(DATA, 512)]);
    // Nothing but the status was written to guest memory.
    assert_eq!(written, (OK, 1));
    let mut expected = pattern(0, 63 * 512);
    expected.extend([0xab; 512]);
    assert_eq!(fs::read(file.path()).unwrap(), expected);

    assert_eq!(request(&mut machine, &mut ring, FLUSH, 0, &[]), (OK, 1));
    assert_eq!(
        machine.vectors.delivered(),
        [1, 1, 1],
        "one interrupt a request, by the queue's vector"
    );
}

#[test]
fn a_buffer_may_lie_across_regions() {
    let file = image(64);
    let mut machine = Machine::with_disk(Options::new(file.path()));
    let mut ring = machine.start(ALL);
    let answer = request(
        &mut machine,
        &mut ring,
        IN,
        0,
        &[Writable(MIDDLE - 700, 2048)],
    );
    assert_eq!(answer, (OK, 2049));
    assert_eq!(machine.read(MIDDLE - 700, 2048), pattern(0, 2048));
}

#[test]
fn more_pieces_than_one_system_call_takes() {
    let file = image(300);
    let mut machine = Machine::with_disk(Options::new(file.path()));
    let mut ring = machine.start(ALL);
    // 200 buffers of 512 bytes, backwards in memory.
    let data: Vec<_> = (0..200)
        .map(|i| Writable(DATA + (200 - i) * 512, 512))
        .collect();
    assert_eq!(
        request(&mut machine, &mut ring, IN, 7, &data),
        (OK, 200 * 512 + 1)
    );
    for i in 0..200 {
        let expected = pattern((7 + i) * 512, 512);
        assert_eq!(
            machine.read(DATA + (200 - i) * 512, 512),
            expected,
            "buffer {i}"
        );
    }
}

#[test]
fn sectors_that_are_not_there_are_refused() {
    let file = image(64);
    let before = fs::read(file.path()).unwrap();
    let mut machine = Machine::with_disk(Options::new(file.path()));
    let mut ring = machine.start(ALL);
    for (sector, length) in [
        (64, 512),
        (63, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (1 << 55, 512),
        (0, 65 * 512),
    ] {
        for (kind, buffer) in [(IN, Writable(DATA, length)), (OUT, Readable(DATA, length))] {
            let (status, used) = request(&mut machine, &mut ring, kind, sector, &[buffer]);
            assert_eq!(
                status, IOERR,
                "type {kind} sector {sector:#x} length {length}"
            );
            // A read that failed wrote no data, so the used length cannot reach the status byte.
            assert_eq!(used, u32::from(kind == OUT));
        }
    }
    assert_eq!(fs::read(file.path()).unwrap(), before);
}

#[test]
fn data_that_is_not_whole_sectors_is_refused() {
    let file = image(64);
    let mut machine = Machine::with_disk(Options::new(file.path()));
    let mut ring = machine.start(ALL);
    for length in [1, 511, 513, 1023] {
        let read = request(&mut machine, &mut ring, IN, 0, &[Writable(DATA, length)]);
        assert_eq!(read.0, IOERR, "{length}");
        let write = request(&mut machine, &mut ring, OUT, 0, &[Readable(DATA, length)]);
        assert_eq!(write.0, IOERR, "{length}");
    }
}

#[test]
fn a_buffer_outside_memory_is_an_error_of_the_request_only() {
    let file = image(64);
    let mut machine = Machine::with_disk(Options::new(file.path()));
    let mut ring = machine.start(ALL);
    for address in [END, END - 256, 1 << 40, u64::MAX - 1024] {
        let read = request(&mut machine, &mut ring, IN, 0, &[Writable(address, 512)]);
        assert_eq!(read.0, IOERR, "{address:#x}");
        let write = request(&mut machine, &mut ring, OUT, 0, &[Readable(address, 512)]);
        assert_eq!(write.0, IOERR, "{address:#x}");
    }
    assert_eq!(
        request(&mut machine, &mut ring, IN, 0, &[Writable(DATA, 512)]),
        (OK, 513)
    );
    assert_eq!(machine.driver.status(), 0xf);
}

#[test]
fn a_header_outside_memory_or_too_short_is_an_error_of_the_request_only() {
    let file = image(64);
    let mut machine = Machine::with_disk(Options::new(file.path()));
    let mut ring = machine.start(ALL);
    for header in [Readable(END, 16), Readable(HEADER, 15), Readable(HEADER, 0)] {
        machine.write(STATUS, &[0xee]);
        ring.submit(&[header, Writable(DATA, 512), Writable(STATUS, 1)]);
        machine.run();
        assert!(ring.take().is_some());
        assert_eq!(machine.read(STATUS, 1), [IOERR], "{header:?}");
    }
}

#[test]
fn a_status_outside_memory_leaves_the_disk_alive() {
    let file = image(64);
    let mut machine = Machine::with_disk(Options::new(file.path()));
    let mut ring = machine.start(ALL);
    machine.write(HEADER, &header(IN, 0));
    let head = ring.submit(&[Readable(HEADER, 16), Writable(DATA, 512), Writable(END, 1)]);
    machine.run();
    // The data was written, the status was not.
    assert_eq!(
        ring.take(),
        Some(Used {
            head: head.into(),
            length: 512
        })
    );
    assert_eq!(machine.driver.status(), 0xf);
}

#[test]
fn a_chain_without_room_for_a_status_stops_the_disk_until_a_reset() {
    let file = image(64);
    let mut machine = Machine::with_disk(Options::new(file.path()));
    for buffers in [
        &[Readable(HEADER, 16)][..],
        &[Readable(HEADER, 16), Writable(STATUS, 0)],
    ] {
        let mut ring = machine.start(ALL);
        // A good one first: what was done before stays done.
        machine.write(HEADER, &header(FLUSH, 0));
        let good = ring.submit(&[Readable(HEADER, 16), Writable(STATUS, 1)]);
        ring.submit(buffers);
        machine.run();
        assert_eq!(
            ring.take(),
            Some(Used {
                head: good.into(),
                length: 1
            })
        );
        assert_eq!(ring.take(), None);
        assert_eq!(machine.driver.status(), 0x4f, "DEVICE_NEEDS_RESET");
        assert_eq!(
            machine.vectors.delivered(),
            [1, 0],
            "the queue's vector, then the configuration's"
        );
        // Latched: another request is not looked at, and nothing is reported twice.
        ring.submit(&[Readable(HEADER, 16), Writable(STATUS, 1)]);
        machine.run();
        assert_eq!(ring.take(), None);
        assert!(machine.vectors.delivered().is_empty());
    }
    let mut ring = machine.start(ALL);
    assert_eq!(
        request(&mut machine, &mut ring, IN, 0, &[Writable(DATA, 512)]),
        (OK, 513)
    );
}

#[test]
fn types_that_do_not_exist_are_unsupported() {
    let file = image(64);
    let mut machine = Machine::with_disk(Options::new(file.path()));
    let mut ring = machine.start(ALL);
    // 2 and 3 are SCSI of old; 14 is secure erase, which is not offered.
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 24, 0x8000_0000, u32::MAX] {
        let (status, _) = request(&mut machine, &mut ring, kind, 0, &[Writable(DATA, 512)]);
        assert_eq!(status, UNSUPP, "type {kind:#x}");
    }
}

#[test]
fn the_serial_number_is_padded_and_fits_the_buffer() {
    let file = image(8);
    let mut machine = Machine::with_disk(Options::new(file.path()).with_serial("disk-0001"));
    let mut ring = machine.start(ALL);
    machine.write(DATA, &[0xee; 32]);
    assert_eq!(
        request(&mut machine, &mut ring, GET_ID, 0, &[Writable(DATA, 20)]),
        (OK, 21)
    );
    let mut expected = *b"disk-0001\0\0\0\0\0\0\0\0\0\0\0\xee";
    assert_eq!(machine.read(DATA, 21), expected);
    // A longer buffer is not filled, so the status byte does not count; a shorter one is cut.
    assert_eq!(
        request(&mut machine, &mut ring, GET_ID, 0, &[Writable(DATA, 32)]),
        (OK, 20)
    );
    machine.write(DATA, &[0xee; 32]);
    assert_eq!(
        request(&mut machine, &mut ring, GET_ID, 0, &[Writable(DATA, 4)]),
        (OK, 5)
    );
    expected[4..].fill(0xee);
    assert_eq!(machine.read(DATA, 21), expected);
}

#[test]
fn a_read_only_disk_takes_no_writes() {
    let file = image(64);
    let before = fs::read(file.path()).unwrap();
    let options = Options::new(file.path()).with_access(Access::ReadOnly);
    let mut machine = Machine::with_disk(options);
    let offered = machine.driver.offered();
    assert_ne!(offered & 1 << 5, 0, "VIRTIO_BLK_F_RO");
    assert_eq!(
        offered & (1 << 9 | 1 << 13 | 1 << 14),
        0,
        "nothing to flush, discard or zero"
    );
    let mut ring = machine.start(ALL);
    machine.write(DATA, &[0xab; 512]);
    for kind in [OUT, DISCARD, WRITE_ZEROES] {
        let answer = request(&mut machine, &mut ring, kind, 0, &[Readable(DATA, 512)]);
        assert_eq!(answer, (IOERR, 1));
    }
    assert_eq!(
        request(&mut machine, &mut ring, IN, 1, &[Writable(DATA, 512)]),
        (OK, 513)
    );
    assert_eq!(machine.read(DATA, 512), pattern(512, 512));
    assert_eq!(fs::read(file.path()).unwrap(), before);
}

/// A discard or write-zeroes segment, in raw words.
fn hole(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut raw = sector.to_le_bytes().to_vec();
    raw.extend(count.to_le_bytes());
    raw.extend(flags.to_le_bytes());
    raw
}

#[test]
fn holes_read_as_zeros_and_touch_nothing_else() {
    for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
        let file = image(64);
        let mut machine = Machine::with_disk(Options::new(file.path()));
        let mut ring = machine.start(ALL);
        let mut segments = hole(8, 8, flags);
        segments.extend(hole(32, 16, flags));
        machine.write(DATA, &segments);
        let answer = request(&mut machine, &mut ring, kind, 0, &[Readable(DATA, 32)]);
        assert_eq!(answer, (OK, 1), "type {kind} flags {flags}");
        let mut expected = pattern(0, 64 * 512);
        expected[8 * 512..16 * 512].fill(0);
        expected[32 * 512..48 * 512].fill(0);
        assert_eq!(
            fs::read(file.path()).unwrap(),
            expected,
            "type {kind} flags {flags}"
        );
    }
}

#[test]
fn a_request_for_holes_is_done_whole_or_not_at_all() {
    let file = image(64);
    let before = fs::read(file.path()).unwrap();
    let mut machine = Machine::with_disk(Options::new(file.path()));
    let mut ring = machine.start(ALL);
    let good = hole(0, 1, 0);
    for (kind, second, expected) in [
        (DISCARD, hole(64, 1, 0), IOERR),
        (DISCARD, hole(63, 2, 0), IOERR),
        (DISCARD, hole(u64::MAX, 2, 0), IOERR),
        (WRITE_ZEROES, hole(0, u32::MAX, 0), IOERR),
        // "unmap" means nothing to a discard; other bits are reserved.
        (DISCARD, hole(1, 1, 1), UNSUPP),
        (WRITE_ZEROES, hole(1, 1, 2), UNSUPP),
        (WRITE_ZEROES, hole(1, 1, 1 << 31), UNSUPP),
        (DISCARD, vec![0; 15], IOERR),
        (DISCARD, vec![0; 17 * 16], IOERR),
    ] {
        let mut segments = good.clone();
        segments.extend(second);
        machine.write(DATA, &segments);
        let data = [Readable(DATA, segments.len() as u32)];
        let answer = request(&mut machine, &mut ring, kind, 0, &data);
        assert_eq!(answer.0, expected, "type {kind} {:?}", &segments[16..]);
    }
    assert_eq!(request(&mut machine, &mut ring, DISCARD, 0, &[]).0, IOERR);
    assert_eq!(fs::read(file.path()).unwrap(), before);
}

#[test]
fn an_image_that_shrinks_gives_errors_not_zeros() {
    let file = image(64);
    let mut machine = Machine::with_disk(Options::new(file.path()));
    let mut ring = machine.start(ALL);
    file.as_file().set_len(512).unwrap();
    let answer = request(&mut machine, &mut ring, IN, 0, &[Writable(DATA, 1024)]);
    assert_eq!(answer.0, IOERR);
    assert_eq!(
        request(&mut machine, &mut ring, IN, 0, &[Writable(DATA, 512)]),
        (OK, 513)
    );
}

#[test]
fn an_image_is_never_more_than_its_bytes() {
    // The magic of qcow2 at the start of a raw image changes nothing.
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = vec![0; 1024];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    file.write_all(&bytes).unwrap();
    let mut machine = Machine::with_disk(Options::new(file.path()));
    assert_eq!(
        machine.driver.get(machine.driver.device, 0, 8),
        2,
        "capacity"
    );
    let mut ring = machine.start(ALL);
    assert_eq!(
        request(&mut machine, &mut ring, IN, 0, &[Writable(DATA, 1024)]),
        (OK, 1025)
    );
    assert_eq!(machine.read(DATA, 1024), bytes);
}

#[test]
fn configuration_space_says_what_the_specification_says() {
    let file = image(2048);
    let options = Options::new(file.path())
        .with_queues(4)
        .with_queue_size(128);
    let mut machine = Machine::with_disk(options);
    let driver = &mut machine.driver;
    let device = driver.device;
    let mut field = |offset, width| driver.get(device, offset, width);
    assert_eq!(field(0x00, 8), 2048, "capacity");
    assert_eq!(field(0x0c, 4), 126, "seg_max");
    assert_eq!(field(0x14, 4), 512, "blk_size");
    assert_eq!(field(0x20, 2), 1, "writeback, and what is unused");
    assert_eq!(field(0x22, 2), 4, "num_queues");
    assert_eq!(field(0x24, 4), 65536, "max_discard_sectors");
    assert_eq!(field(0x28, 4), 16, "max_discard_seg");
    assert_eq!(field(0x30, 4), 65536, "max_write_zeroes_sectors");
    assert_eq!(field(0x34, 4), 16, "max_write_zeroes_seg");
    assert_eq!(field(0x38, 1), 1, "write_zeroes_may_unmap");
    assert_eq!(field(0x3c, 8), 0, "past the end");
    let block = 512u64 << field(0x18, 1);
    assert!(
        block.is_power_of_two() && block >= 512,
        "physical block of {block}"
    );
    // Read-only: a write changes nothing.
    driver.put(device, 0, 8, 1);
    assert_eq!(driver.get(device, 0, 8), 2048);
    let expected = VERSION_1
        | 1 << 28 | 1 << 29 // INDIRECT_DESC, EVENT_IDX
        | 1 << 34 | 1 << 35 | 1 << 38 // RING_PACKED, IN_ORDER, NOTIFICATION_DATA
        | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14;
    assert_eq!(driver.offered(), expected);
    assert_eq!(
        driver.get(driver.common, 0x12, 2),
        4,
        "num_queues of the transport"
    );
}

#[test]
fn every_queue_reaches_the_same_image() {
    let file = image(64);
    let mut machine = Machine::with_disk(Options::new(file.path()).with_queues(3));
    machine.driver.enable_msix();
    machine.driver.negotiate(ALL);
    let memory = machine.memory.clone();
    // The middle one stays disabled.
    let mut first = machine.driver.queue(0, &memory, 0x1000, 16);
    let mut third = machine.driver.queue(2, &memory, 0x4000, 16);
    machine.driver.set_status(0xf);
    machine.write(HEADER, &header(OUT, 5));
    machine.write(DATA, &[0x5a; 512]);
    third.submit(&[
        Readable(HEADER, 16),
        Readable(DATA, 512),
        Writable(STATUS, 1),
    ]);
    machine.driver.kick(2);
    machine.workers.step(10);
    assert!(third.take().is_some());
    machine.write(HEADER, &header(IN, 5));
    first.submit(&[
        Readable(HEADER, 16),
        Writable(DATA + 512, 512),
        Writable(STATUS, 1),
    ]);
    machine.run();
    assert!(first.take().is_some());
    assert_eq!(machine.read(DATA + 512, 512), [0x5a; 512]);
    assert_eq!(machine.vectors.delivered(), [3, 1]);
}

#[test]
fn a_batch_gives_one_interrupt() {
    for (features, what) in [(ALL, "event index"), (VERSION_1, "flags")] {
        let file = image(64);
        let mut machine = Machine::with_disk(Options::new(file.path()));
        let mut ring = machine.start(features);
        machine.write(HEADER, &header(FLUSH, 0));
        for _ in 0..20 {
            ring.submit(&[Readable(HEADER, 16), Writable(STATUS, 1)]);
        }
        machine.run();
        assert_eq!(std::iter::from_fn(|| ring.take()).count(), 20, "{what}");
        assert_eq!(machine.vectors.delivered(), [1], "{what}");
    }
}

/// A driver need not notify a device that did not ask for it, so at rest the device must have asked.
#[test]
fn at_rest_the_disk_waits_for_a_kick_and_has_asked_for_one() {
    for features in [ALL, VERSION_1] {
        let file = image(64);
        let mut machine = Machine::with_disk(Options::new(file.path()));
        let mut ring = machine.start(features);
        for round in 1..4 {
            assert_eq!(request(&mut machine, &mut ring, FLUSH, 0, &[]), (OK, 1));
            // avail_event, or VIRTQ_USED_F_NO_NOTIFY.
            let event = ring.get16(ring.used + 4 + 8 * 256);
            let flags = ring.get16(ring.used);
            let expected = if features == ALL { (round, 0) } else { (0, 0) };
            assert_eq!((event, flags), expected);
        }
    }
}

#[test]
fn a_full_queue_is_served_in_several_turns() {
    let file = image(64);
    let mut machine = Machine::with_disk(Options::new(file.path()));
    let mut ring = machine.start(ALL);
    machine.write(HEADER, &header(FLUSH, 0));
    for _ in 0..128 {
        ring.submit(&[Readable(HEADER, 16), Writable(STATUS, 1)]);
    }
    machine.driver.kick(0);
    // 32 a turn, and one more turn to see that there is nothing left.
    assert_eq!(machine.workers.step(100), 5);
    assert_eq!(std::iter::from_fn(|| ring.take()).count(), 128);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// "The device MUST NOT make assumptions about the particular arrangement of descriptors" (2.7.4.1).
    #[test]
    fn framing_does_not_matter(
        cuts in prop::collection::vec(1u32..700, 1..12),
        write in any::<bool>(),
        sectors in 1u32..6,
        sector in 0u64..40,
    ) {
        let file = image(64);
        let before = fs::read(file.path()).unwrap();
        let mut machine = Machine::with_disk(Options::new(file.path()));
        let mut ring = machine.start(ALL);
        let length = sectors * 512;
        // One run of bytes for each side, cut wherever the list says, the rest in one piece.
        let cut = |start: u64, total: u32| {
            let mut pieces = Vec::new();
            let mut at = 0;
            for cut in &cuts {
                let now = (*cut).min(total - at);
                pieces.push((start + u64::from(at), now));
                at += now;
            }
            pieces.push((start + u64::from(at), total - at));
            pieces
        };
        let (kind, readable, writable) =
            if write { (OUT, 16 + length, 1) } else { (IN, 16, length + 1) };
        let (from, to) = (0x1_0000u64, 0x2_0000u64);
        machine.write(from, &header(kind, sector));
        let payload: Vec<u8> = (0..length).map(|i| (i * 13 % 255) as u8).collect();
        machine.write(from + 16, &payload);
        machine.write(to + u64::from(writable) - 1, &[0xee]);
        let mut buffers: Vec<_> =
            cut(from, readable).into_iter().map(|(a, l)| Readable(a, l)).collect();
        buffers.extend(cut(to, writable).into_iter().map(|(a, l)| Writable(a, l)));
        ring.submit(&buffers);
        machine.run();
        let used = ring.take().unwrap();
        prop_assert_eq!(used.length, writable);
        prop_assert_eq!(machine.read(to + u64::from(writable) - 1, 1), [OK]);
        let mut expected = before;
        let range = sector as usize * 512..sector as usize * 512 + length as usize;
        if write {
            expected[range].copy_from_slice(&payload);
        } else {
            prop_assert_eq!(machine.read(to, length as usize), &expected[range]);
        }
        prop_assert_eq!(fs::read(file.path()).unwrap(), expected);
    }
}
