// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device that carries vhost-user, assigned to this process: its registers, its vectors, its queues.

use super::device::Device;
use super::ring::{LENGTH, Ring, SIZE, Writer};
use super::{ProgramError, watch};
use hvkit_virtio_devices::patience::end_of;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vfio_bindings::bindings::vfio::{VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX};
use vfio_ioctls::VfioDevice;
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, FileOffset};
use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Vendor of virtio devices, and the device of this kind.
const VENDOR: u16 = 0x1af4;
const KIND: u16 = 0x1040 + 43;

/// By what address the device reaches our memory.
const IOVA: u64 = 0x10_0000;
/// Bytes of the two queues.
const DMA_LENGTH: usize = 2 * LENGTH as usize;

/// VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM, in the second word.
const FEATURES: u32 = 0b11;
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 0x40;
/// How long a reset may take, and a message.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the device is looked at that has not said anything.
const LOOK: Duration = Duration::from_millis(100);

/// VIRTIO_VHOST_USER_STATUS_BACKEND_UP and _FRONTEND_UP.
const BACKEND_UP: u32 = 1;
const FRONTEND_UP: u32 = 2;

/// Vectors: changes of configuration, the two queues, then notifications.
pub(super) const CONFIG_VECTOR: usize = 0;
pub(super) const RECEIVE_VECTOR: usize = 1;
const TRANSMIT_VECTOR: usize = 2;
const NOTIFICATION_VECTORS: usize = 3;

pub(super) const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// The values of `cfg_type` that are needed.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE_CONFIG: u8 = 4;
const DOORBELLS: u8 = 6;
const NOTIFICATIONS: u8 = 7;
const SHARED_MEMORY: u8 = 8;

/// Where a structure is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Structure {
    bar: u8,
    offset: u64,
    /// What follows a capability: bytes between two of what it has.
    stride: u64,
}

/// Finds the structures in configuration space.
fn structures(config: &[u8]) -> impl Fn(u8) -> Option<Structure> + '_ {
    let byte = |at: usize| config.get(at).copied();
    move |cfg_type| {
        let mut at = usize::from(byte(0x34)?);
        // As many as there is room for.
        for _ in 0..48 {
            if at == 0 {
                return None;
            }
            let capability = config.get(at..)?;
            let word = |at: usize| {
                let bytes = capability.get(at..)?.first_chunk()?;
                Some(u64::from(u32::from_le_bytes(*bytes)))
            };
            let [id, next, rest @ ..] = capability else {
                return None;
            };
            if *id == 9 && *rest.get(1)? == cfg_type {
                return Some(Structure {
                    bar: *rest.get(2)?,
                    offset: word(8)?,
                    stride: word(16)?,
                });
            }
            at = (*next).into();
        }
        None
    }
}

/// An assigned function, reset, with its queues.
pub struct Function {
    device: Device,
    pub(super) receive: Ring,
    pub(super) transmit: Ring,
    vectors: Vec<EventFd>,
    common: Structure,
    notify: Structure,
    config: Structure,
    doorbells: Structure,
    notifications: Structure,
    /// Offset of the other machine's memory in the file of `window`.
    pub(super) memory: u64,
    /// The file of the BAR with doorbells, notifications and memory.
    pub(super) resource: File,
    /// Its beginning: all but the memory.
    window: MmapRegion,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("memory", &self.memory)
            .field("vectors", &self.vectors.len())
            .finish_non_exhaustive()
    }
}

impl Function {
    /// Opens the function whose folder in sysfs is `path`, resets it and sets its queues up.
    pub fn open(path: &Path) -> Result<Self, ProgramError> {
        let device = Device::open(path, IOVA, DMA_LENGTH)?;
        let vfio = device.vfio();
        let mut config = [0; 256];
        vfio.region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut config, 0);
        let [v0, v1, d0, d1, ..] = config;
        let (vendor, kind) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1]));
        if (vendor, kind) != (VENDOR, KIND) {
            return Err(ProgramError::Kind(path.to_path_buf(), vendor, kind));
        }
        let find = structures(&config);
        let place = |cfg_type, what| find(cfg_type).ok_or(ProgramError::Lacks(what));
        let doorbells = place(DOORBELLS, "doorbells")?;
        let notifications = place(NOTIFICATIONS, "notifications")?;
        let memory = place(SHARED_MEMORY, "window for memory")?;
        let bar = memory.bar;
        if doorbells.bar != bar || notifications.bar != bar {
            return Err(ProgramError::Wrong("has its resources in several windows"));
        }
        let resource = path.join(format!("resource{bar}"));
        let resource = File::options().read(true).write(true).open(resource)?;
        let before = usize::try_from(memory.offset).unwrap_or(usize::MAX);
        let file = FileOffset::new(resource.try_clone()?, 0);
        let window = MmapRegion::from_file(file, before).map_err(std::io::Error::other)?;
        let count = vfio
            .get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX)
            .map_or(0, |info| info.count);
        if (count as usize) <= NOTIFICATION_VECTORS {
            return Err(ProgramError::Lacks("vectors for its notifications"));
        }
        let vector = |_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let vectors = (0..count).map(vector).collect::<Result<Vec<_>, _>>()?;
        let dma = device.memory().clone();
        let mut function = Function {
            receive: Ring::new(dma.clone(), IOVA, Writer::Device),
            transmit: Ring::new(dma, IOVA + LENGTH, Writer::Driver),
            common: place(COMMON, "common configuration")?,
            notify: place(NOTIFY, "notification addresses")?,
            config: place(DEVICE_CONFIG, "configuration")?,
            device,
            vectors,
            doorbells,
            notifications,
            memory: memory.offset,
            resource,
            window,
        };
        function.start()?;
        Ok(function)
    }

    fn vfio(&self) -> &VfioDevice {
        self.device.vfio()
    }

    fn read<const N: usize>(&self, structure: Structure, offset: u64) -> [u8; N] {
        let mut raw = [0; N];
        let at = structure.offset.saturating_add(offset);
        self.vfio().region_read(structure.bar.into(), &mut raw, at);
        raw
    }

    fn write(&self, structure: Structure, offset: u64, raw: &[u8]) {
        let at = structure.offset.saturating_add(offset);
        self.vfio().region_write(structure.bar.into(), raw, at);
    }

    /// From reset to DRIVER_OK. virtio, "Device Initialization" (3.1).
    fn start(&mut self) -> Result<(), ProgramError> {
        let common = self.common;
        // Memory space and bus master.
        self.vfio()
            .region_write(VFIO_PCI_CONFIG_REGION_INDEX, &6u16.to_le_bytes(), 4);
        let status = |function: &Self, status: u8| {
            function.write(common, 0x14, &[status]);
            function.read::<1>(common, 0x14)[0]
        };
        let end = end_of(PATIENCE);
        while status(self, 0) != 0 {
            if Instant::now() > end {
                return Err(ProgramError::Wrong("is not reset"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.vfio().enable_msix(self.vectors.iter().collect())?;
        status(self, ACKNOWLEDGE | DRIVER);
        self.write(common, 0x00, &1u32.to_le_bytes());
        let offered = u32::from_le_bytes(self.read(common, 0x04));
        for (word, features) in [(0u32, 0u32), (1, FEATURES & offered)] {
            self.write(common, 0x08, &word.to_le_bytes());
            self.write(common, 0x0c, &features.to_le_bytes());
        }
        let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        if status(self, ready) & FEATURES_OK == 0 {
            return Err(ProgramError::Wrong("does not take our features"));
        }
        self.write(common, 0x10, &(CONFIG_VECTOR as u16).to_le_bytes());
        for (queue, vector, areas) in [
            (RECEIVE, RECEIVE_VECTOR, self.receive.areas()),
            (TRANSMIT, TRANSMIT_VECTOR, self.transmit.areas()),
        ] {
            self.write(common, 0x16, &queue.to_le_bytes());
            self.write(common, 0x18, &SIZE.to_le_bytes());
            self.write(common, 0x1a, &(vector as u16).to_le_bytes());
            for (offset, area) in [0x20u64, 0x28, 0x30].into_iter().zip(areas) {
                self.write(common, offset, &(area as u32).to_le_bytes());
                let high = ((area >> 32) as u32).to_le_bytes();
                self.write(common, offset.saturating_add(4), &high);
            }
            self.write(common, 0x1c, &1u16.to_le_bytes());
        }
        status(self, ready | DRIVER_OK);
        for index in 0..self.queues() {
            let selector = self.notifications.offset;
            self.set_register(selector, index)?;
            let vector = index.saturating_add(NOTIFICATION_VECTORS as u16);
            self.set_register(selector.saturating_add(2), vector)?;
        }
        for index in 0..SIZE {
            self.receive.offer(index, &[])?;
        }
        self.notify(RECEIVE);
        Ok(())
    }

    /// Writes a register of the window.
    fn set_register(&self, offset: u64, value: u16) -> Result<(), ProgramError> {
        let window = vm_memory::VolatileMemory::as_volatile_slice(&self.window);
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let stored = window.store(value.to_le(), at, Ordering::Release);
        stored.map_err(|_| ProgramError::Wrong("has a register outside its window"))
    }

    /// Sends a message to the other machine, and waits until the device has taken it. What nobody waits for is dropped
    /// there.
    pub fn send(&mut self, message: &[u8]) -> Result<(), ProgramError> {
        let epoll = Epoll::new()?;
        let taken = self.vector(TRANSMIT_VECTOR)?;
        watch(&epoll, taken, 0)?;
        self.transmit.offer(0, message)?;
        self.notify(TRANSMIT);
        let end = end_of(PATIENCE);
        while self.transmit.take()?.is_none() {
            if self.read::<1>(self.common, 0x14)[0] & NEEDS_RESET != 0 {
                return Err(ProgramError::Wrong("has failed, and needs a reset"));
            }
            if Instant::now() > end {
                return Err(ProgramError::Wrong("does not carry a message"));
            }
            super::wait(&epoll, Some(LOOK))?;
            // Before looking. An error means that there was none.
            let _ = self.vector(TRANSMIT_VECTOR)?.read();
        }
        Ok(())
    }

    /// Resets it and leaves it to the end of the process, which is near: VFIO's library looks for files when it gives a
    /// device back, and a process that is confined has none any more.
    pub(super) fn leave(self) {
        self.reset();
        std::mem::forget(self);
    }

    /// It hangs up, and reaches nothing any more.
    fn reset(&self) {
        self.write(self.common, 0x14, &[0]);
    }

    /// Takes the memory of the queues from the device: whatever it is told from now on, it reaches nothing.
    pub fn unmap(&self) -> Result<(), ProgramError> {
        self.device.unmap()
    }

    /// How many queues the other machine's device can have.
    pub(super) fn queues(&self) -> u16 {
        let most = u32::from_le_bytes(self.read(self.config, 4));
        let vectors = self.vectors.len().saturating_sub(NOTIFICATION_VECTORS);
        u16::try_from(most as usize)
            .map_or(u16::MAX, |most| most)
            .min(vectors as u16)
    }

    /// Tells the device that the other machine may connect.
    pub fn want(&self) {
        self.write(self.config, 0, &BACKEND_UP.to_le_bytes());
    }

    /// Whether it is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        u32::from_le_bytes(self.read(self.config, 0)) & FRONTEND_UP != 0
    }

    /// Notifies the device of a queue.
    pub(super) fn notify(&self, queue: u16) {
        let at = u64::from(queue).saturating_mul(self.notify.stride);
        self.write(self.notify, at, &queue.to_le_bytes());
    }

    /// Tells the other machine's driver of its queue `index`.
    pub(super) fn ring(&self, index: u16) -> Result<(), ProgramError> {
        let at = u64::from(index).saturating_mul(self.doorbells.stride);
        self.set_register(self.doorbells.offset.saturating_add(at), index)
    }

    /// A vector's event.
    pub fn vector(&self, index: usize) -> Result<&EventFd, ProgramError> {
        self.vectors
            .get(index)
            .ok_or(ProgramError::Lacks("such a vector"))
    }

    /// The event of notification `index`.
    pub(super) fn notification(&self, index: u16) -> Result<&EventFd, ProgramError> {
        self.vector(NOTIFICATION_VECTORS.saturating_add(index.into()))
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        // Before its memory is taken from it.
        self.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(capabilities: &[(u8, &[u8])]) -> Vec<u8> {
        let mut config = vec![0; 256];
        let mut link = 0x34;
        for (at, bytes) in capabilities {
            let at = usize::from(*at);
            config[link] = at as u8;
            config[at..at + bytes.len()].copy_from_slice(bytes);
            link = at + 1;
        }
        config
    }

    #[test]
    fn structures_are_found_by_their_type() {
        let doorbells = [9, 0, 20, 6, 2, 0, 0, 0, 0, 1, 0, 0, 64, 0, 0, 0, 4, 0, 0, 0];
        let msix = [0x11, 0, 18, 0, 0, 0, 0, 0];
        let config = config(&[(0x50, &msix), (0x60, &doorbells)]);
        let place = Structure {
            bar: 2,
            offset: 0x100,
            stride: 4,
        };
        assert_eq!(structures(&config)(6), Some(place));
        assert_eq!(structures(&config)(7), None);
    }

    #[test]
    fn a_list_that_makes_no_sense_ends() {
        // In a circle; out of the space; nothing at all.
        let circle = config(&[(0x50, &[5, 0]), (0x60, &[5, 0x50])]);
        assert_eq!(structures(&circle)(6), None);
        let cut = config(&[(0xf8, &[9, 0, 20, 6, 2])]);
        assert_eq!(structures(&cut)(6), None);
        assert_eq!(structures(&[])(6), None);
    }
}
