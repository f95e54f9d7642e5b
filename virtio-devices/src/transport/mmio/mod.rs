// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio over memory-mapped registers, version 2, for machines without PCI.
//!
//! ```text
//!   000 "virt"  version  device  vendor     030 queue: select, size, ready     060 interrupts
//!   010 features                            050 notify                         070 status
//!   0fc generation                          080 queue: three addresses         100 device configuration
//! ```
//!
//! A window of 512 bytes and the device's configuration, one interrupt line that is level-triggered, and one
//! doorbell at which the value says which queue.
//!
//! "Virtio Over MMIO" (4.2).

mod interrupts;

use std::sync::Arc;

use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use self::interrupts::MmioInterrupts;
use super::queue_registers::Half;
use super::session::{Holds, Outcome, Session};
use super::state::{RestoreError, SaveError, SessionState};
use crate::device::{Device, Failure, Interrupts, Trouble};
use crate::features::Features;
use crate::pci::InterruptLine;
use crate::queue::MAX_SIZE;
use crate::worker::Runner;

/// Bytes of the window that a device needs.
pub const LENGTH: u64 = 0x1000;
/// Offset of the register that a driver notifies the device by.
pub const NOTIFY: u64 = register::QUEUE_NOTIFY;

/// Offsets of the registers.
mod register {
    pub(super) const MAGIC: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC: u64 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(super) const QUEUE_DRIVER: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(super) const QUEUE_DEVICE: u64 = 0x0a0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// Length and base of a shared memory region: all ones, there is none.
    pub(super) const SHM: std::ops::Range<u64> = 0x0b0..0x0c0;
    pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(super) const CONFIG: u64 = 0x100;
}

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Ours to choose; this one spells "HVKT".
const VENDOR: u32 = 0x544b_5648;

/// Why a device cannot be put behind such registers.
#[derive(Debug, thiserror::Error)]
pub enum MmioError {
    /// More queues than 16 bits can number.
    #[error("{count} queues")]
    Queues {
        /// The device's.
        count: usize,
    },
    /// A queue that no driver could use.
    #[error("queue {index} of at most {size} descriptors")]
    QueueSize {
        /// Which one.
        index: usize,
        /// What the device offers.
        size: u16,
    },
    /// The host has no event file descriptor left.
    #[error("no event for a queue")]
    Event(#[source] std::io::Error),
}

/// The registers that say which of many the others are about.
#[derive(Clone, Copy, Debug, Default)]
struct Selectors {
    device_features: u32,
    driver_features: u32,
    queue: u32,
}

/// A device that was saved, as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct MmioState {
    /// The device and its queues.
    pub session: SessionState,
    /// DeviceFeaturesSel, DriverFeaturesSel, QueueSel.
    pub selectors: [u32; 3],
    /// InterruptStatus.
    pub pending: u32,
    /// ConfigGeneration.
    pub generation: u32,
}

/// A virtio device behind memory-mapped registers.
pub struct VirtioMmio<A> {
    selectors: Selectors,
    session: Session<A>,
    interrupts: Arc<MmioInterrupts>,
}

impl<A> std::fmt::Debug for VirtioMmio<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioMmio")
            .field("selectors", &self.selectors)
            .finish_non_exhaustive()
    }
}

impl<A: GuestAddressSpace> VirtioMmio<A> {
    /// Puts `device` behind registers: its DMA goes through `memory`, its interrupt is `line`, and its workers are
    /// run by `runner`.
    pub fn new(
        device: Box<dyn Device<A>>,
        memory: A,
        line: Arc<dyn InterruptLine>,
        runner: Box<dyn Runner>,
    ) -> Result<Self, MmioError> {
        let sizes = device.queue_sizes();
        if u16::try_from(sizes.len()).is_err() {
            return Err(MmioError::Queues { count: sizes.len() });
        }
        let usable = |size: &u16| size.is_power_of_two() && *size <= MAX_SIZE;
        let mut numbered = sizes.iter().copied().enumerate();
        if let Some((index, size)) = numbered.find(|(_, size)| !usable(size)) {
            return Err(MmioError::QueueSize { index, size });
        }
        let session = Session::new(device, memory, runner, Features::NOTIFICATION_DATA)
            .map_err(MmioError::Event)?;
        let interrupts = Arc::new(MmioInterrupts::new(line, session.shared_status()));
        Ok(Self {
            selectors: Selectors::default(),
            session,
            interrupts,
        })
    }

    /// As [`VirtioPci::with_access_platform`](super::pci::VirtioPci::with_access_platform).
    #[must_use]
    pub fn with_access_platform(mut self) -> Self {
        self.session.offer(Features::ACCESS_PLATFORM);
        self
    }

    /// Does not offer VIRTIO_F_NOTIFICATION_DATA: drivers write a queue's number and nothing else to [`NOTIFY`], as a
    /// kernel that signals [`doorbells`](Self::doorbells) by comparing the value needs it.
    #[must_use]
    pub fn without_notification_data(mut self) -> Self {
        self.session.withdraw(Features::NOTIFICATION_DATA);
        self
    }

    /// As [`VirtioPci::without_packed_rings`](super::pci::VirtioPci::without_packed_rings).
    #[must_use]
    pub fn without_packed_rings(mut self) -> Self {
        self.session.withdraw(Features::RING_PACKED);
        self
    }

    /// As [`VirtioPci::with_report`](super::pci::VirtioPci::with_report).
    #[must_use]
    pub fn with_report(self, report: impl Fn(&Failure) + Send + Sync + 'static) -> Self {
        self.interrupts.lock().set_report(Arc::new(report));
        self
    }

    /// As [`VirtioPci::with_trouble_report`](super::pci::VirtioPci::with_trouble_report).
    #[must_use]
    pub fn with_trouble_report(self, report: impl Fn(&Trouble) + Send + Sync + 'static) -> Self {
        self.interrupts.lock().set_trouble_report(Arc::new(report));
        self
    }

    /// As [`VirtioPci::pause`](super::pci::VirtioPci::pause).
    pub fn pause(&mut self) {
        let interrupts: Arc<dyn Interrupts> = self.interrupts.clone();
        self.session.hold(Holds::PAUSED, &interrupts);
        self.finish_stopping();
    }

    /// Completes the stops of queues that have begun, if they can be.
    fn finish_stopping(&mut self) {
        let interrupts: Arc<dyn Interrupts> = self.interrupts.clone();
        self.session.finish_stopping(&interrupts);
    }

    /// Lets the workers go on.
    pub fn resume(&mut self) {
        let interrupts: Arc<dyn Interrupts> = self.interrupts.clone();
        self.session.release(Holds::PAUSED, &interrupts);
    }

    /// What the device is in the middle of. It must be paused.
    ///
    /// # Errors
    ///
    /// [`SaveError`]: it is not paused, or the device behind it cannot be saved.
    pub fn save(&self) -> Result<MmioState, SaveError> {
        let Selectors {
            device_features,
            driver_features,
            queue,
        } = self.selectors;
        let mut interrupts = self.interrupts.lock();
        Ok(MmioState {
            session: self.session.save()?,
            selectors: [device_features, driver_features, queue],
            pending: interrupts.pending(),
            generation: interrupts.generation(),
        })
    }

    /// As [`VirtioPci::restore`](super::pci::VirtioPci::restore).
    ///
    /// # Errors
    ///
    /// [`RestoreError`]; the device is as it was.
    pub fn restore(&mut self, state: &MmioState) -> Result<(), RestoreError> {
        let interrupts: Arc<dyn Interrupts> = self.interrupts.clone();
        // A device that finds its configuration changed by the move says so; it is told by the registers that follow.
        self.interrupts.lock().keep_news();
        let restored = self.session.restore(&state.session, &interrupts);
        if restored.is_err() {
            self.interrupts.lock().tell();
        }
        restored?;
        let [device_features, driver_features, queue] = state.selectors;
        self.selectors = Selectors {
            device_features,
            driver_features,
            queue,
        };
        let mut interrupts = self.interrupts.lock();
        interrupts.restore(state.pending, state.generation);
        interrupts.tell();
        Ok(())
    }

    /// One event a queue, in order: a kernel may signal it when the queue's number is written to [`NOTIFY`] as 32
    /// bits (KVM's ioeventfd with a data match).
    pub fn doorbells(&self) -> &[EventFd] {
        self.session.kicks()
    }

    /// Reads registers: any length, any alignment. What is not a register, or not all of one, is zero.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            self.session.config_read(offset, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            let value = self.register(offset);
            data.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Writes registers: "the driver MUST only use 32 bit wide and aligned reads and writes" (4.2.2.2) to those
    /// below the device's configuration; others are dropped.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            self.session.config_write(offset, data);
        } else if offset.is_multiple_of(4)
            && let Ok(raw) = <[u8; 4]>::try_from(data)
        {
            self.set(offset, u32::from_le_bytes(raw));
        }
    }

    fn register(&mut self, offset: u64) -> u32 {
        let Selectors {
            device_features,
            queue,
            ..
        } = self.selectors;
        if offset == register::QUEUE_READY {
            // The driver reads it until the queue is stopped (4.2.2.2).
            self.finish_stopping();
        }
        let queue = u16::try_from(queue)
            .ok()
            .and_then(|index| self.session.queue(index));
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.session.device_type().0.into(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => self.session.offered(device_features),
            register::QUEUE_SIZE_MAX => queue.map_or(0, |queue| queue.max().into()),
            register::QUEUE_READY => queue.map_or(0, |queue| queue.is_enabled().into()),
            register::INTERRUPT_STATUS => self.interrupts.lock().pending(),
            register::STATUS => {
                let (status, outcome) = self.session.status();
                self.after(outcome);
                status.bits().into()
            }
            offset if register::SHM.contains(&offset) => u32::MAX,
            register::CONFIG_GENERATION => self.interrupts.lock().generation(),
            _ => 0,
        }
    }

    fn set(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.selectors.device_features = value,
            register::DRIVER_FEATURES_SEL => self.selectors.driver_features = value,
            register::DRIVER_FEATURES => {
                self.session.accept(self.selectors.driver_features, value);
            }
            register::QUEUE_SEL => self.selectors.queue = value,
            register::QUEUE_NOTIFY => self.notify(value),
            register::INTERRUPT_ACK => self.interrupts.lock().acknowledge(value),
            // The other bits are reserved.
            register::STATUS => {
                let interrupts: Arc<dyn Interrupts> = self.interrupts.clone();
                let outcome = self.session.set_status(value as u8, &interrupts);
                self.after(outcome);
            }
            _ => self.set_queue(offset, value),
        }
    }

    fn set_queue(&mut self, offset: u64, value: u32) {
        let layout = self.session.layout();
        let Ok(index) = u16::try_from(self.selectors.queue) else {
            return;
        };
        if (offset, value) == (register::QUEUE_READY, 0) {
            let interrupts: Arc<dyn Interrupts> = self.interrupts.clone();
            self.session.stop_queue(index, &interrupts);
        }
        let Some(queue) = self.session.queue_mut(index) else {
            return;
        };
        match offset {
            register::QUEUE_SIZE => {
                // What has no 16 bits is no size.
                queue.set_size(u16::try_from(value).unwrap_or(0), layout);
            }
            register::QUEUE_READY if value == 1 => queue.enable(),
            register::QUEUE_READY if value == 0 => queue.disable(),
            register::QUEUE_DESC => queue.set_descriptor_area(Half::Low, value),
            register::QUEUE_DESC_HIGH => queue.set_descriptor_area(Half::High, value),
            register::QUEUE_DRIVER => queue.set_driver_area(Half::Low, value),
            register::QUEUE_DRIVER_HIGH => queue.set_driver_area(Half::High, value),
            register::QUEUE_DEVICE => queue.set_device_area(Half::Low, value),
            register::QUEUE_DEVICE_HIGH => queue.set_device_area(Half::High, value),
            _ => {}
        }
    }

    /// The queue is in the low half; what NOTIFICATION_DATA puts in the other is a hint that we do not need.
    fn notify(&self, value: u32) {
        let queue = usize::from(value as u16);
        if let Some(kick) = self.session.kicks().get(queue) {
            // Fails only if the counter is full, and then the worker has been told.
            let _ = kick.write(1);
        }
    }

    fn after(&mut self, outcome: Outcome) {
        if outcome == Outcome::Reset {
            self.selectors = Selectors::default();
            self.interrupts.lock().acknowledge(u32::MAX);
        }
    }
}
