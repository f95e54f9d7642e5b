// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is mapped in a range, as the longest stretches that are linear and alike.

use crate::by_level::ByLevel;
use crate::error::{MapError, Refused};
use crate::format::{Encode, Entry};
use crate::map::Mapper;
use crate::memory::{Frames, OwnEntries};
use crate::shape::Shape;
use crate::span::Span;

/// A stretch of addresses that is mapped linearly with the same attributes, whatever its page sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped<A> {
    /// The addresses.
    pub span: Span,
    /// Physical address that the first of them leads to.
    pub target: u64,
    /// Attributes, folded over the path.
    pub attributes: A,
}

/// Iterates over what is mapped; made by [`Mapper::mappings`].
///
/// An error is the last item: behind a corrupt entry nothing is known. What lies before it comes before it.
#[derive(Debug)]
pub struct Mappings<'a, F: Encode, M, P> {
    mapper: &'a Mapper<F, M, P>,
    cursor: Cursor<F::Attributes>,
    /// Found, and perhaps continued by what comes next.
    held: Option<Mapped<F::Attributes>>,
    failed: bool,
}

/// One leaf that a [`Cursor`] came by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<A> {
    /// Where its entry is.
    pub(crate) at: u64,
    /// First stripped address that it translates.
    pub(crate) base: u64,
    pub(crate) level: u8,
    pub(crate) entry: u64,
    pub(crate) target: u64,
    /// Folded over the path.
    pub(crate) attributes: A,
}

/// Goes from leaf to leaf over `next..end`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<A> {
    next: u64,
    end: u64,
    level: u8,
    /// The table at each level on the path.
    path: ByLevel<Above<A>>,
}

/// A table on the path.
#[derive(Clone, Copy, Debug)]
struct Above<A> {
    table: u64,
    /// Folded above it; `None` above the root.
    attributes: Option<A>,
}

impl<A: Copy> Cursor<A> {
    pub(crate) fn new(root: u64, levels: u8, (lo, hi): (u64, u64)) -> Self {
        // Those below are filled in on the way down.
        let root = Above {
            table: root,
            attributes: None,
        };
        Self {
            next: lo,
            end: hi,
            level: levels,
            path: ByLevel::all(root),
        }
    }

    /// The next leaf that translates something in the range.
    pub(crate) fn next_leaf<F, M, P>(
        &mut self,
        mapper: &Mapper<F, M, P>,
    ) -> Result<Option<Piece<A>>, Refused<F>>
    where
        F: Encode<Attributes = A>,
        M: OwnEntries,
        P: Frames,
    {
        let (format, shape) = (mapper.format(), mapper.shape());
        while self.next < self.end {
            let level = self.level;
            // The path goes from a shape's levels down to 1.
            let Some(Above {
                table,
                attributes: above,
            }) = self.path.get(level)
            else {
                return Err(mapper.corrupt(self.next, level, 0, None));
            };
            let at = shape.entry_at(table, self.next, level);
            let entry = mapper.memory().load(at, shape.width());
            let fold = |here| above.map_or(here, |above| format.fold(above, here));
            match format.decode(entry, level) {
                Entry::Table { frame, attributes } if level > 1 => {
                    self.level = level.saturating_sub(1);
                    if let Some(below) = self.path.get_mut(self.level) {
                        *below = Above {
                            table: frame,
                            attributes: Some(fold(attributes)),
                        };
                    }
                }
                Entry::Leaf { target, attributes } => {
                    let base = shape.base(self.next, level);
                    let attributes = fold(attributes);
                    self.step(shape);
                    return Ok(Some(Piece {
                        at,
                        base,
                        level,
                        entry,
                        target,
                        attributes,
                    }));
                }
                Entry::Empty => {
                    self.step(shape);
                }
                Entry::Table { .. } => {
                    return Err(mapper.corrupt(self.next, level, entry, None));
                }
                Entry::Malformed(rule) => {
                    return Err(mapper.corrupt(self.next, level, entry, Some(rule)));
                }
            }
        }
        Ok(None)
    }

    /// Goes behind the current slot, and up wherever that leaves a table.
    #[inline]
    pub(crate) fn step(&mut self, shape: &Shape) {
        self.next = shape.behind(self.next, self.level);
        while self.level < shape.levels()
            && self.next & shape.below(self.level.saturating_add(1)) == 0
        {
            self.level = self.level.saturating_add(1);
        }
    }
}

impl<F: Encode, M: OwnEntries, P: Frames> Mapper<F, M, P> {
    /// What is mapped in `span`: the longest linear stretches, lowest address first.
    ///
    /// # Errors
    ///
    /// The range is empty, unaligned or out of reach.
    pub fn mappings(&self, span: impl Into<Span>) -> Result<Mappings<'_, F, M, P>, Refused<F>> {
        let range = self.range(span.into())?;
        let cursor = Cursor::new(self.root(), self.shape().levels(), range);
        Ok(Mappings {
            mapper: self,
            cursor,
            held: None,
            failed: false,
        })
    }
}

impl<F: Encode, M: OwnEntries, P: Frames> Iterator for Mappings<'_, F, M, P> {
    type Item = Result<Mapped<F::Attributes>, MapError<F::Attributes, F::Rule>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let shape = self.mapper.shape();
        loop {
            let from = self.cursor.next;
            let piece = match self.cursor.next_leaf(self.mapper) {
                Ok(Some(piece)) => piece,
                Ok(None) => return self.held.take().map(Ok),
                Err(error) => {
                    // What is known first. The cursor stands still: it finds the entry again.
                    if let Some(held) = self.held.take() {
                        return Some(Ok(held));
                    }
                    self.failed = true;
                    return Some(Err(error));
                }
            };
            // The range may begin or end inside a page.
            let lo = piece.base.max(from);
            let hi = shape.behind(piece.base, piece.level).min(self.cursor.end);
            let found = Mapped {
                span: Span::new(shape.extend(lo), hi.saturating_sub(lo)),
                target: piece.target.wrapping_add(lo.wrapping_sub(piece.base)),
                attributes: piece.attributes,
            };
            match &mut self.held {
                None => self.held = Some(found),
                Some(held) if held.is_continued_by(&found) => {
                    held.span.length = held.span.length.saturating_add(found.span.length);
                }
                Some(held) => return Some(Ok(core::mem::replace(held, found))),
            }
        }
    }
}

impl<A: PartialEq> Mapped<A> {
    fn is_continued_by(&self, next: &Self) -> bool {
        let end = |start: u64| start.wrapping_add(self.span.length);
        end(self.span.start) == next.span.start
            && end(self.target) == next.target
            && self.attributes == next.attributes
    }
}
