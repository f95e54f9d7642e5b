// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a hole or a page becomes, for each operation: all in which they differ.

use crate::format::Format;

/// A stretch of addresses that are all unmapped, or mapped linearly with the same attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block<A> {
    /// Nothing mapped.
    Hole,
    /// Mapped.
    Leaf {
        /// Physical address of the first byte.
        target: u64,
        /// Attributes of the leaf.
        attributes: A,
        /// The accessed and dirty bits that are set.
        marks: u64,
    },
}

impl<A: Copy> Block<A> {
    /// The same stretch without its first `bytes`.
    #[inline]
    pub(crate) fn skip(self, bytes: u64) -> Self {
        match self {
            Self::Hole => Self::Hole,
            Self::Leaf {
                target,
                attributes,
                marks,
            } => Self::Leaf {
                target: target.wrapping_add(bytes),
                attributes,
                marks,
            },
        }
    }
}

/// One operation, as a function of what is there.
///
/// It is linear: what a block becomes without its first bytes is what the block without its first
/// bytes becomes. And it is pure: plan and apply both ask.
pub(crate) trait Change<F: Format> {
    /// Tables wholly inside the range become holes, whatever is in them.
    const DISCARDS: bool = false;
    /// A range without any page is refused.
    const NEEDS_LEAF: bool = false;

    /// What `before` becomes, at stripped address `bits`. `None`: it may not be touched.
    fn after(&self, bits: u64, before: Block<F::Attributes>) -> Option<Block<F::Attributes>>;

    /// The largest leaf that may remain.
    #[inline]
    fn largest(&self) -> u8 {
        u8::MAX
    }
}

/// Holes are mapped, pages may not be there.
pub(crate) struct Map<A> {
    pub(crate) start: u64,
    pub(crate) target: u64,
    pub(crate) attributes: A,
}

impl<A: Copy> Map<A> {
    #[inline]
    fn leaf(&self, bits: u64) -> Block<A> {
        let target = self.target.wrapping_add(bits.wrapping_sub(self.start));
        Block::Leaf {
            target,
            attributes: self.attributes,
            marks: 0,
        }
    }
}

impl<F: Format> Change<F> for Map<F::Attributes> {
    #[inline]
    fn after(&self, bits: u64, before: Block<F::Attributes>) -> Option<Block<F::Attributes>> {
        match before {
            Block::Hole => Some(self.leaf(bits)),
            Block::Leaf { .. } => None,
        }
    }
}

/// As [`Map`], whatever was there.
pub(crate) struct Remap<A>(pub(crate) Map<A>);

impl<F: Format> Change<F> for Remap<F::Attributes> {
    #[inline]
    fn after(&self, bits: u64, _: Block<F::Attributes>) -> Option<Block<F::Attributes>> {
        Some(self.0.leaf(bits))
    }
}

/// Everything becomes a hole.
pub(crate) struct Unmap;

impl<F: Format> Change<F> for Unmap {
    const DISCARDS: bool = true;
    const NEEDS_LEAF: bool = true;

    #[inline]
    fn after(&self, _: u64, _: Block<F::Attributes>) -> Option<Block<F::Attributes>> {
        Some(Block::Hole)
    }
}

/// Pages change their attributes.
pub(crate) struct Protect<T>(pub(crate) T);

impl<F: Format, T: Fn(F::Attributes) -> F::Attributes> Change<F> for Protect<T> {
    const NEEDS_LEAF: bool = true;

    #[inline]
    fn after(&self, _: u64, before: Block<F::Attributes>) -> Option<Block<F::Attributes>> {
        Some(match before {
            Block::Hole => Block::Hole,
            Block::Leaf {
                target,
                attributes,
                marks,
            } => Block::Leaf {
                target,
                attributes: (self.0)(attributes),
                marks,
            },
        })
    }
}

/// Nothing changes but the size of pages.
pub(crate) struct Split(pub(crate) u8);

impl<F: Format> Change<F> for Split {
    const NEEDS_LEAF: bool = true;

    #[inline]
    fn after(&self, _: u64, before: Block<F::Attributes>) -> Option<Block<F::Attributes>> {
        Some(before)
    }

    #[inline]
    fn largest(&self) -> u8 {
        self.0
    }
}
