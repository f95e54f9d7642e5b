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
//! The guest's side is a [`GuestPaging`]: whatever walks the guest's tables, in any format, and knows
//! the guest's rules. It is given a memory in which reading or marking an entry is an access through
//! EPT, and does not know it.
//!
//! The order is the manual's (SDM 3C, "Prioritization of EPT Misconfigurations and EPT Violations"):
//! an EPT fault on the way to a guest entry comes before anything that entry says; the guest's page
//! fault comes before any EPT fault of the page itself. Between the two, and only if there was no page
//! fault, the guest's accessed and dirty flags are set, which are writes through EPT.

use core::cell::{Cell, RefCell};

use hvkit_page_table::{ReadEntry, UpdateEntry, Width};

use crate::access::{Access, EptFault, Granted, GuestSpace, PagingPages, ShadowStack};
use crate::marks::{Forget, Mark, Note, Updates};
use crate::spec::{Accesses, EptEntry, PageRights};

/// The guest's side of a walk: its paging mode, as its registers set it up.
pub trait GuestPaging {
    /// An access to a linear address, with whatever decides whether it faults: kind, CPL, ...
    type Access: Copy;
    /// What the guest gets when it does: error code and all.
    type PageFault;

    /// Translates `linear` as a processor does: reads entries from `memory`, judges, and if the access
    /// is allowed sets the accessed and dirty flags by compare-exchange.
    ///
    /// `memory` is guest-physical. Its exchange always finds what a read found, and takes only bits that
    /// are added: the flags are stored later, see [`Updates`].
    ///
    /// # Errors
    ///
    /// The guest's fault, or the first error of `memory` unchanged.
    fn translate<M: UpdateEntry>(
        &self,
        memory: &M,
        linear: u64,
        access: Self::Access,
    ) -> Result<GuestPage, GuestFault<Self::PageFault, M::Error>>;
}

/// Where the guest's tables lead, for an access they allow, and that access as EPT sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPage {
    /// The guest-physical address of the byte.
    pub physical: u64,
    /// What the access does.
    pub accesses: Accesses,
    /// What the guest's tables say of the page.
    pub rights: PageRights,
    /// Whether the access is one of the shadow stack's.
    pub shadow_stack: ShadowStack,
}

/// Why the guest's tables lead nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestFault<P, E> {
    /// The guest's own fault.
    #[error("page fault: {0:?}")]
    Page(P),
    /// An entry could not be read or marked.
    #[error("memory: {0:?}")]
    Memory(E),
}

/// A linear address, translated twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nested {
    /// By the guest's tables.
    pub guest: GuestPage,
    /// By EPT.
    pub host: Granted,
}

/// Why a linear address could not be accessed: the guest's fault `P`, or a VM exit. The exit's
/// guest-linear-address field is the linear address, where the qualification says that it is valid.
pub type NestedFault<P, E> = GuestFault<P, EptFault<E>>;

/// What [`translate`] returns for guest `G` over memory `M`.
pub type NestedOutcome<G, M> =
    Result<Nested, NestedFault<<G as GuestPaging>::PageFault, <M as ReadEntry>::Error>>;

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
    visit(space, guest, linear, access, Forget)
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
    visit(space, guest, linear, access, updates)
}

#[inline]
fn visit<G: GuestPaging, M: ReadEntry>(
    space: &GuestSpace<'_, M>,
    guest: &G,
    linear: u64,
    access: G::Access,
    note: impl Note,
) -> NestedOutcome<G, M> {
    let through = Through {
        space,
        note: RefCell::new(note),
        paging: Cell::new(PagingPages::Writable),
    };
    let page = guest.translate(&through, linear, access)?;
    let access =
        Access::translation(page.accesses, page.rights).with_shadow_stack(page.shadow_stack);
    let (paging, mut note) = (through.paging.get(), through.note.into_inner());
    let host = space
        .access_after(page.physical, access, paging, &mut note)
        .map_err(GuestFault::Memory)?;
    Ok(Nested { guest: page, host })
}

/// Guest-physical memory, as the guest's paging structures are read and marked through EPT.
struct Through<'s, 'a, M, N> {
    space: &'s GuestSpace<'a, M>,
    note: RefCell<N>,
    /// What pages the entries read so far lie in.
    paging: Cell<PagingPages>,
}

impl<M: ReadEntry, N: Note> Through<'_, '_, M, N> {
    /// Makes an access to a guest paging-structure entry.
    #[inline(always)]
    fn access(&self, at: u64, access: Access) -> Result<Granted, EptFault<M::Error>> {
        let note = &mut *self.note.borrow_mut();
        self.space
            .access_after(at, access, PagingPages::Writable, note)
    }

    /// The entry, in the common case: an answer that fits into registers, for the next entry's address
    /// waits for it.
    #[inline(never)]
    fn read_allowed(&self, at: u64, width: Width) -> Option<u64> {
        let access = Access::paging_read();
        let granted = self.space.allowed::<N>(at, access, PagingPages::Writable)?;
        self.look_at(granted);
        self.space.memory().read(granted.host_physical, width).ok()
    }

    /// The entry, or why it cannot be read.
    #[inline(never)]
    fn read_at_length(&self, at: u64, width: Width) -> Result<u64, EptFault<M::Error>> {
        let granted = self.access(at, Access::paging_read())?;
        self.look_at(granted);
        let at = granted.host_physical;
        let entry = self.space.memory().read(at, width);
        entry.map_err(|error| EptFault::Unreadable { at, error })
    }

    /// Remembers what page an entry lies in.
    #[inline(always)]
    fn look_at(&self, granted: Granted) {
        if granted.attributes.options(EptEntry::PAGING_WRITE) == 0 {
            self.paging.set(PagingPages::Others);
        }
    }
}

impl<M: ReadEntry, N: Note> ReadEntry for Through<'_, '_, M, N> {
    type Error = EptFault<M::Error>;

    #[inline(always)]
    fn read(&self, at: u64, width: Width) -> Result<u64, Self::Error> {
        match self.read_allowed(at, width) {
            Some(entry) => Ok(entry),
            None => self.read_at_length(at, width),
        }
    }
}

impl<M: ReadEntry, N: Note> UpdateEntry for Through<'_, '_, M, N> {
    /// A paging write: allowed or not now, stored by whoever applies the updates.
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Self::Error> {
        let granted = self.access(at, Access::paging_write())?;
        let (at, set) = (granted.host_physical, new & !current);
        if set != 0 {
            self.note.borrow_mut().note(Mark {
                at,
                width,
                entry: current,
                set,
                logged: None,
            });
        }
        Ok(current)
    }
}
