// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mapper: operations on ranges of a table we own. Each decides over the whole range, then stores.
//!
//! ```text
//!              the range
//!         .----|=====================|-------.
//!   plan  | check every slot; build, out of   |   refused: free what was built,
//!         | everyone's reach, each table that |   nothing was changed
//!         | is missing or must be finer       |
//!         '-----------------------------------'
//!   apply | one store a slot: a leaf, nothing,|   at every moment each address
//!         | or the link to a finished table   |   translates as before or as after
//!         '-----------------------------------'
//! ```
//!
//! What needs `&mut self` removes or changes; it may run while hardware walks the table, not while
//! other threads use the same `Mapper`. [`fault_in`](Mapper::fault_in), [`harvest`](Mapper::harvest)
//! and reading take `&self` and may run on many threads at once.

use crate::chain::Subtree;
use crate::change::{Change, Map, Protect, Remap, Split, Unmap};
use crate::decide::run;
use crate::error::{MapError, Refused};
use crate::format::{Encode, Entry};
use crate::memory::{Frames, OwnEntries};
use crate::recent::Recent;
use crate::shape::Shape;
use crate::span::Span;
use crate::stale::{Debt, Invalidate, NoDebt, Stale};
use crate::walk::{self, Outcome, Root, Walk};

/// The largest pages the mapper may use, below what the format allows.
///
/// A level of 0 is taken as 1: there is always a smallest page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Highest level of any leaf.
    pub largest: u8,
    /// Highest level of a leaf that code can be fetched through. 1 on processors that take a machine
    /// check when an executable page changes size.
    pub largest_executable: u8,
}

impl Sizes {
    /// Whatever the format allows.
    pub const ANY: Self = Self {
        largest: u8::MAX,
        largest_executable: u8::MAX,
    };
    /// Only the smallest pages.
    pub const SMALLEST: Self = Self {
        largest: 1,
        largest_executable: 1,
    };
}

impl Default for Sizes {
    fn default() -> Self {
        Self::ANY
    }
}

/// A table we own: a format, the memory its entries are in, a pool of frames, and a root.
///
/// Dropping it leaves the table as it is, for hardware that still uses it; [`destroy`](Self::destroy)
/// frees it.
#[derive(Debug)]
pub struct Mapper<F, M, P> {
    format: F,
    memory: M,
    frames: P,
    root: u64,
    sizes: Sizes,
    pub(crate) recent: Recent,
}

impl<F: Encode, M: OwnEntries, P: Frames> Mapper<F, M, P> {
    /// A new, empty table.
    ///
    /// # Errors
    ///
    /// [`MapError::OutOfFrames`] or [`MapError::BadFrame`]: no root. [`MapError::TableTooLarge`]: a table of this shape fits no
    /// frame.
    pub fn new(format: F, memory: M, frames: P) -> Result<Self, Refused<F>> {
        let mut mapper = Self::adopt(format, memory, frames, 0);
        mapper.root = mapper.allocate()?;
        let (shape, empty) = (mapper.format.shape(), mapper.format.empty());
        let count = shape.entries(shape.levels());
        mapper
            .memory
            .fill(mapper.root, shape.width(), count, |_| empty);
        Ok(mapper)
    }

    /// A table that is there already, at `root`: made by an earlier owner, who is gone.
    ///
    /// Its frames must be ones that `frames` takes back, each table linked once. Entries that lead to tables may forbid
    /// something, as those of this crate never do: it stays forbidden, whatever leaves below are given, and
    /// [`merge`](Self::merge) keeps such tables while anything is mapped in them.
    pub const fn adopt(format: F, memory: M, frames: P, root: u64) -> Self {
        Self {
            format,
            memory,
            frames,
            root,
            sizes: Sizes::ANY,
            recent: Recent::EMPTY,
        }
    }

    /// The same table with a limit on page sizes.
    #[must_use]
    pub fn with_sizes(mut self, sizes: Sizes) -> Self {
        self.sizes = sizes;
        self
    }

    /// Limits the pages that later operations make, what they leave of a page that they cut among them. What is mapped
    /// stays as it is.
    pub const fn set_sizes(&mut self, sizes: Sizes) {
        self.sizes = sizes;
    }

    /// The limit on page sizes.
    pub const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Physical address of the root table. It never changes.
    #[inline]
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// The format.
    #[inline]
    pub const fn format(&self) -> &F {
        &self.format
    }

    /// The memory that entries are in.
    #[inline]
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// The pool.
    #[inline]
    pub const fn frames(&self) -> &P {
        &self.frames
    }

    /// Where `address` leads.
    ///
    /// # Errors
    ///
    /// The fault that hardware would take, rights apart.
    #[inline]
    pub fn translate(&self, address: u64) -> Outcome<F, M> {
        walk::translate(&self.format, &self.memory, Root::Table(self.root), address)
    }

    /// Where `address` leads, with every entry on the way.
    pub fn walk(&self, address: u64) -> Walk<F::Attributes, F::Rule, core::convert::Infallible> {
        walk::walk(&self.format, &self.memory, Root::Table(self.root), address)
    }

    /// [`map`](Self::map), whatever the range.
    #[inline(never)]
    pub(crate) fn map_range(
        &self,
        span: Span,
        target: u64,
        attributes: F::Attributes,
    ) -> Result<(), Refused<F>> {
        let range = self.target_range(span, target)?;
        let change = Map {
            start: range.0,
            target,
            attributes,
        };
        run(self, &change, range, &mut NoDebt)
    }

    /// Maps `span` to the physical addresses from `target`, replacing what is mapped there.
    ///
    /// Tables that are there stay; [`merge`](Self::merge) makes larger pages of them.
    ///
    /// # Errors
    ///
    /// [`MapError`] names the value that is refused.
    pub fn remap(
        &mut self,
        span: impl Into<Span>,
        target: u64,
        attributes: F::Attributes,
    ) -> Result<Stale, Refused<F>> {
        let range = self.target_range(span.into(), target)?;
        self.change(
            &Remap(Map {
                start: range.0,
                target,
                attributes,
            }),
            range,
        )
    }

    /// [`unmap`](Self::unmap), whatever the range.
    #[inline(never)]
    pub(crate) fn unmap_range(&mut self, span: Span) -> Result<Stale, Refused<F>> {
        let range = self.range(span)?;
        self.change(&Unmap, range)
    }

    /// Gives every page in `span` the attributes that `to` makes of its own. Holes stay holes.
    ///
    /// `to` is asked more than once for a page, and must answer the same.
    ///
    /// # Errors
    ///
    /// [`MapError::NothingMapped`] if there is no page in it.
    pub fn protect(
        &mut self,
        span: impl Into<Span>,
        to: impl Fn(F::Attributes) -> F::Attributes,
    ) -> Result<Stale, Refused<F>> {
        let range = self.range(span.into())?;
        self.change(&Protect(to), range)
    }

    /// Breaks every page in `span` that is larger than those of `level` into pages of `level`.
    ///
    /// Translations and attributes stay; accessed and dirty marks are inherited.
    ///
    /// # Errors
    ///
    /// [`MapError::NoSuchLevel`], [`MapError::NothingMapped`], or no frames.
    pub fn split(&mut self, span: impl Into<Span>, level: u8) -> Result<Stale, Refused<F>> {
        let range = self.range(span.into())?;
        if !self.format.shape().leaf_at(level) {
            return Err(MapError::NoSuchLevel { level });
        }
        self.change(&Split(level), range)
    }

    /// Runs an operation that may owe something.
    #[inline(always)]
    fn change<C: Change<F>>(&mut self, change: &C, range: (u64, u64)) -> Result<Stale, Refused<F>> {
        self.recent.forget();
        let mut stale = Stale::new(self.root);
        run(self, change, range, &mut stale)?;
        Ok(stale)
    }

    /// Takes the whole table down: invalidates all it ever translated, then frees it, root and all.
    ///
    /// Hardware must have been pointed elsewhere before.
    ///
    /// # Errors
    ///
    /// The invalidation failed: the mapper is given back with it, whole.
    #[expect(
        clippy::result_large_err,
        reason = "once in a table's life, and without an allocation"
    )]
    pub fn destroy<I: Invalidate>(self, by: &mut I) -> Result<(), (Self, I::Error)> {
        let mut all = Stale::new(self.root);
        let shape = self.format.shape();
        let half = 1u64 << shape.address_bits().saturating_sub(1);
        for low in [0, half] {
            all.add(Span::new(shape.extend(low), half));
        }
        all.note_tables();
        let answer = by.invalidate(&all);
        all.disown();
        match answer {
            Ok(()) => {
                self.free_subtree(Subtree {
                    frame: self.root,
                    level: shape.levels(),
                });
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }

    /// Checks a range and strips it to the bits that are translated: first, and one past the last.
    #[inline(always)]
    pub(crate) fn range(&self, span: Span) -> Result<(u64, u64), Refused<F>> {
        let Span { start, length } = span;
        let shape = self.format.shape();
        let granule = shape.size(1);
        if length == 0 {
            return Err(MapError::EmptyRange { start });
        }
        let unaligned = shape.below(1);
        if (start | length) & unaligned != 0 {
            let value = if start & unaligned != 0 {
                start
            } else {
                length
            };
            return Err(MapError::Unaligned { value, granule });
        }
        // The length is not 0, and what is stripped has 63 bits at most.
        let to_last = length.wrapping_sub(1);
        let ends = start.checked_add(to_last).and_then(|last| {
            let (low, last) = (shape.strip(start)?, shape.strip(last)?);
            (last.wrapping_sub(low) == to_last).then_some((low, last.wrapping_add(1)))
        });
        ends.ok_or(MapError::OutOfReach {
            start,
            length,
            bits: shape.address_bits(),
        })
    }

    /// [`range`](Self::range), and checks that `target` is a physical address for all of it.
    #[inline(always)]
    pub(crate) fn target_range(&self, span: Span, target: u64) -> Result<(u64, u64), Refused<F>> {
        let range = self.range(span)?;
        let shape = self.format.shape();
        if target & shape.below(1) != 0 {
            return Err(MapError::Unaligned {
                value: target,
                granule: shape.size(1),
            });
        }
        // Not 0, or the range was refused.
        match target.checked_add(span.length.wrapping_sub(1)) {
            Some(last) if last >> 52 == 0 => Ok(range),
            last => {
                let target = last.unwrap_or(u64::MAX);
                Err(MapError::TargetTooWide {
                    target,
                    bits: self.format.target_bits(1),
                })
            }
        }
    }

    /// A frame from the pool that a table can be in: one at any level.
    #[inline]
    pub(crate) fn allocate(&self) -> Result<u64, Refused<F>> {
        if let Some((level, bytes)) = self.format.shape().too_large() {
            return Err(MapError::TableTooLarge { level, bytes });
        }
        let frame = self.frames.allocate().ok_or(MapError::OutOfFrames)?;
        let bits = self.format.frame_bits();
        if frame & 0xfff != 0 || frame >> bits.min(63) != 0 {
            self.frames.free(frame);
            return Err(MapError::BadFrame { frame, bits });
        }
        Ok(frame)
    }

    /// Returns a subtree that nobody can reach to the pool.
    pub(crate) fn free_subtree(&self, subtree: Subtree) {
        let Subtree {
            frame: table,
            level,
        } = subtree;
        let shape = self.format.shape();
        // Most tables are leaf tables: nothing in them need be read.
        if level > 1 {
            for index in 0..shape.entries(level) {
                let entry = self.memory.load(shape.slot_at(table, index), shape.width());
                match self.format.decode(entry, level) {
                    Entry::Table { frame, .. } => self.free_subtree(Subtree::under(level, frame)),
                    Entry::Empty | Entry::Leaf { .. } | Entry::Malformed(_) => (),
                }
            }
        }
        self.frames.free(table);
    }

    /// The error for an entry of ours that is malformed.
    pub(crate) fn corrupt(
        &self,
        bits: u64,
        level: u8,
        entry: u64,
        rule: Option<F::Rule>,
    ) -> Refused<F> {
        let address = self.format.shape().extend(bits);
        MapError::Corrupt {
            address,
            level,
            entry,
            rule,
        }
    }

    /// The shape, for loops.
    #[inline(always)]
    pub(crate) fn shape(&self) -> &Shape {
        self.format.shape()
    }
}
