// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Second stage as a table format.

use bitflags::bitflags;
use hvkit_page_table::{Encode, Entry, Format, Marks, Shape, Upper};

use super::Unsupported;
use super::reserved::{Reserved, is_page};
use crate::spec::second_stage::SecondStageEntry as Word;

bitflags! {
    /// Page sizes above 4 KiB that a unit supports in the second stage: CAP.SSLPS.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct LargePages: u8 {
        /// 2 MiB (bit 34 of CAP).
        const TWO_MIB = 1;
        /// 1 GiB (bit 35 of CAP).
        const ONE_GIB = 2;
    }
}

/// What a second-stage mapping allows, and how it is accessed: the bits of an entry without the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecondStageAttributes(pub(crate) u64);

impl SecondStageAttributes {
    /// Reads only.
    pub const READ: Self = Self(Word::READ);
    /// Writes only.
    pub const WRITE: Self = Self(Word::WRITE);
    /// Reads and writes.
    pub const READ_WRITE: Self = Self(Word::READ | Word::WRITE);

    const RIGHTS: u64 = Word::READ | Word::WRITE;
    const KEPT: u64 = Self::RIGHTS | Word::SNOOP | Word::TRANSIENT | Word::SOFTWARE;

    /// The same, with accesses that snoop the processors' caches whatever the device asked for.
    #[must_use]
    pub const fn snooping(self) -> Self {
        Self(self.0 | Word::SNOOP)
    }

    /// The same, as a transient mapping: hints that caching it is of little use.
    #[must_use]
    pub const fn transient(self) -> Self {
        Self(self.0 | Word::TRANSIENT)
    }

    /// The same with the low ten bits of `bits` in the bits that are software's (61:52).
    #[must_use]
    pub const fn with_software(self, bits: u16) -> Self {
        Self(self.0 & !Word::SOFTWARE | (bits as u64 & 0x3ff) << 52)
    }

    /// The ten bits that are software's.
    #[must_use]
    pub const fn software(self) -> u16 {
        (self.0 >> 52 & 0x3ff) as u16
    }

    /// Whether reads are allowed.
    #[inline]
    #[must_use]
    pub const fn reads(self) -> bool {
        self.0 & Word::READ != 0
    }

    /// Whether writes are allowed.
    #[inline]
    #[must_use]
    pub const fn writes(self) -> bool {
        self.0 & Word::WRITE != 0
    }

    /// SNP.
    #[inline]
    #[must_use]
    pub const fn snoops(self) -> bool {
        self.0 & Word::SNOOP != 0
    }
}

/// The rule that a second-stage entry breaks, or that refuses attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecondStageRule {
    /// Bits that must be 0 at this level, for this unit.
    #[error("reserved bits {bits:#x} are set")]
    Reserved {
        /// Those that are set.
        bits: u64,
    },
    /// Neither reads nor writes: the entry would not be present. Unmap instead.
    #[error("no rights: the entry would not be present")]
    NoRights,
    /// SNP without ECAP.SC.
    #[error("the unit has no snoop control")]
    Snoop,
    /// TM without ECAP.DT.
    #[error("the unit has no device TLBs, so no transient mappings")]
    Transient,
}

/// Second-stage tables of one unit: levels, host address width, capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondStage {
    shape: Shape,
    host_bits: u32,
    reserved: Reserved,
    marks: Marks,
}

impl SecondStage {
    /// Tables of `levels` levels (3: 39 bits, 4: 48, 5: 57) on a unit with `host_bits` of address (30 to 52):
    /// 4-KiB pages only, no snoop control, no transient mappings, no accessed and dirty flags.
    ///
    /// # Errors
    ///
    /// Another number of levels or width.
    pub const fn new(levels: u8, host_bits: u32) -> Result<Self, Unsupported> {
        if levels < 3 || levels > 5 {
            return Err(Unsupported::Levels(levels));
        }
        if host_bits < 30 || host_bits > 52 {
            return Err(Unsupported::HostBits(host_bits));
        }
        let Ok(shape) = Shape::nines(levels, 0b001, Upper::Zero) else {
            return Err(Unsupported::Levels(levels));
        };
        let wide = Word::ADDRESS & (!0u64).wrapping_shl(host_bits);
        let reserved = wide | Word::SNOOP | Word::TRANSIENT;
        Ok(Self {
            shape,
            host_bits,
            reserved: Reserved {
                in_pages: reserved,
                in_tables: reserved,
                below_size: 0,
            },
            marks: Marks::NONE,
        })
    }

    /// The same on a unit with these page sizes (CAP.SSLPS).
    #[must_use]
    pub const fn with_large_pages(mut self, large: LargePages) -> Self {
        let levels = 1 | large.bits() << 1;
        if let Ok(shape) = Shape::nines(self.shape.levels(), levels, Upper::Zero) {
            self.shape = shape;
        }
        self
    }

    /// The same on a unit with snoop control (ECAP.SC).
    #[must_use]
    pub const fn with_snoop_control(mut self) -> Self {
        self.reserved.in_pages &= !Word::SNOOP;
        self
    }

    /// The same on a unit with device TLBs (ECAP.DT), which gives pages a transient bit.
    #[must_use]
    pub const fn with_transient(mut self) -> Self {
        self.reserved.in_pages &= !Word::TRANSIENT;
        self
    }

    /// The same with accessed and dirty flags (SSADE of the PASID entry).
    #[must_use]
    pub const fn with_accessed_dirty(mut self) -> Self {
        self.marks = Marks {
            accessed: Word::ACCESSED,
            dirty: Word::DIRTY,
        };
        self
    }

    /// The width of the addresses that it translates, in bits.
    #[must_use]
    pub const fn address_bits(&self) -> u32 {
        self.shape.address_bits()
    }

    /// The reserved bits that `entry`, which is present, has set at `level`.
    #[inline]
    #[must_use]
    pub const fn reserved(&self, entry: u64, level: u8) -> u64 {
        self.reserved.of(&self.shape, entry, level)
    }
}

impl Format for SecondStage {
    type Attributes = SecondStageAttributes;
    type Rule = SecondStageRule;

    #[inline]
    fn shape(&self) -> &Shape {
        &self.shape
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Entry<SecondStageAttributes, SecondStageRule> {
        if entry & SecondStageAttributes::RIGHTS == 0 {
            return Entry::Empty;
        }
        let bits = self.reserved(entry, level);
        if bits != 0 {
            return Entry::Malformed(SecondStageRule::Reserved { bits });
        }
        let address = entry & Word::ADDRESS;
        if is_page(&self.shape, entry, level) {
            Entry::Leaf {
                target: address,
                attributes: SecondStageAttributes(entry & SecondStageAttributes::KEPT),
            }
        } else {
            Entry::Table {
                frame: address,
                attributes: SecondStageAttributes(entry & SecondStageAttributes::RIGHTS),
            }
        }
    }

    #[inline]
    fn fold(
        &self,
        above: SecondStageAttributes,
        here: SecondStageAttributes,
    ) -> SecondStageAttributes {
        SecondStageAttributes(here.0 & (above.0 | !SecondStageAttributes::RIGHTS))
    }

    #[inline]
    fn marks(&self) -> Marks {
        self.marks
    }
}

impl Encode for SecondStage {
    #[inline]
    fn table(&self, frame: u64, _level: u8) -> u64 {
        frame | SecondStageAttributes::RIGHTS
    }

    #[inline]
    fn leaf(&self, target: u64, attributes: SecondStageAttributes, level: u8) -> u64 {
        target | attributes.0 | if level > 1 { Word::LARGE } else { 0 }
    }

    fn check(&self, attributes: SecondStageAttributes, _level: u8) -> Result<(), SecondStageRule> {
        if attributes.0 & SecondStageAttributes::RIGHTS == 0 {
            return Err(SecondStageRule::NoRights);
        }
        let refused = attributes.0 & self.reserved.in_pages;
        if refused & Word::SNOOP != 0 {
            return Err(SecondStageRule::Snoop);
        }
        if refused & Word::TRANSIENT != 0 {
            return Err(SecondStageRule::Transient);
        }
        Ok(())
    }

    #[inline]
    fn target_bits(&self, _level: u8) -> u32 {
        self.host_bits
    }

    #[inline]
    fn frame_bits(&self) -> u32 {
        self.host_bits
    }

    #[inline]
    fn executable(&self, _attributes: SecondStageAttributes) -> bool {
        false
    }
}
