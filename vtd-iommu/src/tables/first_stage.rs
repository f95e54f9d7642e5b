// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! First stage as a table format.

use hvkit_page_table::{Encode, Entry, Format, Marks, Shape, Upper};

use super::Unsupported;
use super::reserved::{Reserved, is_page};
use crate::spec::first_stage::FirstStageEntry as Word;

/// What a first-stage mapping allows: the bits of an entry without the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FirstStageAttributes(pub(crate) u64);

impl FirstStageAttributes {
    /// Reads, by user requests: what devices make unless they ask for privilege.
    pub const READ: Self = Self(Word::USER);
    /// Reads and writes, by user requests.
    pub const READ_WRITE: Self = Self(Word::USER | Word::WRITE);

    /// Rights that every entry of a path must grant.
    const GRANTED: u64 = Word::WRITE | Word::USER;
    const KEPT: u64 = Self::GRANTED
        | Word::WRITE_THROUGH
        | Word::CACHE_DISABLE
        | Word::GLOBAL
        | Word::SOFTWARE
        | Word::EXECUTE_DISABLE;

    /// The same for privileged requests only.
    #[must_use]
    pub const fn privileged(self) -> Self {
        Self(self.0 & !Word::USER)
    }

    /// The same without execution (with NXE).
    #[must_use]
    pub const fn no_execute(self) -> Self {
        Self(self.0 | Word::EXECUTE_DISABLE)
    }

    /// The same as a global page.
    #[must_use]
    pub const fn global(self) -> Self {
        Self(self.0 | Word::GLOBAL)
    }

    /// Whether writes are allowed.
    #[inline]
    #[must_use]
    pub const fn writes(self) -> bool {
        self.0 & Word::WRITE != 0
    }

    /// Whether user requests are allowed.
    #[inline]
    #[must_use]
    pub const fn user(self) -> bool {
        self.0 & Word::USER != 0
    }

    /// Whether execution is allowed.
    #[inline]
    #[must_use]
    pub const fn executes(self) -> bool {
        self.0 & Word::EXECUTE_DISABLE == 0
    }
}

/// The rule that a first-stage entry breaks, or that refuses attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FirstStageRule {
    /// Bits that must be 0 at this level, for this unit.
    #[error("reserved bits {bits:#x} are set")]
    Reserved {
        /// Those that are set.
        bits: u64,
    },
    /// XD without NXE.
    #[error("execute-disable is off")]
    NoExecute,
}

/// First-stage tables of one unit: levels, host address width, capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstStage {
    shape: Shape,
    host_bits: u32,
    reserved: Reserved,
    marks: Marks,
}

impl FirstStage {
    /// Tables of `levels` levels (4 or 5) on a unit with `host_bits` of address (30 to 52): pages of 4 KiB and
    /// 2 MiB, no execute-disable, no extended accessed flag.
    ///
    /// # Errors
    ///
    /// Another number of levels or width.
    pub const fn new(levels: u8, host_bits: u32) -> Result<Self, Unsupported> {
        if levels != 4 && levels != 5 {
            return Err(Unsupported::Levels(levels));
        }
        if host_bits < 30 || host_bits > 52 {
            return Err(Unsupported::HostBits(host_bits));
        }
        let Ok(shape) = Shape::nines(levels, 0b011, Upper::SignExtended) else {
            return Err(Unsupported::Levels(levels));
        };
        let wide = Word::ADDRESS & (!0u64).wrapping_shl(host_bits);
        let reserved = wide | Word::EXECUTE_DISABLE;
        Ok(Self {
            shape,
            host_bits,
            reserved: Reserved {
                in_pages: reserved,
                in_tables: reserved,
                // Bit 12 of a large page is the PAT bit.
                below_size: 0x1000,
            },
            marks: Marks {
                accessed: Word::ACCESSED,
                dirty: Word::DIRTY,
            },
        })
    }

    /// The same on a unit with 1-GiB pages in the first stage (CAP.FS1GP).
    #[must_use]
    pub const fn with_one_gib(mut self) -> Self {
        if let Ok(shape) = Shape::nines(self.shape.levels(), 0b111, Upper::SignExtended) {
            self.shape = shape;
        }
        self
    }

    /// The same with execute-disable (NXE of the PASID entry).
    #[must_use]
    pub const fn with_no_execute(mut self) -> Self {
        self.reserved.in_pages &= !Word::EXECUTE_DISABLE;
        self.reserved.in_tables &= !Word::EXECUTE_DISABLE;
        self
    }

    /// The same with the extended accessed flag (EAFE of the PASID entry).
    #[must_use]
    pub const fn with_extended_accessed(mut self) -> Self {
        self.marks.accessed |= Word::EXTENDED_ACCESSED;
        self
    }

    /// The reserved bits that `entry`, which is present, has set at `level`.
    #[inline]
    #[must_use]
    pub const fn reserved(&self, entry: u64, level: u8) -> u64 {
        self.reserved.of(&self.shape, entry, level)
    }
}

impl Format for FirstStage {
    type Attributes = FirstStageAttributes;
    type Rule = FirstStageRule;

    #[inline]
    fn shape(&self) -> &Shape {
        &self.shape
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Entry<FirstStageAttributes, FirstStageRule> {
        if entry & Word::PRESENT == 0 {
            return Entry::Empty;
        }
        let bits = self.reserved(entry, level);
        if bits != 0 {
            return Entry::Malformed(FirstStageRule::Reserved { bits });
        }
        let attributes = FirstStageAttributes(entry & FirstStageAttributes::KEPT);
        if is_page(&self.shape, entry, level) {
            Entry::Leaf {
                target: entry & Word::ADDRESS & !(self.shape.size(level).wrapping_sub(1)),
                attributes,
            }
        } else {
            let rights = FirstStageAttributes::GRANTED | Word::EXECUTE_DISABLE;
            Entry::Table {
                frame: entry & Word::ADDRESS,
                attributes: FirstStageAttributes(attributes.0 & rights),
            }
        }
    }

    #[inline]
    fn fold(
        &self,
        above: FirstStageAttributes,
        here: FirstStageAttributes,
    ) -> FirstStageAttributes {
        let granted = here.0 & (above.0 | !FirstStageAttributes::GRANTED);
        FirstStageAttributes(granted | above.0 & Word::EXECUTE_DISABLE)
    }

    #[inline]
    fn marks(&self) -> Marks {
        self.marks
    }
}

impl Encode for FirstStage {
    #[inline]
    fn table(&self, frame: u64, _level: u8) -> u64 {
        frame | Word::PRESENT | FirstStageAttributes::GRANTED
    }

    #[inline]
    fn leaf(&self, target: u64, attributes: FirstStageAttributes, level: u8) -> u64 {
        let large = if level > 1 { Word::LARGE } else { 0 };
        target | attributes.0 | Word::PRESENT | large
    }

    fn check(&self, attributes: FirstStageAttributes, _level: u8) -> Result<(), FirstStageRule> {
        if attributes.0 & self.reserved.in_pages & Word::EXECUTE_DISABLE != 0 {
            return Err(FirstStageRule::NoExecute);
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
    fn executable(&self, attributes: FirstStageAttributes) -> bool {
        attributes.executes()
    }
}
