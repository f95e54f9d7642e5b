// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a guest's entries are read, in each of the four paging modes.
//!
//! ```text
//!               63  62..59 58..52 51 ..M M-1 ............ 12 11..9  8  7   6  5  4   3   2   1   0
//!  table        XD |      ignored  |  0  | frame            |  ign |   0* |ign A PCD PWT U/S R/W  P   * PS; ignored where CR4.PSE is clear
//!  page         XD | key | ignored |  0  | target     | PAT#|  ign | G PS | D  A PCD PWT U/S R/W  P   # of a large page; bit 7 at level 1
//!  PDPTE (PAE)            0 0 0 0 0 0 0  | frame            |  ign |  0   | 0  0 PCD PWT  0   0   P
//!
//!  32-bit       31 ............. 22 21 20 ........ 13  12  11..9  8  7   6  5  4   3   2   1   0
//!  table        | frame                            31..12 | ign |  0* |ign A PCD PWT U/S R/W  P
//!  4 KiB page   | target                           31..12 | ign | G PAT| D  A PCD PWT U/S R/W  P
//!  4 MiB page   | target 31..22    | 0 | target 39..32|PAT| ign | G  1 | D  A PCD PWT U/S R/W  P
//! ```
//!
//! SDM 3A, "32-Bit Paging", "PAE Paging", "4-Level Paging and 5-Level Paging".

use hvkit_page_table::{Entry, Format, Marks, Shape, Upper, Width};

use super::attributes::GuestAttributes;
use super::registers::{Features, Registers, cr4, efer};
use super::reserved::{Reserved, ReservedBits};

/// P.
pub(crate) const PRESENT: u64 = 1 << 0;
/// R/W.
const WRITABLE: u64 = 1 << 1;
/// U/S.
const USER: u64 = 1 << 2;
/// A.
const ACCESSED: u64 = 1 << 5;
/// D.
const DIRTY: u64 = 1 << 6;
/// PS, above level 1.
const PAGE_SIZE: u64 = 1 << 7;
/// PAT, at level 1.
const SMALL_PAT: u64 = 1 << 7;
/// G.
const GLOBAL: u64 = 1 << 8;
/// PAT, of a large page.
const LARGE_PAT: u64 = 1 << 12;
/// XD.
const EXECUTE_DISABLE: u64 = 1 << 63;

/// The paging modes that have tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// 32-bit paging: two levels of 4-byte entries.
    ThirtyTwoBit,
    /// PAE paging: four PDPTE registers over two levels.
    Pae,
    /// 4-level paging.
    FourLevel,
    /// 5-level paging.
    FiveLevel,
}

/// One guest's tables: their shape, and which bits its mode and processor reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestFormat {
    layout: Layout,
    shape: Shape,
    /// Bits 51 (31) to 12 that are part of an address.
    address: u64,
    /// Of any entry but a PDPTE register.
    reserved: ReservedBits,
    /// Of a large page, besides: PAT where the processor has none.
    large_pat: u64,
    /// Bits of a 4 MiB page's entry that are address bits 32 and up.
    high_target: u64,
}

/// The shapes, checked when this is compiled.
const THIRTY_TWO_BIT: Shape = shape(Shape::new(12, &[10, 10], 0b11, Width::Four, Upper::Zero));
const THIRTY_TWO_BIT_SMALL: Shape = shape(Shape::new(12, &[10, 10], 0b1, Width::Four, Upper::Zero));
const PAE: Shape = shape(Shape::new(12, &[9, 9, 2], 0b11, Width::Eight, Upper::Zero));
const FOUR_LEVEL: Shape = shape(Shape::nines(4, 0b111, Upper::SignExtended));
const FOUR_LEVEL_SMALL: Shape = shape(Shape::nines(4, 0b11, Upper::SignExtended));
const FIVE_LEVEL: Shape = shape(Shape::nines(5, 0b111, Upper::SignExtended));
const FIVE_LEVEL_SMALL: Shape = shape(Shape::nines(5, 0b11, Upper::SignExtended));

#[expect(
    clippy::panic,
    reason = "runs in constants only, where it fails the build"
)]
const fn shape(made: Result<Shape, hvkit_page_table::ShapeError>) -> Shape {
    match made {
        Ok(shape) => shape,
        Err(_) => panic!("a shape of the manual's is possible"),
    }
}

/// Bits `high` to `low` of a word; 0 if there are none.
const fn bits(high: u32, low: u32) -> u64 {
    if high < low {
        return 0;
    }
    (u64::MAX << low) & (u64::MAX >> 63u32.wrapping_sub(high))
}

impl GuestFormat {
    /// The format that `registers` select in `layout`, whatever CR0.PG says.
    pub(crate) const fn new(layout: Layout, registers: &Registers, features: &Features) -> Self {
        let width = features.physical_address_bits as u32;
        let shape = match layout {
            Layout::ThirtyTwoBit if registers.cr4 & cr4::PSE != 0 => THIRTY_TWO_BIT,
            Layout::ThirtyTwoBit => THIRTY_TWO_BIT_SMALL,
            Layout::Pae => PAE,
            Layout::FourLevel if features.gib_pages => FOUR_LEVEL,
            Layout::FourLevel => FOUR_LEVEL_SMALL,
            Layout::FiveLevel if features.gib_pages => FIVE_LEVEL,
            Layout::FiveLevel => FIVE_LEVEL_SMALL,
        };
        let wide = !matches!(layout, Layout::ThirtyTwoBit);
        let no_execute_disable = registers.efer & efer::NXE == 0;
        // PAE reserves bits 62 to 52, which the wider modes ignore.
        let last_address = if matches!(layout, Layout::Pae) {
            62
        } else {
            51
        };
        // "M denotes the minimum of 40 and MAXPHYADDR", 32 without PSE-36.
        let high_bits = match (features.pse36, width > 40) {
            (false, _) => 0,
            (true, true) => 8,
            (true, false) => width.saturating_sub(32),
        };
        Self {
            layout,
            shape,
            address: if wide {
                bits(width.wrapping_sub(1), 12)
            } else {
                bits(31, 12)
            },
            reserved: ReservedBits {
                address: if wide { bits(last_address, width) } else { 0 },
                alignment: 0,
                page_size: 0,
                execute_disable: if wide && no_execute_disable {
                    EXECUTE_DISABLE
                } else {
                    0
                },
                pat: 0,
                pdpte: 0,
            },
            large_pat: if features.pat { 0 } else { LARGE_PAT },
            high_target: bits(high_bits.wrapping_add(12), 13),
        }
    }

    /// Which mode it is of.
    #[inline]
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// The rule that a table entry, PDPTEs aside, breaks.
    #[inline]
    fn table_breaks(&self, entry: u64, level: u8) -> Option<Reserved> {
        // In 32-bit paging without PSE, PS is ignored; PAE's level 2 has it always.
        let page_size = if level > 2 { PAGE_SIZE } else { 0 };
        ReservedBits {
            page_size,
            ..self.reserved
        }
        .broken_by(entry)
    }

    /// The rule that the entry of a page breaks.
    #[inline]
    fn leaf_breaks(&self, entry: u64, level: u8) -> Option<Reserved> {
        let mut reserved = self.reserved;
        if level == 1 {
            reserved.pat = if self.large_pat == 0 { 0 } else { SMALL_PAT };
        } else {
            reserved.pat = self.large_pat;
            reserved.alignment = match self.layout {
                // Between the address bits 31 to 22 and those above 31.
                Layout::ThirtyTwoBit => bits(21, 13) & !self.high_target,
                _ => bits(self.shape.shift(level).saturating_sub(1), 13),
            };
        }
        match reserved.broken_by(entry) {
            // The only thing these bits of a 4 MiB page could be is an address above its width.
            Some(Reserved::Alignment) if self.layout == Layout::ThirtyTwoBit => {
                Some(Reserved::Address)
            }
            broken => broken,
        }
    }

    /// The page's physical address.
    #[inline]
    fn target(&self, entry: u64, level: u8) -> u64 {
        let high = match (self.layout, level) {
            (Layout::ThirtyTwoBit, 2) => (entry & self.high_target) << 19,
            _ => 0,
        };
        entry & self.address & !self.shape.size(level).wrapping_sub(1) | high
    }

    /// What an entry other than a PDPTE register grants.
    #[inline]
    fn attributes(&self, entry: u64, page: Page) -> GuestAttributes {
        let wide = self.layout != Layout::ThirtyTwoBit;
        let long = matches!(self.layout, Layout::FourLevel | Layout::FiveLevel);
        let pat = match page {
            Page::None => 0,
            Page::Small => entry & SMALL_PAT,
            Page::Large => entry & LARGE_PAT,
        };
        let leaf = !matches!(page, Page::None);
        let writable = entry & WRITABLE != 0;
        GuestAttributes {
            user: entry & USER != 0,
            writable,
            executable: !(wide && entry & EXECUTE_DISABLE != 0),
            shadow_stack: leaf && !writable && entry & DIRTY != 0,
            key: if leaf && long {
                (entry >> 59 & 0xf) as u8
            } else {
                0
            },
            global: leaf && entry & GLOBAL != 0,
            pat: cache_bits(entry, pat),
        }
    }

    /// A PDPTE register. SDM 3A, "PDPTE Registers".
    #[inline]
    fn pdpte(&self, entry: u64) -> Entry<GuestAttributes, Reserved> {
        match self.pdpte_breaks(entry) {
            Some(rule) => Entry::Malformed(rule),
            None => Entry::Table {
                frame: entry & self.address,
                attributes: GuestAttributes {
                    pat: cache_bits(entry, 0),
                    ..GuestAttributes::ALL
                },
            },
        }
    }

    /// The rule that a present PDPTE breaks.
    #[inline]
    pub(crate) fn pdpte_breaks(&self, entry: u64) -> Option<Reserved> {
        ReservedBits {
            address: self.reserved.address | EXECUTE_DISABLE,
            execute_disable: 0,
            pdpte: bits(2, 1) | bits(8, 5),
            ..self.reserved
        }
        .broken_by(entry)
    }
}

/// PAT, PCD and PWT as a number of three bits; `pat` is 0 if PAT is clear.
#[inline]
const fn cache_bits(entry: u64, pat: u64) -> u8 {
    (entry >> 3 & 0b11) as u8 | if pat != 0 { 0b100 } else { 0 }
}

/// What an entry maps.
#[derive(Clone, Copy)]
enum Page {
    /// Nothing: it leads to a table.
    None,
    /// A page of the lowest level.
    Small,
    /// A larger one.
    Large,
}

impl Format for GuestFormat {
    type Attributes = GuestAttributes;
    type Rule = Reserved;

    #[inline]
    fn shape(&self) -> &Shape {
        &self.shape
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Entry<GuestAttributes, Reserved> {
        if entry & PRESENT == 0 {
            return Entry::Empty;
        }
        if self.layout == Layout::Pae && level >= 3 {
            return self.pdpte(entry);
        }
        let page = if level <= 1 {
            Page::Small
        } else if entry & PAGE_SIZE != 0 && self.shape.leaf_at(level) {
            Page::Large
        } else {
            Page::None
        };
        let attributes = self.attributes(entry, page);
        if let Page::None = page {
            match self.table_breaks(entry, level) {
                Some(rule) => Entry::Malformed(rule),
                None => Entry::Table {
                    frame: entry & self.address,
                    attributes,
                },
            }
        } else {
            match self.leaf_breaks(entry, level) {
                Some(rule) => Entry::Malformed(rule),
                None => Entry::Leaf {
                    target: self.target(entry, level),
                    attributes,
                },
            }
        }
    }

    #[inline]
    fn fold(&self, above: GuestAttributes, here: GuestAttributes) -> GuestAttributes {
        above.and(here)
    }

    #[inline]
    fn marks(&self) -> Marks {
        Marks {
            accessed: ACCESSED,
            dirty: DIRTY,
        }
    }
}
