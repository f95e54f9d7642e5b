// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tables as raw bytes, at the offsets of the specification's figures.

use super::*;

const AT: u64 = 0xe_0000;

fn platform() -> Platform {
    Platform {
        apic_ids: vec![0, 1],
        has_pics: true,
        segments: vec![Segment {
            windows: vec![0xc000_0000..0xe000_0000, 0x1_0000_0000..0x11_0000_0000],
            intx: vec![],
        }],
        serial: Some(SerialPort {
            port: 0x3f8,
            gsi: 4,
        }),
        watchdog: None,
        virtio: vec![],
        others: vec![],
    }
}

fn tables(platform: &Platform) -> Tables {
    build(platform, AT..0x10_0000).unwrap()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &b| sum.wrapping_add(b))
}

/// The table at a guest-physical address, as long as its header says.
fn table_at(tables: &Tables, address: u64) -> &[u8] {
    let from = usize::try_from(address - tables.address).unwrap();
    let bytes = &tables.bytes[from..];
    let table = &bytes[..u32_at(bytes, 4) as usize];
    assert_eq!(sum(table), 0, "checksum of {:?}", &table[..4]);
    assert_eq!(&table[10..16], b"HVKIT ");
    assert_eq!(&table[16..24], b"HVKITVMM");
    assert_eq!(address % 16, 0);
    table
}

/// Follows the pointers from the root: FADT, MADT, MCFG, DSDT.
fn follow(tables: &Tables) -> [&[u8]; 4] {
    let xsdt = table_at(tables, u64_at(&tables.bytes, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    assert_eq!(xsdt.len(), 36 + 3 * 8);
    let [fadt, madt, mcfg] = [36, 44, 52].map(|at| table_at(tables, u64_at(xsdt, at)));
    assert_eq!(
        [&fadt[..4], &madt[..4], &mcfg[..4]],
        [b"FACP", b"APIC", b"MCFG"]
    );
    let dsdt = table_at(tables, u64_at(fadt, 140));
    assert_eq!(&dsdt[..4], b"DSDT");
    [fadt, madt, mcfg, dsdt]
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn the_root_pointer_is_first_and_sums_to_zero_twice() {
    let tables = tables(&platform());
    assert_eq!(tables.address, AT);
    let rsdp = &tables.bytes[..36];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    assert_eq!(&rsdp[9..15], b"HVKIT ");
    // Revision; no RSDT; length; reserved.
    assert_eq!((rsdp[15], u32_at(rsdp, 16), u32_at(rsdp, 20)), (2, 0, 36));
    assert_eq!(rsdp[33..36], [0; 3]);
}

#[test]
fn the_fixed_table_is_hardware_reduced() {
    let tables = tables(&platform());
    let [fadt, ..] = follow(&tables);
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
    // WBINVD, PWR_BUTTON, SLP_BUTTON, RESET_REG_SUP, HEADLESS, HW_REDUCED_ACPI.
    assert_eq!(u32_at(fadt, 112), 0x0010_1431);
    // No VGA, no ASPM, no CMOS clock; no 8042, no legacy devices.
    assert_eq!(u16_at(fadt, 109), 0x0034);
    assert_eq!(fadt[45], 4);
    // Reset: an 8-bit port, byte access, and the value.
    assert_eq!(fadt[116..120], [1, 8, 0, 1]);
    assert_eq!((u64_at(fadt, 120), fadt[128]), (0xcf9, 0x06));
    // Sleep control and status.
    assert_eq!(fadt[244..248], [1, 8, 0, 1]);
    assert_eq!(u64_at(fadt, 248), 0x600);
    assert_eq!(fadt[256..260], [1, 8, 0, 1]);
    assert_eq!(u64_at(fadt, 260), 0x601);
    // No FACS, no 32-bit DSDT, none of the fixed hardware.
    assert_eq!(fadt[36..44], [0; 8]);
    assert_eq!(fadt[46..109], [0; 63]);
    assert_eq!(u64_at(fadt, 132), 0);
    assert_eq!(fadt[148..244], [0; 96]);
}

#[test]
fn processors_and_controllers_are_listed() {
    let tables = tables(&platform());
    let [_, madt, ..] = follow(&tables);
    #[rustfmt::skip]
    let expected = [
        // Local APIC address, PCAT_COMPAT.
        0x00, 0x00, 0xe0, 0xfe, 1, 0, 0, 0,
        // Processor Local APIC: UID, APIC ID, enabled.
        0, 8, 0, 0, 1, 0, 0, 0,
        0, 8, 1, 1, 1, 0, 0, 0,
        // I/O APIC: ID, reserved, address, GSI base.
        1, 12, 0, 0, 0x00, 0x00, 0xc0, 0xfe, 0, 0, 0, 0,
        // Interrupt Source Override: ISA, source 0, GSI 2, as the bus has it.
        2, 10, 0, 0, 2, 0, 0, 0, 0, 0,
        // Local APIC NMI: all processors, as the bus has it, LINT1.
        4, 6, 0xff, 0, 0, 1,
    ];
    assert_eq!(madt[36..], expected);
    assert_eq!(madt[8], 5);
}

#[test]
fn the_override_is_what_the_routing_table_does() {
    use crate::interrupts::{Target, routing::pins};
    let timer: Vec<_> = pins().filter(|r| r.gsi.0 == 0).map(|r| r.target).collect();
    assert!(timer.contains(&Target::IoApic(2)));
}

#[test]
fn large_identifiers_need_the_x2apic_structure() {
    let platform = Platform {
        apic_ids: vec![254, 255, 0x1234_5678],
        ..platform()
    };
    let tables = tables(&platform);
    let [_, madt, ..] = follow(&tables);
    #[rustfmt::skip]
    let expected = [
        0, 8, 0, 254, 1, 0, 0, 0,
        // Processor Local x2APIC: reserved, x2APIC ID, flags, UID.
        9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0,
        9, 16, 0, 0, 0x78, 0x56, 0x34, 0x12, 1, 0, 0, 0, 2, 0, 0, 0,
    ];
    assert_eq!(madt[44..44 + expected.len()], expected);
    // A UID that a byte cannot hold needs it too.
    let platform = Platform {
        apic_ids: (0..257).map(|id| if id < 256 { id } else { 7 }).collect(),
        ..platform
    };
    let last = [9, 16, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0];
    let tables = build(&platform, AT..0x10_0000).unwrap();
    let [_, madt, ..] = follow(&tables);
    assert_eq!(madt[44 + 255 * 8 + 16..][..16], last);
    // Local x2APIC NMI: as the bus has it, all processors, LINT1, reserved.
    let nmi = [10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0];
    assert_eq!(madt[madt.len() - 12..], nmi);
}

#[test]
fn segments_have_a_root_a_window_and_configuration_space_each() {
    let pin = intx::Route {
        device: 1,
        pin: 0,
        gsi: 17,
    };
    let platform = Platform {
        segments: vec![
            Segment {
                windows: vec![0xc000_0000..0xd000_0000, 0x1_0000_0000..0x2_0000_0000],
                intx: vec![],
            },
            Segment {
                windows: vec![0xd000_0000..0xe000_0000, 0x2_0000_0000..0x3_0000_0000],
                intx: vec![pin],
            },
        ],
        ..platform()
    };
    let tables = tables(&platform);
    let [.., mcfg, dsdt] = follow(&tables);
    assert_eq!(mcfg.len(), 76);
    assert_eq!(
        [44, 60].map(|at| u64_at(mcfg, at)),
        [0xe000_0000, 0xe010_0000]
    );
    assert_eq!([52, 68].map(|at| u32_at(mcfg, at)), [0, 1]);
    assert_eq!([56, 72].map(|at| u32_at(mcfg, at)), [0, 0]);
    // Scopes of both roots: name, and the segment's number as unit and as segment.
    for part in [
        &b"PCI0\x08_HID"[..],
        b"PCI1\x08_HID",
        b"\x08_UID\0\x08_SEG\0\x08_BBN\0",
        b"\x08_UID\x01\x08_SEG\x01\x08_BBN\0",
        // 32-bit Fixed Memory: both configuration spaces.
        b"\x86\x09\0\x01\0\0\0\xe0\0\0\x20\0",
    ] {
        assert!(contains(dsdt, part), "{part:x?}");
    }
    // The ports are segment 0's, the pin segment 1's.
    let at = |part: &[u8]| {
        dsdt.windows(part.len())
            .position(|window| window == part)
            .unwrap()
    };
    let count = |part: &[u8]| {
        dsdt.windows(part.len())
            .filter(|window| *window == part)
            .count()
    };
    let second = at(b"PCI1\x08_HID");
    assert!(at(b"\x47\x01\xf8\x0c\xf8\x0c\x01\x08") < second);
    assert_eq!(count(b"\x47\x01\xf8\x0c\xf8\x0c\x01\x08"), 1);
    assert!(at(b"_PRT") > second);
    assert_eq!(count(b"_PRT"), 1);
}

#[test]
fn configuration_space_is_one_bus() {
    let tables = tables(&platform());
    let [.., mcfg, _] = follow(&tables);
    assert_eq!((mcfg.len(), mcfg[8]), (60, 1));
    assert_eq!(mcfg[36..44], [0; 8]);
    assert_eq!(u64_at(mcfg, 44), 0xe000_0000);
    // Segment, first bus, last bus, reserved.
    assert_eq!(mcfg[52..60], [0; 8]);
}

#[test]
fn devices_have_their_resources() {
    let tables = tables(&platform());
    let [.., dsdt] = follow(&tables);
    assert_eq!(dsdt[8], 2);
    // Name(_S5, Package(4) {5, 0, 0, 0})
    assert!(contains(dsdt, b"\x08_S5_\x12\x07\x04\x0a\x05\0\0\0"));
    // EISA identifiers: PNP0A08, PNP0A03, PNP0C02, PNP0501, compressed and swapped.
    assert!(contains(dsdt, b"\x08_HID\x0c\x41\xd0\x0a\x08"));
    assert!(contains(dsdt, b"\x08_CID\x0c\x41\xd0\x0a\x03"));
    assert!(contains(dsdt, b"\x08_HID\x0c\x41\xd0\x0c\x02"));
    assert!(contains(dsdt, b"\x08_HID\x0c\x41\xd0\x05\x01"));
    // Word Address Space, bus numbers 0 to 0, both ends fixed, length 1.
    assert!(contains(
        dsdt,
        b"\x88\x0d\x00\x02\x0c\x00\0\0\0\0\0\0\0\0\x01\0"
    ));
    // I/O Port, 16 bits decoded: 0xcf8, 8 of them; 0x3f8, 8 of them.
    assert!(contains(dsdt, b"\x47\x01\xf8\x0c\xf8\x0c\x01\x08"));
    assert!(contains(dsdt, b"\x47\x01\xf8\x03\xf8\x03\x01\x08"));
    // The panic device's name, as a string, and its port 0x505.
    assert!(contains(dsdt, b"\x08_HID\x0dQEMU0001\0"));
    assert!(contains(dsdt, b"\x47\x01\x05\x05\x05\x05\x01\x01"));
    // DWord Address Space, memory, read-write, 0xc000_0000 to 0xdfff_ffff, length 0x2000_0000.
    #[rustfmt::skip]
    let low = [0x87, 0x17, 0, 0, 0x0c, 1, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff, 0xff, 0xdf,
        0, 0, 0, 0, 0, 0, 0, 0x20];
    assert!(contains(dsdt, &low));
    // QWord Address Space: 0x1_0000_0000 to 0x10_ffff_ffff, length 0x10_0000_0000.
    let mut high = vec![0x8a, 0x2b, 0, 0, 0x0c, 1];
    for word in [0u64, 0x1_0000_0000, 0x10_ffff_ffff, 0, 0x10_0000_0000] {
        high.extend(word.to_le_bytes());
    }
    assert!(contains(dsdt, &high));
    // 32-bit Fixed Memory: ECAM, 1 MiB.
    assert!(contains(dsdt, b"\x86\x09\0\x01\0\0\0\xe0\0\0\x10\0"));
    // Extended Interrupt: consumer, edge, active high; one: 4.
    assert!(contains(dsdt, b"\x89\x06\0\x03\x01\x04\0\0\0"));
    assert!(!contains(dsdt, b"_PRT"));
}

#[test]
fn pins_in_use_are_routed() {
    let route = |device, pin, gsi| intx::Route { device, pin, gsi };
    let mut segments = platform().segments;
    segments[0].intx = vec![route(3, 0, 19), route(31, 3, 18)];
    let platform = Platform {
        segments,
        serial: None,
        watchdog: None,
        ..platform()
    };
    let tables = tables(&platform);
    let [.., dsdt] = follow(&tables);
    // Package(2) {Package(4) {0x3ffff, 0, 0, 19}, Package(4) {0x1fffff, 3, 0, 18}}
    #[rustfmt::skip]
    let expected = [
        0x08, b'_', b'P', b'R', b'T', 0x12, 0x1b, 2,
        0x12, 0x0b, 4, 0x0c, 0xff, 0xff, 0x03, 0x00, 0, 0, 0x0a, 19,
        0x12, 0x0c, 4, 0x0c, 0xff, 0xff, 0x1f, 0x00, 0x0a, 3, 0, 0x0a, 18,
    ];
    assert!(contains(dsdt, &expected), "{dsdt:x?}");
    assert!(!contains(dsdt, b"COM1"));
}

#[test]
fn the_watchdog_is_described_to_the_letter() {
    let platform = Platform {
        watchdog: Some(0x620),
        ..platform()
    };
    let tables = tables(&platform);
    let xsdt = table_at(&tables, u64_at(&tables.bytes, 24));
    let wdat = table_at(&tables, u64_at(xsdt, 60));
    assert_eq!(&wdat[..4], b"WDAT");
    // No PCI device; a tenth of a second a period, 1 to 65535 of them, enabled, eight entries.
    assert_eq!(u32_at(wdat, 36), 32);
    assert_eq!(u32_at(wdat, 40), 0xffff_00ff);
    assert_eq!(u32_at(wdat, 44), 0xff);
    let words = [48, 52, 56, 60, 64].map(|at| u32_at(wdat, at));
    assert_eq!(words, [100, 0xffff, 1, 1, 8]);
    // Action, instruction, port, value, mask.
    let expected = [
        (1, 2, 0x628, 1, u32::MAX),
        (4, 1, 0x620, 0, u32::MAX),
        (5, 1, 0x620, 0, u32::MAX),
        (6, 3, 0x620, 0, 0xffff),
        (8, 0, 0x624, 1, 1),
        (9, 2, 0x624, 1, 1),
        (10, 0, 0x624, 0, 1),
        (11, 2, 0x624, 0, 1),
    ];
    assert_eq!(wdat.len(), 68 + 24 * expected.len());
    for (entry, expected) in wdat[68..].chunks_exact(24).zip(expected) {
        assert_eq!(entry[2..8], [0, 0, 1, 32, 0, 3]);
        let port = u64_at(entry, 8);
        let seen = (
            entry[0],
            entry[1],
            port,
            u32_at(entry, 16),
            u32_at(entry, 20),
        );
        assert_eq!(seen, expected);
    }
}

#[test]
fn tables_lie_wherever_they_are_told() {
    let low = tables(&platform());
    let high = build(&platform(), 0xffff_0000_0000..u64::MAX).unwrap();
    assert_eq!(high.address, 0xffff_0000_0000);
    assert_eq!(high.bytes.len(), low.bytes.len());
    follow(&high);
}

#[test]
fn what_cannot_be_described_is_an_error() {
    let length = tables(&platform()).bytes.len() as u64;
    let room = length - 1;
    assert_eq!(
        build(&platform(), AT..AT + room),
        Err(AcpiError::TooLarge { length, room })
    );
    build(&platform(), AT..AT + length).unwrap();
    let end = u64::MAX - 15;
    assert_eq!(
        build(&platform(), end..u64::MAX),
        Err(AcpiError::TooLarge { length, room: 15 })
    );
    for (start, end) in [(AT + 8, AT + 0x1000), (AT, AT - 16)] {
        let error = build(&platform(), Range { start, end });
        assert_eq!(error, Err(AcpiError::Address { address: start }));
    }
    for (start, end) in [(0xc000_0000, 0xc000_0000), (2, 1)] {
        let mut platform = platform();
        platform.segments[0].windows = vec![Range { start, end }];
        let error = build(&platform, AT..0x10_0000);
        assert_eq!(error, Err(AcpiError::Window { start, end }));
    }
    let many = Platform {
        apic_ids: (0..9000).collect(),
        ..platform()
    };
    let error = build(&many, AT..0x10_0000);
    assert!(matches!(error, Err(AcpiError::TooLarge { .. })));
}
