// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tables as ACPICA's compiler sees them: it must understand every byte, complain about none,
//! and compile its own disassembly back to the same bytes.

use hvkit_vmm::acpi::{Platform, Segment, SerialPort, Tables, VirtioWindow, build};
use hvkit_vmm::pci::intx::Route;
use lab_kit::skip::skip;
use std::path::Path;
use std::process::Command;

/// Where a table's header names the compiler: identifier and revision.
const COMPILER: std::ops::Range<usize> = 28..36;
const CHECKSUM: usize = 9;

/// False where there is no `iasl` (Debian: acpica-tools), which is said.
fn iasl_is_here() -> bool {
    let found = Command::new("iasl").arg("-v").output();
    if let Err(error) = &found {
        skip(&format!("iasl (Debian package acpica-tools): {error}"));
    }
    found.is_ok()
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Every table but the root pointer, found by walking the bytes: 16-byte aligned, with lengths.
fn split(tables: &Tables) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let mut at = 48;
    while at < tables.bytes.len() {
        let length = word(&tables.bytes, at + 4);
        found.push(&tables.bytes[at..at + length]);
        at = (at + length).next_multiple_of(16);
    }
    found
}

fn iasl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("iasl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "iasl {arguments:?}: {said}");
    said
}

fn accepted(platform: &Platform) -> String {
    let folder = tempfile::tempdir().unwrap();
    let tables = build(platform, 0xe_0000..0x10_0000).unwrap();
    let tables = split(&tables);
    assert_eq!(tables.len(), 5 + usize::from(platform.watchdog.is_some()));
    let mut source = String::new();
    for table in tables {
        let name = String::from_utf8(table[..4].to_vec()).unwrap();
        std::fs::write(folder.path().join(format!("{name}.dat")), table).unwrap();
        let said = iasl(folder.path(), &["-d", &format!("{name}.dat")]);
        for complaint in ["rror", "arning", "nvalid", "nknown"] {
            assert!(!said.contains(complaint), "{name}: {said}");
        }
        let text = std::fs::read_to_string(folder.path().join(format!("{name}.dsl"))).unwrap();
        for complaint in ["rror", "nvalid", "nknown", "Incorrect"] {
            // "Error" is also part of a field's name.
            let field = |line: &&str| !line.contains("Error Source");
            let line = text.lines().filter(field).find(|l| l.contains(complaint));
            assert_eq!(line, None, "{name}");
        }
        source += &text;
        // Data tables are compiled without a verdict line; AML gets one.
        let said = iasl(folder.path(), &["-p", "again", &format!("{name}.dsl")]);
        if name == "DSDT" {
            let clean = "0 Errors, 0 Warnings, 0 Remarks";
            assert!(said.contains(clean), "{said}");
        }
        let mut again = std::fs::read(folder.path().join("again.aml")).unwrap();
        let mut table = table.to_vec();
        for bytes in [&mut again, &mut table] {
            bytes[COMPILER].fill(0);
            bytes[CHECKSUM] = 0;
        }
        assert!(again == table, "{name}:\n{again:x?}\n{table:x?}");
    }
    source
}

#[test]
fn a_small_machine_is_described_without_complaint() {
    if !iasl_is_here() {
        return;
    }
    let source = accepted(&Platform {
        apic_ids: vec![0],
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
    });
    // iasl's names for what a guest will do with the numbers.
    for fact in [
        "Hardware Reduced (V5) : 1",
        "Reset Register Supported (V2) : 1",
        "Device (PCI0)",
        "PCI Express Bus",
        "16550A-compatible COM Serial Port",
        "Address : 0000000000000CF9",
        "Name (_S5, Package (0x04)",
        "Base Address : 00000000E0000000",
    ] {
        assert!(source.contains(fact), "{fact}\n{source}");
    }
}

#[test]
fn a_large_machine_is_described_without_complaint() {
    if !iasl_is_here() {
        return;
    }
    let pin = |device: u8, pin: u8| Route {
        device,
        pin,
        gsi: 16 + u32::from(device + pin) % 8,
    };
    let pins: Vec<_> = (0..32)
        .flat_map(|d| (0..4).map(move |p| pin(d, p)))
        .collect();
    let source = accepted(&Platform {
        apic_ids: (0..300).collect(),
        has_pics: false,
        segments: (0..16)
            .map(|number| Segment {
                windows: vec![
                    0xc000_0000 + (number << 25)..0xc200_0000 + (number << 25),
                    0x40_0000_0000 + (number << 32)..0x41_0000_0000 + (number << 32),
                ],
                intx: pins.clone(),
            })
            .collect(),
        serial: None,
        watchdog: Some(0x620),
        virtio: (0..2)
            .map(|i| VirtioWindow {
                base: 0xfeb0_0000 + 0x1000 * i,
                length: 0x1000,
                gsi: 17,
            })
            .collect(),
        others: vec![],
    });
    for fact in [
        "Processor x2Apic ID : 0000012B",
        "0A [Local x2APIC NMI]",
        "Segment Group Number : 000F",
        "Base Address : 00000000E0F00000",
        "Device (PCIF)",
        "_PRT",
        "0x001FFFFF",
        "Device (VR01)",
        "Name (_HID, \"LNRO0005\")",
        "0xFEB01000",
        "Interrupt (ResourceConsumer, Level, ActiveLow, Shared",
    ] {
        assert!(source.contains(fact), "{fact}");
    }
}
