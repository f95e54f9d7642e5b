// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two-dimensional walk: a linear address through the guest's tables, each step of them through EPT.
//!
//! ```text
//!   linear    guest root      guest table     guest table           page
//!   address   (CR3)
//!     |          |               |               |                   |      guest-physical
//!     |       EPT walk        EPT walk        EPT walk            EPT walk
//!     |          |               |               |                   |
//!     '-------> entry ---------> entry ---------> entry -----------> byte   host-physical
//!               read             read             read; rights:      access
//!                                                 page fault?
//! ```
//!
//! The guest's side of it is a [`GuestPaging`]: any [`Format`] with the rules that make page faults. The
//! one walker walks the guest's tables and does not know that reading an entry is a walk too.
//!
//! The order is the manual's (SDM 3C, "Prioritization of EPT Misconfigurations and EPT Violations"):
//! an EPT fault on the way to a guest entry comes before anything that entry says; the guest's page
//! fault comes before any EPT fault of the page itself. Between the two, and only if there was no page
//! fault, the guest's accessed and dirty flags are set, which are writes through EPT.

use core::cell::{Cell, RefCell};
use core::convert::Infallible;

use hvkit_page_table::{Fault, Format, ReadEntry, Root, Translation, Walk, Width, walk};

use crate::access::{Access, EptFault, Granted, GuestSpace, PagingPages, ShadowStack};
use crate::marks::{Mark, Updates};
use crate::spec::{Accesses, EptEntry, PageRights};

/// A fault that is the guest's own: not present, reserved bits, an address that is not canonical.
pub type GuestFault<F> = Fault<<F as Format>::Rule, Infallible>;

/// The guest's side of a walk: its paging mode, as set up by its registers.
pub trait GuestPaging {
    /// The tables.
    type Format: Format;
    /// An access to a linear address, with whatever decides whether it faults (CPL, implicit accesses).
    type Access: Copy;
    /// What the guest gets: error code and all.
    type PageFault;

    /// The tables' format.
    fn format(&self) -> &Self::Format;

    /// Where they begin, guest-physical: CR3, or the PDPTEs.
    fn root(&self) -> Root<'_, <Self::Format as Format>::Attributes>;

    /// The page fault for an address that the tables do not translate.
    fn fault(&self, why: GuestFault<Self::Format>, access: Self::Access) -> Self::PageFault;

    /// Whether the tables' rights allow `access`, and what kind of access to the page it makes.
    ///
    /// # Errors
    ///
    /// The page fault.
    fn judge(
        &self,
        found: &Translation<<Self::Format as Format>::Attributes>,
        access: Self::Access,
    ) -> Result<PageAccess, Self::PageFault>;
}

/// An access that the guest's tables allow, as EPT sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAccess {
    /// What it does.
    pub accesses: Accesses,
    /// What the guest's tables say of the page.
    pub page: PageRights,
    /// Whether it is one of the shadow stack's.
    pub shadow_stack: ShadowStack,
}

/// A linear address, translated twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nested<A> {
    /// By the guest's tables.
    pub guest: Translation<A>,
    /// By EPT.
    pub host: Granted,
    /// What the guest's tables say of the page.
    pub page: PageRights,
}

/// Why a linear address could not be accessed. `P` is the guest's page fault, `E` the host memory's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NestedFault<P, E> {
    /// The guest's own page fault.
    #[error("page fault: {0:?}")]
    Page(P),
    /// A VM exit. The guest-linear-address field is the linear address, where the qualification says so.
    #[error(transparent)]
    Ept(EptFault<E>),
}

/// What [`translate`] returns for guest `G` over memory `M`.
pub type NestedOutcome<G, M> = Result<
    Nested<<<G as GuestPaging>::Format as Format>::Attributes>,
    NestedFault<<G as GuestPaging>::PageFault, <M as ReadEntry>::Error>,
>;

/// Makes `access` to `linear`, and forgets the flags it would set.
///
/// # Errors
///
/// The page fault or VM exit that a processor would make.
#[inline]
pub fn translate<G: GuestPaging, M: ReadEntry>(
    space: &GuestSpace<'_, M>,
    guest: &G,
    linear: u64,
    access: G::Access,
) -> NestedOutcome<G, M> {
    visit(space, guest, linear, access, |_| ())
}

/// Makes `access` to `linear`, and adds to `updates` the accessed and dirty flags it sets: EPT's for
/// every access it made, the guest's if there was no page fault.
///
/// To be [applied](Updates::apply) whatever the outcome: before a fault, a processor has set the flags
/// of what it used until then.
///
/// # Errors
///
/// The page fault or VM exit that a processor would make.
pub fn translate_marking<G: GuestPaging, M: ReadEntry>(
    space: &GuestSpace<'_, M>,
    guest: &G,
    linear: u64,
    access: G::Access,
    updates: &mut Updates,
) -> NestedOutcome<G, M> {
    visit(space, guest, linear, access, |mark| updates.add(mark))
}

#[inline]
fn visit<G: GuestPaging, M: ReadEntry>(
    space: &GuestSpace<'_, M>,
    guest: &G,
    linear: u64,
    access: G::Access,
    note: impl FnMut(Mark),
) -> NestedOutcome<G, M> {
    let through = Through {
        space,
        note: RefCell::new(note),
        paging: Cell::new(PagingPages::Writable),
    };
    let seen = walk(guest.format(), &through, guest.root(), linear);
    let found = match seen.outcome {
        Ok(found) => found,
        Err(fault) => {
            let why = guests_own(fault).map_err(NestedFault::Ept)?;
            return Err(NestedFault::Page(guest.fault(why, access)));
        }
    };
    let PageAccess {
        accesses,
        page,
        shadow_stack,
    } = guest.judge(&found, access).map_err(NestedFault::Page)?;
    through
        .mark_guest(guest.format(), &seen, accesses)
        .map_err(NestedFault::Ept)?;
    let access = Access::translation(accesses, page).with_shadow_stack(shadow_stack);
    let (paging, mut note) = (through.paging.get(), through.note.into_inner());
    let host = space
        .access_after(found.target, access, paging, &mut note)
        .map_err(NestedFault::Ept)?;
    Ok(Nested {
        guest: found,
        host,
        page,
    })
}

/// The guest's tables, read through EPT.
struct Through<'s, 'a, M, N> {
    space: &'s GuestSpace<'a, M>,
    note: RefCell<N>,
    /// What pages the entries read so far lie in.
    paging: Cell<PagingPages>,
}

impl<M: ReadEntry, N: FnMut(Mark)> Through<'_, '_, M, N> {
    /// Makes an access to a guest paging-structure entry.
    #[inline]
    fn access(&self, at: u64, accesses: Accesses) -> Result<Granted, EptFault<M::Error>> {
        let access = Access::paging_structure(accesses);
        let note = &mut *self.note.borrow_mut();
        self.space
            .access_after(at, access, PagingPages::Writable, note)
    }

    /// The flags that the guest's format has and the entries of the path lack: each is a read and a
    /// write through EPT. The root's first; the leaf's are those that its page's access calls for.
    #[inline]
    fn mark_guest<F: Format>(
        &self,
        format: &F,
        seen: &Walk<F::Attributes, F::Rule, EptFault<M::Error>>,
        accesses: Accesses,
    ) -> Result<(), EptFault<M::Error>> {
        let (marks, steps, width) = (format.marks(), seen.steps(), format.shape().width());
        for (i, step) in steps.iter().enumerate() {
            let last = i + 1 == steps.len();
            let dirty = last && accesses.contains(Accesses::WRITE);
            let set = (marks.accessed | if dirty { marks.dirty } else { 0 }) & !step.entry;
            if let (Some(guest_physical), true) = (step.at, set != 0) {
                let granted = self.access(guest_physical, Accesses::READ | Accesses::WRITE)?;
                let at = granted.host_physical;
                let mark = Mark {
                    at,
                    width,
                    entry: step.entry,
                    set,
                    logged: None,
                };
                (self.note.borrow_mut())(mark);
            }
        }
        Ok(())
    }
}

impl<M: ReadEntry, N: FnMut(Mark)> ReadEntry for Through<'_, '_, M, N> {
    type Error = EptFault<M::Error>;

    #[inline]
    fn read(&self, at: u64, width: Width) -> Result<u64, Self::Error> {
        let granted = self.access(at, Accesses::READ)?;
        if granted.attributes.options(EptEntry::PAGING_WRITE) == 0 {
            self.paging.set(PagingPages::Others);
        }
        let at = granted.host_physical;
        let entry = self.space.memory().read(at, width);
        entry.map_err(|error| EptFault::Unreadable { at, error })
    }
}

/// Tells the guest's faults from those of EPT below it.
fn guests_own<R, E>(fault: Fault<R, EptFault<E>>) -> Result<Fault<R, Infallible>, EptFault<E>> {
    Ok(match fault {
        Fault::Unreadable { error, .. } => return Err(error),
        Fault::Address { address } => Fault::Address { address },
        Fault::NoRootEntry { index } => Fault::NoRootEntry { index },
        Fault::NotPresent { level, entry } => Fault::NotPresent { level, entry },
        Fault::Malformed { level, entry, rule } => Fault::Malformed { level, entry, rule },
        Fault::TooDeep { level, entry } => Fault::TooDeep { level, entry },
        // A fault that the walker may learn: as far as it is known, nothing is there.
        other => Fault::NotPresent {
            level: other.level().unwrap_or(0),
            entry: 0,
        },
    })
}
