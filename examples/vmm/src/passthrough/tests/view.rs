// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration space that the guest sees, word by word.

use super::*;
use crate::passthrough::view::ViewError;

#[test]
fn it_is_the_function_s_where_somebody_answers_and_zero_elsewhere() {
    let mut bench = Bench::new();
    let expected: &[(u16, u32)] = &[
        (0x00, 0x0010_1b36),
        // Capabilities; nothing enabled, no error.
        (0x04, 0x0010_0000),
        (0x08, 0x0108_0202),
        // The kinds of the memory windows; no I/O window, no addresses.
        (0x10, 0x0000_0004),
        (0x20, 0x0000_000c),
        (0x2c, 0x1100_1af4),
        (0x34, 0x0000_0040),
        // INTA, whichever pin it was.
        (0x3c, 0x0000_0100),
        // MSI-X leads past power management to PCI Express.
        (0x40, 0x0004_8011),
        (0x44, 0x0000_2000),
        (0x48, 0x0000_3000),
        // A root complex integrated endpoint with reset, without latencies.
        (0x80, 0x0092_c010),
        (0x84, 0x1000_8021),
        // Transactions are pending, because the function says so.
        (0x88, 0x0020_2810),
        // MSI without masks.
        (0xc0, 0x0084_e005),
        (0xe0, 0xab10_0009),
        (0xe4, 0x1111_2222),
        (0xe8, 0x3333_4444),
        (0xec, 0x5555_6666),
    ];
    for offset in (0..4096).step_by(4) {
        let word = expected.iter().find(|(at, _)| *at == offset);
        let word = word.map_or(0, |(_, word)| *word);
        let seen = bench.read(offset);
        assert_eq!(seen, word, "{offset:#x}: {seen:#x} instead of {word:#x}");
    }
}

#[test]
fn every_width_reads_the_same_bytes() {
    let mut bench = Bench::new();
    for offset in (0..256u16).step_by(4) {
        let word = bench.read(offset).to_le_bytes();
        for at in 0..4 {
            let mut byte = [0];
            bench.function.config_read(offset + at, &mut byte);
            assert_eq!(byte[0], word[usize::from(at)], "{offset:#x}+{at}");
        }
        for at in [0, 2] {
            let mut half = [0; 2];
            bench.function.config_read(offset + at, &mut half);
            assert_eq!(half, word[usize::from(at)..][..2], "{offset:#x}+{at}");
        }
    }
}

#[test]
fn windows_are_sized_as_the_function_s() {
    let mut bench = Bench::new();
    let expected = [
        (0x10, 0xffff_c004),
        (0x14, 0xffff_ffff),
        (0x18, 0x0000_0000),
        (0x1c, 0xffff_ff00),
        (0x20, 0xffff_800c),
        (0x24, 0xffff_ffff),
        (0x30, 0x0000_0000),
    ];
    for (register, mask) in expected {
        bench.write(register, u32::MAX);
        assert_eq!(bench.read(register), mask, "{register:#x}");
    }
    // The function itself was asked for none of this.
    let writes = &bench.physical.device().config_writes;
    assert!(writes.iter().all(|(at, _)| *at == 0x04), "{writes:x?}");
}

#[test]
fn vendor_specific_bytes_are_the_function_s_own() {
    let mut bench = Bench::new();
    bench.physical.device().config_writes.clear();
    bench.write(VENDOR, 0xdead_beef);
    bench.write(VENDOR + 12, 0x0102_0304);
    bench.function.config_write(VENDOR + 5, &[0x77]);
    let writes = bench.physical.device().config_writes.clone();
    // Not its identifier and link.
    assert_eq!(
        writes,
        [
            (VENDOR + 2, vec![0xad, 0xde]),
            (VENDOR + 12, vec![4, 3, 2, 1]),
            (VENDOR + 5, vec![0x77])
        ]
    );
    assert_eq!(bench.read(VENDOR), 0xdead_0009);
    bench.physical.device().config[usize::from(VENDOR) + 8] = 0x99;
    assert_eq!(bench.read(VENDOR + 8), 0x3333_4499);
}

#[test]
fn status_of_pin_and_transactions_is_the_function_s() {
    let mut bench = Bench::new();
    bench.physical.device().config[6] = 0x18;
    bench.physical.device().config[usize::from(EXPRESS) + 10] = 0x0f;
    assert_eq!(bench.read(0x04), 0x0018_0000);
    assert_eq!(bench.read(EXPRESS + 8), 0x0000_2810);
    bench.physical.device().config[6] = 0x10;
    assert_eq!(bench.read(0x04), 0x0010_0000);
}

#[test]
fn the_command_register_reaches_the_function_but_for_its_windows() {
    let mut bench = Bench::new();
    // Before the guest runs: no bus master, and memory space on, as long as it is ours.
    assert_eq!(bench.physical.device().config_writes, [(0x04, vec![2, 0])]);
    bench.physical.device().config_writes.clear();
    for (guest, function) in [
        (0x0002, None),
        (0x0006, Some([0x06, 0x00])),
        (0x0406, Some([0x06, 0x04])),
        (0x0404, None),
        (0x0000, Some([0x02, 0x00])),
        // I/O space, special cycles, parity, SERR: not for the guest.
        (0x03f9, None),
    ] {
        bench.write_half(0x04, guest);
        let writes = std::mem::take(&mut bench.physical.device().config_writes);
        let expected: Vec<_> = function.map(|f| (0x04, f.to_vec())).into_iter().collect();
        assert_eq!(writes, expected, "{guest:#x}");
        assert_eq!(bench.read(0x04) & 0xffff, u32::from(guest & 0x0406));
    }
}

#[test]
fn a_reset_by_the_guest_resets_the_function_and_what_stands_for_it() {
    let mut bench = Bench::new();
    bench.write(0x10, 0xc000_0004);
    bench.write_half(0x04, 0x0406);
    bench.write_half(EXPRESS + 8, 0x5810);
    bench.write_half(MSIX + 2, 0x8000);
    bench.function.bar_write(0, 0x2000, &[0; 16]);
    bench.physical.device().config_writes.clear();
    assert_eq!(bench.physical.device().resets, 0);
    // Device Control, bit 15, in an access of each width.
    let accesses: [(u16, &[u8]); 3] = [
        (EXPRESS + 9, &[0x80]),
        (EXPRESS + 8, &[0x10, 0xa8]),
        (EXPRESS + 8, &[0x10, 0xa8, 0, 0]),
    ];
    for (i, (offset, data)) in (1..).zip(accesses) {
        bench.function.config_write(offset, data);
        assert_eq!(bench.physical.device().resets, i);
    }
    for (register, value) in [(0x04, 0x0010_0000), (0x10, 4), (EXPRESS + 8, 0x0020_2810)] {
        assert_eq!(bench.read(register), value, "{register:#x}");
    }
    assert_eq!(bench.read(MSIX) >> 16, 0x0004);
    let mut entry = [0xff; 16];
    bench.function.bar_read(0, 0x2000, &mut entry);
    assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    let writes = &bench.physical.device().config_writes;
    assert_eq!(writes.last(), Some(&(0x04, vec![2, 0])));
}

#[test]
fn a_reset_that_fails_still_leaves_the_guest_with_a_fresh_function() {
    let mut bench = Bench::new();
    bench.write_half(0x04, 0x0406);
    bench.physical.device().refuse = true;
    bench.write_half(EXPRESS + 8, 0x8000);
    assert_eq!(bench.read(0x04) & 0xffff, 0);
}

fn changed(change: impl FnOnce(&mut [u8; 256], &mut [usize; 6])) -> Result<Bench, AssignedError> {
    let (mut config, mut lengths) = (config(), LENGTHS);
    change(&mut config, &mut lengths);
    Bench::with(FakePhysical::new(config, lengths))
}

#[test]
fn bridges_are_refused() {
    for header in [1, 2, 0x7f, 0x81] {
        let error = changed(|config, _| config[0x0e] = header).err();
        let header = header & 0x7f;
        assert!(
            matches!(error, Some(AssignedError::View(ViewError::HeaderType(h))) if h == header),
            "{error:?}"
        );
    }
    // Another function of the same device in the host is nothing to the guest.
    let mut bench = changed(|config, _| config[0x0e] = 0x80).unwrap();
    assert_eq!(bench.read(0x0c), 0);
}

#[test]
fn windows_that_do_not_fit_the_guest_are_refused() {
    let windows = Windows {
        low: 0x80,
        high: 0x4000,
    };
    let view = |windows| {
        let physical = FakePhysical::new(config(), LENGTHS);
        crate::passthrough::view::View::of(&physical, windows).err()
    };
    let too_large = |bar, length, window| {
        Some(ViewError::BarTooLarge {
            bar,
            length,
            window,
        })
    };
    assert_eq!(view(windows), too_large(3, 0x100, 0x80));
    let windows = Windows {
        low: 0x100,
        ..windows
    };
    assert_eq!(view(windows), too_large(4, 0x8000, 0x4000));
    // Above or below, whichever is larger.
    let windows = Windows {
        low: 0x8000,
        ..windows
    };
    assert_eq!(view(windows), None);
}

#[test]
fn nonsense_in_the_device_hides_what_it_is_about() {
    // A window of no power of two, and one of 8 bytes.
    let mut bench = changed(|_, lengths| (lengths[3], lengths[4]) = (0x180, 8)).unwrap();
    for register in [0x1c, 0x20, 0x24] {
        bench.write(register, u32::MAX);
        assert_eq!(bench.read(register), 0);
    }
    // A 64-bit window in the last register.
    let mut bench = changed(|config, lengths| {
        (config[0x20], config[0x24]) = (0, 4);
        (lengths[4], lengths[5]) = (0, 0x1000);
    })
    .unwrap();
    bench.write(0x24, u32::MAX);
    assert_eq!(bench.read(0x24), 0);
    // The MSI-X table in an I/O window, in no window, past a window's end; pending bits likewise.
    for (at, word) in [
        (0x44, 2u32),
        (0x44, 6),
        (0x44, 0x4000),
        (0x44, 0xffff_fff8),
        (0x48, 0x3ff9),
    ] {
        let mut bench = changed(|config, _| {
            config[at..at + 4].copy_from_slice(&word.to_le_bytes());
        })
        .unwrap();
        assert_eq!(bench.read(0x34), u32::from(EXPRESS), "{at:#x} {word:#x}");
        let registers = bench.physical.device().bars[0][0x2004];
        let mut seen = [0];
        bench.function.bar_read(0, 0x2004, &mut seen);
        assert_eq!(seen, [registers], "without MSI-X all are registers");
    }
    // Capabilities on top of each other: the first stays.
    let mut bench = changed(|config, _| {
        config[0x81] = 0x84;
        config[0x84..0x86].copy_from_slice(&[0x05, 0]);
    })
    .unwrap();
    assert_eq!(bench.read(EXPRESS) & 0xffff, 0x0010);
    // A vendor-specific capability that is too short, and one that is too long.
    for length in [0, 2, 0x21, 0xff] {
        let mut bench = changed(|config, _| config[0xe2] = length).unwrap();
        assert_eq!(bench.read(MSI) & 0xff00, 0, "{length}");
    }
    // All ones, which is a device that has gone.
    let gone = FakePhysical::new([0xff; 256], [0; 6]);
    assert!(Bench::with(gone).is_err());
}
