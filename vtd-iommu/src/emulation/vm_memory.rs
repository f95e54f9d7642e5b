// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A unit that several threads share, and a handle of it for each device, which is vm-memory's `Iommu`: any virtio queue
//! runs behind it without knowing. Feature `vm-memory`.

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::vm_memory::iommu::{Error, Iommu, Iotlb, IotlbIterator, IovaRange};
use ::vm_memory::{GuestAddress, GuestMemoryBackend, Permissions};
use hvkit_page_table::GuestTables;

use super::host::Host;
use super::request::{Access, Process, Refused, Request, Translated};
use super::unit::Unit;
use crate::spec::RequesterId;

/// Places in memory that one request may be scattered over. A guest chooses how its pages are scattered; this
/// bounds what that costs.
pub(super) const FRAGMENTS: usize = 4096;

/// A unit, the memory it works in and the world around it, for several threads.
pub struct SharedUnit<B, H> {
    memory: B,
    /// The unit's count of changes, which devices read without the lock.
    changes: Arc<AtomicU64>,
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
            changes: unit.caches.changes.share(),
            unit: Mutex::new((unit, host)),
        })
    }

    /// The register window is read.
    pub fn read(&self, offset: u32, data: &mut [u8]) {
        self.lock().0.read(offset, data);
    }

    /// The register window is written. All that the write starts is done when this returns; while it is being done, others can use the
    /// unit between one descriptor of the invalidation queue and the next.
    pub fn write(&self, offset: u32, data: &[u8]) {
        self.write_while(offset, data, || true);
    }

    /// The same, as long as `wanted` says: it is asked before each descriptor but the first that takes long, and while it
    /// is, nobody holds the unit. What is left then is done by the next write to any register, or not at all.
    pub fn write_while(&self, offset: u32, data: &[u8], wanted: impl Fn() -> bool) {
        let memory = GuestTables(&self.memory);
        let mut left = {
            let (unit, host) = &mut *self.lock();
            unit.write_some(&memory, host, offset, data);
            if !unit.is_behind() {
                return;
            }
            unit.queue_entries()
        };
        // Whoever moves the tail meanwhile sees to the descriptors that this does not come to.
        while left != 0 && wanted() {
            // The lock goes to who waits for it, if the scheduler will.
            std::thread::yield_now();
            left = left.wrapping_sub(1);
            let (unit, host) = &mut *self.lock();
            if !unit.is_behind() {
                return;
            }
            unit.go_on(&memory, host);
        }
    }

    /// Does something else with the unit: interrupts, watching, saving.
    pub fn with<R>(&self, f: impl FnOnce(&mut Unit, &GuestTables<'_, B>, &mut H) -> R) -> R {
        let (unit, host) = &mut *self.lock();
        let result = f(unit, &GuestTables(&self.memory), host);
        // It may be another unit now: one that was restored.
        unit.caches.changes.go_on_in(&self.changes);
        result
    }

    pub(super) const fn memory(&self) -> &B {
        &self.memory
    }

    pub(super) fn changes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.changes)
    }

    fn lock(&self) -> MutexGuard<'_, (Unit, H)> {
        // A unit is whole between any two steps: who panicked with it did so in the host.
        self.unit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one device sees memory through.
pub struct DeviceIommu<B, H> {
    pub(super) shared: Arc<SharedUnit<B, H>>,
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

impl<B: GuestMemoryBackend, H: Host> DeviceIommu<B, H> {
    /// Where the byte at `address` leads, if all of `access` is allowed; `None` if `access` is none.
    pub(super) fn reach(
        &self,
        unit: &mut Unit,
        memory: &GuestTables<'_, B>,
        host: &mut H,
        address: u64,
        access: Permissions,
    ) -> Result<Option<Translated>, Refused> {
        let accesses = match access {
            Permissions::No => &[][..],
            Permissions::Read => &[Access::Read],
            Permissions::Write => &[Access::Write],
            Permissions::ReadWrite => &[Access::Read, Access::Write],
        };
        let mut found = None;
        for access in accesses {
            let request = Request {
                source: self.source,
                process: self.process,
                address,
                access: *access,
            };
            found = Some(unit.translate(memory, host, &request)?);
        }
        Ok(found)
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
        let mut found = Iotlb::new();
        let (mut at, mut fragments, mut distance) = (iova.0, 0, None);
        let (unit, host) = &mut *self.shared.lock();
        let memory = GuestTables(&self.shared.memory);
        while at < end {
            let to = self
                .reach(unit, &memory, host, at, access)
                .map_err(|why| refused(&why.to_string()))?;
            let (target, page_bits) = to.map_or((at, 64), |to| (to.address, to.page_bits));
            let offset = 1u64
                .checked_shl(page_bits.into())
                .map(|size| size.wrapping_sub(1));
            let last = at | offset.unwrap_or(u64::MAX);
            let upto = end.min(last.saturating_add(1));
            if distance != Some(target.wrapping_sub(at)) {
                distance = Some(target.wrapping_sub(at));
                fragments = usize::saturating_add(fragments, 1);
                if fragments > FRAGMENTS {
                    return Err(refused("the range is scattered over too many places"));
                }
            }
            // Not more than `length`, which is a usize.
            let piece = usize::try_from(upto.saturating_sub(at)).unwrap_or(length);
            found.set_mapping(GuestAddress(at), GuestAddress(target), piece, access)?;
            at = upto;
        }
        Iotlb::lookup(Box::new(found), iova, length, access)
            .map_err(|_| refused("a part of the range was not translated"))
    }
}
