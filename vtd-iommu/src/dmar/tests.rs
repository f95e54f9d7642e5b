// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables against bytes worked out from the specification's tables.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::spec::RequesterId;

/// All seven structures, and one that nobody knows.
fn whole() -> Builder {
    let path = [(0x1c, 2), (0, 0)];
    Builder::new(
        46,
        TableFlags::INTR_REMAP | TableFlags::DMA_CTRL_PLATFORM_OPT_IN,
    )
    .raw(&[0x07, 0, 6, 0, 0xaa, 0xbb])
    .sidp(
        Sidp { segment: 0 },
        &[NewScope::new(ScopeKind::ENDPOINT, 0, 0, &[(2, 0)]).with_flags(3)],
    )
    .satc(
        Satc {
            flags: SatcFlags::ATC_REQUIRED,
            segment: 0,
        },
        &[NewScope::new(ScopeKind::ENDPOINT, 0, 0, &[(2, 0)])],
    )
    .andd(Andd {
        device: 1,
        name: b"\\_SB.UA00",
    })
    .rhsa(Rhsa {
        base: 0xfed9_0000,
        proximity_domain: 3,
    })
    .atsr(
        Atsr {
            flags: AtsrFlags::empty(),
            segment: 0,
        },
        &[NewScope::new(ScopeKind::SUB_HIERARCHY, 0, 0, &[(3, 0)])],
    )
    .rmrr(
        Rmrr {
            segment: 0,
            base: 0x7b80_0000,
            limit: 0x7fff_ffff,
        },
        &[NewScope::new(ScopeKind::ENDPOINT, 0, 0, &path)],
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
            NewScope::new(ScopeKind::NAMED, 1, 0, &[(0x1e, 6)]),
        ],
    )
    .drhd(
        Drhd {
            flags: DrhdFlags::empty(),
            size: 1,
            segment: 0,
            base: 0xfed9_0000,
        },
        &[NewScope::new(ScopeKind::ENDPOINT, 0, 0, &[(2, 0)])],
    )
}

#[rustfmt::skip]
fn expected() -> Vec<u8> {
    let mut bytes = vec![];
    bytes.extend(b"DMAR"); bytes.extend([0xf9, 0, 0, 0]); bytes.extend([1, 0]);
    bytes.extend(b"HVKIT HVKITVTD"); bytes.extend([1, 0, 0, 0]);
    bytes.extend(b"HVKT"); bytes.extend([1, 0, 0, 0]);
    // 46 bits, INTR_REMAP and DMA_CTRL_PLATFORM_OPT_IN.
    bytes.extend([45, 0b101]); bytes.extend([0; 10]);
    // DRHD: type, length, flags, size, segment, base; scope: type, length, flags, -, id, bus, path.
    bytes.extend([0, 0, 24, 0, 0, 1, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0]);
    bytes.extend([1, 8, 0, 0, 0, 0, 2, 0]);
    bytes.extend([0, 0, 40, 0, 1, 0, 0, 0, 0, 0x10, 0xd9, 0xfe, 0, 0, 0, 0]);
    bytes.extend([3, 8, 0, 0, 2, 0xf0, 0x1f, 0]);
    bytes.extend([4, 8, 0, 0, 0, 0, 0x1f, 0]);
    bytes.extend([5, 8, 0, 0, 1, 0, 0x1e, 6]);
    // RMRR: type, length, -, segment, base, limit; a path of two steps.
    bytes.extend([1, 0, 34, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x7b, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0]);
    bytes.extend([1, 10, 0, 0, 0, 0, 0x1c, 2, 0, 0]);
    // ATSR
    bytes.extend([2, 0, 16, 0, 0, 0, 0, 0]);
    bytes.extend([2, 8, 0, 0, 0, 0, 3, 0]);
    // RHSA: type, length, -, base, proximity domain.
    bytes.extend([3, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0, 3, 0, 0, 0]);
    // ANDD: type, length, -, device number, name.
    bytes.extend([4, 0, 18, 0, 0, 0, 0, 1]); bytes.extend(b"\\_SB.UA00\0");
    // SATC, SIDP
    bytes.extend([5, 0, 16, 0, 1, 0, 0, 0]);
    bytes.extend([1, 8, 0, 0, 0, 0, 2, 0]);
    bytes.extend([6, 0, 16, 0, 0, 0, 0, 0]);
    bytes.extend([1, 8, 3, 0, 0, 0, 2, 0]);
    bytes.extend([7, 0, 6, 0, 0xaa, 0xbb]);
    bytes[4] = bytes.len() as u8;
    let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[9] = 0u8.wrapping_sub(sum);
    bytes
}

#[test]
fn a_table_is_spelled_as_the_specification_says() {
    assert_eq!(whole().build(Oem::default()).unwrap(), expected());
}

#[test]
fn a_table_is_read() {
    let bytes = expected();
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!((dmar.host_address_bits(), dmar.revision()), (46, 1));
    assert!(!dmar.flags().contains(TableFlags::X2APIC_OPT_OUT));
    // Byte 8, whatever it says; the sum stays.
    let mut later = expected();
    (later[8], later[9]) = (2, later[9].wrapping_sub(1));
    assert_eq!(Dmar::parse(&later).unwrap().revision(), 2);
    let all: Result<Vec<_>, _> = dmar.structures().collect();
    let all = all.unwrap();
    assert_eq!(all.len(), 9);
    let Structure::Drhd(first, _) = all[0] else {
        panic!("{:?}", all[0])
    };
    assert_eq!((first.base, first.register_bytes()), (0xfed9_0000, 8192));
    let Structure::Drhd(second, mut scopes) = all[1] else {
        panic!("{:?}", all[1])
    };
    assert_eq!(second.flags, DrhdFlags::INCLUDE_PCI_ALL);
    let ioapic = scopes.next().unwrap().unwrap();
    assert_eq!((ioapic.enumeration_id, ioapic.start_bus), (2, 0xf0));
    assert_eq!(ioapic.requester(|_| None), RequesterId::new(0xf0, 0x1f, 0));
    assert_eq!(scopes.count(), 2);
    let Structure::Rmrr(rmrr, mut scopes) = all[2] else {
        panic!("{:?}", all[2])
    };
    assert_eq!(rmrr.span().unwrap().length, 0x480_0000);
    let scope = scopes.next().unwrap().unwrap();
    assert_eq!((scope.path.len(), scope.path.is_empty()), (2, false));
    let behind = scope.requester(|bridge| {
        assert_eq!(bridge, RequesterId::new(0, 0x1c, 2).unwrap());
        Some(5)
    });
    assert_eq!(behind, RequesterId::new(5, 0, 0));
    assert_eq!(scope.requester(|_| None), None);
    let Structure::Andd(andd) = all[5] else {
        panic!("{:?}", all[5])
    };
    assert_eq!((andd.device, andd.name), (1, &b"\\_SB.UA00"[..]));
    let Structure::Sidp(_, mut scopes) = all[7] else {
        panic!("{:?}", all[7])
    };
    assert_eq!(scopes.next().unwrap().unwrap().flags, 3);
    let Structure::Unknown { kind, bytes } = all[8] else {
        panic!("{:?}", all[8])
    };
    assert_eq!(
        (kind, bytes),
        (StructureKind(7), &[7, 0, 6, 0, 0xaa, 0xbb][..])
    );
}

#[test]
fn damaged_tables_are_refused() {
    let good = expected();
    let parse = |bytes: &[u8]| Dmar::parse(bytes).map(|_| ()).unwrap_err();
    let truncated = |bytes, length| DmarError::Truncated { bytes, length };
    assert_eq!(parse(&[]), truncated(0, 48));
    assert_eq!(parse(&good[..47]), truncated(47, good.len() as u32));
    assert_eq!(parse(b"FACP"), DmarError::Signature(*b"FACP"));
    assert_eq!(parse(b"DMAR\x08\0\0\0"), truncated(8, 8));
    let mut bytes = good.clone();
    bytes[40] = 1;
    assert_eq!(parse(&bytes), DmarError::Checksum { sum: 1 });
    // More bytes than the table are no harm.
    let mut bytes = good.clone();
    bytes.push(7);
    assert_eq!(Dmar::parse(&bytes).unwrap().bytes(), good);
}

/// A table with these structures, however wrong.
fn with_structures(structures: &[u8]) -> Vec<u8> {
    let mut bytes = Builder::new(39, TableFlags::empty())
        .build(Oem::default())
        .unwrap();
    bytes.extend(structures);
    bytes[9] = 0;
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[9] = sum.wrapping_neg();
    bytes
}

#[test]
fn malformed_structures_end_the_walk() {
    let cases: [(&[u8], u16, u16); 6] = [
        // No length: it would never end.
        (&[9, 0, 0, 0], 9, 0),
        (&[9, 0, 3, 0], 9, 3),
        // Longer than the table.
        (&[0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, 17),
        // Shorter than the type.
        (&[0, 0, 8, 0, 0, 0, 0, 0], 0, 8),
        (&[3, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 3, 16),
        // Half a header.
        (&[5], 0, 0),
    ];
    for (structures, kind, length) in cases {
        let bytes = with_structures(structures);
        let mut walk = Dmar::parse(&bytes).unwrap().structures();
        let error = walk.next().unwrap().map(|_| ()).unwrap_err();
        assert_eq!(
            error,
            DmarError::Structure {
                offset: 48,
                kind,
                length
            }
        );
        assert!(walk.next().is_none(), "an error is the last item");
    }
}

#[test]
fn malformed_scopes_end_the_walk() {
    for scope in [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 5, 0, 0, 0, 0, 0, 0],
        [1, 9, 0, 0, 0, 0, 0, 0],
        [1, 7, 0, 0, 0, 0, 0, 1],
    ] {
        let mut atsr = vec![2, 0, 16, 0, 0, 0, 0, 0];
        atsr.extend(scope);
        let bytes = with_structures(&atsr);
        let walk = Dmar::parse(&bytes).unwrap().structures().next().unwrap();
        let Structure::Atsr(_, mut scopes) = walk.unwrap() else {
            panic!("{scope:?}")
        };
        let error = scopes.next().unwrap().unwrap_err();
        assert_eq!(error, DmarError::Scope { offset: 56 });
        assert!(scopes.next().is_none());
    }
    // A path of no steps is read, and leads nowhere.
    let bytes = with_structures(&[2, 0, 14, 0, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0]);
    let walk = Dmar::parse(&bytes).unwrap().structures().next().unwrap();
    let Structure::Atsr(_, mut scopes) = walk.unwrap() else {
        panic!()
    };
    let scope = scopes.next().unwrap().unwrap();
    assert!(scope.path.is_empty());
    assert_eq!(scope.requester(|_| Some(0)), None);
}

#[test]
fn regions_that_are_none() {
    let span = |base, limit| {
        Rmrr {
            segment: 0,
            base,
            limit,
        }
        .span()
    };
    assert_eq!(span(0x1000, 0xfff), None);
    assert_eq!(span(0x1000, 0), None);
    assert_eq!(span(0x1000, 0x1ffe), None);
    assert_eq!(span(0x1001, 0x2000), None);
    assert_eq!(span(0, u64::MAX), None, "all 2^64 bytes are no region");
    assert_eq!(span(0x1000, 0x1fff).unwrap().length, 0x1000);
}

#[test]
fn what_cannot_be_built_is_named() {
    let build = |builder: Builder| builder.build(Oem::default()).unwrap_err();
    let new = || Builder::new(39, TableFlags::empty());
    for bits in [0, 257] {
        let error = build(Builder::new(bits, TableFlags::empty()));
        assert_eq!(error, BuildError::HostAddressBits(bits));
    }
    let atsr = Atsr {
        flags: AtsrFlags::ALL_PORTS,
        segment: 0,
    };
    let long = [(0, 0); 125];
    let scope = |path| NewScope::new(ScopeKind::ENDPOINT, 0, 0, path);
    assert_eq!(
        build(new().atsr(atsr, &[scope(&[])])),
        BuildError::Path { steps: 0 }
    );
    assert_eq!(
        build(new().atsr(atsr, &[scope(&long)])),
        BuildError::Path { steps: 125 }
    );
    let many = vec![scope(&long[..124]); 300];
    let bytes = 8 + 300 * 254;
    assert_eq!(
        build(new().atsr(atsr, &many)),
        BuildError::TooLong { kind: 2, bytes }
    );
    let named = Andd {
        device: 0,
        name: b"A\0B",
    };
    assert_eq!(build(new().andd(named)), BuildError::Name { at: 1 });
    assert_eq!(
        build(new().raw(&[7, 0, 5, 0])),
        BuildError::Raw {
            bytes: 4,
            length: 5
        }
    );
    assert_eq!(
        build(new().raw(&[7])),
        BuildError::Raw {
            bytes: 1,
            length: 0
        }
    );
}

proptest! {
    /// Whatever the bytes are, a walk over all of them ends.
    #[test]
    fn every_walk_ends(structures in proptest::collection::vec(0u8..40, 0..200)) {
        let bytes = with_structures(&structures);
        let dmar = Dmar::parse(&bytes).unwrap();
        for structure in dmar.structures() {
            let scopes = match structure {
                Ok(Structure::Drhd(_, scopes) | Structure::Rmrr(_, scopes) | Structure::Atsr(_, scopes)) => scopes,
                Ok(Structure::Satc(_, scopes) | Structure::Sidp(_, scopes)) => scopes,
                _ => continue,
            };
            for scope in scopes.flatten() {
                scope.requester(|_| Some(1));
            }
        }
    }
}
