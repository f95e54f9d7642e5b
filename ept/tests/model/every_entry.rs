// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every combination of the low 13 bits of an entry, at each level, on each of 32 processors, against the model.

use hvkit_ept::Ept;
use hvkit_page_table::{Entry, Format};

use crate::model::{Cpu, Kind, Setup};
use crate::{WIDTH, ours};

/// Bits 63:13 of the entries below: software's and options', address bits that fit the larger pages, the smaller ones, none.
const UPPER: [u64; 10] = [
    0,
    1 << 58,
    0xfff << 52,
    0xfff << 52 & !(1 << 58),
    1 << 20,
    1 << 29,
    1 << 30,
    1 << (WIDTH - 1) | 1 << 58,
    1 << WIDTH,
    1 << 51,
];

/// Processor number `n` of 32.
fn processor(n: u32) -> Setup {
    let on = |bit: u32| n >> bit & 1 != 0;
    Setup {
        levels: 5,
        root: 0,
        sppt: 0,
        width: WIDTH,
        execute_only: on(0),
        large: on(1),
        huge: on(2),
        advanced: false,
        mbe: on(3),
        ad: true,
        sss: false,
        ve: false,
        pw: on(4),
        gpv: false,
        spp: false,
    }
}

/// The model and our format on processor number `n` of 32.
fn both(n: u32) -> (Cpu, Ept) {
    let setup = processor(n);
    let (memory, logged) = Default::default();
    let cpu = Cpu {
        setup,
        memory,
        logged,
    };
    (cpu, ours(setup))
}

/// One entry at one level, plain numbers both. What is no case proves nothing.
fn one_entry(cpu: &Cpu, ept: &Ept, entry: u64, level: u8) -> Option<Kind> {
    if !(1..=5).contains(&level) {
        return None;
    }
    let kind = cpu.kind(entry, level.into());
    let rights = entry & if cpu.setup.mbe { 0x407 } else { 7 };
    let address = entry & 0x000f_ffff_ffff_f000;
    let ours = match ept.decode(entry, level) {
        Entry::Empty => Kind::Absent,
        Entry::Malformed(_) => Kind::Misconfigured,
        Entry::Table { frame, attributes } => {
            assert_eq!((frame, attributes.rights().bits()), (address, rights));
            Kind::Table
        }
        Entry::Leaf { target, attributes } => {
            assert_eq!((target, attributes.rights().bits()), (address, rights));
            let memory_type = attributes.memory_type().bits();
            assert_eq!(u64::from(memory_type), entry >> 3 & 7, "{entry:#x}");
            Kind::Page
        }
    };
    assert_eq!(ours, kind, "{entry:#x} {level} {:?}", cpu.setup);
    Some(kind)
}

/// All of bits 12:0, at each level, on each of 32 processors.
#[test]
fn every_entry_is_what_the_manual_says() {
    let mut seen = [0u32; 4];
    for (cpu, ept) in (0..32).map(both) {
        for (level, upper) in (1..=5).flat_map(|level| UPPER.map(|upper| (level, upper))) {
            for low in 0..1 << 13 {
                let kind = one_entry(&cpu, &ept, low | upper, level);
                seen[kind.expect("a level") as usize] += 1;
            }
        }
    }
    assert_eq!(seen.iter().sum::<u32>(), (32 * 5 * 10) << 13);
    assert!(seen.iter().all(|&count| count > 100_000), "{seen:?}");
}

/// `cargo kani --tests`: the same for numbers that stand for all, of every bit of the entry.
#[cfg(kani)]
mod proofs {
    #[kani::proof]
    fn one_entry() {
        let (cpu, ept) = super::both(kani::any::<u32>() % 32);
        super::one_entry(&cpu, &ept, kani::any(), kani::any());
    }
}
