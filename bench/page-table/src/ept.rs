// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A format to measure with: the bits of EPT that mapping and walking need.
//!
//! Not `hvkit-ept`, so that the engine can be measured alone.

use hvkit_page_table::{Encode, Entry, Format, Shape, Upper};

const READ: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const SHAPE: Shape = match Shape::nines(4, 0b111, Upper::Zero) {
    Ok(shape) => shape,
    Err(_) => panic!("four nines are a shape"),
};

/// Rights in bits 2:0, memory type in 5:3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes(pub u64);

pub const RWX_WB: Attributes = Attributes(0x37);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    WriteOnly,
    LargeRoot,
}

#[derive(Clone, Copy, Debug)]
pub struct Ept;

impl Format for Ept {
    type Attributes = Attributes;
    type Rule = Rule;

    #[inline]
    fn shape(&self) -> &Shape {
        &SHAPE
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Entry<Attributes, Rule> {
        // Nearly every entry is readable: one test for those, as hvkit-ept does it.
        if entry & READ == 0 {
            if entry & 7 == 0 {
                return Entry::Empty;
            }
            if entry & 2 != 0 {
                return Entry::Malformed(Rule::WriteOnly);
            }
        }
        let address = entry & ADDRESS;
        if level > 1 && entry & LARGE == 0 {
            return Entry::Table {
                frame: address,
                attributes: Attributes(entry & 7 | 0x38),
            };
        }
        if level > 3 {
            return Entry::Malformed(Rule::LargeRoot);
        }
        let target = address & !(SHAPE.size(level) - 1);
        Entry::Leaf {
            target,
            attributes: Attributes(entry & 0x3f),
        }
    }

    #[inline]
    fn fold(&self, above: Attributes, here: Attributes) -> Attributes {
        Attributes(here.0 & (above.0 | 0x38))
    }
}

impl Encode for Ept {
    #[inline]
    fn table(&self, frame: u64, _: u8) -> u64 {
        frame | 7
    }

    #[inline]
    fn leaf(&self, target: u64, attributes: Attributes, level: u8) -> u64 {
        target | attributes.0 | if level > 1 { LARGE } else { 0 }
    }

    #[inline]
    fn check(&self, attributes: Attributes, _: u8) -> Result<(), Rule> {
        if attributes.0 & (READ | 2) == 2 {
            Err(Rule::WriteOnly)
        } else {
            Ok(())
        }
    }

    #[inline]
    fn target_bits(&self, _: u8) -> u32 {
        52
    }

    #[inline]
    fn frame_bits(&self) -> u32 {
        52
    }

    #[inline]
    fn executable(&self, attributes: Attributes) -> bool {
        attributes.0 & 4 != 0
    }
}
