// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest-physical memory, read through EPT in one way: for what reads tables outside a linear address's
//! translation.

use core::cell::RefCell;

use hvkit_page_table::{ReadEntry, Width};

use super::{Access, EptFault, GuestSpace};
use crate::marks::Updates;

/// Reads of guest-physical memory that are all one kind of [`Access`]; made by [`GuestSpace::reader`].
///
/// The loads of PDPTEs by MOV to CR are such reads, without a linear address: they are reads even where
/// accesses to paging structures count as writes.
#[derive(Debug)]
pub struct GuestReader<'a, M> {
    space: GuestSpace<'a, M>,
    access: Access,
    updates: RefCell<Updates>,
}

impl<'a, M: ReadEntry> GuestSpace<'a, M> {
    /// A memory whose every read is `access`.
    #[must_use]
    pub const fn reader(&self, access: Access) -> GuestReader<'a, M> {
        GuestReader {
            space: *self,
            access,
            updates: RefCell::new(Updates::new()),
        }
    }
}

impl<M> GuestReader<'_, M> {
    /// The flags that the reads so far set.
    #[must_use]
    pub fn into_updates(self) -> Updates {
        self.updates.into_inner()
    }
}

impl<M: ReadEntry> ReadEntry for GuestReader<'_, M> {
    type Error = EptFault<M::Error>;

    fn read(&self, at: u64, width: Width) -> Result<u64, Self::Error> {
        let updates = &mut *self.updates.borrow_mut();
        let granted = self.space.access_marking(at, self.access, updates)?;
        let at = granted.host_physical;
        let entry = self.space.memory().read(at, width);
        entry.map_err(|error| EptFault::Unreadable { at, error })
    }
}
