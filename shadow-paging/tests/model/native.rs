// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The same guest on a processor without a TLB: the guest walker, access by access.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;

use hvkit_page_table::{ReadEntry, UpdateEntry, Width};
use hvkit_shadow_paging::fake::{Doing, FakeHost, Outcome};
use hvkit_shadow_paging::guest::{Access, Features, PagingMode, Registers, translate};

#[derive(Default)]
pub(crate) struct Memory(RefCell<BTreeMap<u64, u64>>);

impl Memory {
    pub(crate) fn get(&self, at: u64, width: Width) -> u64 {
        let word = self.0.borrow().get(&(at & !7)).copied().unwrap_or(0);
        match width {
            Width::Eight => word,
            Width::Four => word >> (8 * (at & 4)) & 0xffff_ffff,
        }
    }

    pub(crate) fn set(&self, at: u64, width: Width, value: u64) {
        let old = self.get(at & !7, Width::Eight);
        let word = match width {
            Width::Eight => value,
            Width::Four => {
                let shift = 8 * (at & 4);
                old & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift
            }
        };
        self.0.borrow_mut().insert(at & !7, word);
    }

    pub(crate) fn words(&self, from: u64, to: u64) -> BTreeMap<u64, u64> {
        let words = self.0.borrow();
        let there = words.range(from..to).filter(|&(_, &word)| word != 0);
        there.map(|(&at, &word)| (at, word)).collect()
    }
}

impl ReadEntry for Memory {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        Ok(self.get(at, width))
    }
}

impl UpdateEntry for Memory {
    fn compare_exchange(&self, at: u64, width: Width, _: u64, new: u64) -> Result<u64, Infallible> {
        let found = self.get(at, width);
        self.set(at, width, new);
        Ok(found)
    }
}

pub(crate) struct Native {
    pub(crate) memory: Memory,
    pub(crate) features: Features,
    pub(crate) mode: PagingMode,
}

impl Native {
    pub(crate) fn new(features: Features) -> Self {
        let memory = Memory::default();
        let registers = Registers::default();
        let mode = PagingMode::load(&registers, &features, &memory).unwrap();
        Self {
            memory,
            features,
            mode,
        }
    }

    pub(crate) fn load(&mut self, registers: &Registers) {
        self.mode = PagingMode::load(registers, &self.features, &self.memory).unwrap();
    }

    pub(crate) fn access(&self, linear: u64, access: Access, doing: Doing) -> Outcome {
        match translate(&self.mode, &self.memory, linear, access) {
            Ok(there) if there.physical >= FakeHost::MMIO => Outcome::Mmio(there.physical),
            Ok(there) => {
                let (width, value) = match doing {
                    Doing::Load => (Width::Four, None),
                    Doing::LoadEight => (Width::Eight, None),
                    Doing::Store(value) => (Width::Four, Some(u64::from(value))),
                    Doing::StoreEight(value) => (Width::Eight, Some(value)),
                };
                let before = self.memory.get(there.physical, width);
                if let Some(value) = value {
                    self.memory.set(there.physical, width, value);
                }
                Outcome::Done(before)
            }
            Err(fault) => Outcome::Fault(fault),
        }
    }
}
