// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Formats for the tests only: one of 8-byte entries in any shape, one of 4-byte entries.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test binary uses its part"
)]

use hvkit_page_table::{Encode, Entry, Format, Marks, Shape, Upper, Width};

/// Rights of the test formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rights {
    pub write: bool,
    pub execute: bool,
}

pub const RWX: Rights = Rights {
    write: true,
    execute: true,
};
pub const RW: Rights = Rights {
    write: true,
    execute: false,
};
pub const RX: Rights = Rights {
    write: false,
    execute: true,
};
pub const R: Rights = Rights {
    write: false,
    execute: false,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    ReservedAddress,
    LargeNotAllowed,
    Misaligned,
    WriteAndExecute,
}

/// Much like x86: present 0, write 1, accessed 5, dirty 6, large 7, no-execute 63.
#[derive(Clone, Copy, Debug)]
pub struct Eights {
    pub shape: Shape,
    pub width: u32,
    pub marks: Marks,
    pub empty: u64,
    /// Whether leaves may be writable and executable at once.
    pub wx: bool,
    /// Marks that every leaf has from the start.
    pub born: u64,
}

pub const MARKS: Marks = Marks {
    accessed: 1 << 5,
    dirty: 1 << 6,
};

impl Eights {
    pub fn four_levels() -> Self {
        Self::with(Shape::nines(4, 0b111, Upper::Zero).unwrap())
    }

    /// Three levels of four entries: 64 pages in all.
    pub fn tiny() -> Self {
        Self::with(Shape::new(12, &[2, 2, 2], 0b111, Width::Eight, Upper::Zero).unwrap())
    }

    pub fn with(shape: Shape) -> Self {
        Self {
            shape,
            width: 46,
            marks: MARKS,
            empty: 0,
            wx: true,
            born: 0,
        }
    }
}

impl Format for Eights {
    type Attributes = Rights;
    type Rule = Rule;

    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn decode(&self, entry: u64, level: u8) -> Entry<Rights, Rule> {
        if entry & 1 == 0 {
            return Entry::Empty;
        }
        let attributes = Rights {
            write: entry & 2 != 0,
            execute: entry >> 63 == 0,
        };
        let address = entry & 0x000f_ffff_ffff_f000;
        if address >> self.width != 0 {
            return Entry::Malformed(Rule::ReservedAddress);
        }
        let large = entry & 0x80 != 0;
        if level > 1 && !large {
            return Entry::Table {
                frame: address,
                attributes,
            };
        }
        if !self.shape.leaf_at(level) {
            return Entry::Malformed(Rule::LargeNotAllowed);
        }
        if address & (self.shape.size(level) - 1) != 0 {
            return Entry::Malformed(Rule::Misaligned);
        }
        Entry::Leaf {
            target: address,
            attributes,
        }
    }

    fn fold(&self, above: Rights, here: Rights) -> Rights {
        Rights {
            write: above.write && here.write,
            execute: above.execute && here.execute,
        }
    }

    fn marks(&self) -> Marks {
        self.marks
    }
}

impl Encode for Eights {
    fn empty(&self) -> u64 {
        self.empty
    }

    fn table(&self, frame: u64, _: u8) -> u64 {
        frame | 3
    }

    fn leaf(&self, target: u64, attributes: Rights, level: u8) -> u64 {
        target
            | 1
            | u64::from(attributes.write) << 1
            | u64::from(level > 1) << 7
            | u64::from(!attributes.execute) << 63
            | self.born
    }

    fn check(&self, attributes: Rights, _: u8) -> Result<(), Rule> {
        if attributes == RWX && !self.wx {
            Err(Rule::WriteAndExecute)
        } else {
            Ok(())
        }
    }

    fn target_bits(&self, _: u8) -> u32 {
        self.width
    }

    fn frame_bits(&self) -> u32 {
        self.width
    }

    fn executable(&self, attributes: Rights) -> bool {
        attributes.execute
    }
}

/// Much like x86 without PAE: two levels of 1024 4-byte entries; 4 MiB pages hold 40-bit addresses.
#[derive(Clone, Copy, Debug)]
pub struct Fours {
    pub shape: Shape,
}

impl Fours {
    pub fn new() -> Self {
        let shape = Shape::new(12, &[10, 10], 0b11, Width::Four, Upper::Zero);
        Self {
            shape: shape.unwrap(),
        }
    }
}

impl Format for Fours {
    type Attributes = Rights;
    type Rule = Rule;

    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn decode(&self, entry: u64, level: u8) -> Entry<Rights, Rule> {
        let attributes = Rights {
            write: entry & 2 != 0,
            execute: true,
        };
        if entry & 1 == 0 {
            Entry::Empty
        } else if level == 1 {
            Entry::Leaf {
                target: entry & 0xffff_f000,
                attributes,
            }
        } else if entry & 0x80 == 0 {
            Entry::Table {
                frame: entry & 0xffff_f000,
                attributes,
            }
        } else if entry & 1 << 21 != 0 {
            Entry::Malformed(Rule::ReservedAddress)
        } else {
            // Bits 39:32 of the address are bits 20:13 of the entry.
            let high = (entry >> 13 & 0xff) << 32;
            Entry::Leaf {
                target: entry & 0xffc0_0000 | high,
                attributes,
            }
        }
    }

    fn fold(&self, above: Rights, here: Rights) -> Rights {
        Rights {
            write: above.write && here.write,
            execute: true,
        }
    }
}

impl Encode for Fours {
    fn table(&self, frame: u64, _: u8) -> u64 {
        frame | 3
    }

    fn leaf(&self, target: u64, attributes: Rights, level: u8) -> u64 {
        let low = 1 | u64::from(attributes.write) << 1;
        match level {
            1 => target | low,
            _ => target & 0xffc0_0000 | (target >> 32 & 0xff) << 13 | 0x80 | low,
        }
    }

    fn check(&self, _: Rights, _: u8) -> Result<(), Rule> {
        Ok(())
    }

    fn target_bits(&self, level: u8) -> u32 {
        if level == 1 { 32 } else { 40 }
    }

    fn frame_bits(&self) -> u32 {
        32
    }

    fn executable(&self, _: Rights) -> bool {
        true
    }
}
