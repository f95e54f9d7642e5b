// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What hardware may still hold: the token that every change of a live table returns.
//!
//! A translation lives on in TLBs, IOTLBs and paging-structure caches after its entry is gone, and a
//! page walk under way may still read a table that was just unlinked. So the frames of unlinked tables
//! are *inside* the token: they return to the pool when an invalidation says that nobody uses them,
//! not before. A token that is lost leaks its frames and never frees one early; [`leaked`] counts.
//!
//! ```text
//!   unmap ------> Stale ---- settle ----> invalidate ---- Ok ----> frames to the pool
//!   unmap ------> Stale --'    ^                     '--- Err --.
//!        (merge: one flush)    '--------- Stale, back again <---'
//! ```

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::chain::{Chain, Subtree};
use crate::format::Encode;
use crate::map::Mapper;
use crate::memory::{Frames, OwnEntries};
use crate::span::Span;

/// How many spans a token keeps apart. Beyond that the nearest two become one: invalidating more than
/// needed is always right.
pub const SPANS: usize = 3;

static LEAKED: AtomicUsize = AtomicUsize::new(0);

/// How many tokens that owed something were dropped unsettled, since the program started.
#[must_use]
pub fn leaked() -> usize {
    LEAKED.load(Ordering::Relaxed)
}

/// Makes hardware forget: INVEPT, INVVPID, INVLPG, an invalidation-queue wait, a VFIO unmap, a log.
///
/// Implemented by every `FnMut(&Stale) -> Result<(), E>`.
pub trait Invalidate {
    /// Why hardware could not be made to forget.
    type Error;

    /// Returns `Ok` only once no agent can use a translation or a table that `stale` names:
    /// [`spans`](Stale::spans), and caches of tables too if [`tables`](Stale::tables) says so.
    ///
    /// # Errors
    ///
    /// Some agent may not have forgotten. The token is given back, to be settled later.
    fn invalidate(&mut self, stale: &Stale) -> Result<(), Self::Error>;
}

impl<E, T: FnMut(&Stale) -> Result<(), E>> Invalidate for T {
    type Error = E;

    fn invalidate(&mut self, stale: &Stale) -> Result<(), E> {
        self(stale)
    }
}

/// Translations hardware may still use, and the frames of tables it may still read.
///
/// To be [settled](Mapper::settle). Dropping one that owes something leaks its frames, which
/// [`leaked`] counts and which debug builds with the feature `log` say in a warning.
#[must_use = "hardware may still use the old translations: settle it"]
#[derive(Debug)]
pub struct Stale {
    root: u64,
    chain: Chain,
    spans: [Span; SPANS],
    used: usize,
    changed: Changed,
}

/// What changed. As wide as the token's other words: a token is moved about, and a narrow store in
/// memory that is then loaded with its neighbours has to reach the cache first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
enum Changed {
    /// Leaves only.
    Leaves,
    /// Tables were linked or unlinked.
    Tables,
}

/// Why a token could not be settled. It is given back inside.
#[derive(Debug, thiserror::Error)]
#[error("the token was not settled: {cause}")]
pub struct Unsettled<E> {
    /// The token, as it was.
    pub stale: Stale,
    /// What went wrong.
    pub cause: Cause<E>,
}

/// What kept a token from being settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause<E> {
    /// It belongs to another table.
    #[error("it is of the table with root {root:#x}")]
    Foreign {
        /// Root of the table that it belongs to.
        root: u64,
    },
    /// The invalidation failed.
    #[error("the invalidation failed: {0:?}")]
    Failed(E),
}

/// Where an operation puts what it owes.
pub(crate) trait Debt {
    /// Translations in `span` may be in use.
    fn add(&mut self, span: Span);
    /// A table was linked where a leaf was.
    fn note_tables(&mut self);
    /// An unlinked subtree, of which slot 0's addresses are unmapped.
    fn take<F: Encode, M: OwnEntries>(&mut self, format: &F, memory: &M, subtree: Subtree);
}

/// For an operation that fills holes only, and so owes nothing.
pub(crate) struct NoDebt;

impl Debt for NoDebt {
    #[inline(always)]
    fn add(&mut self, span: Span) {
        debug_assert!(false, "{span:x?} was a hole");
    }

    #[inline(always)]
    fn note_tables(&mut self) {
        debug_assert!(false, "no leaf was there");
    }

    #[inline(always)]
    fn take<F: Encode, M: OwnEntries>(&mut self, _: &F, _: &M, subtree: Subtree) {
        debug_assert!(false, "{subtree:x?} was not to be unlinked");
    }
}

impl Stale {
    #[inline]
    pub(crate) const fn new(root: u64) -> Self {
        let none = Span {
            start: 0,
            length: 0,
        };
        Self {
            root,
            chain: Chain::EMPTY,
            spans: [none; SPANS],
            used: 0,
            changed: Changed::Leaves,
        }
    }

    /// A token that owes one span, and no table.
    #[inline]
    pub(crate) const fn of(root: u64, span: Span) -> Self {
        let mut stale = Self::new(root);
        stale.spans[0] = span;
        stale.used = 1;
        stale
    }

    /// The addresses whose old translation may be in use: at least those that changed.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        // To name too many would never be wrong.
        self.spans.get(..self.used).unwrap_or(&self.spans)
    }

    /// Whether tables were linked or unlinked, so that caches of upper entries are stale too. If not,
    /// only leaves changed (VT-d's invalidation hint may be set).
    #[must_use]
    pub const fn tables(&self) -> bool {
        matches!(self.changed, Changed::Tables)
    }

    /// Whether nothing is owed: settling calls no invalidation, dropping loses nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0 && self.chain.is_empty()
    }

    /// Adds a span that does not continue the last one.
    #[cold]
    fn add_apart(&mut self, span: Span) {
        let used = self.spans.iter_mut().take(self.used);
        let nearest = used.min_by_key(|there| there.gap(span));
        match nearest {
            Some(near) if self.used >= SPANS || near.gap(span) == 0 => *near = near.hull(span),
            _ => {
                // There is room, or all would be in use and one of them the nearest.
                if let Some(free) = self.spans.get_mut(self.used) {
                    *free = span;
                    self.used = self.used.saturating_add(1);
                }
            }
        }
    }

    /// Forgets what is owed, without counting it as lost.
    pub(crate) fn disown(mut self) {
        self.used = 0;
        self.chain = Chain::EMPTY;
    }
}

impl Debt for Stale {
    #[inline(always)]
    fn add(&mut self, span: Span) {
        let Some(last) = self.used.checked_sub(1) else {
            self.spans[0] = span;
            self.used = 1;
            return;
        };
        match self.spans.get_mut(last) {
            // Not `wrapping_add`: no span goes from the last page of all on to page 0.
            Some(last) if last.start.checked_add(last.length) == Some(span.start) => {
                last.length = last.length.saturating_add(span.length);
            }
            _ => self.add_apart(span),
        }
    }

    #[inline(always)]
    fn note_tables(&mut self) {
        self.changed = Changed::Tables;
    }

    fn take<F: Encode, M: OwnEntries>(&mut self, format: &F, memory: &M, subtree: Subtree) {
        self.changed = Changed::Tables;
        self.chain.push(format, memory, subtree);
    }
}

impl Drop for Stale {
    #[inline]
    fn drop(&mut self) {
        if !self.is_empty() {
            #[cfg(all(debug_assertions, feature = "log"))]
            log::warn!(
                "a stale token of the table at {:#x} was dropped unsettled: {} subtrees leaked, stale: {:x?}",
                self.root,
                self.chain.count(),
                self.spans(),
            );
            count_leaked();
        }
    }
}

/// Counts a lost token. Must not panic: the token may be dropped by a panic.
///
/// It is not given the token: one whose address nobody takes can live in registers.
#[cold]
fn count_leaked() {
    LEAKED.fetch_add(1, Ordering::Relaxed);
}

impl<F: Encode, M: OwnEntries, P: Frames> Mapper<F, M, P> {
    /// Invalidates what `stale` names, then returns its frames to the pool.
    ///
    /// # Errors
    ///
    /// The token is given back if the invalidation failed, or if it is another table's.
    #[inline(always)]
    pub fn settle<I: Invalidate>(
        &self,
        mut stale: Stale,
        by: &mut I,
    ) -> Result<(), Unsettled<I::Error>> {
        if stale.is_empty() {
            return Ok(());
        }
        if stale.root != self.root() {
            let cause = Cause::Foreign { root: stale.root };
            return Err(Unsettled { stale, cause });
        }
        if let Err(error) = by.invalidate(&stale) {
            return Err(Unsettled {
                stale,
                cause: Cause::Failed(error),
            });
        }
        stale.used = 0;
        let chain = core::mem::replace(&mut stale.chain, Chain::EMPTY);
        if !chain.is_empty() {
            self.free_chain(chain);
        }
        Ok(())
    }

    /// Returns the frames of what was unlinked, after hardware forgot it.
    #[inline(never)]
    fn free_chain(&self, mut chain: Chain) {
        while let Some((subtree, _)) = chain.pop(self.format(), self.memory()) {
            self.free_subtree(subtree);
        }
    }

    /// Puts what `other` owes into `into`, so that one invalidation settles both.
    ///
    /// # Errors
    ///
    /// Either is another table's; `other` is given back.
    pub fn merge_stale(
        &self,
        into: &mut Stale,
        mut other: Stale,
    ) -> Result<(), Unsettled<core::convert::Infallible>> {
        if other.is_empty() {
            return Ok(());
        }
        for root in [into.root, other.root] {
            if root != self.root() {
                return Err(Unsettled {
                    stale: other,
                    cause: Cause::Foreign { root },
                });
            }
        }
        for &span in other.spans() {
            into.add(span);
        }
        if other.tables() {
            into.changed = Changed::Tables;
        }
        into.chain.append(self.format(), self.memory(), other.chain);
        other.used = 0;
        other.chain = Chain::EMPTY;
        Ok(())
    }

    /// A token that owes nothing yet: where many are to be merged.
    pub fn nothing_stale(&self) -> Stale {
        Stale::new(self.root())
    }
}
