// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory in which every word is what an adversary likes, in every mode: an answer each time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;

use hvkit_page_table::{Format, ReadEntry, UpdateEntry, Width};
use hvkit_shadow_paging::guest::{
    Access, Features, GuestFault, Kind, PagingMode, Privilege, Registers, probe, translate,
};
use proptest::prelude::*;

/// Every address has a word: a hash of it and a seed, mostly present and with few high bits.
struct Noise {
    seed: u64,
    stored: RefCell<BTreeMap<u64, u64>>,
}

impl Noise {
    fn word(&self, at: u64) -> u64 {
        let mut x = (at ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^= x >> 32;
        match x >> 60 {
            0 => x,
            1..=3 => at & !0xfff | x & 0xfff | 0x7, // points at its own table
            _ => x & 0x3fff_f17f | 0x7,
        }
    }
}

impl ReadEntry for Noise {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        let stored = self.stored.borrow().get(&at).copied();
        let word = stored.unwrap_or_else(|| self.word(at));
        Ok(if width == Width::Four {
            word & 0xffff_ffff
        } else {
            word
        })
    }
}

impl UpdateEntry for Noise {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        let found = self.read(at, width)?;
        if found == current {
            self.stored.borrow_mut().insert(at, new);
        }
        Ok(found)
    }
}

fn access() -> impl Strategy<Value = Access> {
    let kind = prop_oneof![
        Just(Kind::Read),
        Just(Kind::Write),
        Just(Kind::Fetch),
        Just(Kind::ShadowStackRead),
        Just(Kind::ShadowStackWrite)
    ];
    (kind, 0u8..4, any::<u64>())
        .prop_map(|(kind, cpl, eflags)| Access::new(kind, Privilege::explicit(cpl, eflags)))
}

/// Registers of any value, mostly with paging on.
fn registers() -> impl Strategy<Value = Registers> {
    (any::<[u64; 4]>(), any::<[u32; 2]>(), 0..8u8).prop_map(
        |([cr0, cr3, cr4, efer], [pkru, pkrs], tidy)| {
            let mut registers = Registers {
                cr0,
                cr3,
                cr4,
                efer,
                pkru,
                pkrs,
            };
            if tidy != 0 {
                registers.cr0 |= 0x8001_0001;
                registers.cr3 &= 0xffff_f000;
                registers.efer |= u64::from(tidy & 1) << 8;
                registers.cr4 |= u64::from(tidy & 1 | tidy >> 1 & 1) << 5;
            }
            registers
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_memory_has_an_answer(
        seed: u64,
        registers in registers(),
        features in (30u8..54, any::<[bool; 4]>()),
        linear: u64,
        wide: bool,
        access in access(),
    ) {
        let (physical_address_bits, [gib_pages, execute_disable, pse36, pat]) = features;
        let features = Features { physical_address_bits, gib_pages, execute_disable, pse36, pat };
        let memory = Noise { seed, stored: RefCell::default() };
        let Ok(mode) = PagingMode::load(&registers, &features, &memory) else {
            return Ok(());
        };
        let linear = if wide { linear } else { linear & 0xffff_ffff };
        let before = probe(&mode, &memory, linear, access);
        prop_assert!(memory.stored.borrow().is_empty());
        let answer = translate(&mode, &memory, linear, access);
        // Tables that are their own pages may change under our own flags; what is stored is flags only.
        for (&at, &word) in &*memory.stored.borrow() {
            let width = mode.format().unwrap().shape().width();
            let was = if width == Width::Four { memory.word(at) & 0xffff_ffff } else { memory.word(at) };
            prop_assert_eq!(word & !0x60, was & !0x60);
        }
        match (before, answer) {
            (Ok(a), Ok(b)) => {
                prop_assert_eq!(a.physical, b.physical);
                prop_assert!(b.physical >> physical_address_bits.max(32) == 0);
            }
            (Err(a), Err(b)) => {
                prop_assert_eq!(a, b);
                prop_assert!(memory.stored.borrow().is_empty());
                if let GuestFault::Page { code, .. } = b {
                    prop_assert_eq!(code.0 & !0x7f, 0);
                    prop_assert!(code.0 & 0x28 == 0 || code.0 & 1 == 1, "RSVD and PK need P");
                }
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
