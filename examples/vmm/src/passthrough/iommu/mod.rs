// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's IOMMU, as the kernel programs it for one set of devices: by VFIO's container, or by iommufd.
//!
//! | | container | iommufd |
//! |---|---|---|
//! | opened | `/dev/vfio/vfio`, then `/dev/vfio/GROUP` | `/dev/iommu`, then `/dev/vfio/devices/vfioN` |
//! | tables | the container's | an I/O address space (IOAS) |
//! | to map | `VFIO_IOMMU_MAP_DMA` | `IOMMU_IOAS_MAP` |
//! | to take back what was not mapped | done | `ENOENT`, as for a part of what was mapped |

mod container;
pub(super) mod dirty;
mod ioas;

use super::error::PassthroughError;
use super::selection::Interface;
use crate::machine::memory::GuestRam;
use hvkit_vtd_iommu::emulation::Mapping;
use ioas::Ioas;
use iommufd_ioctls::IommufdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use vfio_ioctls::{VfioContainer, VfioDeviceFd, VfioError, VfioOps};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::errno;

/// What one set of devices reaches.
pub(super) enum Tables {
    /// By VFIO's group.
    Container(Arc<VfioContainer>),
    /// By VFIO's character device.
    Ioas(Ioas),
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tables::Container(_) => "Container",
            Tables::Ioas(_) => "Ioas",
        })
    }
}

impl Tables {
    /// Empty ones, for devices that are opened by `interface`. KVM's half of VFIO is told of these devices.
    pub(super) fn new(
        interface: Interface,
        kvm: Arc<VfioDeviceFd>,
    ) -> Result<Self, PassthroughError> {
        let refused = |source| PassthroughError::Refused {
            address: "this host".to_owned(),
            source,
        };
        Ok(match interface {
            Interface::Group => {
                let container = VfioContainer::new(Some(kvm)).map_err(|error| match error {
                    VfioError::OpenContainer(error) => PassthroughError::NoVfio(error),
                    source => refused(source),
                })?;
                Tables::Container(Arc::new(container))
            }
            Interface::Cdev => Tables::Ioas(Ioas::new(kvm).map_err(|error| match error {
                VfioError::NewVfioIommufd(IommufdError::OpenIommufd(error)) => {
                    PassthroughError::OpenIommu(error)
                }
                source => refused(source),
            })?),
        })
    }

    /// By which a device joins.
    pub(super) fn operations(&self) -> Arc<dyn VfioOps> {
        match self {
            Tables::Container(container) => Arc::clone(container) as _,
            Tables::Ioas(ioas) => ioas.operations(),
        }
    }

    /// Maps the memory of the guest that `piece` leads to.
    pub(super) fn map(&self, ram: &GuestRam, piece: Mapping) -> io::Result<()> {
        match self {
            Tables::Container(container) => container::map(container, ram, piece),
            Tables::Ioas(ioas) => ioas.map(ram, piece),
        }
    }

    /// Maps all of the guest's memory, where the guest has it.
    pub(super) fn map_all(&self, ram: &GuestRam) -> io::Result<()> {
        ram.iter().try_for_each(|region| {
            let first = region.start_addr().0;
            let piece = Mapping {
                first,
                last: region.last_addr().0,
                target: first,
                reads: true,
                writes: true,
            };
            self.map(ram, piece)
        })
    }

    /// Takes back what [`map`](Self::map) mapped, or refused. When it returns, no device reaches it.
    pub(super) fn unmap(&self, piece: Mapping) -> io::Result<()> {
        match self {
            Tables::Container(container) => container::unmap(container, piece),
            Tables::Ioas(ioas) => ioas.unmap(piece),
        }
    }

    /// The last address that the host translates for the devices that have joined; none if it does not say.
    pub(super) fn last_address(&self) -> io::Result<Option<u64>> {
        match self {
            Tables::Container(container) => {
                let info = container::info(container)?;
                Ok(container::last_address(&info))
            }
            Tables::Ioas(ioas) => ioas.last_address(),
        }
    }
}

/// Who logs what the devices of some tables write.
pub(super) enum Log<'a> {
    /// VFIO's container.
    Container(&'a VfioContainer),
    /// Nobody, and why.
    None(&'static str),
}

impl Tables {
    /// Who logs for them.
    pub(super) fn log(&self) -> io::Result<Log<'_>> {
        Ok(match self {
            Tables::Container(container) => match dirty::is_offered(container) {
                Ok(true) => Log::Container(container),
                Ok(false) => Log::None("this kernel's VFIO has no log"),
                // What a container without devices says to everything.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    Log::None("the host has all devices back")
                }
                Err(error) => return Err(error),
            },
            Tables::Ioas(_) => {
                Log::None("iommufd's log, which is the IOMMU hardware's, is not used")
            }
        })
    }

    /// Begins to log, if anybody does.
    pub(super) fn start_log(&self) -> io::Result<()> {
        match self.log()? {
            Log::Container(container) => dirty::start(container),
            Log::None(_) => Ok(()),
        }
    }

    /// Ends it.
    pub(super) fn stop_log(&self) -> io::Result<()> {
        match self.log()? {
            Log::Container(container) => dirty::stop(container),
            Log::None(_) => Ok(()),
        }
    }
}

fn done(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(errno::Error::last().into()),
    }
}

/// How many bytes `piece` has.
///
/// # Errors
///
/// `InvalidInput`: it ends before it begins, or has 2^64 bytes, which no request of VFIO's can say.
pub(crate) fn size(piece: Mapping) -> io::Result<u64> {
    let size = piece.last.checked_sub(piece.first);
    let size = size.and_then(|less_one| less_one.checked_add(1));
    size.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Where this process has the memory that `piece` leads to.
///
/// # Errors
///
/// `InvalidInput`: not all of it is in one region.
fn memory(ram: &GuestRam, piece: Mapping) -> io::Result<u64> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    let length = usize::try_from(size(piece)?).map_err(|_| wrong())?;
    // In one region of memory: else there is no such slice.
    let slice = ram
        .get_slice(GuestAddress(piece.target), length)
        .map_err(|_| wrong())?;
    Ok(slice.ptr_guard().as_ptr() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_no_request_can_say_are_refused() {
        let piece = |first, last| Mapping {
            first,
            last,
            target: 0,
            reads: true,
            writes: true,
        };
        let bytes = |first, last| size(piece(first, last)).map_err(|error| error.kind());
        assert_eq!(bytes(0x1000, 0x1fff), Ok(0x1000));
        assert_eq!(bytes(1, u64::MAX), Ok(u64::MAX));
        assert_eq!(bytes(0, u64::MAX), Err(io::ErrorKind::InvalidInput));
        assert_eq!(bytes(0x2000, 0x1fff), Err(io::ErrorKind::InvalidInput));
    }
}
