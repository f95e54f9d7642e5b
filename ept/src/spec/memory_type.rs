// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory types: what EPT says of a page, what the guest's PAT says, and what the two make together.

/// A memory type as MTRRs and EPT entries spell it. SDM 3A, "Memory Types That Can Be Encoded in MTRRs".
///
/// The values 2, 3 and 7 are reserved: an EPT entry that holds one is misconfigured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[repr(u8)]
pub enum MemoryType {
    /// UC: never cached, strictly ordered.
    Uncacheable = 0,
    /// WC: not cached, writes may be gathered.
    WriteCombining = 1,
    /// WT: reads cached, writes go through.
    WriteThrough = 4,
    /// WP: reads cached, writes go to memory and invalidate.
    WriteProtected = 5,
    /// WB: cached.
    WriteBack = 6,
}

impl MemoryType {
    /// Every type, in the order of their encodings.
    pub const ALL: [Self; 5] = [
        Self::Uncacheable,
        Self::WriteCombining,
        Self::WriteThrough,
        Self::WriteProtected,
        Self::WriteBack,
    ];

    /// The type that `bits` encodes; `None` for a reserved encoding.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Uncacheable,
            1 => Self::WriteCombining,
            4 => Self::WriteThrough,
            5 => Self::WriteProtected,
            6 => Self::WriteBack,
            _ => return None,
        })
    }

    /// The encoding.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u8 {
        self as u8
    }
}

/// A memory type selected from IA32_PAT. SDM 3A, "Selecting a Memory Type from the PAT".
///
/// With CR0.PG = 0 it is [`PatType::WRITE_BACK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PatType {
    /// One that an EPT entry can hold too.
    Type(MemoryType),
    /// UC-, which a range's own type may turn to WC.
    UncachedMinus,
}

impl PatType {
    /// WB: what counts where paging is off.
    pub const WRITE_BACK: Self = Self::Type(MemoryType::WriteBack);

    /// The type in one byte of IA32_PAT; `None` for a reserved encoding.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match (bits, MemoryType::from_bits(bits)) {
            (_, Some(known)) => Some(Self::Type(known)),
            (7, None) => Some(Self::UncachedMinus),
            _ => None,
        }
    }
}

/// Whether the guest's PAT has a say in a page's memory type: bit 6 of the EPT entry that maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Pat {
    /// The two types are combined (bit 6 clear).
    #[default]
    Combined,
    /// The EPT memory type alone counts (bit 6 set).
    Ignored,
}

/// The type used for an access to a translated guest-physical address while CR0.CD = 0 (with CR0.CD = 1
/// it is UC). SDM 3C, "Memory Type Used for Translated Guest-Physical Addresses".
#[must_use]
pub const fn effective(ept: MemoryType, pat: Pat, selected: PatType) -> MemoryType {
    use MemoryType::{Uncacheable, WriteBack, WriteCombining, WriteProtected, WriteThrough};
    let selected = match (pat, selected) {
        (Pat::Ignored, _) => return ept,
        (Pat::Combined, PatType::Type(selected)) => selected,
        (Pat::Combined, PatType::UncachedMinus) => {
            return match ept {
                WriteCombining | WriteProtected => WriteCombining,
                Uncacheable | WriteThrough | WriteBack => Uncacheable,
            };
        }
    };
    match (ept, selected) {
        (_, Uncacheable) => Uncacheable,
        (_, WriteCombining) => WriteCombining,
        (Uncacheable, _) => Uncacheable,
        (ept, WriteBack) => ept,
        (WriteCombining, WriteThrough | WriteProtected) => Uncacheable,
        (_, selected) => selected,
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    /// SDM 3A, "Effective Page-Level Memory Types for Pentium III and More Recent Processor Families",
    /// line by line: range type, PAT encoding, effective type.
    #[test]
    fn the_effective_type_is_the_tables() {
        let table = [
            (0, [(0, 0), (7, 0), (1, 1), (4, 0), (6, 0), (5, 0)]),
            (1, [(0, 0), (7, 1), (1, 1), (4, 0), (6, 1), (5, 0)]),
            (4, [(0, 0), (7, 0), (1, 1), (4, 4), (6, 4), (5, 5)]),
            (6, [(0, 0), (7, 0), (1, 1), (4, 4), (6, 6), (5, 5)]),
            (5, [(0, 0), (7, 1), (1, 1), (4, 4), (6, 5), (5, 5)]),
        ];
        for (range, line) in table {
            let ept = MemoryType::from_bits(range).unwrap();
            for (pat, expected) in line {
                let selected = PatType::from_bits(pat).unwrap();
                let found = effective(ept, Pat::Combined, selected).bits();
                assert_eq!(found, expected, "range type {range}, PAT {pat}");
                assert_eq!(effective(ept, Pat::Ignored, selected), ept);
            }
        }
    }

    #[test]
    fn reserved_encodings_are_none() {
        let known: Vec<u8> = (0..=255)
            .filter(|&b| MemoryType::from_bits(b).is_some())
            .collect();
        assert_eq!(known, [0, 1, 4, 5, 6]);
        assert_eq!(MemoryType::ALL.map(MemoryType::bits), [0, 1, 4, 5, 6]);
        let pat: Vec<u8> = (0..=255)
            .filter(|&b| PatType::from_bits(b).is_some())
            .collect();
        assert_eq!(pat, [0, 1, 4, 5, 6, 7]);
    }
}
