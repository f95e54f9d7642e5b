// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Test and clear: which pages were accessed or written since they were last asked about.

use crate::error::Refused;
use crate::format::{Encode, Marks};
use crate::iterate::Cursor;
use crate::map::Mapper;
use crate::memory::{Frames, OwnEntries};
use crate::span::Span;
use crate::stale::{Debt, Stale};

/// How often an entry is exchanged before its marks must have come to rest.
const PATIENCE: u32 = 8;

/// Which marks to collect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collect {
    /// Accessed only: working-set estimates.
    Accessed,
    /// Dirty only: migration.
    Dirty,
    /// Both.
    Both,
}

/// Pages that hardware marked, and the marks that were cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The addresses, whole pages: a large page that the range cuts is reported whole.
    pub span: Span,
    /// Something was translated through each of the pages.
    pub accessed: bool,
    /// Each of the pages was written.
    pub dirty: bool,
}

impl<F: Encode, M: OwnEntries, P: Frames> Mapper<F, M, P> {
    /// Clears the marks of every leaf in `span` and tells `found` of those that were set: neighbours
    /// alike in one call, lowest address first.
    ///
    /// The token is owed before the answer is final: until it is settled, hardware may write a page
    /// without marking it again. So settle it *before* copying the pages. May run beside
    /// [`fault_in`](Self::fault_in).
    ///
    /// # Errors
    ///
    /// The range is empty, unaligned or out of reach. A malformed entry is passed over: hardware
    /// translates nothing through it.
    pub fn harvest(
        &self,
        span: impl Into<Span>,
        which: Collect,
        mut found: impl FnMut(Marked),
    ) -> Result<Stale, Refused<F>> {
        let range = self.range(span.into())?;
        let marks = self.format().marks();
        let wanted = match which {
            Collect::Accessed => marks.accessed,
            Collect::Dirty => marks.dirty,
            Collect::Both => marks.all(),
        };
        let mut stale = Stale::new(self.root());
        let mut held: Option<Marked> = None;
        let mut cursor = Cursor::new(self.root(), self.shape().levels(), range);
        loop {
            let piece = match cursor.next_leaf(self) {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(_) => {
                    cursor.step(self.shape());
                    continue;
                }
            };
            let cleared = self.clear(piece.at, piece.entry, wanted);
            if cleared == 0 {
                continue;
            }
            let start = self.shape().extend(piece.base);
            let span = Span::new(start, self.shape().size(piece.level));
            stale.add(span);
            let Marks { accessed, dirty } = marks;
            let next = Marked {
                span,
                accessed: cleared & accessed != 0,
                dirty: cleared & dirty != 0,
            };
            match &mut held {
                Some(held) if held.is_continued_by(&next) => {
                    held.span.length = held.span.length.saturating_add(span.length);
                }
                _ => {
                    if let Some(done) = held.replace(next) {
                        found(done);
                    }
                }
            }
        }
        if let Some(done) = held {
            found(done);
        }
        Ok(stale)
    }

    /// Clears `wanted` in the entry at `at`. Returns which of it was set.
    fn clear(&self, at: u64, mut entry: u64, wanted: u64) -> u64 {
        for _ in 0..PATIENCE {
            if entry & wanted == 0 {
                return 0;
            }
            match self
                .memory()
                .exchange(at, self.shape().width(), entry, entry & !wanted)
            {
                Ok(()) => return entry & wanted,
                Err(now) => entry = now,
            }
        }
        // Not at rest: the marks stay, for the next harvest to find.
        0
    }
}

impl Marked {
    fn is_continued_by(&self, next: &Self) -> bool {
        self.span.start.wrapping_add(self.span.length) == next.span.start
            && (self.accessed, self.dirty) == (next.accessed, next.dirty)
    }
}
