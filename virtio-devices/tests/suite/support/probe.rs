// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that does nothing but remember what its transport did to it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use hvkit_virtio_devices::device::{ActivateError, Activation, Device, Failure, Interrupts};
use hvkit_virtio_devices::fake::{ByHand, Driver, Line, Vectors};
use hvkit_virtio_devices::features::{DeviceType, Features};
use hvkit_virtio_devices::queue::Position;
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::worker::{Progress, Worker};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

pub(crate) type Memory = Arc<GuestMemoryMmap>;

/// What a device was given when it was activated.
pub(crate) struct Activated {
    pub(crate) features: u64,
    /// Index and size of each queue.
    pub(crate) queues: Vec<(u16, u16)>,
    pub(crate) interrupts: Arc<dyn Interrupts>,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) activated: Option<Activated>,
    pub(crate) activations: usize,
    pub(crate) resets: usize,
    pub(crate) config: [u8; 8],
    pub(crate) refuse: bool,
    /// Queues whose kick was readable when their worker ran.
    pub(crate) kicked: Vec<u16>,
    pub(crate) failures: Vec<String>,
}

pub(crate) struct Probe {
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) sizes: Vec<u16>,
}

struct KickWorker {
    seen: Arc<Mutex<Seen>>,
    kicks: Vec<(u16, EventFd)>,
}

impl Worker for KickWorker {
    fn name(&self) -> String {
        "probe".into()
    }
    fn sources(&self) -> Vec<RawFd> {
        self.kicks
            .iter()
            .map(|(_, kick)| kick.as_raw_fd())
            .collect()
    }
    fn positions(&self) -> Vec<(u16, Position)> {
        Vec::new()
    }
    fn ready(&mut self, index: usize) -> Progress {
        let (queue, kick) = &self.kicks[index];
        if kick.read().is_ok() {
            self.seen.lock().unwrap().kicked.push(*queue);
        }
        Progress::Wait
    }
}

impl Device<Memory> for Probe {
    fn device_type(&self) -> DeviceType {
        DeviceType(42)
    }
    fn features(&self) -> Features {
        Features::from_bits_retain(1 << 0 | 1 << 7 | 1 << 55) | Features::EVENT_IDX
    }
    fn queue_sizes(&self) -> Vec<u16> {
        self.sizes.clone()
    }
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let config = self.seen.lock().unwrap().config;
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = config.get(offset as usize + i).copied().unwrap_or(0);
        }
    }
    fn config_write(&mut self, offset: u64, data: &[u8]) {
        let mut seen = self.seen.lock().unwrap();
        for (i, byte) in data.iter().enumerate() {
            if let Some(place) = seen.config.get_mut(offset as usize + i) {
                *place = *byte;
            }
        }
    }
    fn activate(
        &mut self,
        activation: Activation<Memory>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let mut seen = self.seen.lock().unwrap();
        seen.activations += 1;
        if seen.refuse {
            return Err(ActivateError::QueueMissing { index: 7 });
        }
        seen.activated = Some(Activated {
            features: activation.features.bits(),
            queues: activation
                .queues
                .iter()
                .map(|q| (q.index, q.queue.size()))
                .collect(),
            interrupts: activation.interrupts,
        });
        let kicks = activation
            .queues
            .into_iter()
            .map(|q| (q.index, q.kick))
            .collect();
        Ok(vec![Box::new(KickWorker {
            seen: Arc::clone(&self.seen),
            kicks,
        })])
    }
    fn reset(&mut self) {
        self.seen.lock().unwrap().resets += 1;
    }
}

/// A probe with three queues, of 8, 16 and 256 descriptors, on PCI.
pub(crate) struct Bench {
    pub(crate) memory: Memory,
    pub(crate) vectors: Arc<Vectors>,
    pub(crate) line: Arc<Line>,
    pub(crate) workers: ByHand,
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) driver: Driver<VirtioPci<Memory>>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(|function| function)
    }

    pub(crate) fn with(change: impl FnOnce(VirtioPci<Memory>) -> VirtioPci<Memory>) -> Self {
        let memory = super::memory();
        let (vectors, line) = (Arc::new(Vectors::default()), Arc::new(Line::default()));
        let (workers, seen) = (ByHand::default(), Arc::<Mutex<Seen>>::default());
        let probe = Probe {
            seen: seen.clone(),
            sizes: vec![8, 16, 256],
        };
        let reports = seen.clone();
        let report = move |why: &Failure| reports.lock().unwrap().failures.push(why.to_string());
        let runner = Box::new(workers.clone());
        let function = VirtioPci::new(Box::new(probe), memory.clone(), vectors.clone(), runner)
            .unwrap()
            .with_interrupt_line(line.clone())
            .with_report(report);
        let driver = Driver::probe(change(function));
        Self {
            memory,
            vectors,
            line,
            workers,
            seen,
            driver,
        }
    }

    /// Goes to DRIVER_OK with queues 0 and 2.
    pub(crate) fn start(&mut self) {
        self.driver.negotiate(u64::MAX);
        self.driver.queue(0, &self.memory, 0x1000, 8);
        self.driver.queue(2, &self.memory, 0x4000, 64);
        assert_eq!(self.driver.set_status(0xf), 0xf);
    }

    pub(crate) fn interrupts(&self) -> Arc<dyn Interrupts> {
        let seen = self.seen.lock().unwrap();
        Arc::clone(&seen.activated.as_ref().expect("not activated").interrupts)
    }
}
