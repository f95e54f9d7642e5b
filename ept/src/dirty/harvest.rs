// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dirty flags, tested and cleared: the answer may be read once the flush is done.

use hvkit_page_table::{
    Collect, Frames, Invalidate, Mapper, Marked, OwnEntries, Refused, Span, Unsettled,
};

use crate::format::Ept;
use crate::spec::Controls;

/// Why a round of dirty logging failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HarvestError<E> {
    /// Hardware notes no writes in this EPT: [`Controls::ACCESSED_DIRTY`] is off.
    #[error("accessed and dirty flags are off")]
    NoFlags,
    /// The range was refused. Nothing was cleared.
    #[error("{0:?}")]
    Refused(Refused<Ept>),
    /// The flags are cleared and the pages were reported, but the flush failed: until the token in it is
    /// settled, a processor may write these pages without saying so again.
    #[error(transparent)]
    Unsettled(#[from] Unsettled<E>),
}

/// One round: clears the dirty flags of `span`, flushes, and so makes it safe to copy the pages that
/// `found` was told of.
///
/// Returns how many calls of `found` there were. Without any, nothing is flushed.
///
/// # Errors
///
/// [`HarvestError`]. With [`Unsettled`], what `found` was told stands.
pub fn dirty_round<M: OwnEntries, P: Frames, I: Invalidate>(
    mapper: &Mapper<Ept, M, P>,
    span: impl Into<Span>,
    flush: &mut I,
    mut found: impl FnMut(Marked),
) -> Result<u64, HarvestError<I::Error>> {
    let ept = mapper.format();
    if !ept.controls().contains(Controls::ACCESSED_DIRTY) {
        return Err(HarvestError::NoFlags);
    }
    let mut count = 0;
    let stale = mapper
        .harvest(span, Collect::Dirty, |marked| {
            count = u64::saturating_add(count, 1);
            found(marked);
        })
        .map_err(HarvestError::Refused)?;
    mapper.settle(stale, flush)?;
    Ok(count)
}
