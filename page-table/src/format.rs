// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one entry means: all that differs between EPT, VT-d, x86 and shadow tables.
//!
//! A format is a value: its [`Shape`] and whatever the processor it was made for supports. It reads
//! and spells *one* entry and knows nothing of loops, memory or order; those are written once, in
//! [`walk`](crate::walk) and [`map`](crate::map).

use core::fmt::Debug;

use crate::shape::Shape;

/// One entry, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<A, R> {
    /// Nothing here: not present.
    Empty,
    /// The physical address of the next lower table.
    Table {
        /// Physical address, aligned as the format demands.
        frame: u64,
        /// What this entry grants or forbids for everything below it.
        attributes: A,
    },
    /// The end of a translation.
    Leaf {
        /// Physical address of the page's first byte.
        target: u64,
        /// What this entry alone says of the page; see [`Format::fold`].
        attributes: A,
    },
    /// Neither: a reserved bit or a forbidden combination, and the rule it breaks.
    Malformed(R),
}

/// The bits in which hardware notes that an entry was used.
///
/// [`NONE`](Self::NONE) where it does not, or is told not to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Marks {
    /// Set by hardware in each entry of a path that translated something.
    pub accessed: u64,
    /// Set by hardware in the leaf of a path that translated a write.
    pub dirty: u64,
}

impl Marks {
    /// Hardware notes nothing.
    pub const NONE: Self = Self {
        accessed: 0,
        dirty: 0,
    };

    /// Both masks together.
    #[inline]
    #[must_use]
    pub const fn all(self) -> u64 {
        self.accessed | self.dirty
    }
}

/// How one table format is read. Enough for a walk.
///
/// Every method is a pure function of the value and its arguments. `decode` sees bytes a guest wrote:
/// it must return for each of the 2^64 (or 2^32) entries at each level.
pub trait Format {
    /// Rights, memory type and whatever else a mapping has, without the [`Marks`].
    type Attributes: Copy + PartialEq + Debug;
    /// Names the rule that a malformed entry breaks, in the manual's words.
    type Rule: Copy + PartialEq + Debug;

    /// Levels, index bits, entry width.
    fn shape(&self) -> &Shape;

    /// What `entry` means in a table at `level` (1 is the lowest).
    ///
    /// Never [`Entry::Table`] at level 1, never [`Entry::Leaf`] where the shape has none.
    fn decode(&self, entry: u64, level: u8) -> Entry<Self::Attributes, Self::Rule>;

    /// What holds for an address under two entries of its path, the upper one first.
    ///
    /// x86 and EPT: rights are those both grant, the rest is the lower entry's. A table's attributes
    /// are folded with those above it, a leaf's last of all.
    fn fold(&self, above: Self::Attributes, here: Self::Attributes) -> Self::Attributes;

    /// Where hardware notes use.
    #[inline]
    fn marks(&self) -> Marks {
        Marks::NONE
    }
}

/// How one table format is spelled. What the mapper needs beyond [`Format`].
///
/// Laws, for each `level`, `target`, `frame` and `attributes` that [`check`](Self::check) and the widths
/// admit: `decode(leaf(target, attributes, level), level)` is that leaf, `decode(table(frame, level),
/// level)` is that table with attributes that forbid nothing, and `decode(empty() | word, level)` is
/// [`Entry::Empty`] for every `word` that has a frame's address in it and, of the lowest 12 bits, only
/// bits 3 and 4 (the mapper chains freed tables through such entries). [`law::broken`](crate::law::broken)
/// tries them; call it from the format's tests.
pub trait Encode: Format {
    /// An entry that is not present. Not zero where, say, #VE is to be suppressed.
    #[inline]
    fn empty(&self) -> u64 {
        0
    }

    /// The entry of a table at `level` that leads to the table at `frame`, forbidding nothing.
    fn table(&self, frame: u64, level: u8) -> u64;

    /// The entry of a table at `level` that maps the page at `target`.
    fn leaf(&self, target: u64, attributes: Self::Attributes, level: u8) -> u64;

    /// Whether hardware supports `attributes` in a leaf at `level`.
    ///
    /// # Errors
    ///
    /// The rule that refuses them, in the manual's words.
    fn check(&self, attributes: Self::Attributes, level: u8) -> Result<(), Self::Rule>;

    /// Width of the physical addresses that a leaf at `level` can hold, in bits (at most 52).
    fn target_bits(&self, level: u8) -> u32;

    /// Width of the physical addresses that a table entry can hold, in bits (at most 52).
    fn frame_bits(&self) -> u32;

    /// Whether code can be fetched through `attributes`.
    ///
    /// Read only where a policy limits the size of executable pages, see
    /// [`Sizes`](crate::map::Sizes).
    fn executable(&self, attributes: Self::Attributes) -> bool;

    /// Whether hardware may go on using `old` after an entry with `old` was replaced by one with `new`,
    /// same target, and that matters.
    ///
    /// Where more is granted and a stale entry only costs a fault that is retried, a format may say no.
    #[inline]
    fn leaves_stale(&self, old: Self::Attributes, new: Self::Attributes) -> bool {
        old != new
    }
}
