// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What their machine does that the specification does not say. `lab/ledgers/vtd.md` has a section for each.

use hvkit_vtd_iommu::emulation::Unit;
use hvkit_vtd_iommu::spec::registers::{GCMD, IQA, IQERCD};

/// A set of rules of the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Quirks(u32);

/// CFI of the global command.
const COMPATIBILITY: u32 = 1 << 23;

macro_rules! quirks {
    ($($name:ident = $bit:literal, $rule:literal;)*) => {
        impl Quirks {
            $(pub(super) const $name: Self = Self(1 << $bit);)*
            /// Every rule, and its name.
            pub(super) const ALL: &[(Self, &'static str)] = &[$((Self::$name, $rule)),*];
        }
    };
}

quirks! {
    SILENT_WHEN_KEPT = 0, "silent-when-kept";
    NO_COMPATIBILITY_FORMAT = 1, "no-compatibility-format";
    QUEUE_IN_USE = 2, "queue-in-use";
    NO_ERROR_RECORD = 3, "no-error-record";
}

impl Quirks {
    pub(super) const NONE: Self = Self(0);

    /// Every rule together.
    pub(super) fn all() -> Self {
        Self::ALL
            .iter()
            .fold(Self::NONE, |all, (quirk, _)| all.with(*quirk))
    }

    pub(super) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// What a write of 4 bytes amounts to; `None`: to nothing.
    pub(super) fn written32(self, _unit: &Unit, offset: u32, value: u32) -> Option<u32> {
        if offset == GCMD.offset() && self.has(Self::NO_COMPATIBILITY_FORMAT) {
            return Some(value & !COMPATIBILITY);
        }
        Some(value)
    }

    /// What a register reads as, the queue having been at `queue` when it was last turned on.
    pub(super) fn read32(self, unit: &Unit, queue: u64, offset: u32) -> u32 {
        const QUEUE: u32 = IQA.offset();
        const QUEUE_HIGH: u32 = IQA.offset() + 4;
        const ERROR: u32 = IQERCD.offset();
        const ERROR_HIGH: u32 = IQERCD.offset() + 4;
        let value = unit.read32(offset);
        match offset {
            QUEUE if self.has(Self::QUEUE_IN_USE) => queue as u32 | value & 7,
            QUEUE_HIGH if self.has(Self::QUEUE_IN_USE) => (queue >> 32) as u32,
            ERROR | ERROR_HIGH if self.has(Self::NO_ERROR_RECORD) => 0,
            _ => value,
        }
    }
}
