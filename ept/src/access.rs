// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One access to a guest-physical address: the host-physical address, or exactly the VM exit that an
//! Intel processor makes of it.
//!
//! An [`Access`] says what is done and how a linear address led there; [`GuestSpace`] decides.

mod reader;
mod space;

use crate::attributes::Attributes;
use crate::format::Rule;
use crate::spec::{
    Accesses, LinearAddress, PageRights, Qualification, SppExit, SppFault, ViolationFlags,
};

pub use reader::GuestReader;
pub use space::GuestSpace;
pub(crate) use space::PagingPages;

/// Whether an access is one of the shadow stack's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ShadowStack {
    /// An ordinary access.
    #[default]
    No,
    /// A user shadow-stack access.
    User,
    /// A supervisor shadow-stack access.
    Supervisor,
}

/// An access to a guest-physical address, within one page (within one 128-byte sub-page for a write).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    accesses: Accesses,
    linear: LinearAddress,
    shadow_stack: ShadowStack,
    circumstances: ViolationFlags,
}

impl Access {
    /// To the translation of a linear address, of which guest paging says `page`.
    #[must_use]
    pub const fn translation(accesses: Accesses, page: PageRights) -> Self {
        Self::of(accesses, LinearAddress::Translation(Some(page)))
    }

    /// To a guest paging-structure entry, to translate a linear address.
    #[must_use]
    pub const fn paging_read() -> Self {
        Self::of(Accesses::READ, LinearAddress::PagingStructure)
    }

    /// To a guest paging-structure entry, to set its accessed or dirty flag: read and written.
    #[must_use]
    pub const fn paging_write() -> Self {
        Self::of(
            Accesses::READ.union(Accesses::WRITE),
            LinearAddress::PagingStructure,
        )
    }

    /// Without a linear address: the load of PDPTEs by MOV to CR, trace output.
    #[must_use]
    pub const fn no_linear_address(accesses: Accesses) -> Self {
        Self::of(accesses, LinearAddress::None)
    }

    const fn of(accesses: Accesses, linear: LinearAddress) -> Self {
        let circumstances = ViolationFlags::empty();
        Self {
            accesses,
            linear,
            shadow_stack: ShadowStack::No,
            circumstances,
        }
    }

    /// The same, by the shadow stack.
    #[must_use]
    pub const fn with_shadow_stack(self, shadow_stack: ShadowStack) -> Self {
        Self {
            shadow_stack,
            ..self
        }
    }

    /// The same, with what only the caller knows: [`ViolationFlags::NMI_UNBLOCKING`] and
    /// [`ViolationFlags::ASYNCHRONOUS`]. Others are not looked at.
    #[must_use]
    pub fn with_circumstances(self, flags: ViolationFlags) -> Self {
        let known = ViolationFlags::NMI_UNBLOCKING | ViolationFlags::ASYNCHRONOUS;
        Self {
            circumstances: flags & known,
            ..self
        }
    }
}

/// An access that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Where the byte is.
    pub host_physical: u64,
    /// Level of the entry that maps its page.
    pub level: u8,
    /// Rights of the whole path; memory type and the rest of that entry.
    pub attributes: Attributes,
}

/// Why an access is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EptFault<E> {
    /// Exit reason 48.
    #[error("EPT violation at {guest_physical:#x}: {qualification:?}")]
    Violation {
        /// For the guest-physical-address field.
        guest_physical: u64,
        /// For the exit-qualification field.
        qualification: Qualification,
        /// Under "EPT-violation #VE": the entry that ended the walk does not suppress the exception.
        convertible: bool,
    },
    /// Exit reason 49. It has no exit qualification.
    #[error("EPT misconfiguration at {guest_physical:#x}: level {level} entry {entry:#x}: {rule}")]
    Misconfiguration {
        /// For the guest-physical-address field.
        guest_physical: u64,
        /// Level of the entry.
        level: u8,
        /// The entry.
        entry: u64,
        /// What is wrong with it.
        rule: Rule,
    },
    /// Exit reason 66: the sub-page permission table has no answer.
    #[error("SPP-related event at {guest_physical:#x}: {fault}")]
    SubPage {
        /// For the guest-physical-address field.
        guest_physical: u64,
        /// For the exit-qualification field, but for NMI unblocking.
        qualification: SppExit,
        /// What happened.
        fault: SppFault,
    },
    /// A table entry (EPT's, the sub-page permission table's) or, in a nested walk, a guest's entry lies
    /// where the memory has nothing. A processor reads ones, or aborts; no exit says so.
    #[error("the entry at host-physical {at:#x} could not be read: {error:?}")]
    Unreadable {
        /// Host-physical address of the entry.
        at: u64,
        /// The memory's reason.
        error: E,
    },
}
