// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's memory of a few words, and registers for each mode.

use std::cell::RefCell;
use std::collections::BTreeMap;

use hvkit_page_table::{ReadEntry, UpdateEntry, Width};
use hvkit_shadow_paging::guest::{Features, Layout, PagingMode, Registers, cr0, cr4, efer};

/// Outside memory, or read-only: the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub u64);

/// Entries by physical address. There is no memory where there is no entry.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) words: RefCell<BTreeMap<u64, u64>>,
    /// Every update asked for: address and new value.
    pub(crate) updates: RefCell<Vec<(u64, u64)>>,
    /// All of it can be read only.
    pub(crate) read_only: bool,
}

impl Memory {
    pub(crate) fn new(words: &[(u64, u64)]) -> Self {
        let memory = Self::default();
        for &(at, word) in words {
            memory.set(at, word);
        }
        memory
    }

    pub(crate) fn set(&self, at: u64, word: u64) {
        self.words.borrow_mut().insert(at, word);
    }

    pub(crate) fn get(&self, at: u64) -> u64 {
        self.words.borrow()[&at]
    }
}

impl ReadEntry for Memory {
    type Error = Refused;

    fn read(&self, at: u64, width: Width) -> Result<u64, Refused> {
        assert_eq!(at % width.bytes(), 0, "an entry is aligned");
        self.words.borrow().get(&at).copied().ok_or(Refused(at))
    }
}

impl UpdateEntry for Memory {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Refused> {
        let found = self.read(at, width)?;
        if self.read_only {
            return Err(Refused(at));
        }
        self.updates.borrow_mut().push((at, new));
        if found == current {
            self.set(at, new);
        }
        Ok(found)
    }
}

/// Registers that select `layout`, with the root at 0x1000 and CR0.WP and NXE set.
pub(crate) fn registers(layout: Layout) -> Registers {
    let (cr4, lme) = match layout {
        Layout::ThirtyTwoBit => (cr4::PSE, 0),
        Layout::Pae => (cr4::PAE, 0),
        Layout::FourLevel => (cr4::PAE, efer::LME),
        Layout::FiveLevel => (cr4::PAE | cr4::LA57, efer::LME),
    };
    Registers {
        cr0: cr0::PG | cr0::PE | cr0::WP,
        cr3: 0x1000,
        cr4,
        efer: lme | efer::NXE,
        ..Registers::default()
    }
}

/// The mode of `registers` on a processor with everything and 46 address bits; in PAE paging each
/// PDPTE leads to 0x2000.
pub(crate) fn mode(registers: &Registers) -> PagingMode {
    mode_of(registers, &Features::all(46))
}

/// The same on a processor with `features`.
pub(crate) fn mode_of(registers: &Registers, features: &Features) -> PagingMode {
    PagingMode::with_pdptes(registers, features, [0x2001; 4]).expect("a mode that can be")
}

pub(crate) const LAYOUTS: [Layout; 4] = [
    Layout::ThirtyTwoBit,
    Layout::Pae,
    Layout::FourLevel,
    Layout::FiveLevel,
];
