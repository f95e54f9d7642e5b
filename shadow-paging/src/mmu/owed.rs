// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a step owes: the flush, and the frames of tables that hardware may still be reading.
//!
//! `hvkit-page-table`'s token for a forest of tables that share subtrees: it names linear addresses
//! where few changed, and otherwise everything. The frames are inside, chained through their first
//! entries, and return to the pool when the flush is done.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hvkit_page_table::{Encode, Frames, OwnEntries, Span};

use super::Mmu;
use super::stage::Stage;

/// Which translations hardware may hold that are right no more.
///
/// On every processor that may have run this guest, whatever PCID they are tagged with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Flush {
    /// None.
    #[default]
    Nothing,
    /// Those of these linear addresses (INVVPID of single addresses, INVLPG).
    Span(Span),
    /// All of the guest's, and what is cached of upper entries (INVVPID of one VPID, MOV to CR3).
    Everything,
}

/// Pages up to which two spans are named together.
const NEAR: u64 = 32 << 12;

impl Flush {
    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, one) | (one, Self::Nothing) => one,
            (Self::Span(a), Self::Span(b)) => {
                let start = a.start.min(b.start);
                let last = a.last().max(b.last());
                match last.saturating_sub(start).checked_add(1) {
                    Some(length) if length <= NEAR || length <= a.length.max(b.length) => {
                        Self::Span(Span::new(start, length))
                    }
                    _ => Self::Everything,
                }
            }
            _ => Self::Everything,
        }
    }
}

static NEXT_OWNER: AtomicU64 = AtomicU64::new(1);
static LEAKED: AtomicUsize = AtomicUsize::new(0);

/// How many tokens that owed something were dropped unsettled, since the program started.
#[must_use]
pub fn leaked() -> usize {
    LEAKED.load(Ordering::Relaxed)
}

/// A number for an MMU, so that its tokens are known.
pub(crate) fn next_owner() -> u64 {
    NEXT_OWNER.fetch_add(1, Ordering::Relaxed)
}

/// The flush that a step owes, with the frames that it frees.
///
/// To be [settled](Mmu::settle) before the processor that took the step runs on. The guest's others may run
/// meanwhile, and take steps of their own: an invalidation, or a change by the host, owes again what tokens owe
/// that are not settled yet. Dropping one that owes something leaks its
/// frames and keeps guest tables from being guarded again; it never frees a frame early.
#[must_use = "hardware may still use the old translations: settle it"]
#[derive(Debug, Default)]
pub struct Owed {
    owner: u64,
    flush: Flush,
    /// The first of a chain of frames.
    head: u64,
    frames: usize,
}

/// Why a token was not settled. It is given back inside.
#[derive(Debug, thiserror::Error)]
#[error("the token was not settled: {cause:?}")]
pub struct Unsettled<E> {
    /// The token, as it was.
    pub owed: Owed,
    /// What went wrong.
    pub cause: UnsettledCause<E>,
}

/// What kept a token from being settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnsettledCause<E> {
    /// It is another MMU's.
    Foreign,
    /// The flush failed.
    Flush(E),
}

impl Owed {
    pub(crate) const fn new(owner: u64) -> Self {
        Self {
            owner,
            flush: Flush::Nothing,
            head: 0,
            frames: 0,
        }
    }

    /// What hardware must forget.
    #[must_use]
    pub const fn flush(&self) -> Flush {
        self.flush
    }

    /// How many frames wait for it.
    #[must_use]
    pub const fn frames(&self) -> usize {
        self.frames
    }

    /// Whether nothing is owed: settling calls no flush, dropping loses nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        matches!(self.flush, Flush::Nothing) && self.frames == 0
    }

    pub(crate) const fn owner(&self) -> u64 {
        self.owner
    }

    /// `flush` is owed too.
    pub(crate) fn add(&mut self, flush: Flush) {
        self.flush = self.flush.and(flush);
    }

    /// Takes the frame of a table whose entries were all removed.
    pub(crate) fn take<F: Encode, M: OwnEntries>(&mut self, format: &F, tables: &M, frame: u64) {
        if self.frames > 0 {
            tables.write(frame, format.shape().width(), format.empty() | self.head);
        }
        self.head = frame;
        self.frames = self.frames.saturating_add(1);
        self.flush = Flush::Everything;
    }

    /// The next frame of the chain.
    fn pop<F: Encode, M: OwnEntries>(&mut self, format: &F, tables: &M) -> Option<u64> {
        let frame = self.head;
        self.frames = self.frames.checked_sub(1)?;
        if self.frames > 0 {
            let word = tables.load(frame, format.shape().width());
            let address = (1u64 << format.frame_bits().min(52)).wrapping_sub(0x1000);
            self.head = word & address;
        }
        Some(frame)
    }

    /// Everything that is owed, leaving nothing.
    pub(crate) fn take_all(&mut self) -> Self {
        core::mem::replace(self, Self::new(self.owner))
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if !self.is_empty() {
            LEAKED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// Makes hardware forget, by `flush`, then returns the token's frames to the pool. A token that
    /// owes nothing calls nothing.
    ///
    /// `flush` returns once no processor can use a translation that it was given.
    ///
    /// # Errors
    ///
    /// The token is given back if `flush` failed, or if it is another MMU's.
    pub fn settle<E>(
        &mut self,
        mut owed: Owed,
        flush: impl FnOnce(Flush) -> Result<(), E>,
    ) -> Result<(), Unsettled<E>> {
        if owed.is_empty() {
            return Ok(());
        }
        if owed.owner() != self.owner {
            let cause = UnsettledCause::Foreign;
            return Err(Unsettled { owed, cause });
        }
        if let Err(error) = flush(owed.flush()) {
            let cause = UnsettledCause::Flush(error);
            return Err(Unsettled { owed, cause });
        }
        if let Some(format) = self.stages.first().map(|stage| *stage.shadow()) {
            while let Some(frame) = owed.pop(&format, &self.tables) {
                self.pool.free(frame);
                self.held = self.held.saturating_sub(1);
            }
        }
        owed.flush = Flush::Nothing;
        self.one_less();
        Ok(())
    }

    fn one_less(&mut self) {
        self.unsettled = self.unsettled.saturating_sub(1);
        if self.unsettled == 0 {
            self.outstanding = Flush::Nothing;
        }
    }

    /// Puts what `other` owes into `into`, so that one flush settles both.
    ///
    /// # Errors
    ///
    /// Either is another MMU's; `other` is given back.
    pub fn merge_owed(
        &mut self,
        into: &mut Owed,
        mut other: Owed,
    ) -> Result<(), Unsettled<core::convert::Infallible>> {
        if other.is_empty() {
            return Ok(());
        }
        if into.is_empty() {
            *into = other;
            return Ok(());
        }
        if other.owner() != self.owner || into.owner() != self.owner {
            let cause = UnsettledCause::Foreign;
            return Err(Unsettled { owed: other, cause });
        }
        into.add(other.flush);
        if let Some(format) = self.stages.first().map(|stage| *stage.shadow()) {
            while let Some(frame) = other.pop(&format, &self.tables) {
                into.take(&format, &self.tables, frame);
            }
        }
        other.flush = Flush::Nothing;
        self.one_less();
        Ok(())
    }

    /// The token of a step that is over.
    pub(crate) fn owe(&mut self) -> Owed {
        if !self.debt.is_empty() {
            // One for each token there is: memory ends before.
            self.unsettled = self.unsettled.saturating_add(1);
            self.outstanding = self.outstanding.and(self.debt.flush());
        }
        self.debt.take_all()
    }

    /// The same where the host relies on old translations being gone: see
    /// [`settle_up_for_good`](Self::settle_up_for_good).
    pub(crate) fn owe_for_good(&mut self) -> Owed {
        self.debt.add(self.outstanding);
        self.owe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_spans_are_named_together_and_far_ones_are_everything() {
        let page = |at| Flush::Span(Span::new(at, 4096));
        assert_eq!(Flush::Nothing.and(page(0x5000)), page(0x5000));
        assert_eq!(
            page(0x5000).and(page(0x7000)),
            Flush::Span(Span::new(0x5000, 0x3000))
        );
        assert_eq!(page(0x5000).and(page(0x10_0000)), Flush::Everything);
        assert_eq!(page(0).and(page(u64::MAX - 0xfff)), Flush::Everything);
        let large = Flush::Span(Span::new(0x4000_0000, 0x4000_0000));
        assert_eq!(large.and(page(0x5000_0000)), large, "inside");
        assert_eq!(page(0).and(Flush::Everything), Flush::Everything);
    }
}
