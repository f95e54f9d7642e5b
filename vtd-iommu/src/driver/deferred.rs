// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The deferred policy: many unmappings, one invalidation.
//!
//! It buys speed with a window. Until it is flushed, devices may still reach what was unmapped, so nobody else may
//! be given those pages: free them when [`Deferred::flush`] (or the [`Deferred::defer`] that flushed) has
//! returned.

use hvkit_page_table::{Cause, Frames, OwnEntries, Stale, Unsettled};

use super::domain::{Domain, Stage};
use super::{DriverError, Mmio, Unit};

/// What a domain owes, kept until there is enough of it.
#[derive(Debug)]
pub struct Deferred {
    stale: Stale,
    owed: u32,
    limit: u32,
}

/// Whether a deferral was the one that flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Everything deferred so far is forgotten by all devices.
    Yes,
    /// It is still owed.
    NotYet,
}

/// What is still owed, and why.
#[derive(Debug, thiserror::Error)]
pub enum StillOwed {
    /// The token is another domain's, where alone it can be settled: it is given back.
    #[error("the unmapping was not deferred: {0}")]
    NotTaken(#[source] Unsettled<DriverError>),
    /// The invalidation was not done. Everything that was deferred is still owed, and is kept for the next
    /// [`flush`](Deferred::flush).
    #[error("deferred invalidations were not done: {0}")]
    Kept(#[source] Cause<DriverError>),
}

impl Deferred {
    /// Nothing owed; after `limit` unmappings one invalidation settles them.
    #[must_use]
    pub fn new<F: Stage, M: OwnEntries, P: Frames>(domain: &Domain<F, M, P>, limit: u32) -> Self {
        Self {
            stale: domain.mapper.nothing_stale(),
            owed: 0,
            limit,
        }
    }

    /// How many unmappings are owed.
    #[must_use]
    pub const fn owed(&self) -> u32 {
        self.owed
    }

    /// Adds what `stale` owes; flushes if that is enough.
    ///
    /// # Errors
    ///
    /// `stale` is of another domain, or the flush failed, and then all of it is still owed.
    pub fn defer<R: Mmio, F: Stage, M: OwnEntries + Clone, P: Frames + Clone>(
        &mut self,
        unit: &mut Unit<R, M, P>,
        domain: &Domain<F, M, P>,
        stale: Stale,
    ) -> Result<Flushed, StillOwed> {
        if let Err(Unsettled { stale, cause: _ }) =
            domain.mapper.merge_stale(&mut self.stale, stale)
        {
            // Another table's: its own domain is where it can be settled.
            return Err(StillOwed::NotTaken(Unsettled {
                cause: Cause::Foreign {
                    root: domain.mapper.root(),
                },
                stale,
            }));
        }
        self.owed = self.owed.saturating_add(1);
        if self.owed < self.limit {
            return Ok(Flushed::NotYet);
        }
        self.flush(unit, domain)?;
        Ok(Flushed::Yes)
    }

    /// Settles all that is owed, with one wait.
    ///
    /// # Errors
    ///
    /// It is still owed, and can be flushed again.
    pub fn flush<R: Mmio, F: Stage, M: OwnEntries + Clone, P: Frames + Clone>(
        &mut self,
        unit: &mut Unit<R, M, P>,
        domain: &Domain<F, M, P>,
    ) -> Result<(), StillOwed> {
        let nothing = domain.mapper.nothing_stale();
        let stale = core::mem::replace(&mut self.stale, nothing);
        match unit.settle(domain, stale) {
            Ok(()) => {
                self.owed = 0;
                Ok(())
            }
            Err(Unsettled { stale, cause }) => {
                self.stale = stale;
                Err(StillOwed::Kept(cause))
            }
        }
    }
}
