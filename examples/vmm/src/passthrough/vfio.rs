// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The function in the host, by VFIO's files.

use super::error::PassthroughError;
use super::hardware::{PhysicalFunction, Region, Signals};
use super::host::{HostFunction, VFIO};
use super::pages::Pages;
use super::space::DmaSpace;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, VFIO_TYPE,
};
use vfio_ioctls::{VfioDevice, VfioError, VfioRegionInfoCap};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl;

/// `VFIO_DEVICE_RESET`, a command without argument.
const VFIO_DEVICE_RESET: std::ffi::c_ulong = ((VFIO_TYPE as u64) << 8) | (VFIO_BASE as u64 + 11);
/// No interrupt index of VFIO's: none is in use.
const NO_INDEX: u32 = u32::MAX;

/// What VFIO's refusal of `host` means.
pub(super) fn refused(host: &HostFunction, source: VfioError) -> PassthroughError {
    let address = host.address.clone();
    let group = host.group;
    let denied = |file: PathBuf| PassthroughError::Denied {
        address: host.address.clone(),
        file,
    };
    match &source {
        VfioError::OpenGroup(error, _) if error.raw_os_error() == Some(libc::EBUSY) => {
            PassthroughError::Busy { address, group }
        }
        VfioError::VfioDeviceBindIommufd(error) if error.errno() == libc::EBUSY => {
            PassthroughError::Busy { address, group }
        }
        // What the kernel says to the second who opens a character device, among others.
        VfioError::VfioDeviceBindIommufd(error) if error.errno() == libc::EINVAL => {
            PassthroughError::NotBindable { address, source }
        }
        VfioError::OpenGroup(error, _) if error.kind() == io::ErrorKind::PermissionDenied => {
            denied(Path::new(VFIO).join(group.to_string()))
        }
        VfioError::OpenDeviceCdev(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            denied(host.cdev.clone().unwrap_or_default())
        }
        // What the kernel says to a group whose interrupts are not isolated.
        VfioError::ContainerSetIOMMU(error) | VfioError::VfioDeviceBindIommufd(error)
            if error.errno() == libc::EPERM =>
        {
            PassthroughError::NoInterruptRemapping { address }
        }
        _ => PassthroughError::Refused { address, source },
    }
}

/// An open device.
pub struct VfioFunction {
    // Closed before the space in which its DMA goes.
    device: VfioDevice,
    /// VFIO's index of the interrupts in use.
    index: AtomicU32,
    space: Arc<DmaSpace>,
}

impl fmt::Debug for VfioFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioFunction")
            .field("fd", &self.device.as_raw_fd())
            .finish_non_exhaustive()
    }
}

impl VfioFunction {
    /// `device`, whose DMA goes in `space`.
    pub(super) fn new(device: VfioDevice, space: Arc<DmaSpace>) -> Self {
        VfioFunction {
            device,
            index: AtomicU32::new(NO_INDEX),
            space,
        }
    }

    /// Has `event` written when the host wants the device back.
    pub fn tell_when_wanted(&self, event: &EventFd) {
        if let Err(error) = self.device.enable_irq(VFIO_PCI_REQ_IRQ_INDEX, vec![event]) {
            log::warn!("if the host wants the device back, nobody will know: {error}");
        }
    }

    fn count(&self, index: u32) -> u32 {
        self.device.get_irq_info(index).map_or(0, |irq| irq.count)
    }

    fn enable(&self, index: u32, events: &[&EventFd]) -> Result<(), VfioError> {
        if events.is_empty() {
            return Ok(());
        }
        self.device.enable_irq(index, events.to_vec())?;
        self.index.store(index, Ordering::Relaxed);
        Ok(())
    }
}

impl PhysicalFunction for VfioFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        let region = VFIO_PCI_CONFIG_REGION_INDEX;
        self.device.region_read(region, data, offset.into());
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let region = VFIO_PCI_CONFIG_REGION_INDEX;
        self.device.region_write(region, data, offset.into());
    }

    fn region(&self, bar: u8) -> Region {
        const NEEDED: u32 =
            VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE | VFIO_REGION_INFO_FLAG_MMAP;
        let index = u32::from(bar);
        let length = self.device.get_region_size(index);
        let caps = self.device.get_region_caps(index);
        let sparse = caps.iter().find_map(|cap| match cap {
            VfioRegionInfoCap::SparseMmap(sparse) => Some(&sparse.areas),
            _ => None,
        });
        let mappable = match sparse {
            _ if self.device.get_region_flags(index) & NEEDED != NEEDED => Vec::new(),
            Some(areas) => areas
                .iter()
                .filter_map(|area| Some(area.offset..area.offset.checked_add(area.size)?))
                .collect(),
            None => std::iter::once(0..length).collect(),
        };
        Region { length, mappable }
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        self.device.region_read(bar.into(), data, offset);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.device.region_write(bar.into(), data, offset);
    }

    #[expect(unsafe_code, reason = "vfio-ioctls gives its file as a number")]
    fn pages(&self, bar: u8, range: Range<u64>) -> io::Result<Pages> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
        let offset = self.device.get_region_offset(bar.into());
        let offset = offset.checked_add(range.start).ok_or_else(wrong)?;
        let length = range.end.checked_sub(range.start).ok_or_else(wrong)?;
        let length = usize::try_from(length).map_err(|_| wrong())?;
        // SAFETY: the device's file is open for as long as `self`, and the borrow ends in this call.
        let file = unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) };
        Pages::map(file, offset, length)
    }

    fn has_pin(&self) -> bool {
        self.count(VFIO_PCI_INTX_IRQ_INDEX) == 1
    }

    fn signal(&self, signals: Signals<'_>) -> io::Result<()> {
        let before = self.index.swap(NO_INDEX, Ordering::Relaxed);
        if before != NO_INDEX {
            self.device.disable_irq(before).map_err(|error| {
                self.index.store(before, Ordering::Relaxed);
                io::Error::other(error)
            })?;
        }
        match signals {
            Signals::Off => Ok(()),
            Signals::Pin { trigger, resample } => self
                .enable(VFIO_PCI_INTX_IRQ_INDEX, &[trigger])
                .and_then(|()| {
                    self.device
                        .set_irq_resample_fd(VFIO_PCI_INTX_IRQ_INDEX, vec![resample])
                }),
            Signals::Msi(events) => self.enable(VFIO_PCI_MSI_IRQ_INDEX, &references(events)),
            Signals::Msix(events) => self.enable(VFIO_PCI_MSIX_IRQ_INDEX, &references(events)),
        }
        .map_err(io::Error::other)
    }

    #[expect(
        unsafe_code,
        reason = "vfio-ioctls does not say whether a reset succeeded"
    )]
    fn reset(&self) -> io::Result<()> {
        // SAFETY: this command takes no argument, so the kernel touches no memory of this process.
        match unsafe { ioctl(&self.device, VFIO_DEVICE_RESET) } {
            0 => Ok(()),
            _ => Err(errno::Error::last().into()),
        }
    }

    fn close(self: Box<Self>) {
        let VfioFunction { device, space, .. } = *self;
        space.end(device);
    }
}

fn references(events: &[EventFd]) -> Vec<&EventFd> {
    events.iter().collect()
}
