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
use super::entry::{
    ACCESSED, CACHE, DIRTY, EXECUTE_DISABLE, GLOBAL, KEY, LARGE_PAT, PAGE_SIZE, PRESENT, SMALL_PAT,
    USER, WRITABLE,
};
use super::registers::{Features, Registers, cr4, efer};
use super::reserved::Reserved;

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
    /// Of each kind of entry, by [`Row`].
    rows: [EntryKind; 6],
}

/// What one kind of entry has where, worked out once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
struct EntryKind {
    /// Bits that are part of an address, where they are.
    address: u64,
    /// Bits that are address bits 32 and up: of a 4 MiB page.
    high_address: u64,
    /// The PAT bit.
    pat: u64,
    /// Bits besides the rights that mean something to whoever uses the page.
    kept: u64,
    /// Rights that the entry cannot withhold: a PDPTE's.
    granted: u64,
    /// Bits that must be 0.
    reserved: u64,
}

/// The kinds of entries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Row {
    /// Pages of levels 1, 2 and 3.
    Small,
    Large,
    Huge,
    /// Leads to a table from level 2, and from further up.
    Table,
    High,
    /// A PDPTE register.
    Pdpte,
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
        let shape = match layout {
            Layout::ThirtyTwoBit if registers.cr4 & cr4::PSE != 0 => THIRTY_TWO_BIT,
            Layout::ThirtyTwoBit => THIRTY_TWO_BIT_SMALL,
            Layout::Pae => PAE,
            Layout::FourLevel if features.gib_pages => FOUR_LEVEL,
            Layout::FourLevel => FOUR_LEVEL_SMALL,
            Layout::FiveLevel if features.gib_pages => FIVE_LEVEL,
            Layout::FiveLevel => FIVE_LEVEL_SMALL,
        };
        Self {
            layout,
            shape,
            rows: [
                EntryKind::new(Row::Small, layout, registers, features),
                EntryKind::new(Row::Large, layout, registers, features),
                EntryKind::new(Row::Huge, layout, registers, features),
                EntryKind::new(Row::Table, layout, registers, features),
                EntryKind::new(Row::High, layout, registers, features),
                EntryKind::new(Row::Pdpte, layout, registers, features),
            ],
        }
    }

    /// Which mode it is of.
    #[inline]
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// What an entry of `row` has where.
    #[inline(always)]
    const fn kind(&self, row: Row) -> &EntryKind {
        let [small, large, huge, table, high, pdpte] = &self.rows;
        match row {
            Row::Small => small,
            Row::Large => large,
            Row::Huge => huge,
            Row::Table => table,
            Row::High => high,
            Row::Pdpte => pdpte,
        }
    }

    /// Which kind of entry a present one of a table at `level` is.
    #[inline(always)]
    fn row(&self, entry: u64, level: u8) -> Row {
        let page = level <= 1 || entry & PAGE_SIZE != 0 && self.shape.leaf_at(level);
        match (level, page) {
            (0 | 1, _) => Row::Small,
            (2, true) => Row::Large,
            (2, false) => Row::Table,
            (_, true) => Row::Huge,
            (_, false) if self.layout == Layout::Pae => Row::Pdpte,
            (_, false) => Row::High,
        }
    }

    /// The rule that a present PDPTE breaks.
    #[inline]
    pub(crate) fn pdpte_breaks(&self, entry: u64) -> Option<Reserved> {
        let kind = self.kind(Row::Pdpte);
        (entry & kind.reserved != 0).then(|| self.broken(entry, Row::Pdpte))
    }

    /// The rule that an entry of `row` with reserved bits breaks: that of the lowest of them.
    #[cold]
    #[inline(never)]
    fn broken(&self, entry: u64, row: Row) -> Reserved {
        let bits = entry & self.kind(row).reserved;
        match (row, bits.trailing_zeros()) {
            (Row::Pdpte, 1..=8) => Reserved::Pdpte,
            (Row::Pdpte, _) => Reserved::Address,
            (Row::High, 7) => Reserved::PageSize,
            (Row::Small, 7) | (Row::Large | Row::Huge, 12) => Reserved::Pat,
            // Of a 4 MiB page, these could only be address bits above its width.
            (Row::Large | Row::Huge, 13..=29) if self.layout != Layout::ThirtyTwoBit => {
                Reserved::Alignment
            }
            (_, 63) => Reserved::ExecuteDisable,
            _ => Reserved::Address,
        }
    }
}

impl EntryKind {
    /// Entries of `row`, from the manual's tables.
    const fn new(row: Row, layout: Layout, registers: &Registers, features: &Features) -> Self {
        let width = features.physical_address_bits as u32;
        let wide = !matches!(layout, Layout::ThirtyTwoBit);
        let pae = matches!(layout, Layout::Pae);
        let leaf = matches!(row, Row::Small | Row::Large | Row::Huge);
        let large = matches!(row, Row::Large | Row::Huge);
        // Of the address: below the lowest bit there is PAT in a large page, and nothing else.
        let lowest: u32 = match (row, wide) {
            (Row::Large, true) => 21,
            (Row::Large, false) => 22,
            (Row::Huge, _) => 30,
            _ => 12,
        };
        // "M denotes the minimum of 40 and MAXPHYADDR", 32 without PSE-36.
        let high_bits = match (features.pse36, width > 40) {
            (false, _) => 0,
            (true, true) => 8,
            (true, false) => width.saturating_sub(32),
        };
        let high_address = if large && !wide {
            bits(high_bits.wrapping_add(12), 13)
        } else {
            0
        };
        let pat = match row {
            Row::Small => SMALL_PAT,
            Row::Large | Row::Huge => LARGE_PAT,
            _ => 0,
        };
        let unused = match (large, wide) {
            (false, _) => 0,
            (true, true) => bits(lowest.wrapping_sub(1), 13),
            (true, false) => bits(21, 13) & !high_address,
        };
        // PAE reserves bits 62 to 52, which the wider modes ignore.
        let above = if wide {
            bits(if pae { 62 } else { 51 }, width)
        } else {
            0
        };
        let execute_disable = if wide && registers.efer & efer::NXE == 0 {
            EXECUTE_DISABLE
        } else {
            0
        };
        let reserved = match row {
            Row::Pdpte => above | EXECUTE_DISABLE | bits(2, 1) | bits(8, 5),
            Row::High => above | execute_disable | PAGE_SIZE,
            _ => above | execute_disable | unused | if features.pat { 0 } else { pat },
        };
        Self {
            address: bits(if wide { width.wrapping_sub(1) } else { 31 }, lowest),
            high_address,
            pat,
            kept: CACHE
                | if leaf { DIRTY | GLOBAL } else { 0 }
                | if leaf && wide && !pae { KEY } else { 0 },
            granted: if matches!(row, Row::Pdpte) {
                WRITABLE | USER
            } else {
                0
            },
            reserved,
        }
    }

    /// The physical address of the page or table.
    #[inline(always)]
    const fn target(&self, entry: u64) -> u64 {
        entry & self.address | (entry & self.high_address) << 19
    }

    /// What the entry says. Bit 63 of a 4-byte entry is 0.
    #[inline(always)]
    const fn attributes(&self, entry: u64) -> GuestAttributes {
        GuestAttributes::of(entry | self.granted, self.kept, self.pat)
    }
}

impl Format for GuestFormat {
    type Attributes = GuestAttributes;
    type Rule = Reserved;

    #[inline]
    fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Inlined into each level of a walk, where most of it falls away.
    #[inline(always)]
    fn decode(&self, entry: u64, level: u8) -> Entry<GuestAttributes, Reserved> {
        if entry & PRESENT == 0 {
            return Entry::Empty;
        }
        let row = self.row(entry, level);
        let kind = self.kind(row);
        if entry & kind.reserved != 0 {
            return Entry::Malformed(self.broken(entry, row));
        }
        let (address, attributes) = (kind.target(entry), kind.attributes(entry));
        match row {
            Row::Small | Row::Large | Row::Huge => Entry::Leaf {
                target: address,
                attributes,
            },
            Row::Table | Row::High | Row::Pdpte => Entry::Table {
                frame: address,
                attributes,
            },
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
