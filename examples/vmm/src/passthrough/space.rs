// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What devices of the host reach: one set of tables in the host's IOMMU.
//!
//! A machine without a remapping unit has one space: one set of tables in the host's IOMMU, in which the guest's
//! memory is where the guest sees it, and nothing else is. It is filled when the first device joins, before any
//! device may master the bus, and the kernel empties it when the last one has left. The memory is
//! kept until then. A device behind the guest's remapping unit has a space of its own, which follows that unit.
//!
//! A space is VFIO's container, whose devices are opened by their group, or one of iommufd's, whose devices are opened by their
//! character device: see [`Interface`]. What is said to a device once it is open is the same.

use super::dirty::Reached;
use super::error::PassthroughError;
use super::hardware::PhysicalFunction;
use super::host::HostFunction;
use super::iommu::{Log, Tables, dirty};
use super::selection::Interface;
use super::vfio::{VfioFunction, refused};
use crate::dirty_log::{By, Pages};
use crate::machine::memory::GuestRam;
use crate::viommu::DmaTable;
use hvkit_vtd_iommu::emulation::Mapping;
use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO as KVM_DEV_TYPE_VFIO};
use kvm_ioctls::VmFd;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use vfio_ioctls::{VfioDevice, VfioDeviceFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// KVM's half of VFIO, of which a machine has one.
pub struct KvmVfio(Arc<VfioDeviceFd>);

impl fmt::Debug for KvmVfio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KvmVfio")
    }
}

impl KvmVfio {
    /// That of the machine `vm`.
    pub fn new(vm: &VmFd) -> Result<Self, PassthroughError> {
        let mut kind = kvm_create_device {
            type_: KVM_DEV_TYPE_VFIO,
            fd: 0,
            flags: 0,
        };
        let kvm = vm.create_device(&mut kind).map_err(PassthroughError::Kvm)?;
        Ok(KvmVfio(Arc::new(VfioDeviceFd::new_from_kvm(kvm))))
    }
}

/// What is in a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// All of the guest's memory.
    Everything,
    /// What a remapping unit says, and nothing to begin with.
    Followed,
    /// The same, and what the devices may write by that is remembered, for a log.
    Remembered,
}

/// What devices reach of the host's memory: the guest's, or less.
pub struct DmaSpace {
    // Dropped before the memory that it maps. None when the device that it followed the guest's unit for is gone.
    tables: Mutex<Option<Tables>>,
    ram: GuestRam,
    contents: Contents,
    filled: OnceLock<()>,
    /// If that is to be remembered.
    reached: Option<Mutex<Reached>>,
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaSpace")
            .field("tables", &*self.tables())
            .field("filled", &self.filled.get().is_some())
            .finish_non_exhaustive()
    }
}

impl DmaSpace {
    /// A space of a machine with memory `ram` for devices that are opened by `interface`, empty until one joins.
    pub fn new(
        kvm: &KvmVfio,
        ram: &GuestRam,
        contents: Contents,
        interface: Interface,
    ) -> Result<Arc<Self>, PassthroughError> {
        Ok(Arc::new(DmaSpace {
            tables: Mutex::new(Some(Tables::new(interface, Arc::clone(&kvm.0))?)),
            ram: ram.clone(),
            contents,
            filled: OnceLock::new(),
            reached: (contents == Contents::Remembered).then(Mutex::default),
        }))
    }

    /// Whether the host translates addresses of `bits` bits for the devices that have joined.
    ///
    /// # Errors
    ///
    /// [`PassthroughError::Narrow`], or VFIO does not say.
    pub fn check_width(&self, host: &HostFunction, bits: u8) -> Result<(), PassthroughError> {
        let address = || host.address.clone();
        let last = self.with(Tables::last_address);
        let last = last.map_err(|source| PassthroughError::Addresses {
            address: address(),
            source,
        })?;
        let has = last.map_or(u64::BITS, |last| {
            u64::BITS.saturating_sub(last.leading_zeros())
        });
        if has < bits.into() {
            return Err(PassthroughError::Narrow {
                address: address(),
                asked: bits,
                has,
            });
        }
        Ok(())
    }

    /// Lets a device in, and resets it.
    pub fn open(self: &Arc<Self>, host: &HostFunction) -> Result<VfioFunction, PassthroughError> {
        let refused = |source| refused(host, source);
        let operations = self.with(|tables| Ok(tables.operations()));
        let operations = operations.map_err(PassthroughError::Map)?;
        let device = VfioDevice::new(&host.path, operations, true).map_err(refused)?;
        let function = VfioFunction::new(device, Arc::clone(self));
        function
            .reset()
            .map_err(|source| match source.raw_os_error() {
                // vfio-pci's answer for a device without any way to reset it.
                Some(libc::EINVAL | libc::ENOTTY) => PassthroughError::NoReset {
                    address: host.address.clone(),
                },
                _ => PassthroughError::Reset {
                    address: host.address.clone(),
                    source,
                },
            })?;
        if self.contents == Contents::Everything {
            self.fill()?;
        }
        Ok(function)
    }

    fn tables(&self) -> MutexGuard<'_, Option<Tables>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, what: impl FnOnce(&Tables) -> io::Result<T>) -> io::Result<T> {
        match &*self.tables() {
            Some(tables) => what(tables),
            None => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }

    fn reached(&self) -> Option<MutexGuard<'_, Reached>> {
        let reached = self.reached.as_ref()?;
        Some(reached.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Closes `device`. The guest's unit may take back what was mapped at any time: it does so before, and the device loses it, or
    /// after, when there is nothing to lose.
    pub(super) fn end(&self, device: VfioDevice) {
        let mut tables = self.tables();
        drop(device);
        if self.contents != Contents::Everything {
            *tables = None;
        }
    }

    /// From now on it is logged what the devices may write.
    ///
    /// # Errors
    ///
    /// The host's, which has such a log.
    pub(super) fn start_log(&self) -> io::Result<()> {
        match self.reached() {
            Some(mut reached) => reached.start(Pages::none(ram_of(&self.ram))),
            None => self.with(Tables::start_log)?,
        }
        Ok(())
    }

    /// Adds what they may have written since then, or since this was asked last.
    ///
    /// # Errors
    ///
    /// The host's: of that time nothing can be said.
    pub(super) fn written(&self, pages: &mut Pages) -> io::Result<By> {
        if let Some(mut reached) = self.reached() {
            reached.written(pages);
            return Ok(By::Unit);
        }
        self.with(|tables| match tables.log()? {
            Log::Container(container) => {
                for range in ram_of(&self.ram) {
                    let start = range.start;
                    pages.add_bits(start, &dirty::written(container, range)?);
                }
                Ok(By::Container)
            }
            Log::None(why) => Ok(By::Nobody(why.to_owned())),
        })
    }

    /// It is not logged any more.
    ///
    /// # Errors
    ///
    /// The host's.
    pub(super) fn stop_log(&self) -> io::Result<()> {
        match self.reached() {
            Some(mut reached) => reached.stop(),
            None => self.with(Tables::stop_log)?,
        }
        Ok(())
    }

    /// Maps the guest's memory, once, when there is an IOMMU to do it.
    fn fill(&self) -> Result<(), PassthroughError> {
        if self.filled.get().is_some() {
            return Ok(());
        }
        self.with(|tables| tables.map_all(&self.ram))
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOMEM) => PassthroughError::Pin(error),
                _ => PassthroughError::Map(error),
            })?;
        let _ = self.filled.set(());
        Ok(())
    }
}

impl DmaTable for Arc<DmaSpace> {
    fn map(&mut self, piece: Mapping) -> io::Result<()> {
        self.with(|tables| tables.map(&self.ram, piece))?;
        if let Some(mut reached) = self.reached() {
            reached.map(piece);
        }
        Ok(())
    }

    fn unmap(&mut self, piece: Mapping) -> io::Result<()> {
        if let Some(tables) = &*self.tables() {
            tables.unmap(piece)?;
        }
        if let Some(mut reached) = self.reached() {
            reached.unmap(piece);
        }
        Ok(())
    }
}

fn ram_of(ram: &GuestRam) -> impl Iterator<Item = Range<u64>> {
    ram.iter().map(|region| {
        let start = region.start_addr().0;
        start..start.saturating_add(region.len())
    })
}
