// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a virtio device is, whatever bus it sits on.
//!
//! ```text
//!   transport                      device                       worker
//!   identity, features  <--------- Device
//!   configuration  <-------------> Device
//!   DRIVER_OK: activate ---------> Device  -- makes ----------> Worker: queues, memory, interrupts
//!   reset ------------------------ stops the worker, then tells the Device
//! ```
//!
//! A device knows no bus, no address and no thread. The transport owns negotiation, queue registers and
//! status; it hands over only what the driver has settled, and never changes it afterwards.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use crate::counters::Counters;
use crate::features::{DeviceType, Features};
use crate::queue::{Position, Queue, QueueError};
use crate::resources::Resources;
use crate::worker::{StartError, Worker};

/// A virtio device over guest memory of type `A`.
///
/// `A` is what the device's DMA goes through: all of guest memory, or
/// `Arc<vm_memory::IommuMemory<..>>` behind an IOMMU. So a buffer can lie in memory and nowhere else: a device that is told the address of
/// another's registers, or of its own, does not come back to them (CVE-2021-20255, CVE-2021-3750). This
/// compiles,
///
/// ```
/// # use std::sync::Arc;
/// # use hvkit_virtio_devices::device::Device;
/// fn over<A: vm_memory::GuestAddressSpace>(_: Option<Box<dyn Device<A>>>) {}
/// over::<Arc<vm_memory::GuestMemoryMmap>>(None);
/// ```
///
/// and the same over what answers accesses, as a function on a bus does, does not:
///
/// ```compile_fail,E0277
/// # use std::sync::Arc;
/// # use hvkit_virtio_devices::device::Device;
/// fn over<A: vm_memory::GuestAddressSpace>(_: Option<Box<dyn Device<A>>>) {}
/// over::<Arc<dyn hvkit_virtio_devices::pci::PciFunction>>(None);
/// ```
pub trait Device<A: GuestAddressSpace>: Send {
    /// What it is.
    fn device_type(&self) -> DeviceType;

    /// The device's own feature bits. The transport adds [`VERSION_1`](Features::VERSION_1), those of queues
    /// ([`QUEUES`](Features::QUEUES)), and what belongs to itself.
    fn features(&self) -> Features;

    /// Those of [`QUEUES`](Features::QUEUES) that can be had with it: all, unless somebody else serves its queues.
    fn queue_features(&self) -> Features {
        Features::QUEUES
    }

    /// The largest size of each queue, in descriptors: powers of two up to 32768. The number of entries is
    /// the number of queues. The same for the life of the device.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads device-specific configuration: any `offset`, any length. Bytes that do not exist are zero.
    fn config_read(&self, offset: u64, data: &mut [u8]);

    /// Writes device-specific configuration: any `offset`, any length. What is not writable is dropped.
    fn config_write(&mut self, offset: u64, data: &[u8]);

    /// The driver has settled on `features` (FEATURES_OK), on which configuration may depend before the device is activated. The
    /// activation says it too, and who serves the device to another VMM says it whenever that does.
    fn negotiated(&mut self, _features: Features) {}

    /// The driver has set DRIVER_OK: makes the workers that will serve `activation`'s queues. Who serves the device to another VMM
    /// calls it again for each change of queues or memory, after the workers of before have stopped: no reset has come between,
    /// and what the driver has set is as it was.
    fn activate(
        &mut self,
        activation: Activation<A>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError>;

    /// The numbers of each queue, in order of index: what each has done since the device was made. Shared with the
    /// workers, so asked once and read at any time. Empty for a device whose queues somebody else serves.
    fn counters(&self) -> Vec<Counters> {
        Vec::new()
    }

    /// The driver has reset the device, and its workers have stopped.
    fn reset(&mut self);

    /// What it has beside queues and configuration, which only a transport on PCI can show. Asked once.
    fn resources(&mut self) -> Option<Box<dyn Resources>> {
        None
    }

    /// What the device has in itself that neither its options nor its queues say, in bytes of its own layout. Asked
    /// while its workers stand still. What its driver has written to a file of the host's is on stable storage when this
    /// returns: a state that outlives the host's next crash is of no use without it.
    ///
    /// # Errors
    ///
    /// It has what cannot be saved, or [`StateError::Storage`].
    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(Vec::new())
    }

    /// Takes what [`save`](Self::save) gave, from whoever kept it: not to be believed. Before it is activated.
    ///
    /// # Errors
    ///
    /// It is nothing that a device of this kind saves; the device is as it was.
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        match state {
            [] => Ok(()),
            _ => Err(StateError::Length {
                saved: state.len(),
                expected: 0,
            }),
        }
    }
}

/// A device's own state that cannot be saved, or restored.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// This kind of device cannot be saved.
    #[error("a device of this kind cannot be saved")]
    Unsaveable,
    /// The process that serves it is gone, and another is to finish what that had begun; or nobody knows what that is, and its driver
    /// has to reset it first.
    #[error(
        "the process that served the device is gone, and has left requests that another is to finish"
    )]
    Unfinished,
    /// What its driver wrote cannot be put on stable storage.
    #[error("what was written cannot be put on stable storage: {kind}")]
    Storage {
        /// What the host said.
        kind: io::ErrorKind,
    },
    /// Not the number of bytes that it saves.
    #[error("{saved} bytes of a device's own state; it has {expected}")]
    Length {
        /// In the state.
        saved: usize,
        /// What it saves.
        expected: usize,
    },
    /// Bytes that no device with these options saves.
    #[error("byte {at} of a device's own state begins what it cannot have saved")]
    Content {
        /// Where they begin.
        at: usize,
    },
}

/// What the driver and the transport have settled.
pub struct Activation<A> {
    /// Where queues and buffers are.
    pub memory: A,
    /// Offered and accepted.
    pub features: Features,
    /// The queues that the driver has enabled, in order of index.
    pub queues: Vec<ActiveQueue>,
    /// How to tell the driver.
    pub interrupts: Arc<dyn Interrupts>,
}

impl<A> std::fmt::Debug for Activation<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Activation")
            .field("features", &self.features)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

/// A queue that is ready for use.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Which one.
    pub index: u16,
    /// The queue.
    pub queue: Queue,
    /// Readable after the driver has notified the device. Does not block.
    pub kick: EventFd,
}

impl ActiveQueue {
    /// Its number and where it goes on, for [`Worker::positions`].
    pub fn position(&self) -> (u16, Position) {
        (self.index, self.queue.position())
    }

    /// Takes the queue `index` out of `queues`.
    pub(crate) fn take(queues: &mut Vec<Self>, index: u16) -> Result<Self, ActivateError> {
        let at = queues.iter().position(|queue| queue.index == index);
        at.map(|at| queues.swap_remove(at))
            .ok_or(ActivateError::QueueMissing { index })
    }
}

/// How a device speaks to its driver outside of queues. Called from workers.
pub trait Interrupts: Send + Sync {
    /// Used buffers were published in the queue `index`, and the driver wants to know.
    fn queue(&self, index: u16);

    /// Device-specific configuration has changed.
    fn config(&self);

    /// Makes a `change` of device-specific configuration that a driver reads in several parts, and tells of it. Where there is a
    /// generation, nobody reads that of before with what is there after.
    fn config_changes(&self, change: &mut dyn FnMut()) {
        change();
        self.config();
    }

    /// Sends notification `index` of the device's [`Resources`]. Nobody is told where a transport has none.
    fn notification(&self, _index: u16) {}

    /// The device cannot go on because of `why`: sets DEVICE_NEEDS_RESET and tells the driver. Called once
    /// for each thing that goes wrong.
    ///
    /// "Device Status Field" (2.1).
    fn needs_reset(&self, why: &Failure);

    /// The host refused what a request needed, and the driver was told so in its answer. The device goes on; whoever
    /// runs it may want to know.
    fn trouble(&self, trouble: &Trouble);
}

/// How a device says that its configuration has changed, from whoever changes it: nothing happens while no driver
/// is there to be told.
#[derive(Clone, Default)]
pub(crate) struct ConfigEvents(Arc<Mutex<Option<Arc<dyn Interrupts>>>>);

impl std::fmt::Debug for ConfigEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConfigEvents")
    }
}

impl ConfigEvents {
    /// The driver can be told by `interrupts` from now on, or by nobody.
    pub(crate) fn connect(&self, interrupts: Option<Arc<dyn Interrupts>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = interrupts;
    }

    /// Whether there is a driver to be told.
    pub(crate) fn is_connected(&self) -> bool {
        let connected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        connected.is_some()
    }

    fn interrupts(&self) -> Option<Arc<dyn Interrupts>> {
        let connected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        connected.clone()
    }

    /// Tells the driver.
    pub(crate) fn changed(&self) {
        if let Some(interrupts) = self.interrupts() {
            interrupts.config();
        }
    }

    /// Makes a change of what a driver reads in several parts, and tells it.
    pub(crate) fn changes(&self, mut change: impl FnMut()) {
        match self.interrupts() {
            Some(interrupts) => interrupts.config_changes(&mut change),
            None => change(),
        }
    }
}

/// What went wrong on the host while a device goes on.
#[derive(Debug, thiserror::Error)]
#[error("queue {index}: {count} requests failed on the host, the last one so: {source}")]
pub struct Trouble {
    /// Which queue.
    pub index: u16,
    /// How many so far. Not each of them is told.
    pub count: u64,
    /// What the host said.
    pub source: io::Error,
}

/// Why a device stopped until its driver resets it.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The driver did what no driver may do to a queue.
    #[error("queue {index} is broken")]
    Queue {
        /// Which one.
        index: u16,
        /// What the driver did.
        #[source]
        source: Box<QueueError>,
    },
    /// The driver sent a request that cannot even be answered.
    #[error("queue {index}: chain {head} has no room for an answer")]
    Unanswerable {
        /// Which queue.
        index: u16,
        /// First descriptor of the chain.
        head: u16,
    },
    /// The device could not be brought to life.
    #[error("the device could not be activated")]
    Activate(#[from] ActivateError),
    /// Workers neither go on nor come back, against what their [`Runner`](crate::worker::Runner) says of them.
    #[error("{workers} workers neither go on nor come back")]
    Stuck {
        /// How many.
        workers: usize,
    },
    /// Workers ended without being handed back: they panicked. What they served has nobody, and nobody knows how far they came.
    #[error("{workers} workers are gone")]
    Gone {
        /// How many.
        workers: usize,
    },
    /// A worker could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The process that serves the device.
    #[cfg(feature = "vhost-user")]
    #[error("the process that serves the device is lost: {0}")]
    BackEnd(crate::vhost_user::BackEndError),
}

/// Why a device cannot serve what the driver asks for. The driver sees DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A queue without which the device cannot work is not enabled.
    #[error("queue {index} is not enabled")]
    QueueMissing {
        /// Which one.
        index: u16,
    },
    /// The host refused something.
    #[error("the host refused a resource")]
    Host(#[from] io::Error),
}
