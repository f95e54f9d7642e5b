// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any device, on either transport, with a driver and fakes around it.

use std::sync::{Arc, Mutex};

use hvkit_virtio_devices::device::{Device, Failure, Trouble};
use hvkit_virtio_devices::fake::{ByHand, Driver, Line, MmioDriver, Ring, Vectors};
use hvkit_virtio_devices::pci::PciFunction;
use hvkit_virtio_devices::transport::mmio::VirtioMmio;
use hvkit_virtio_devices::transport::pci::VirtioPci;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) type Memory = Arc<GuestMemoryMmap>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Pci,
    Mmio,
}

pub(crate) const TRANSPORTS: [Transport; 2] = [Transport::Pci, Transport::Mmio];

pub(crate) enum Bus {
    Pci(Box<Driver<VirtioPci<Memory>>>),
    Mmio(Box<MmioDriver<Memory>>),
}

/// Runs the same on either driver.
macro_rules! on_bus {
    ($guest:expr, $driver:ident => $run:expr) => {
        match &mut $guest.bus {
            crate::support::guest::Bus::Pci($driver) => $run,
            crate::support::guest::Bus::Mmio($driver) => $run,
        }
    };
}
pub(crate) use on_bus;

pub(crate) struct Guest {
    pub(crate) memory: Memory,
    pub(crate) workers: ByHand,
    pub(crate) vectors: Arc<Vectors>,
    pub(crate) bus: Bus,
    /// What the VMM was told.
    pub(crate) told: Arc<Mutex<Vec<String>>>,
}

/// A test ends without the end of its device, which would ask a back end that is a test's own and answers nothing any more.
impl Drop for Guest {
    fn drop(&mut self) {
        self.workers.set_stuck(true);
    }
}

impl Guest {
    pub(crate) fn new(device: Box<dyn Device<Memory>>, transport: Transport) -> Self {
        Self::in_memory(device, transport, super::memory())
    }

    /// The same over memory that is there already.
    pub(crate) fn in_memory(
        device: Box<dyn Device<Memory>>,
        transport: Transport,
        memory: Memory,
    ) -> Self {
        let workers = ByHand::default();
        let runner = Box::new(workers.clone());
        let vectors = Arc::new(Vectors::default());
        let told = Arc::<Mutex<Vec<String>>>::default();
        let (failures, troubles) = (told.clone(), told.clone());
        let failed = move |why: &Failure| failures.lock().unwrap().push(why.to_string());
        let trouble = move |why: &Trouble| troubles.lock().unwrap().push(why.to_string());
        let bus = match transport {
            Transport::Pci => {
                let function = VirtioPci::new(device, memory.clone(), vectors.clone(), runner);
                let function = function.unwrap().with_report(failed);
                Bus::Pci(Box::new(Driver::probe(
                    function.with_trouble_report(trouble),
                )))
            }
            Transport::Mmio => {
                let line = Arc::new(Line::default());
                let device = VirtioMmio::new(device, memory.clone(), line, runner).unwrap();
                let device = device.with_report(failed).with_trouble_report(trouble);
                Bus::Mmio(Box::new(MmioDriver::probe(device)))
            }
        };
        Self {
            memory,
            workers,
            vectors,
            bus,
            told,
        }
    }

    pub(crate) fn status(&mut self) -> u8 {
        on_bus!(self, driver => driver.status())
    }

    pub(crate) fn set_status(&mut self, status: u8) -> u8 {
        on_bus!(self, driver => driver.set_status(status))
    }

    pub(crate) fn offered(&mut self) -> u64 {
        on_bus!(self, driver => driver.offered())
    }

    /// Goes to DRIVER_OK with those of `features` that are offered, split queues, and all of `queues`, whose rings
    /// are 16 KiB apart from 0x10000.
    pub(crate) fn start(&mut self, features: u64, queues: &[u16]) -> Vec<Ring> {
        let memory = self.memory.clone();
        let rings = on_bus!(self, driver => {
            driver.negotiate(features);
            queues
                .iter()
                .map(|queue| driver.queue(*queue, &memory, ring_at(*queue), 64))
                .collect()
        });
        if let Bus::Pci(driver) = &mut self.bus {
            driver.enable_msix();
        }
        assert_eq!(self.set_status(0xf), 0xf);
        rings
    }

    /// Reads up to 8 bytes of device configuration.
    pub(crate) fn config(&mut self, offset: u64, width: usize) -> u64 {
        match &mut self.bus {
            Bus::Pci(driver) => driver.get(driver.device, offset, width),
            Bus::Mmio(driver) => {
                let mut raw = [0; 8];
                driver.device.read(0x100 + offset, &mut raw[..width]);
                u64::from_le_bytes(raw)
            }
        }
    }

    pub(crate) fn set_config(&mut self, offset: u64, data: &[u8]) {
        match &mut self.bus {
            Bus::Pci(driver) => {
                let mut raw = [0; 8];
                raw[..data.len()].copy_from_slice(data);
                let region = driver.device;
                driver.put(region, offset, data.len(), u64::from_le_bytes(raw));
            }
            Bus::Mmio(driver) => driver.device.write(0x100 + offset, data),
        }
    }

    pub(crate) fn kick(&mut self, queue: u16) {
        on_bus!(self, driver => driver.kick(queue));
    }

    /// Notifies a queue and lets the workers finish.
    pub(crate) fn run(&mut self, queue: u16) {
        self.kick(queue);
        self.step();
    }

    pub(crate) fn step(&self) {
        let rounds = self.workers.step(100);
        assert!(rounds < 100, "the workers do not come to rest");
    }

    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        let at = GuestAddress(address);
        self.memory.write_slice(data, at).unwrap();
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        let at = GuestAddress(address);
        self.memory.read_slice(&mut data, at).unwrap();
        data
    }
}

pub(crate) fn ring_at(queue: u16) -> u64 {
    0x1_0000 + 0x4000 * u64::from(queue)
}

/// What a driver that keeps to no rule can do.
impl Guest {
    /// Places a queue's areas anywhere, and enables it, or not.
    pub(crate) fn place(&mut self, queue: u16, areas: [u64; 3]) {
        match &mut self.bus {
            Bus::Pci(driver) => {
                let common = driver.common;
                driver.put(common, 0x16, 2, queue.into());
                for (offset, address) in [0x20, 0x28, 0x30].into_iter().zip(areas) {
                    driver.put(common, offset, 4, address & 0xffff_ffff);
                    driver.put(common, offset + 4, 4, address >> 32);
                }
                driver.put(common, 0x1c, 2, 1);
            }
            Bus::Mmio(driver) => {
                driver.put(0x030, queue.into());
                for (offset, address) in [0x080, 0x090, 0x0a0].into_iter().zip(areas) {
                    driver.put(offset, address as u32);
                    driver.put(offset + 4, (address >> 32) as u32);
                }
                driver.put(0x044, 1);
            }
        }
    }

    /// Goes to FEATURES_OK.
    pub(crate) fn negotiate(&mut self, features: u64) -> u64 {
        on_bus!(self, driver => driver.negotiate_packed(features))
    }

    /// Writes the same to every register, at a width.
    pub(crate) fn scribble(&mut self, value: u8, width: usize) {
        let data = [value; 8];
        for offset in (0..0x5000).step_by(width) {
            match &mut self.bus {
                // Not the status field: what a write to it does has cases of its own.
                Bus::Pci(_) if (0x10..0x18).contains(&offset) => {}
                Bus::Pci(driver) => driver.function.bar_write(0, offset, &data[..width]),
                Bus::Mmio(_) if (0x70..0x78).contains(&offset) => {}
                Bus::Mmio(driver) => driver.device.write(offset, &data[..width]),
            }
        }
    }

    /// Reads every register, at a width.
    pub(crate) fn look_around(&mut self, width: usize) {
        let mut data = [0; 8];
        for offset in (0..0x8000).step_by(width) {
            match &mut self.bus {
                Bus::Pci(driver) => driver.function.bar_read(0, offset, &mut data[..width]),
                Bus::Mmio(driver) => driver.device.read(offset, &mut data[..width]),
            }
        }
    }
}

/// What a VMM does to a device.
impl Guest {
    pub(crate) fn pause(&mut self) {
        match &mut self.bus {
            Bus::Pci(driver) => driver.function.pause(),
            Bus::Mmio(driver) => driver.device.pause(),
        }
    }

    pub(crate) fn resume(&mut self) {
        match &mut self.bus {
            Bus::Pci(driver) => driver.function.resume(),
            Bus::Mmio(driver) => driver.device.resume(),
        }
    }
}
