// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device behind an IOMMU of the guest's: where its addresses lead, told to its back end as it changes.
//!
//! ```text
//!   guest's IOMMU --- map, unmap ---> AddressSpace --- UPDATE, INVALIDATE, acknowledged ---> back end
//!   back end --- MISS ---> what it was told and has forgotten once more, or: astray, for the IOMMU to report
//! ```
//!
//! "IOMMU support". The back end is told of everything at once, so that it need not ask.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::Permissions;

use super::device::Shared;
use super::error::{BackEndError, TranslationError};
use super::front_end::FrontEnd;
use super::memory::SharedMemory;
use super::message::Request;
use super::translation::{Kind, Mapped, Message, Ranges};

/// The device's addresses as far as they lead to memory: of a device made with
/// [`Options::with_translations`](super::Options::with_translations). What it is told here, the back end has acknowledged
/// when the call returns, or it is lost.
#[derive(Clone)]
pub struct AddressSpace(Arc<Shared>);

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace").finish_non_exhaustive()
    }
}

impl AddressSpace {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// From now on `addresses` lead to the guest's memory from `target` on, for `access`.
    ///
    /// # Errors
    ///
    /// That is not in one region of what the back end shares. Not that the back end is lost: its device says that.
    pub fn map(
        &self,
        addresses: Range<u64>,
        target: u64,
        access: Permissions,
    ) -> Result<(), TranslationError> {
        let mapped = Mapped {
            range: addresses,
            target,
            access,
        };
        let theirs = ours(&self.0.memory, &mapped);
        let theirs = theirs.ok_or_else(|| TranslationError::NotShared {
            addresses: mapped.range.clone(),
            target,
        })?;
        let mut front = self.0.front();
        let space = front.space_mut();
        space.ranges.map(mapped.range.clone(), target, access);
        if space.is_told {
            // Lost, if it fails; then there is nobody to be told.
            let _ = front.update(&mapped, theirs);
        }
        Ok(())
    }

    /// From now on `addresses` lead nowhere. A back end that is lost is believed to reach them no more.
    pub fn unmap(&self, addresses: Range<u64>) {
        let mut front = self.0.front();
        let space = front.space_mut();
        space.ranges.unmap(addresses.clone());
        if space.is_told {
            let _ = front.invalidate(&addresses);
        }
    }
}

/// What a front end knows of its device's addresses.
#[derive(Debug, Default)]
pub(super) struct Space {
    ranges: Ranges,
    /// Whether the back end has been told of them, and so has to be told of changes.
    is_told: bool,
}

/// An access of the back end's that leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Astray {
    pub(super) address: u64,
    pub(super) access: Permissions,
}

impl From<Message> for Astray {
    fn from(message: Message) -> Self {
        Self {
            address: message.address,
            access: message.access,
        }
    }
}

impl FrontEnd {
    /// Knows from now on what `other` knew, whose back end is gone.
    pub(super) fn take_space(&mut self, other: &mut Self) {
        let space = other.space_mut();
        let ranges = std::mem::take(&mut space.ranges);
        *self.space_mut() = Space {
            ranges,
            is_told: false,
        };
    }

    /// Tells the back end of all addresses, whatever it was told before.
    pub(super) fn tell_space(&mut self, memory: &SharedMemory) -> Result<(), BackEndError> {
        self.space_mut().is_told = true;
        let all: Vec<_> = self.space_mut().ranges.all().collect();
        for mapped in all {
            // Neighbours that are one may lie in two regions.
            for piece in memory.within_regions(&mapped) {
                let theirs = ours(memory, &piece);
                theirs.map_or(Ok(()), |theirs| self.update(&piece, theirs))?;
            }
        }
        Ok(())
    }

    /// Answers a miss; nothing if the access leads somewhere, and the back end has been told where.
    pub(super) fn missed(
        &mut self,
        message: Message,
        memory: &SharedMemory,
    ) -> Result<Option<Astray>, BackEndError> {
        let astray = Astray::from(message);
        let Astray { address, access } = astray;
        let found = self.space_mut().ranges.at(address);
        let Some(found) = found.filter(|found| found.access.allow(access)) else {
            return Ok(Some(astray));
        };
        let mut pieces = memory.within_regions(&found);
        let Some(piece) = pieces.find(|piece| piece.range.contains(&address)) else {
            return Ok(Some(astray));
        };
        match ours(memory, &piece) {
            Some(theirs) => self.update(&piece, theirs).map(|()| None),
            None => Ok(Some(astray)),
        }
    }

    fn update(&mut self, mapped: &Mapped, theirs: u64) -> Result<(), BackEndError> {
        self.tell_translation(Message {
            address: mapped.range.start,
            size: length(&mapped.range),
            theirs,
            access: mapped.access,
            kind: Kind::Update,
        })
    }

    fn invalidate(&mut self, addresses: &Range<u64>) -> Result<(), BackEndError> {
        self.tell_translation(Message {
            address: addresses.start,
            size: length(addresses),
            theirs: 0,
            access: Permissions::No,
            kind: Kind::Invalidate,
        })
    }

    fn tell_translation(&mut self, message: Message) -> Result<(), BackEndError> {
        if message.size == 0 {
            return Ok(());
        }
        // REPLY_ACK is a condition of translations, so this waits for the answer.
        self.tell(Request::IOTLB_MSG, &message.payload(), &[])
    }
}

/// Where `mapped` is in this process, if it is in one region of `memory`.
fn ours(memory: &SharedMemory, mapped: &Mapped) -> Option<u64> {
    memory.ours(mapped.target, length(&mapped.range))
}

fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}
