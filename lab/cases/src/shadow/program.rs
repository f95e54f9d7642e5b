// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a program is, and what comes of it.

use core::fmt;
use core::ops::Range;

use super::harness::HARNESS_PT_ARENA;
use crate::Digest;
use crate::paging::{
    self, ARENA, Doing, HARNESS_PD, HARNESS_PDPT, HARNESS_PT_LOW, HARNESS_PT_USER, Mode, Who,
};

/// Accesses of a program: each has a record.
pub const ACCESSES: usize = 12;
/// Steps of a program, at most.
const OPS: usize = 64;
/// Entries that a program begins with, at most.
const INITIAL: usize = 40;
/// Frames of a program's tables.
pub(super) const FRAMES: u64 = 9;

/// The arena's addresses.
#[must_use]
pub const fn arena() -> Range<u64> {
    ARENA..ARENA + (FRAMES << 12)
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// An access, whose record is sent.
    Access {
        /// Its linear address.
        linear: u64,
        /// What it does: no implicit access, no shadow stack.
        doing: Doing,
        /// By whom.
        who: Who,
    },
    /// A store into a table, by the monitor's mapping of it.
    Store(Table),
    /// INVLPG.
    Invlpg(u64),
    /// MOV to CR3.
    Cr3(u64),
    /// CR0.WP, CR4.SMEP and CR4.SMAP as in these words.
    Control {
        /// CR0's PG and WP.
        cr0: u64,
        /// CR4's bits that programs use.
        cr4: u64,
    },
}

/// An entry of a table.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Table {
    /// Its physical address, in the arena.
    pub at: u64,
    /// Its bytes: 4 or 8.
    pub width: u64,
    /// Its value.
    pub value: u64,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}; {}] = {:#x}", self.at, self.width, self.value)
    }
}

/// A list of bounded length.
#[derive(Clone)]
pub(super) struct List<T, const N: usize> {
    items: [T; N],
    used: usize,
}

impl<T: Copy, const N: usize> List<T, N> {
    pub(super) const fn new(blank: T) -> Self {
        Self {
            items: [blank; N],
            used: 0,
        }
    }

    /// Adds one, if there is room.
    pub(super) fn add(&mut self, item: T) {
        if let Some(place) = self.items.get_mut(self.used) {
            *place = item;
            self.used += 1;
        }
    }

    pub(super) fn room(&self) -> usize {
        N - self.used
    }

    pub(super) fn get(&self) -> &[T] {
        &self.items[..self.used]
    }

    pub(super) fn get_mut(&mut self) -> &mut [T] {
        &mut self.items[..self.used]
    }
}

/// A program: registers and tables to begin with, then its steps.
#[derive(Clone)]
pub struct Program {
    /// The paging mode, with tables.
    pub mode: Mode,
    /// CR0's PG and WP.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4's PSE, PAE, SMEP and SMAP.
    pub cr4: u64,
    /// EFER's LME and NXE.
    pub efer: u64,
    pub(super) initial: List<Table, INITIAL>,
    pub(super) ops: List<Op, OPS>,
}

impl Program {
    pub(super) const fn blank(mode: Mode) -> Self {
        let none = Table {
            at: 0,
            width: 0,
            value: 0,
        };
        Self {
            mode,
            cr0: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            initial: List::new(none),
            ops: List::new(Op::Invlpg(0)),
        }
    }

    /// The entries that are there at the start; the rest of the arena is 0.
    #[must_use]
    pub fn initial(&self) -> &[Table] {
        self.initial.get()
    }

    /// The steps.
    #[must_use]
    pub fn ops(&self) -> &[Op] {
        self.ops.get()
    }

    /// An access of it as a case of `oracle paging`, with the registers of that moment.
    #[must_use]
    pub fn case(&self, linear: u64, doing: Doing, who: Who) -> paging::Case {
        paging::Case {
            mode: self.mode,
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            pkru: 0,
            pkrs: 0,
            linear,
            doing,
            who,
            entries: crate::Entries::default(),
        }
    }

    /// A sum over all entries that the program ever stores, as `read` finds them: words of 8 bytes.
    pub fn digest(&self, read: impl Fn(u64) -> u64) -> u32 {
        let mut digest = Digest::default();
        let stored = self.ops().iter().filter_map(|op| match op {
            Op::Store(entry) => Some(entry),
            _ => None,
        });
        for entry in self.initial().iter().chain(stored) {
            let at = entry.at & !7;
            digest.add(at, read(at));
        }
        digest.sum()
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("mode", &self.mode)
            .field("cr0", &format_args!("{:#x}", self.cr0))
            .field("cr3", &format_args!("{:#x}", self.cr3))
            .field("cr4", &format_args!("{:#x}", self.cr4))
            .field("efer", &format_args!("{:#x}", self.efer))
            .field("initial", &self.initial())
            .field("ops", &self.ops())
            .finish()
    }
}

/// The monitor's entries of a root, by index.
pub(super) fn root_entries(mode: Mode) -> impl Iterator<Item = (u64, u64)> {
    /// P, R/W, U/S, A and D; a PDPTE has P alone.
    const OURS: u64 = 0x67;
    let entries = match mode {
        Mode::ThirtyTwoBit => [
            Some((0, HARNESS_PT_LOW | OURS)),
            Some((1, HARNESS_PT_USER | OURS)),
            Some((4, HARNESS_PT_ARENA | OURS)),
        ],
        Mode::Pae => [Some((0, HARNESS_PD | 1)), None, None],
        Mode::FourLevel => [Some((0, HARNESS_PDPT | OURS)), None, None],
        Mode::Unpaged => [None; 3],
    };
    entries.into_iter().flatten()
}

/// What came of a program: a record for each access. The last one's digest is of the whole arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Record {
    /// In the order of the accesses.
    pub accesses: [paging::Record; ACCESSES],
}

impl Record {
    /// Bytes of a record.
    pub const BYTES: usize = ACCESSES * paging::Record::BYTES;

    /// The record as it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (place, access) in bytes.as_chunks_mut().0.iter_mut().zip(&self.accesses) {
            *place = access.to_bytes();
        }
        bytes
    }

    /// The record that was sent.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let mut record = Self::default();
        for (access, place) in record.accesses.iter_mut().zip(bytes.as_chunks().0) {
            *access = paging::Record::from_bytes(place);
        }
        record
    }
}
