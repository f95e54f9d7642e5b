// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MTRRs against raw register values, and against a model that looks at one address at a time.

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const WB: u64 = 6;
const ON: u64 = DEF_TYPE_ENABLE;
const FIXED_ON: u64 = DEF_TYPE_FIXED_ENABLE;

/// What firmware sets for 4 GiB of memory with a hole below 4 GiB, and legacy video memory.
fn firmware() -> ([u64; FIXED], [Variable; 4]) {
    let mut fixed = [0x0606_0606_0606_0606; FIXED];
    fixed[2] = 0; // A0000 to BFFFF
    fixed[3] = 0x0505_0505_0505_0505; // C0000 to C7FFF
    fixed[10] = 0x0600_0000_0000_0006; // F8000 to FFFFF: only the first and the last page
    let variable = [
        Variable {
            base: 0x6,
            mask: 0xf_8000_0800,
        }, // 0 to 2 GiB
        Variable {
            base: 0x8000_0006,
            mask: 0xf_c000_0800,
        }, // 2 to 3 GiB
        Variable {
            base: 0xbf80_0000,
            mask: 0xf_ff80_0800,
        }, // the top 8 MiB of it: UC
        Variable {
            base: 0x1_0000_0006,
            mask: 0xf_c000_0000,
        }, // not valid
    ];
    (fixed, variable)
}

#[test]
fn raw_registers_make_the_ranges_they_say() {
    use MemoryType::{Uncacheable as Uc, WriteBack as Wb, WriteProtected as Wp};
    let (fixed, variable) = firmware();
    let mtrrs = Mtrrs::new(ON | FIXED_ON, &fixed, &variable, 36).unwrap();
    let runs: Vec<_> = mtrrs.runs().map(|r| (r.start, r.end, r.effect)).collect();
    let expected = [
        (0, 0xa_0000, Wb),
        (0xa_0000, 0xc_0000, Uc),
        (0xc_0000, 0xc_8000, Wp),
        (0xc_8000, 0xf_9000, Wb),
        (0xf_9000, 0xf_f000, Uc),
        (0xf_f000, 0xbf80_0000, Wb),
        (0xbf80_0000, 1 << 36, Uc),
    ];
    assert_eq!(
        runs,
        expected.map(|(start, end, t)| (start, end, Effect::Type(t)))
    );

    // Without the fixed ranges, variable ones and the default reach down to 0.
    let mtrrs = Mtrrs::new(ON | WB, &fixed, &variable, 36).unwrap();
    let runs: Vec<_> = mtrrs.runs().map(|r| (r.start, r.end)).collect();
    assert_eq!(
        runs,
        [
            (0, 0xbf80_0000),
            (0xbf80_0000, 0xc000_0000),
            (0xc000_0000, 1 << 36)
        ]
    );

    // Disabled: all of memory is UC, whatever the rest says.
    let mtrrs = Mtrrs::new(FIXED_ON | WB, &fixed, &variable, 36).unwrap();
    let whole = Run {
        start: 0,
        end: 1 << 36,
        effect: Effect::Type(Uc),
    };
    assert!(mtrrs.runs().eq([whole]));
    assert_eq!(mtrrs.run(1 << 36), None);
    assert_eq!(mtrrs.run(u64::MAX), None);
}

#[test]
fn each_fixed_register_covers_its_own_addresses() {
    // Register i holds WP in its byte i % 8 and WB elsewhere.
    let mut fixed = [0x0606_0606_0606_0606u64; FIXED];
    for (i, value) in fixed.iter_mut().enumerate() {
        *value = *value & !(0xff << (8 * (i % 8))) | 5 << (8 * (i % 8));
    }
    let mtrrs = Mtrrs::new(ON | FIXED_ON, &fixed, &[], 40).unwrap();
    let starts = [
        0x0_0000,
        0x8_4000,
        0xa_8000,
        0xc_3000,
        0xc_c000,
        0xd_5000,
        0xd_e000,
        0xe_7000,
        0xe_8000,
        0xf_1000,
        0xf_a000u64,
    ];
    for page in 0..256u64 {
        let address = page << 12;
        let protected = starts.iter().any(|&start| {
            let size = if start < 0x8_0000 {
                0x1_0000
            } else if start < 0xc_0000 {
                0x4000
            } else {
                0x1000
            };
            (start..start + size).contains(&address)
        });
        let expected = if protected { 5 } else { 6 };
        let Effect::Type(found) = mtrrs.effect(address) else {
            panic!("undefined")
        };
        assert_eq!(found.bits(), expected, "{address:#x}");
    }
}

/// "MTRR Precedences", pair by pair.
#[test]
fn overlaps_are_settled_as_the_manual_says() {
    let range = |t| Variable {
        base: t,
        mask: 0xf_ffff_f000 | MASK_VALID,
    };
    let effect = |types: &[u64]| {
        let variable: Vec<_> = types.iter().map(|&t| range(t)).collect();
        let found = Mtrrs::new(ON | 1, &[0; FIXED], &variable, 36)
            .unwrap()
            .effect(0xabc);
        match found {
            Effect::Type(t) => Some(t.bits()),
            Effect::Undefined => None,
        }
    };
    assert_eq!(effect(&[]), Some(1), "the default");
    for one in [0, 1, 4, 5, 6] {
        assert_eq!(effect(&[one]), Some(one as u8));
        assert_eq!(effect(&[one, one, one]), Some(one as u8));
        assert_eq!(effect(&[one, 0]), Some(0));
        assert_eq!(effect(&[0, one]), Some(0));
    }
    assert_eq!((effect(&[4, 6]), effect(&[6, 4])), (Some(4), Some(4)));
    for (one, other) in [(1, 4), (1, 5), (1, 6), (4, 5), (5, 6)] {
        assert_eq!((effect(&[one, other]), effect(&[other, one])), (None, None));
        assert_eq!(
            effect(&[one, other, 0]),
            Some(0),
            "UC wins over the undefined"
        );
    }
    assert_eq!(Effect::Undefined.or_uncacheable(), MemoryType::Uncacheable);
    assert_eq!(
        Effect::Type(MemoryType::WriteBack).or_uncacheable(),
        MemoryType::WriteBack
    );
}

#[test]
fn impossible_registers_are_refused_by_name() {
    let new = |def, fixed: u64, base, mask| {
        let variable = [Variable { base, mask }];
        Mtrrs::new(def, &[fixed; FIXED], &variable, 36)
            .map(|_| ())
            .unwrap_err()
    };
    assert_eq!(
        new(ON | 2, 0, 0, 0),
        MtrrError::Type {
            encoding: 2,
            value: ON | 2
        }
    );
    let reserved = MtrrError::Reserved {
        bits: 0x1100,
        value: 0x1900,
    };
    assert_eq!(new(0x1900, 0, 0, 0), reserved);
    assert_eq!(
        new(ON | FIXED_ON, 7, 0, 0),
        MtrrError::Type {
            encoding: 7,
            value: 7
        }
    );
    let valid = 0xf_ffff_f800;
    assert_eq!(
        new(ON, 7, 0x3, valid),
        MtrrError::Type {
            encoding: 3,
            value: 3
        }
    );
    let high = 1 << 36 | 6;
    assert_eq!(
        new(ON, 0, high, valid),
        MtrrError::Reserved {
            bits: 1 << 36,
            value: high
        }
    );
    let low = 1 << 36 | valid;
    assert_eq!(
        new(ON, 0, 6, low),
        MtrrError::Reserved {
            bits: 1 << 36,
            value: low
        }
    );
    let holes = 0xf_ff7f_f800;
    assert_eq!(
        new(ON, 0, 6, holes),
        MtrrError::Discontiguous { mask: holes }
    );
    for bits in [0, 31, 53] {
        let refused = Mtrrs::new(ON, &[0; FIXED], &[], bits);
        assert_eq!(refused, Err(MtrrError::PhysicalBits(bits)));
    }
    // What is not enabled is not looked at.
    let invalid = [Variable {
        base: 0x7,
        mask: 0xfff0_0000_0000_0000,
    }];
    assert!(Mtrrs::new(ON, &[7; FIXED], &invalid, 36).is_ok());
}

/// One address, by the manual's matching rule: address AND mask equals base AND mask.
fn model(def_type: u64, fixed: &[u64; FIXED], variable: &[Variable], address: u64) -> Option<u8> {
    if def_type & ON == 0 {
        return Some(0);
    }
    if def_type & FIXED_ON != 0 && address < MIB {
        let kib = (address >> 10) as usize;
        let index = match kib {
            0..512 => kib / 64,
            512..768 => 8 + (kib - 512) / 16,
            _ => 24 + (kib - 768) / 4,
        };
        return Some(fixed[index / 8].to_le_bytes()[index % 8]);
    }
    let page = |word: u64| word >> 12;
    let mut types: Vec<u8> = variable
        .iter()
        .filter(|v| v.mask & MASK_VALID != 0)
        .filter(|v| page(address) & page(v.mask) == page(v.base) & page(v.mask))
        .map(|v| v.base as u8)
        .collect();
    types.sort_unstable();
    types.dedup();
    match types[..] {
        [] => Some(def_type as u8),
        [one] => Some(one),
        [0, ..] => Some(0),
        [4, 6] => Some(4),
        _ => None,
    }
}

fn memory_type() -> impl Strategy<Value = u64> {
    prop::sample::select(&[0u64, 1, 4, 5, 6][..])
}

fn variable() -> impl Strategy<Value = Variable> {
    (memory_type(), 0u64..1 << 24, 12u32..=36, any::<bool>()).prop_map(|(t, page, size, valid)| {
        let mask = ((1u64 << 36) - (1 << size)) | if valid { MASK_VALID } else { 0 };
        Variable {
            base: page << 12 & ((1 << 36) - 1) | t,
            mask,
        }
    })
}

proptest! {
    #[test]
    fn runs_are_the_models(
        def_type in (memory_type(), prop::sample::select(&[0, ON, FIXED_ON, ON | FIXED_ON][..])),
        fixed in prop::array::uniform11(prop::collection::vec(memory_type(), 8)),
        variable in prop::collection::vec(variable(), 0..6),
        samples in prop::collection::vec(0u64..1 << 36, 16),
    ) {
        let def_type = def_type.0 | def_type.1;
        let fixed = fixed.map(|bytes| {
            bytes.iter().rev().fold(0, |value, byte| value << 8 | byte)
        });
        let mtrrs = Mtrrs::new(def_type, &fixed, &variable, 36).unwrap();
        let expected = |address| model(def_type, &fixed, &variable, address);
        let plain = |effect| match effect {
            Effect::Type(t) => Some(t.bits()),
            Effect::Undefined => None,
        };
        let runs: Vec<Run> = mtrrs.runs().collect();
        // They cover the space without gaps, and neighbours differ.
        prop_assert_eq!(runs.first().map(|r| r.start), Some(0));
        prop_assert_eq!(runs.last().map(|r| r.end), Some(1 << 36));
        for pair in runs.windows(2) {
            prop_assert_eq!(pair[0].end, pair[1].start);
            prop_assert_ne!(pair[0].effect, pair[1].effect);
        }
        prop_assert!(runs.len() <= 2 * (variable.len() + 88) + 1);
        // Each is right at both ends, and wherever a sample or a register's base falls.
        for run in &runs {
            prop_assert_eq!(plain(run.effect), expected(run.start));
            prop_assert_eq!(plain(run.effect), expected(run.end - 1));
        }
        let bases = variable.iter().map(|v| v.base & !0xfff);
        for address in samples.into_iter().chain(bases) {
            let run = runs.iter().find(|r| (r.start..r.end).contains(&address)).unwrap();
            prop_assert_eq!(plain(run.effect), expected(address), "at {:#x}", address);
            prop_assert_eq!(plain(mtrrs.effect(address)), expected(address));
        }
    }
}
