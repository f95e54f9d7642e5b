// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A unit that several threads share, and a handle of it for each device, which is vm-memory's `Iommu`: any virtio queue
//! runs behind it without knowing. Feature `vm-memory`.

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::Arc;
use core::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::vm_memory::iommu::{Error, Iommu, Iotlb, IotlbIterator, IovaRange};
use ::vm_memory::{GuestAddress, GuestMemoryBackend, Permissions};
use hvkit_page_table::GuestTables;

use super::host::Host;
use super::request::{Access, Process, Request};
use super::unit::Unit;
use crate::spec::RequesterId;

/// Places in memory that one request may be scattered over. A guest chooses how its pages are scattered; this
/// bounds what that costs.
const FRAGMENTS: usize = 4096;

/// A unit, the memory it works in and the world around it, for several threads.
pub struct SharedUnit<B, H> {
    memory: B,
    unit: Mutex<(Unit, H)>,
}

impl<B, H> fmt::Debug for SharedUnit<B, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedUnit").finish_non_exhaustive()
    }
}

impl<B: GuestMemoryBackend, H: Host> SharedUnit<B, H> {
    /// `unit`, in `memory` and `host`.
    #[must_use]
    pub fn new(unit: Unit, memory: B, host: H) -> Arc<Self> {
        Arc::new(Self {
            memory,
            unit: Mutex::new((unit, host)),
        })
    }

    /// The register window is read.
    pub fn read(&self, offset: u32, data: &mut [u8]) {
        self.lock().0.read(offset, data);
    }

    /// The register window is written.
    pub fn write(&self, offset: u32, data: &[u8]) {
        let (unit, host) = &mut *self.lock();
        unit.write(&GuestTables(&self.memory), host, offset, data);
    }

    /// Does something else with the unit: interrupts, watching, saving.
    pub fn with<R>(&self, f: impl FnOnce(&mut Unit, &GuestTables<'_, B>, &mut H) -> R) -> R {
        let (unit, host) = &mut *self.lock();
        f(unit, &GuestTables(&self.memory), host)
    }

    fn lock(&self) -> MutexGuard<'_, (Unit, H)> {
        // A unit is whole between any two steps: who panicked with it did so in the host.
        self.unit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one device sees memory through.
pub struct DeviceIommu<B, H> {
    shared: Arc<SharedUnit<B, H>>,
    source: RequesterId,
    process: Option<Process>,
}

impl<B, H> fmt::Debug for DeviceIommu<B, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceIommu")
            .field("source", &self.source)
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

impl<B, H> Clone for DeviceIommu<B, H> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            ..*self
        }
    }
}

impl<B, H> DeviceIommu<B, H> {
    /// The requests of `source`, without PASID.
    #[must_use]
    pub const fn new(shared: Arc<SharedUnit<B, H>>, source: RequesterId) -> Self {
        Self {
            shared,
            source,
            process: None,
        }
    }

    /// The same, for a process.
    #[must_use]
    pub fn with_process(mut self, process: Process) -> Self {
        self.process = Some(process);
        self
    }
}

impl<B, H> Iommu for DeviceIommu<B, H>
where
    B: GuestMemoryBackend + Send + Sync,
    H: Host + Send,
{
    /// The translations of one request. The unit keeps translations itself: nothing is kept here that would have to
    /// be invalidated.
    type IotlbGuard<'a>
        = Box<Iotlb>
    where
        Self: 'a;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Box<Iotlb>>, Error> {
        let refused = |reason: &str| Error::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason: reason.to_string(),
        };
        // vm-memory's own cache would wrap here.
        let end = u64::try_from(length)
            .ok()
            .and_then(|length| iova.0.checked_add(length))
            .ok_or_else(|| refused("the range leaves the address space"))?;
        let accesses = match access {
            Permissions::No => &[][..],
            Permissions::Read => &[Access::Read],
            Permissions::Write => &[Access::Write],
            Permissions::ReadWrite => &[Access::Read, Access::Write],
        };
        let mut found = Iotlb::new();
        let (mut at, mut fragments, mut distance) = (iova.0, 0, None);
        let (unit, host) = &mut *self.shared.lock();
        let memory = GuestTables(&self.shared.memory);
        while at < end {
            let mut target = at;
            let mut last = u64::MAX;
            for access in accesses {
                let request = Request {
                    source: self.source,
                    process: self.process,
                    address: at,
                    access: *access,
                };
                let to = unit
                    .translate(&memory, host, &request)
                    .map_err(|why| refused(&why.to_string()))?;
                target = to.address;
                let offset = 1u64.checked_shl(to.page_bits.into()).map(|size| size - 1);
                last = at | offset.unwrap_or(u64::MAX);
            }
            let upto = end.min(last.saturating_add(1));
            if distance != Some(target.wrapping_sub(at)) {
                distance = Some(target.wrapping_sub(at));
                fragments += 1;
                if fragments > FRAGMENTS {
                    return Err(refused("the range is scattered over too many places"));
                }
            }
            // Not more than `length`, which is a usize.
            let piece = usize::try_from(upto - at).unwrap_or(length);
            found.set_mapping(GuestAddress(at), GuestAddress(target), piece, access)?;
            at = upto;
        }
        Iotlb::lookup(Box::new(found), iova, length, access)
            .map_err(|_| refused("a part of the range was not translated"))
    }
}
