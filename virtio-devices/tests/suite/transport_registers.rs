// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers of virtio-pci: each one, in each status, at each width.

use crate::support::probe::Bench;
use hvkit_virtio_devices::pci::{Level, PciFunction};
use hvkit_virtio_devices::transport::pci::{PciError, VirtioPci};

/// The common configuration structure, field by field: offset, bytes.
const FIELDS: [(u64, usize); 26] = [
    (0x00, 4),
    (0x04, 4),
    (0x08, 4),
    (0x0c, 4),
    (0x10, 2),
    (0x12, 2),
    (0x14, 1),
    (0x15, 1),
    (0x16, 2),
    (0x18, 2),
    (0x1a, 2),
    (0x1c, 2),
    (0x1e, 2),
    (0x20, 4),
    (0x24, 4),
    (0x28, 4),
    (0x2c, 4),
    (0x30, 4),
    (0x34, 4),
    (0x38, 2),
    (0x3a, 2),
    (0x3c, 2),
    (0x3e, 2),
    (0x40, 4),
    (0x44, 4),
    (0x48, 4),
];

fn common(bench: &mut Bench, offset: u64, width: usize) -> u64 {
    bench.driver.get(bench.driver.common, offset, width)
}

fn set(bench: &mut Bench, offset: u64, width: usize, value: u64) {
    bench.driver.put(bench.driver.common, offset, width, value);
}

fn snapshot(bench: &mut Bench) -> Vec<u64> {
    FIELDS
        .iter()
        .map(|&(offset, width)| common(bench, offset, width))
        .collect()
}

#[test]
fn a_function_says_who_it_is() {
    let mut bench = Bench::new();
    let driver = &mut bench.driver;
    assert_eq!(driver.config(0x00, 4), 0x106a_1af4, "0x1040 + 42");
    assert_eq!(driver.config(0x08, 1), 1, "not transitional");
    assert_eq!(driver.config(0x2c, 4), 0x106a_1af4);
    assert_eq!(driver.config(0x3d, 1), 1, "INTA");
}

#[test]
fn structures_lie_apart_in_the_window() {
    let mut bench = Bench::new();
    let driver = &mut bench.driver;
    driver.function.config_write(0x10, &[0xff; 4]);
    let length = u64::from(!(driver.config(0x10, 4) & !0xf)) + 1;
    let regions = [
        driver.common,
        driver.isr,
        driver.device,
        driver.notify,
        driver.table,
        driver.pending,
    ];
    for (i, region) in regions.iter().enumerate() {
        assert_eq!(region.bar, 0);
        assert!(
            region.length > 0 && region.offset + region.length <= length,
            "{region:?}"
        );
        // Pages of their own: a VMM may map one and trap the next.
        assert_eq!(region.offset % 4096, 0);
        for other in &regions[i + 1..] {
            assert!(
                region.offset + region.length <= other.offset,
                "{region:?} {other:?}"
            );
        }
    }
    assert!(
        driver.common.length >= 0x38,
        "4.1.4.3: what the driver may rely on"
    );
    assert!(driver.notify.length >= 3 * u64::from(driver.notify_stride));
    assert_eq!(driver.table.length, 4 * 16, "a vector a queue, and one");
}

#[test]
fn after_reset_the_registers_are_as_specified() {
    let mut bench = Bench::new();
    for round in 0..2 {
        assert_eq!(common(&mut bench, 0x14, 1), 0, "device_status");
        assert_eq!(common(&mut bench, 0x10, 2), 0xffff, "config_msix_vector");
        assert_eq!(common(&mut bench, 0x12, 2), 3, "num_queues");
        for (queue, size) in [(0, 8), (1, 16), (2, 256)] {
            set(&mut bench, 0x16, 2, queue);
            assert_eq!(common(&mut bench, 0x18, 2), size, "queue_size {queue}");
            assert_eq!(common(&mut bench, 0x1a, 2), 0xffff, "queue_msix_vector");
            assert_eq!(common(&mut bench, 0x1c, 2), 0, "queue_enable");
            assert_eq!(common(&mut bench, 0x1e, 2), queue, "queue_notify_off");
            for address in [0x20, 0x28, 0x30] {
                assert_eq!(common(&mut bench, address, 8), 0);
            }
        }
        if round == 0 {
            bench.start();
            for (selector, width) in [(0x00, 4), (0x08, 4), (0x16, 2)] {
                set(&mut bench, selector, width, 1);
            }
            assert_eq!(bench.driver.set_status(0), 0);
            for (selector, width) in [(0x00, 4), (0x08, 4), (0x16, 2)] {
                assert_eq!(common(&mut bench, selector, width), 0, "{selector:#x}");
            }
        }
    }
}

#[test]
fn a_queue_that_does_not_exist_has_size_0_and_takes_nothing() {
    let mut bench = Bench::new();
    for queue in [3, 4, 0x8000, 0xffff] {
        set(&mut bench, 0x16, 2, queue);
        for (offset, width) in [
            (0x18, 2),
            (0x1a, 2),
            (0x1c, 2),
            (0x20, 4),
            (0x24, 4),
            (0x34, 4),
        ] {
            set(&mut bench, offset, width, 1);
        }
        assert_eq!(common(&mut bench, 0x18, 2), 0);
        assert_eq!(common(&mut bench, 0x1a, 2), 0xffff);
        assert_eq!(common(&mut bench, 0x1c, 8), 0);
        assert_eq!(common(&mut bench, 0x20, 8), 0);
    }
}

#[test]
fn queue_sizes_are_powers_of_two_up_to_what_is_offered() {
    let mut bench = Bench::new();
    set(&mut bench, 0x16, 2, 1);
    for (written, read) in [
        (8, 8),
        (0, 8),
        (32, 8),
        (3, 8),
        (0xffff, 8),
        (0x8000, 8),
        (1, 1),
        (16, 16),
        (15, 16),
    ] {
        set(&mut bench, 0x18, 2, written);
        assert_eq!(common(&mut bench, 0x18, 2), read, "{written}");
    }
}

#[test]
fn vectors_that_do_not_exist_read_back_as_none() {
    let mut bench = Bench::new();
    for offset in [0x10, 0x1a] {
        for (written, read) in [
            (0, 0),
            (3, 3),
            (4, 0xffff),
            (1, 1),
            (0xfffe, 0xffff),
            (2, 2),
            (0xffff, 0xffff),
        ] {
            set(&mut bench, offset, 2, written);
            assert_eq!(
                common(&mut bench, offset, 2),
                read,
                "{offset:#x} {written:#x}"
            );
        }
    }
}

#[test]
fn features_are_selected_by_words() {
    let mut bench = Bench::new();
    for (select, word) in [(0, 0x3000_0081), (1, 0x0080_004d), (2, 0), (0xffff_ffff, 0)] {
        set(&mut bench, 0x00, 4, select);
        assert_eq!(common(&mut bench, 0x04, 4), word, "word {select:#x}");
    }
    for (select, kept) in [(0, 0x1234_5678), (1, 0x9abc_def0), (2, 0), (0xffff_ffff, 0)] {
        set(&mut bench, 0x08, 4, select);
        set(&mut bench, 0x0c, 4, if kept == 0 { 0x5555 } else { kept });
        assert_eq!(common(&mut bench, 0x0c, 4), kept, "word {select:#x}");
    }
    set(&mut bench, 0x08, 4, 0);
    assert_eq!(common(&mut bench, 0x0c, 4), 0x1234_5678);
}

#[test]
fn features_that_were_not_offered_are_not_ok() {
    const V1: u64 = 1 << 32;
    let mut bench = Bench::new();
    let offered = bench.driver.offered();
    // INDIRECT_DESC, EVENT_IDX, RING_PACKED, IN_ORDER, NOTIFICATION_DATA; then the probe's.
    let shared = 1 << 28 | 1 << 29 | 1 << 34 | 1 << 35 | 1 << 38;
    assert_eq!(offered, V1 | shared | 1 << 55 | 1 << 7 | 1);
    for (accepted, ok) in [
        (V1, true),
        (offered, true),
        (offered & !V1, false),
        (0, false),
        (V1 | 1 << 1, false),
        (V1 | 1 << 33, false),
        (V1 | 1 << 63, false),
        (V1 | 1 << 34, true),
        (V1 | 1 << 36, false),
        (u64::MAX, false),
    ] {
        bench.driver.set_status(0);
        bench.driver.set_status(3);
        bench.driver.accept(accepted);
        let status = bench.driver.set_status(0xb);
        assert_eq!(status, if ok { 0xb } else { 0x3 }, "{accepted:#x}");
        // A refusal can be mended.
        bench.driver.accept(V1);
        assert_eq!(bench.driver.set_status(0xb), 0xb);
    }
}

#[test]
fn translated_memory_needs_a_driver_that_knows() {
    const V1: u64 = 1 << 32;
    let mut bench = Bench::with(VirtioPci::with_access_platform);
    assert_ne!(bench.driver.offered() & 1 << 33, 0);
    bench.driver.set_status(3);
    bench.driver.accept(V1);
    assert_eq!(bench.driver.set_status(0xb), 0x3);
    bench.driver.accept(V1 | 1 << 33);
    assert_eq!(bench.driver.set_status(0xb), 0xb);
}

#[test]
fn tables_of_descriptors_can_be_left_out() {
    const V1: u64 = 1 << 32;
    let mut bench = Bench::with(|function| function);
    let all = bench.driver.offered();
    assert_ne!(all & 1 << 28, 0);
    let mut bench = Bench::with(VirtioPci::without_indirect_tables);
    assert_eq!(bench.driver.offered(), all & !(1 << 28));
    // Who accepts it all the same is refused.
    bench.driver.set_status(3);
    bench.driver.accept(V1 | 1 << 28);
    assert_eq!(bench.driver.set_status(0xb), 0x3);
}

#[test]
fn packed_rings_can_be_left_out() {
    const V1: u64 = 1 << 32;
    let mut bench = Bench::with(|function| function);
    let all = bench.driver.offered();
    assert_ne!(all & 1 << 34, 0);
    let mut bench = Bench::with(VirtioPci::without_packed_rings);
    assert_eq!(bench.driver.offered(), all & !(1 << 34));
    bench.driver.set_status(3);
    bench.driver.accept(V1 | 1 << 34);
    assert_eq!(bench.driver.set_status(0xb), 0x3);
}

/// The rules of 2.1 and 3.1.1 as a table: what a write of `value` makes of `status`, when the features are
/// acceptable and no queue is set up.
fn next_status(status: u8, value: u8) -> u8 {
    if value == 0 {
        return 0;
    }
    let mut next = status | value & 0x83;
    if value & 8 != 0 && next & 3 == 3 {
        next |= 8;
    }
    if value & 4 != 0 && status & 8 != 0 {
        next |= 4;
    }
    next
}

#[test]
fn status_bits_are_taken_in_their_turn_and_never_cleared() {
    let reach: [&[u8]; 9] = [
        &[],
        &[1],
        &[2],
        &[3],
        &[3, 0xb],
        &[3, 0xb, 0xf],
        &[0x80],
        &[3, 0x83],
        &[3, 0xb, 0xf, 0x8f],
    ];
    for path in reach {
        for value in 0..=255u8 {
            let mut bench = Bench::new();
            bench.driver.accept(1 << 32);
            let mut expected = 0;
            for step in path.iter().copied().chain([value]) {
                expected = next_status(expected, step);
                assert_eq!(
                    bench.driver.set_status(step),
                    expected,
                    "{path:x?} then {value:#x}"
                );
            }
            let live = expected & 4 != 0;
            assert_eq!(
                bench.seen.lock().unwrap().activated.is_some() && value != 0,
                live
            );
        }
    }
}

/// Which fields of queue 1 a write may change, by status. Selectors, vectors and the status always; the
/// features until FEATURES_OK; the queue until DRIVER_OK (CVE-2026-5747 is what becomes of it otherwise).
#[test]
fn every_register_in_every_status() {
    let statuses: [(&[u8], bool, bool); 6] = [
        (&[], true, true),
        (&[1], true, true),
        (&[3], true, true),
        (&[3, 0xb], false, true),
        (&[3, 0xb, 0xf], false, false),
        (&[3, 0xb, 0xf, 0x8f], false, false),
    ];
    for (path, features, queues) in statuses {
        for (offset, width, value, free) in [
            (0x00, 4, 1, true),
            (0x04, 4, 1, false),
            (0x08, 4, 1, true),
            (0x0c, 4, 0x5555, features),
            (0x10, 2, 2, true),
            (0x12, 2, 1, false),
            (0x15, 1, 1, false),
            (0x16, 2, 2, true),
            (0x18, 2, 4, queues),
            (0x1a, 2, 2, true),
            (0x1c, 2, 1, queues),
            (0x1e, 2, 9, false),
            (0x20, 4, 0x1000, queues),
            (0x24, 4, 0x1, queues),
            (0x28, 4, 0x1000, queues),
            (0x2c, 4, 0x1, queues),
            (0x30, 4, 0x1000, queues),
            (0x34, 4, 0x1, queues),
            (0x38, 2, 1, false),
            (0x3a, 2, 1, false),
            (0x3c, 2, 1, false),
            (0x3e, 2, 1, false),
        ] {
            let mut bench = Bench::new();
            bench.driver.accept(1 << 32);
            for status in path {
                bench.driver.set_status(*status);
            }
            set(&mut bench, 0x08, 4, 0);
            set(&mut bench, 0x16, 2, 1);
            let before = common(&mut bench, offset, width);
            set(&mut bench, offset, width, value);
            let after = common(&mut bench, offset, width);
            let expected = if free { value } else { before };
            assert_eq!(after, expected, "field {offset:#x} with status {path:x?}");
        }
    }
}

#[test]
fn an_enabled_queue_keeps_its_registers() {
    let mut bench = Bench::new();
    bench.driver.negotiate(u64::MAX);
    bench.driver.queue(1, &bench.memory, 0x1000, 8);
    let before = snapshot(&mut bench);
    for (offset, width) in [
        (0x18, 2),
        (0x1c, 2),
        (0x20, 4),
        (0x24, 4),
        (0x28, 4),
        (0x2c, 4),
        (0x30, 4),
        (0x34, 4),
    ] {
        for value in [0, 4, 0xffff_ffff] {
            set(&mut bench, offset, width, value);
            assert_eq!(snapshot(&mut bench), before, "{offset:#x} {value:#x}");
        }
    }
}

#[test]
fn only_1_enables_a_queue() {
    let mut bench = Bench::new();
    for value in [0, 2, 3, 0xffff] {
        set(&mut bench, 0x1c, 2, value);
        assert_eq!(common(&mut bench, 0x1c, 2), 0, "{value:#x}");
    }
}

/// A write changes the fields that it covers whole. Whatever else it touches stays.
#[test]
fn writes_of_any_shape_split_over_whole_fields() {
    let writable = |field| matches!(field, 0x00 | 0x08 | 0x0c | 0x10 | 0x18 | 0x1a | 0x20..=0x34);
    for offset in 0..0x44u64 {
        for width in [1usize, 2, 3, 4, 8] {
            let covered = |field: u64, bytes: usize| {
                field >= offset && field + bytes as u64 <= offset + width as u64
            };
            // Those would change what the other fields mean.
            if covered(0x14, 1) || covered(0x16, 2) || covered(0x1c, 2) {
                continue;
            }
            let mut bench = Bench::new();
            let before = snapshot(&mut bench);
            let value = 0x0101_0101_0101_0101u64;
            let mut data = value.to_le_bytes();
            // A size that is one, in case it is covered.
            if let Some(at) = 0x18u64
                .checked_sub(offset)
                .filter(|at| *at + 2 <= width as u64)
            {
                data[at as usize..at as usize + 2].copy_from_slice(&8u16.to_le_bytes());
            }
            for vector in [0x10u64, 0x1a] {
                if let Some(at) = vector
                    .checked_sub(offset)
                    .filter(|at| *at + 2 <= width as u64)
                {
                    data[at as usize..at as usize + 2].copy_from_slice(&3u16.to_le_bytes());
                }
            }
            bench.driver.function.bar_write(0, offset, &data[..width]);
            let after = snapshot(&mut bench);
            for ((&(field, bytes), before), after) in FIELDS.iter().zip(&before).zip(&after) {
                let mut expected = *before;
                if covered(field, bytes) && writable(field) {
                    let at = (field - offset) as usize;
                    let mut word = [0; 8];
                    word[..bytes].copy_from_slice(&data[at..at + bytes]);
                    expected = u64::from_le_bytes(word);
                }
                // The selected word 0x01010101 of the features does not exist.
                if (field == 0x04 && covered(0, 4)) || (field == 0x0c && covered(8, 4)) {
                    expected = 0;
                }
                assert_eq!(
                    *after, expected,
                    "{width} bytes at {offset:#x}: field {field:#x}"
                );
            }
        }
    }
}

#[test]
fn reads_of_any_shape_and_place_agree() {
    let mut bench = Bench::new();
    bench.driver.negotiate(u64::MAX);
    bench.driver.queue(2, &bench.memory, 0x1000, 8);
    let mut bytes = Vec::new();
    for offset in 0..0x2000 {
        bytes.push(bench.driver.get(bench.driver.common, offset, 1) as u8);
    }
    for offset in 0..0x1ffcu64 {
        for width in [2usize, 4, 8] {
            let mut data = [0xee; 8];
            bench
                .driver
                .function
                .bar_read(0, offset, &mut data[..width]);
            // A read ends with the structure it starts in, and reads nothing of the next.
            for (i, byte) in data[..width].iter().enumerate() {
                let at = offset as usize + i;
                let inside = at < 0x40 && offset < 0x40;
                assert_eq!(
                    *byte,
                    if inside { bytes[at] } else { 0 },
                    "{width} at {offset:#x}"
                );
            }
        }
    }
}

#[test]
fn other_windows_and_places_are_empty() {
    let mut bench = Bench::new();
    for (bar, offset) in [
        (1, 0),
        (5, 0),
        (255, 0),
        (0, 0x7fff),
        (0, 0x40),
        (0, u64::MAX),
        (0, 1 << 40),
    ] {
        let mut data = [0xee; 8];
        bench.driver.function.bar_write(bar, offset, &[0xff; 8]);
        bench.driver.function.bar_read(bar, offset, &mut data);
        assert_eq!(data, [0; 8], "{bar} {offset:#x}");
    }
}

#[test]
fn device_configuration_is_the_devices() {
    let mut bench = Bench::new();
    let device = bench.driver.device;
    bench.seen.lock().unwrap().config = *b"abcdefgh";
    assert_eq!(
        bench.driver.get(device, 2, 2),
        u64::from_le_bytes(*b"cd\0\0\0\0\0\0")
    );
    bench.driver.put(device, 6, 4, 0x5958_5756);
    assert_eq!(&bench.seen.lock().unwrap().config, b"abcdefVW");
}

#[test]
fn the_window_is_reached_through_configuration_space() {
    let mut bench = Bench::new();
    let at = bench.driver.access;
    let place = |bench: &mut Bench, bar: u8, offset: u32, length: u32| {
        let function = &mut bench.driver.function;
        function.config_write(at + 4, &[bar]);
        function.config_write(at + 8, &offset.to_le_bytes());
        function.config_write(at + 12, &length.to_le_bytes());
    };
    // device_status
    place(&mut bench, 0, 0x14, 1);
    bench.driver.function.config_write(at + 16, &[3]);
    assert_eq!(bench.driver.status(), 3);
    assert_eq!(bench.driver.config(at + 16, 1), 3);
    // num_queues
    place(&mut bench, 0, 0x12, 2);
    assert_eq!(bench.driver.config(at + 16, 2), 3);
    // queue_desc, from a write of one byte less than asked for: the data register has the rest.
    place(&mut bench, 0, 0x20, 4);
    bench
        .driver
        .function
        .config_write(at + 16, &0x1234_5000u32.to_le_bytes());
    assert_eq!(common(&mut bench, 0x20, 4), 0x1234_5000);
    // Not legal: no such window, another length, not aligned, outside.
    let before = snapshot(&mut bench);
    for (bar, offset, length) in [
        (1, 0x20, 4),
        (0, 0x20, 3),
        (0, 0x20, 0),
        (0, 0x20, 8),
        (0, 0x22, 4),
        (0, 0x21, 2),
        (0, 0x10_0000, 4),
        (0, u32::MAX, 1),
        (0, 0x20, u32::MAX),
        (255, 0, 4),
    ] {
        place(&mut bench, bar, offset, length);
        bench.driver.function.config_write(at + 16, &[0xff; 4]);
        assert_eq!(
            bench.driver.config(at + 16, 4),
            0xffff_ffff,
            "a register like any other"
        );
        assert_eq!(snapshot(&mut bench), before, "{bar} {offset:#x} {length}");
    }
}

#[test]
fn the_isr_byte_clears_when_it_is_read() {
    let mut bench = Bench::new();
    bench.start();
    let interrupts = bench.interrupts();
    let isr = bench.driver.isr;
    let status = |bench: &mut Bench| bench.driver.config(6, 2) & 8 != 0;
    assert_eq!(
        (bench.driver.get(isr, 0, 1), bench.line.level()),
        (0, Level::Deasserted)
    );
    interrupts.queue(2);
    assert_eq!(
        (bench.line.level(), status(&mut bench)),
        (Level::Asserted, true)
    );
    assert_eq!(
        (bench.driver.get(isr, 0, 1), bench.line.level()),
        (1, Level::Deasserted)
    );
    interrupts.config();
    interrupts.queue(0);
    assert_eq!(bench.driver.get(isr, 0, 4), 3);
    assert_eq!(
        (bench.driver.get(isr, 0, 1), status(&mut bench)),
        (0, false)
    );
    // Interrupt Disable: the pin is quiet, the status bit tells.
    bench
        .driver
        .function
        .config_write(4, &0x406u16.to_le_bytes());
    interrupts.queue(0);
    assert_eq!(
        (bench.line.level(), status(&mut bench)),
        (Level::Deasserted, true)
    );
    bench
        .driver
        .function
        .config_write(4, &0x006u16.to_le_bytes());
    assert_eq!(bench.line.level(), Level::Asserted);
    bench.driver.set_status(0);
    assert_eq!(
        (bench.line.level(), bench.driver.get(isr, 0, 1)),
        (Level::Deasserted, 0)
    );
    assert!(bench.vectors.delivered().is_empty());
}

#[test]
fn with_msix_the_pin_is_quiet_and_vectors_speak() {
    let mut bench = Bench::new();
    bench.driver.enable_msix();
    bench.start();
    bench.vectors.take();
    let interrupts = bench.interrupts();
    interrupts.queue(2);
    interrupts.config();
    interrupts.queue(0);
    // A queue that was not given a vector, and one that does not exist.
    interrupts.queue(1);
    interrupts.queue(77);
    assert_eq!(bench.vectors.delivered(), [3, 0, 1]);
    assert_eq!(bench.line.level(), Level::Deasserted);
    // 4.1.4.5.1: the configuration bit is set either way, the queue bit is not.
    assert_eq!(bench.driver.get(bench.driver.isr, 0, 1), 2);
}

#[test]
fn the_configuration_generation_moves_with_the_configuration() {
    let mut bench = Bench::new();
    bench.start();
    let interrupts = bench.interrupts();
    let mut last = common(&mut bench, 0x15, 1);
    for _ in 0..300 {
        interrupts.config();
        let now = common(&mut bench, 0x15, 1);
        assert_ne!(now, last);
        last = now;
    }
    interrupts.queue(0);
    assert_eq!(common(&mut bench, 0x15, 1), last);
}

#[test]
fn devices_that_do_not_fit_are_refused() {
    use crate::support::probe::Probe;
    use hvkit_virtio_devices::fake::{ByHand, Vectors};
    let refused = |sizes: Vec<u16>| {
        let probe = Probe {
            seen: Default::default(),
            sizes,
        };
        let vectors = std::sync::Arc::new(Vectors::default());
        let runner = Box::new(ByHand::default());
        VirtioPci::new(Box::new(probe), crate::support::memory(), vectors, runner).unwrap_err()
    };
    assert!(matches!(
        refused(vec![8; 1025]),
        PciError::Queues {
            count: 1025,
            max: 1024
        }
    ));
    for size in [0, 3, 0x8001, 0xffff] {
        let error = refused(vec![8, size]);
        assert!(matches!(error, PciError::QueueSize { index: 1, size: s } if s == size));
    }
}

/// "The device MUST present a changed config_generation after the driver has read a device-specific configuration value
/// which has changed since any part of the device-specific configuration was last read", and: "simply incrementing it on
/// every configuration change could violate this requirement due to wrap" (4.1.4.3.1).
#[test]
fn however_many_changes_come_the_generation_is_another() {
    let mut bench = Bench::new();
    bench.start();
    let interrupts = bench.interrupts();
    let mut before = common(&mut bench, 0x15, 1);
    for changes in [1, 255, 256, 257, 512, 1 << 16] {
        for _ in 0..changes {
            interrupts.config();
        }
        let after = common(&mut bench, 0x15, 1);
        assert_ne!(after, before, "{changes} changes");
        assert_eq!(common(&mut bench, 0x15, 1), after, "and no change, none");
        before = after;
    }
}
