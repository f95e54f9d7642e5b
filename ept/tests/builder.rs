// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory maps: what each kind of region becomes, and what is refused.

use hvkit_ept::builder::{BuildError, Policy, Region, Types, build};
use hvkit_ept::mtrr::{DEF_TYPE_ENABLE, FIXED, MASK_VALID, Mtrrs, Variable};
use hvkit_ept::spec::{Controls, EptVpidCap, MemoryType, Pat, Rights, WalkLength};
use hvkit_ept::{Attributes, Ept};
use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::{MapError, Mapper, Sizes};
use proptest::prelude::*;

const CAP: EptVpidCap = EptVpidCap::from_msr(0x0f01_06f3_41c1);

fn ept(controls: Controls) -> Ept {
    Ept::new(CAP, 46, WalkLength::Four, controls).unwrap()
}

type Table<'a> = Mapper<Ept, &'a FakeTables, &'a FakeTables>;

fn made<'a>(
    memory: &'a FakeTables,
    map: &[Region],
    policy: Policy<'_>,
) -> Result<Table<'a>, BuildError> {
    build(ept(Controls::empty()), memory, memory, map, policy)
}

/// Target, level and attributes.
fn at(mapper: &Table<'_>, address: u64) -> Option<(u64, u8, Attributes)> {
    let found = mapper.translate(address).ok()?;
    Some((found.target, found.level, found.attributes))
}

const PC: [Region; 5] = [
    Region::ram(0, 0xa_0000, 0x1_0000_0000),
    Region::rom(0xf_0000, 0x1_0000, 0x2_0000_0000),
    Region::ram(0x10_0000, 0x7ff0_0000, 0x1_0010_0000),
    Region::device(0xfeb0_0000, 0x4000, 0xd000_0000),
    Region::emulated(0xfec0_0000, 0x1000),
];

#[test]
fn each_region_becomes_what_it_is() {
    let memory = FakeTables::new();
    let mapper = made(&memory, &PC, Policy::default()).unwrap();
    let rom = Attributes::new(Rights::READ | Rights::EXECUTE, MemoryType::WriteBack);
    let device =
        Attributes::new(Rights::READ_WRITE, MemoryType::Uncacheable).with_pat(Pat::Ignored);
    assert_eq!(
        at(&mapper, 0x9_f123),
        Some((0x1_0009_f123, 1, Attributes::RAM))
    );
    assert_eq!(at(&mapper, 0xa_0000), None);
    assert_eq!(at(&mapper, 0xf_fff0), Some((0x2_0000_fff0, 1, rom)));
    assert_eq!(
        at(&mapper, 0x10_0000),
        Some((0x1_0010_0000, 1, Attributes::RAM))
    );
    assert_eq!(
        at(&mapper, 0x20_0000),
        Some((0x1_0020_0000, 2, Attributes::RAM))
    );
    assert_eq!(
        at(&mapper, 0x4000_0000),
        Some((0x1_4000_0000, 3, Attributes::RAM))
    );
    assert_eq!(
        at(&mapper, 0x7fff_ffff),
        Some((0x1_7fff_ffff, 3, Attributes::RAM))
    );
    assert_eq!(at(&mapper, 0x8000_0000), None);
    assert_eq!(at(&mapper, 0xfeb0_3fff), Some((0xd000_3fff, 1, device)));
    assert_eq!(at(&mapper, 0xfec0_0000), None);
}

#[test]
fn both_modes_execute_where_they_are_apart() {
    let memory = FakeTables::new();
    let ept = ept(Controls::MODE_BASED_EXECUTE);
    let mapper = build(ept, &memory, &memory, &PC, Policy::default()).unwrap();
    let both = Rights::EXECUTE | Rights::USER_EXECUTE;
    let rights = |address| mapper.translate(address).unwrap().attributes.rights();
    assert_eq!(rights(0), Rights::READ_WRITE | both);
    assert_eq!(rights(0xf_0000), Rights::READ | both);
    assert_eq!(rights(0xfeb0_0000), Rights::READ_WRITE);
}

#[test]
fn policy_limits_pages() {
    let memory = FakeTables::new();
    let sizes = Sizes {
        largest: 2,
        largest_executable: 1,
    };
    let mapper = made(
        &memory,
        &PC,
        Policy {
            sizes,
            ..Policy::default()
        },
    )
    .unwrap();
    assert_eq!(at(&mapper, 0x4000_0000).unwrap().1, 1, "executable");
    assert_eq!(mapper.sizes(), sizes);
}

#[test]
fn types_come_from_mtrrs() {
    let ram = [
        Region::ram(0, 0x4000_0000, 0x4000_0000),
        Region::device(0x8000_0000, 0x1000, 0),
    ];
    let uncacheable = [Variable {
        base: 0x5000_0000,
        mask: 0x3fff_fff0_0000 | MASK_VALID,
    }];
    let mtrrs = Mtrrs::new(DEF_TYPE_ENABLE | 6, &[0; FIXED], &uncacheable, 46).unwrap();
    let types = |types| {
        let memory = FakeTables::new();
        let mapper = made(
            &memory,
            &ram,
            Policy {
                types,
                ..Policy::default()
            },
        )
        .unwrap();
        [0, 0x1000_0000, 0x100f_ffff, 0x1010_0000, 0x8000_0000].map(|address| {
            let (target, _, attributes) = at(&mapper, address).unwrap();
            assert_eq!(
                target,
                address
                    ^ if address < 0x8000_0000 {
                        0x4000_0000
                    } else {
                        address
                    }
            );
            attributes.memory_type().bits()
        })
    };
    assert_eq!(types(Types::WriteBack), [6, 6, 6, 6, 0]);
    assert_eq!(
        types(Types::Host(&mtrrs)),
        [6, 0, 0, 6, 0],
        "by host-physical address"
    );
    assert_eq!(types(Types::Guest(&mtrrs)), [6, 6, 6, 6, 0]);
    let low = [Variable {
        base: 0x1000_0004,
        mask: 0x3fff_fff0_0000 | MASK_VALID,
    }];
    let mtrrs = Mtrrs::new(DEF_TYPE_ENABLE | 6, &[0; FIXED], &low, 46).unwrap();
    assert_eq!(
        types(Types::Guest(&mtrrs)),
        [6, 4, 4, 6, 0],
        "by guest-physical address"
    );
}

#[test]
fn what_cannot_be_is_refused_without_a_trace() {
    let refused = |map: &[Region]| {
        let memory = FakeTables::new();
        let error = made(&memory, map, Policy::default())
            .map(|_| ())
            .unwrap_err();
        assert_eq!(memory.in_use(), 0, "{error}");
        error
    };
    let (first, second) = (
        Region::ram(0x1000, 0x2000, 0),
        Region::emulated(0x2000, 0x1000),
    );
    assert_eq!(
        refused(&[first, second]),
        BuildError::Overlap { first, second }
    );
    let (low, top) = (
        Region::ram(0, u64::MAX, 0),
        Region::rom(u64::MAX - 0xfff, 0x1000, 0),
    );
    assert!(matches!(
        refused(&[low, top]),
        BuildError::Region { .. } | BuildError::Overlap { .. }
    ));
    let region = |region| match refused(&[PC[0], region]) {
        BuildError::Region {
            region: named,
            error,
        } => {
            assert_eq!(named, region);
            error
        }
        other => panic!("{other}"),
    };
    let odd = region(Region::ram(0x20_0800, 0x1000, 0));
    assert!(matches!(
        odd,
        MapError::Unaligned {
            value: 0x20_0800,
            ..
        }
    ));
    let odd = region(Region::ram(0x20_0000, 0x1000, 0x800));
    assert!(matches!(odd, MapError::Unaligned { value: 0x800, .. }));
    let empty = region(Region::ram(0x20_0000, 0, 0));
    assert!(matches!(empty, MapError::EmptyRange { start: 0x20_0000 }));
    let far = region(Region::ram(1 << 48, 0x1000, 0));
    assert!(matches!(far, MapError::OutOfReach { .. }));
    let wide = region(Region::ram(0x20_0000, 0x1000, 1 << 46));
    assert!(matches!(wide, MapError::TargetTooWide { .. }), "{wide}");

    let memory = FakeTables::new();
    memory.limit(0);
    let none = made(&memory, &PC, Policy::default()).map(|_| ());
    assert_eq!(none, Err(BuildError::Root(MapError::OutOfFrames)));
    for frames in 1.. {
        memory.limit(frames);
        match made(&memory, &PC, Policy::default()) {
            Ok(_) => {
                assert!(frames > 5, "{frames}");
                break;
            }
            Err(BuildError::Region {
                error: MapError::OutOfFrames,
                ..
            }) => {
                assert_eq!(memory.in_use(), 0);
            }
            Err(other) => panic!("{other}"),
        }
    }
}

proptest! {
    /// Any map of pages in a small space: each page is what the first region over it says, or the
    /// map is refused because two overlap.
    #[test]
    fn a_map_is_what_its_regions_say(
        regions in prop::collection::vec((0u64..64, 1u64..24, 0u64..64, 0u8..4), 0..6),
    ) {
        let map: Vec<Region> = regions
            .iter()
            .map(|&(page, pages, host, kind)| {
                let (guest, length, host) = (page << 12, pages << 12, host << 12);
                match kind {
                    0 => Region::ram(guest, length, host),
                    1 => Region::rom(guest, length, host),
                    2 => Region::device(guest, length, host),
                    _ => Region::emulated(guest, length),
                }
            })
            .collect();
        let owner = |page: u64| {
            let over = |&&(first, pages, ..): &&(u64, u64, u64, u8)| {
                (first..first + pages).contains(&page)
            };
            regions.iter().filter(over).collect::<Vec<_>>()
        };
        let memory = FakeTables::new();
        let overlap = (0..96).any(|page| owner(page).len() > 1);
        match made(&memory, &map, Policy::default()) {
            Err(BuildError::Overlap { .. }) => prop_assert!(overlap),
            Err(other) => panic!("{other}"),
            Ok(mapper) => {
                prop_assert!(!overlap);
                for page in 0..96 {
                    let found = mapper.translate(page << 12).ok();
                    let found = found.map(|t| (t.target >> 12, t.attributes.rights().bits()));
                    let expected = owner(page).first().and_then(|&&(first, _, host, kind)| {
                        let rights = [7, 5, 3].get(usize::from(kind))?;
                        Some((host + page - first, *rights))
                    });
                    prop_assert_eq!(found, expected, "page {}", page);
                }
            }
        }
    }
}
