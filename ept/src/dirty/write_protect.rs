// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Write-protection: dirty logging on processors without dirty flags.
//!
//! ```text
//!   start   every writable page of a range loses the right to write and remembers that it had it
//!   fault   a write violates; the page it is in gets the right back: it is dirty
//!   start   again: pages that were reported lose it once more, for the next round
//!   stop    every page that is still protected gets it back
//! ```
//!
//! Bit 11 of an entry, which hardware ignores, is what remembers. Pages that were read-only before stay
//! so: a violation there is not ours. So are those that lose the right meanwhile, by
//! [`Attributes::with_rights`](crate::Attributes::with_rights).
//!
//! Pages that some writes reach without the right to write cannot be watched so, and are refused:
//! [`SUPERVISOR_SHADOW_STACK`](crate::spec::EptEntry::SUPERVISOR_SHADOW_STACK) (shadow-stack writes),
//! [`PAGING_WRITE`](crate::spec::EptEntry::PAGING_WRITE) (accessed and dirty flags of the guest's) and
//! [`SUB_PAGE_WRITE`](crate::spec::EptEntry::SUB_PAGE_WRITE), each where its control is on. Dirty flags
//! ([`harvest`](super::harvest)) see those writes too.

use hvkit_page_table::{Frames, Mapper, OwnEntries, Refused, Span, Stale};

use crate::format::Ept;

/// What a write violation was.
#[derive(Debug)]
pub enum WriteFault {
    /// The first write to a page since it was protected: the page in `span` is dirty and writable.
    Dirty {
        /// The page.
        span: Span,
        /// Owed if a large page was cut; a page that only became writable again owes nothing.
        stale: Stale,
    },
    /// Another processor was first: the page is writable. Enter the guest again.
    Writable,
    /// Nothing is mapped there, or not writable: not ours.
    NotTracked,
}

/// Begins, or begins again: write-protects every writable page of `span`.
///
/// Large pages stay large until they are written. Writes go on unnoticed until the token is settled.
///
/// # Errors
///
/// As [`Mapper::protect`]; [`MapError::Unsupported`](hvkit_page_table::MapError::Unsupported) with
/// [`Rule::NotTrackable`](crate::Rule::NotTrackable) if a page can be written without the right to write. Nothing is
/// changed then.
pub fn start<M: OwnEntries, P: Frames>(
    mapper: &mut Mapper<Ept, M, P>,
    span: impl Into<Span>,
) -> Result<Stale, Refused<Ept>> {
    mapper.protect(span, |page| page.track_writes())
}

/// Answers an EPT violation by a write to `guest_physical`: makes the 4-KByte page it is in writable again,
/// if it is one that was protected here.
///
/// A large page is cut, so that the rest of it goes on being watched.
///
/// # Errors
///
/// As [`Mapper::protect`]: no frames to cut a large page, for one. Nothing is changed then.
pub fn fault<M: OwnEntries, P: Frames>(
    mapper: &mut Mapper<Ept, M, P>,
    guest_physical: u64,
) -> Result<WriteFault, Refused<Ept>> {
    let Ok(found) = mapper.translate(guest_physical) else {
        return Ok(WriteFault::NotTracked);
    };
    if !found.attributes.write_tracked() {
        let writable = found
            .attributes
            .rights()
            .contains(crate::spec::Rights::WRITE);
        return Ok(if writable {
            WriteFault::Writable
        } else {
            WriteFault::NotTracked
        });
    }
    let span = Span::new(guest_physical & !0xfff, 0x1000);
    let stale = mapper.protect(span, |page| page.release_writes())?;
    Ok(WriteFault::Dirty { span, stale })
}

/// Ends it: every page of `span` that is still protected is writable again.
///
/// Cut pages stay cut; [`Mapper::merge`] makes them whole.
///
/// # Errors
///
/// As [`Mapper::protect`].
pub fn stop<M: OwnEntries, P: Frames>(
    mapper: &mut Mapper<Ept, M, P>,
    span: impl Into<Span>,
) -> Result<Stale, Refused<Ept>> {
    mapper.protect(span, |page| page.release_writes())
}
