// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ACPICA's compiler reads what the builder writes, and writes the same bytes from what it read.

use std::fs;
use std::process::Command;

use hvkit_vtd_iommu::dmar::{
    Andd, Atsr, AtsrFlags, Builder, Drhd, DrhdFlags, NewScope, Oem, Rhsa, Rmrr, ScopeKind,
    TableFlags,
};

/// Which structures this version knows: SATC and SIDP are younger.
fn table() -> Vec<u8> {
    Builder::new(39, TableFlags::INTR_REMAP)
        .drhd(
            Drhd {
                flags: DrhdFlags::empty(),
                size: 0,
                segment: 0,
                base: 0xfed9_0000,
            },
            &[NewScope::new(ScopeKind::ENDPOINT, 0, 0, &[(2, 0)])],
        )
        .drhd(
            Drhd {
                flags: DrhdFlags::INCLUDE_PCI_ALL,
                size: 0,
                segment: 0,
                base: 0xfed9_1000,
            },
            &[
                NewScope::new(ScopeKind::IO_APIC, 2, 0xf0, &[(0x1f, 0)]),
                NewScope::new(ScopeKind::HPET, 0, 0, &[(0x1f, 0)]),
            ],
        )
        .rmrr(
            Rmrr {
                segment: 0,
                base: 0x7b80_0000,
                limit: 0x7fff_ffff,
            },
            &[NewScope::new(
                ScopeKind::ENDPOINT,
                0,
                0,
                &[(0x1c, 2), (0, 0)],
            )],
        )
        .atsr(
            Atsr {
                flags: AtsrFlags::ALL_PORTS,
                segment: 0,
            },
            &[],
        )
        .rhsa(Rhsa {
            base: 0xfed9_0000,
            proximity_domain: 1,
        })
        .andd(Andd {
            device: 1,
            name: b"\\_SB.PCI0.UA00",
        })
        .build(Oem::default())
        .unwrap()
}

#[test]
fn iasl_reads_the_table_and_writes_it_again() {
    lab_kit::skip_if!(lab_kit::skip::missing(&["/usr/bin/iasl"]));
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new("/usr/bin/iasl")
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        said
    };
    fs::write(folder.path().join("dmar.dat"), table()).unwrap();
    run(&["-d", "dmar.dat"]);
    let text = fs::read_to_string(folder.path().join("dmar.dsl")).unwrap();
    for line in [
        "[Hardware Unit Definition]",
        "[Reserved Memory Region]",
        "[Root Port ATS Capability]",
        "[Remapping Hardware Static Affinity]",
        "[ACPI Namespace Device Declaration]",
        "Register Base Address : 00000000FED91000",
        "End Address (limit) : 000000007FFFFFFF",
        "\\_SB.PCI0.UA00",
    ] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
    assert!(!text.contains("Invalid"), "{text}");
    let said = run(&["-p", "again", "dmar.dsl"]);
    assert!(said.contains("0 Errors"), "{said}");
    let again = fs::read(folder.path().join("again.aml")).unwrap();
    // iasl puts its own name and version into the header.
    let but_compiler = |mut bytes: Vec<u8>| {
        bytes[9] = 0;
        bytes[28..36].fill(0);
        bytes
    };
    assert_eq!(but_compiler(again), but_compiler(table()));
}
