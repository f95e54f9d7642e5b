// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tables that the real processor walks: x86 with 8-byte entries.
//!
//! Entries have A set, and leaves D, from the start: what the guest did is in its own tables, so the
//! processor need not write ours. No entry is global.

use hvkit_page_table::{Encode, Entry, Format, Shape, ShapeError, Upper, Width};

use super::attributes::ShadowAttributes;
use crate::guest::entry::{
    ACCESSED, CACHE, DIRTY, EXECUTE_DISABLE, LARGE_PAT, PAGE_SIZE, PRESENT, SMALL_PAT, USER,
    WRITABLE,
};

/// Which paging the real processor runs the guest with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShadowLayout {
    /// PAE: for guests in 32-bit or PAE paging, or without paging. The root must lie below 4 GiB.
    Pae,
    /// 4-level: for guests in 4-level paging.
    FourLevel,
    /// 5-level: for guests in 5-level paging.
    FiveLevel,
}

/// The format of shadow tables in one layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowFormat {
    layout: ShadowLayout,
    shape: Shape,
    physical_address_bits: u8,
}

/// Why an entry of a shadow table cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShadowRule {
    /// An address wider than MAXPHYADDR.
    #[error("an address wider than the processor's")]
    Address,
    /// An address of a large page that is not a multiple of its size.
    #[error("a large page that is not aligned")]
    Alignment,
    /// PS where there are no pages.
    #[error("PS at a level without pages")]
    PageSize,
}

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl ShadowFormat {
    /// Tables in `layout` on a processor with `physical_address_bits` (MAXPHYADDR, 32 to 52), with
    /// pages of 1 GiB if `largest` is 3.
    pub(crate) fn new(
        layout: ShadowLayout,
        physical_address_bits: u8,
        largest: u8,
    ) -> Result<Self, ShapeError> {
        let leaves = if largest >= 3 { 0b111 } else { 0b11 };
        let shape = match layout {
            ShadowLayout::Pae => Shape::new(12, &[9, 9, 2], 0b11, Width::Eight, Upper::Zero)?,
            ShadowLayout::FourLevel => Shape::nines(4, leaves, Upper::SignExtended)?,
            ShadowLayout::FiveLevel => Shape::nines(5, leaves, Upper::SignExtended)?,
        };
        Ok(Self {
            layout,
            shape,
            physical_address_bits: physical_address_bits.clamp(32, 52),
        })
    }

    /// The layout.
    #[must_use]
    pub const fn layout(&self) -> ShadowLayout {
        self.layout
    }

    fn is_pdpte(&self, level: u8) -> bool {
        self.layout == ShadowLayout::Pae && level == 3
    }
}

impl Format for ShadowFormat {
    type Attributes = ShadowAttributes;
    type Rule = ShadowRule;

    #[inline]
    fn shape(&self) -> &Shape {
        &self.shape
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Entry<ShadowAttributes, ShadowRule> {
        if entry & PRESENT == 0 {
            return Entry::Empty;
        }
        let large = level > 1 && entry & PAGE_SIZE != 0;
        let address = entry & ADDRESS & if large { !LARGE_PAT } else { u64::MAX };
        if address >> self.physical_address_bits != 0 {
            return Entry::Malformed(ShadowRule::Address);
        }
        let mut attributes = ShadowAttributes::read_only(0);
        if level > 1 && !large {
            attributes = attributes.writable().of_user().executable();
            return Entry::Table {
                frame: address,
                attributes,
            };
        }
        if !self.shape.leaf_at(level) {
            return Entry::Malformed(ShadowRule::PageSize);
        }
        if address & self.shape.below(level) != 0 {
            return Entry::Malformed(ShadowRule::Alignment);
        }
        let pat = entry & if large { LARGE_PAT } else { SMALL_PAT };
        let pat = (entry & CACHE) >> 3 | u64::from(pat != 0) << 2;
        attributes = ShadowAttributes::read_only(pat as u8);
        if entry & WRITABLE != 0 {
            attributes = attributes.writable();
        }
        if entry & USER != 0 {
            attributes = attributes.of_user();
        }
        if entry & EXECUTE_DISABLE == 0 {
            attributes = attributes.executable();
        }
        Entry::Leaf {
            target: address,
            attributes,
        }
    }

    /// Tables forbid nothing: what holds is the leaf's.
    #[inline]
    fn fold(&self, _: ShadowAttributes, here: ShadowAttributes) -> ShadowAttributes {
        here
    }
}

impl Encode for ShadowFormat {
    #[inline]
    fn table(&self, frame: u64, level: u8) -> u64 {
        // A PDPTE has no rights, nor flags.
        let grants = if self.is_pdpte(level) {
            0
        } else {
            WRITABLE | USER | ACCESSED
        };
        frame | PRESENT | grants
    }

    #[inline]
    fn leaf(&self, target: u64, attributes: ShadowAttributes, level: u8) -> u64 {
        let pat = u64::from(attributes.pat());
        let mut entry = target | PRESENT | ACCESSED | DIRTY | (pat & 0b11) << 3;
        if pat & 0b100 != 0 {
            entry |= if level > 1 { LARGE_PAT } else { SMALL_PAT };
        }
        if level > 1 {
            entry |= PAGE_SIZE;
        }
        if attributes.is_writable() {
            entry |= WRITABLE;
        }
        if attributes.is_user() {
            entry |= USER;
        }
        if !attributes.is_executable() {
            entry |= EXECUTE_DISABLE;
        }
        entry
    }

    #[inline]
    fn check(&self, _: ShadowAttributes, _: u8) -> Result<(), ShadowRule> {
        Ok(())
    }

    #[inline]
    fn target_bits(&self, _: u8) -> u32 {
        u32::from(self.physical_address_bits)
    }

    #[inline]
    fn frame_bits(&self) -> u32 {
        u32::from(self.physical_address_bits)
    }

    #[inline]
    fn executable(&self, attributes: ShadowAttributes) -> bool {
        attributes.is_executable()
    }

    /// An older entry that grants less costs a fault, which drops it from the TLB. One that grants
    /// something else is stale.
    #[inline]
    fn leaves_stale(&self, old: ShadowAttributes, new: ShadowAttributes) -> bool {
        old.pat() != new.pat()
            || old.is_user() != new.is_user()
            || old.is_writable() && !new.is_writable()
            || old.is_executable() && !new.is_executable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(layout: ShadowLayout) -> ShadowFormat {
        ShadowFormat::new(layout, 46, 3).expect("a shape of the manual's")
    }

    #[test]
    fn entries_are_the_manuals_words() {
        let four = format(ShadowLayout::FourLevel);
        let read = ShadowAttributes::read_only(0);
        // P, A, D and XD; then with R/W and U/S; then PCD and PAT of each size.
        assert_eq!(four.leaf(0x5000, read, 1), 0x8000_0000_0000_5061);
        let all = read.writable().of_user().executable();
        assert_eq!(four.leaf(0x5000, all, 1), 0x5067);
        let typed = ShadowAttributes::read_only(6).executable();
        assert_eq!(four.leaf(0x5000, typed, 1), 0x50f1);
        assert_eq!(four.leaf(0x20_0000, typed, 2), 0x20_10f1);
        assert_eq!(four.table(0x7000, 4), 0x7027);
        let pae = format(ShadowLayout::Pae);
        assert_eq!(
            pae.table(0x7000, 3),
            0x7001,
            "a PDPTE reserves bits 1, 2 and 5"
        );
        assert_eq!(pae.table(0x7000, 2), 0x7027);
        assert_eq!(
            four.decode(0x20_10f1, 2),
            Entry::Leaf {
                target: 0x20_0000,
                attributes: typed
            }
        );
        assert_eq!(
            four.decode(1 << 46 | 1, 1),
            Entry::Malformed(ShadowRule::Address)
        );
        assert_eq!(
            four.decode(0x5081, 2),
            Entry::Malformed(ShadowRule::Alignment)
        );
        assert_eq!(
            pae.decode(0x4000_0081, 3),
            Entry::Malformed(ShadowRule::PageSize)
        );
    }

    #[test]
    fn the_laws_of_a_format_hold() {
        let layouts = [
            ShadowLayout::Pae,
            ShadowLayout::FourLevel,
            ShadowLayout::FiveLevel,
        ];
        for layout in layouts {
            let every: alloc::vec::Vec<_> = (0..8u8)
                .flat_map(|pat| {
                    let read = ShadowAttributes::read_only(pat);
                    [read, read.writable(), read.of_user(), read.executable()]
                })
                .collect();
            assert_eq!(hvkit_page_table::law::broken(&format(layout), &every), None);
        }
    }

    #[test]
    fn only_what_grants_less_or_something_else_is_stale() {
        let format = format(ShadowLayout::FourLevel);
        let read = ShadowAttributes::read_only(0);
        assert!(!format.leaves_stale(read, read.writable()));
        assert!(!format.leaves_stale(read, read.executable()));
        assert!(format.leaves_stale(read.writable(), read));
        assert!(format.leaves_stale(read.executable(), read));
        assert!(format.leaves_stale(read, read.of_user()));
        assert!(format.leaves_stale(read.of_user(), read));
        assert!(format.leaves_stale(read, ShadowAttributes::read_only(1)));
    }
}
