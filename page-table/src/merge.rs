// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fewer tables for the same translations: full tables become larger pages, empty ones go.
//!
//! ```text
//!   before    | T | --> | L | L | L | ... | L |     linear, alike, aligned, and hardware has the size
//!   after     | L |                                 the table is owed to the token
//! ```
//!
//! Unlike an unmapped table, a merged one still translates for hardware that holds a stale upper
//! entry, and rightly so. Nothing may be written in it until the token is settled: neither may the
//! token's chain run through it. It is listed in a *ledger* instead: a frame that nobody walks,
//! spelled like a table of those tables, which the chain can run through.

use crate::by_level::ByLevel;
use crate::chain::{Chain, Subtree};
use crate::change::Block;
use crate::error::Refused;
use crate::format::{Encode, Entry};
use crate::map::Mapper;
use crate::memory::{Frames, OwnEntries};
use crate::shape::MAX_LEVELS;
use crate::span::Span;
use crate::stale::{Debt, Stale};

/// What a slot that holds a table could hold instead.
enum Verdict<A> {
    /// This table must stay.
    Stays,
    /// All of it is a hole, or fits a leaf.
    Becomes(Block<A>),
}

/// The merge under way: counting in the first pass, storing in the second.
struct Merge<'a, F, M, P> {
    mapper: &'a Mapper<F, M, P>,
    stale: Stale,
    /// Tables that become leaves, by the level of the leaf.
    leaves: ByLevel<u64>,
    /// Frames for ledgers.
    blank: Chain,
    /// The ledger being filled at each level: its frame and next slot.
    open: ByLevel<Option<(u64, u64)>>,
}

impl<F: Encode, M: OwnEntries, P: Frames> Mapper<F, M, P> {
    /// Says what is mapped in `span` with fewer tables: larger pages, as far as [`Sizes`](crate::Sizes)
    /// allow, and no empty tables. Translations and attributes stay.
    ///
    /// A merged page counts as accessed and dirty where hardware marks pages: the small pages may still
    /// be marked through stale entries. Needs a frame for each 511 tables that it merges, until the
    /// token is settled.
    ///
    /// # Errors
    ///
    /// A bad range, no frames, or a corrupt entry in it.
    pub fn merge(&mut self, span: impl Into<Span>) -> Result<Stale, Refused<F>> {
        let (lo, hi) = self.range(span.into())?;
        self.recent.forget();
        let mut merge = Merge {
            mapper: self,
            stale: Stale::new(self.root()),
            leaves: ByLevel::all(0),
            blank: Chain::EMPTY,
            open: ByLevel::all(None),
        };
        let (root, levels) = (self.root(), self.shape().levels());
        merge.visit(root, levels, lo, hi, &mut |merge, slot| {
            if let (Block::Leaf { .. }, Some(leaves)) =
                (slot.block, merge.leaves.get_mut(slot.level))
            {
                *leaves = leaves.saturating_add(1);
            }
        })?;
        merge.reserve()?;
        // The plan had no error, and only marks have changed since.
        let applied = merge.visit(root, levels, lo, hi, &mut Merge::replace);
        debug_assert!(applied.is_ok());
        merge.close();
        Ok(merge.stale)
    }
}

/// A slot whose table can go.
#[derive(Clone, Copy)]
struct Slot<A> {
    at: u64,
    level: u8,
    base: u64,
    frame: u64,
    block: Block<A>,
}

impl<F: Encode, M: OwnEntries, P: Frames> Merge<'_, F, M, P> {
    /// Calls `each` for the highest slots in `lo..hi` whose tables can go.
    fn visit(
        &mut self,
        table: u64,
        level: u8,
        lo: u64,
        hi: u64,
        each: &mut impl FnMut(&mut Self, Slot<F::Attributes>),
    ) -> Result<(), Refused<F>> {
        let mapper = self.mapper;
        let shape = mapper.shape();
        let below = level.saturating_sub(1);
        let mut start = lo;
        while start < hi && level > 1 {
            let base = shape.base(start, level);
            let behind = shape.behind(start, level);
            let end = hi.min(behind);
            let at = shape.entry_at(table, start, level);
            let entry = mapper.memory().load(at, shape.width());
            match mapper.format().decode(entry, level) {
                Entry::Table {
                    frame,
                    attributes: above,
                } => {
                    let whole = (start, end) == (base, behind);
                    let verdict = if whole {
                        self.judge(frame, above, level, base)?
                    } else {
                        Verdict::Stays
                    };
                    match verdict {
                        Verdict::Becomes(block) => {
                            each(
                                self,
                                Slot {
                                    at,
                                    level,
                                    base,
                                    frame,
                                    block,
                                },
                            );
                        }
                        Verdict::Stays => self.visit(frame, below, start, end, each)?,
                    }
                }
                Entry::Malformed(rule) => {
                    return Err(mapper.corrupt(start, level, entry, Some(rule)));
                }
                Entry::Empty | Entry::Leaf { .. } => (),
            }
            start = end;
        }
        Ok(())
    }

    /// What a slot at `level` could hold instead of the table at `frame`, for which its entry says `above`.
    fn judge(
        &self,
        frame: u64,
        above: F::Attributes,
        level: u8,
        base: u64,
    ) -> Result<Verdict<F::Attributes>, Refused<F>> {
        Ok(
            match self.summary(Subtree::under(level, frame), above, base)? {
                Some(Block::Hole) => Verdict::Becomes(Block::Hole),
                Some(
                    block @ Block::Leaf {
                        target, attributes, ..
                    },
                ) => {
                    let largest = self.mapper.largest(&crate::change::Unmap, attributes);
                    // A ledger is a subtree, and so below the highest level of all.
                    let ledger = usize::from(level) < MAX_LEVELS;
                    if ledger && self.mapper.fits(level, largest, 1, target, attributes) {
                        Verdict::Becomes(block)
                    } else {
                        Verdict::Stays
                    }
                }
                None => Verdict::Stays,
            },
        )
    }

    /// The one block that all of a table is; `None` if it is not one.
    ///
    /// Nor if the entry that leads to it forbids something, which `above` says: a leaf in its place would not. Tables of
    /// this crate forbid nothing, those of an earlier owner may.
    fn summary(
        &self,
        table: Subtree,
        above: F::Attributes,
        base: u64,
    ) -> Result<Option<Block<F::Attributes>>, Refused<F>> {
        let Subtree {
            frame: table,
            level,
        } = table;
        let mapper = self.mapper;
        let (format, shape) = (mapper.format(), mapper.shape());
        let mut all = None;
        for index in 0..shape.entries(level) {
            let entry = mapper
                .memory()
                .load(shape.slot_at(table, index), shape.width());
            let offset = index << shape.shift(level);
            let first = base.wrapping_add(offset);
            let here = match format.decode(entry, level) {
                Entry::Empty => Block::Hole,
                Entry::Leaf { target, attributes } => Block::Leaf {
                    target,
                    attributes,
                    marks: 0,
                },
                Entry::Table {
                    frame,
                    attributes: above,
                } if level > 1 => {
                    match self.summary(Subtree::under(level, frame), above, first)? {
                        Some(block) => block,
                        None => return Ok(None),
                    }
                }
                Entry::Table { .. } => {
                    return Err(mapper.corrupt(first, level, entry, None));
                }
                Entry::Malformed(rule) => {
                    return Err(mapper.corrupt(first, level, entry, Some(rule)));
                }
            };
            let whole = *all.get_or_insert(here);
            if whole.skip(offset) != here {
                return Ok(None);
            }
        }
        Ok(all.filter(|block| match *block {
            Block::Hole => true,
            Block::Leaf { attributes, .. } => format.fold(above, attributes) == attributes,
        }))
    }

    /// Tables that one ledger of `level` lists. Slot 0 is for the chain.
    fn capacity(&self, level: u8) -> u64 {
        self.mapper.shape().entries(level).saturating_sub(1)
    }

    /// Takes all the frames for ledgers, or none.
    fn reserve(&mut self) -> Result<(), Refused<F>> {
        let (format, memory) = (self.mapper.format(), self.mapper.memory());
        for level in 1..=self.mapper.shape().levels() {
            let tables = self.leaves.get(level).unwrap_or(0);
            if tables == 0 {
                continue;
            }
            for _ in 0..tables.div_ceil(self.capacity(level).max(1)) {
                match self.mapper.allocate() {
                    Ok(frame) => self.blank.push(format, memory, Subtree { frame, level: 1 }),
                    Err(refused) => {
                        while let Some((blank, _)) = self.blank.pop(format, memory) {
                            self.mapper.frames().free(blank.frame);
                        }
                        return Err(refused);
                    }
                }
            }
        }
        Ok(())
    }

    /// Replaces a table by what it says.
    fn replace(&mut self, slot: Slot<F::Attributes>) {
        let (format, memory, shape) = (
            self.mapper.format(),
            self.mapper.memory(),
            self.mapper.shape(),
        );
        let table = Subtree::under(slot.level, slot.frame);
        let size = shape.size(slot.level);
        let span = Span::new(shape.extend(slot.base), size);
        match slot.block {
            Block::Hole => {
                memory.write(slot.at, shape.width(), format.empty());
                self.stale.add(span);
                self.stale.take(format, memory, table);
            }
            Block::Leaf { .. } => {
                if !self.list(table, slot.level) {
                    return;
                }
                let leaf = self.mapper.word(slot.block, slot.level) | format.marks().all();
                memory.write(slot.at, shape.width(), leaf);
                self.stale.add(span);
                self.stale.note_tables();
            }
        }
    }

    /// Lists a merged table in the ledger for its level. False if there is no frame for one, which
    /// [`reserve`](Self::reserve) rules out.
    fn list(&mut self, table: Subtree, level: u8) -> bool {
        let (format, memory, shape) = (
            self.mapper.format(),
            self.mapper.memory(),
            self.mapper.shape(),
        );
        let (ledger, slot) = match self.open.get(level).flatten() {
            Some(open) => open,
            None => {
                let Some((blank, _)) = self.blank.pop(format, memory) else {
                    return false;
                };
                let empty = format.empty();
                memory.fill(blank.frame, shape.width(), shape.entries(level), |_| empty);
                (blank.frame, 1)
            }
        };
        let entry = format.table(table.frame, level);
        memory.write(shape.slot_at(ledger, slot), shape.width(), entry);
        if let Some(open) = self.open.get_mut(level) {
            *open = Some((ledger, slot.saturating_add(1)));
        }
        if slot == self.capacity(level) {
            self.hand_over(level);
        }
        true
    }

    /// Gives the open ledger of `level` to the token.
    fn hand_over(&mut self, level: u8) {
        if let Some((frame, _)) = self.open.get_mut(level).and_then(Option::take) {
            let (format, memory) = (self.mapper.format(), self.mapper.memory());
            self.stale.take(format, memory, Subtree { frame, level });
        }
    }

    /// Gives every open ledger to the token.
    fn close(&mut self) {
        for level in 1..=self.mapper.shape().levels() {
            self.hand_over(level);
        }
        debug_assert!(self.blank.is_empty(), "the plan counted right");
    }
}
