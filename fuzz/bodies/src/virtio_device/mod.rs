// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio device on PCI or behind MMIO registers, whose driver does anything at all, in any order.

mod chain;
mod kind;
mod world;

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use hvkit_virtio_devices::fake::{ByHand, Driver, Line, MmioDriver, Ring, Vectors};
use hvkit_virtio_devices::pci::PciFunction;
use hvkit_virtio_devices::transport::mmio::VirtioMmio;
use hvkit_virtio_devices::transport::pci::VirtioPci;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use kind::Kind;
use world::World;

/// Bytes of guest memory.
const MEMORY: usize = 0x1_0000;
/// The most actions of an input.
const ACTIONS: usize = 32;
/// Rounds in which workers must come to rest: a queue of 256 chains, 32 a round, and some.
const ROUNDS: usize = 100;

type Memory = Arc<GuestMemoryMmap>;

/// Which device, and where.
#[derive(Arbitrary, Debug)]
struct Subject {
    kind: Kind,
    place: Place,
}

#[derive(Arbitrary, Debug)]
enum Place {
    Pci,
    Mmio,
}

/// What a driver can do.
#[derive(Arbitrary, Debug)]
enum Action {
    /// Configuration space, on PCI.
    Config(u8, [u8; 4], u8),
    /// A register.
    Write(u16, [u8; 8], u8),
    /// The same.
    Read(u16, u8),
    /// A word of memory.
    Memory(u16, u32),
    /// A chain, if the honest part of the driver has a queue.
    Submit(u16, u16, u16, u16),
    /// The honest path, so that the dishonest ones get far.
    Start,
    /// A notification.
    Kick(u8),
    /// Time passes.
    Step,
}

enum Bus {
    Pci(Box<Driver<VirtioPci<Memory>>>),
    Mmio(Box<MmioDriver<Memory>>),
}

impl Bus {
    fn new(subject: &Subject, memory: &Memory, workers: &ByHand, world: &mut World) -> Self {
        let device = subject.kind.device(memory, world);
        let (memory, runner) = (Arc::clone(memory), Box::new(workers.clone()));
        match subject.place {
            Place::Pci => {
                let vectors = Arc::new(Vectors::default());
                let function = VirtioPci::new(device, memory, vectors, runner).expect("a function");
                Bus::Pci(Box::new(Driver::probe(function)))
            }
            Place::Mmio => {
                let line = Arc::new(Line::default());
                let device = VirtioMmio::new(device, memory, line, runner).expect("a device");
                Bus::Mmio(Box::new(MmioDriver::probe(device)))
            }
        }
    }

    /// Resets the device, and brings it up with its first queues; also after everything that was done to it.
    fn start(&mut self, memory: &Memory, queues: u16) -> Vec<Ring> {
        let places = (0..queues).map(|queue| (queue, 0x1000 + 0x2000 * u64::from(queue)));
        match self {
            Bus::Pci(driver) => {
                assert_eq!(driver.set_status(0), 0, "a reset completes");
                driver.function.config_write(4, &6u16.to_le_bytes());
                driver.negotiate(!2);
                let rings = places.map(|(queue, at)| driver.queue(queue, memory, at, 16));
                let rings = rings.collect();
                assert_eq!(driver.set_status(0xf), 0xf);
                rings
            }
            Bus::Mmio(driver) => {
                assert_eq!(driver.set_status(0), 0, "a reset completes");
                driver.negotiate(!2);
                let rings = places.map(|(queue, at)| driver.queue(queue, memory, at, 16));
                let rings = rings.collect();
                assert_eq!(driver.set_status(0xf), 0xf);
                rings
            }
        }
    }

    fn status(&mut self) -> u8 {
        match self {
            Bus::Pci(driver) => driver.status(),
            Bus::Mmio(driver) => driver.status(),
        }
    }
}

/// No panic, no worker that runs on, and a reset that brings back a device as good as new.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(subject) = Subject::arbitrary(&mut input) else {
        return;
    };
    let memory: Memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory"));
    let workers = ByHand::default();
    let mut world = World::default();
    let mut bus = Bus::new(&subject, &memory, &workers, &mut world);
    let mut rings = bus.start(&memory, subject.kind.queues());
    for _ in 0..ACTIONS {
        let Ok(action) = Action::arbitrary(&mut input) else {
            break;
        };
        match action {
            Action::Config(at, data, length) => {
                if let Bus::Pci(driver) = &mut bus {
                    // Naturally aligned, as a root complex makes them.
                    let length = 1 << (length % 3);
                    let at = u16::from(at) & !(length as u16 - 1);
                    driver.function.config_write(at, &data[..length]);
                    driver.function.config_read(at, &mut [0; 4][..length]);
                }
            }
            Action::Write(at, data, length) => {
                let data = &data[..usize::from(length) % 9];
                match &mut bus {
                    Bus::Pci(driver) => driver.function.bar_write(0, at.into(), data),
                    Bus::Mmio(driver) => driver.device.write(at.into(), data),
                }
            }
            Action::Read(at, length) => {
                let data = &mut [0; 16][..usize::from(length) % 17];
                match &mut bus {
                    Bus::Pci(driver) => driver.function.bar_read(0, at.into(), data),
                    Bus::Mmio(driver) => driver.device.read(at.into(), data),
                }
            }
            Action::Memory(at, value) => {
                let at = u64::from(at).min(MEMORY as u64 - 4);
                memory.write_obj(value, GuestAddress(at)).expect("inside");
            }
            Action::Submit(read, read_length, write, write_length) => {
                let ring = usize::from(read) % rings.len();
                let words = [read, read_length, write, write_length];
                let chain = subject.kind.chain(ring, words);
                chain.put(&memory);
                rings[ring].submit(&chain.buffers);
            }
            Action::Start => rings = bus.start(&memory, subject.kind.queues()),
            Action::Kick(queue) => match &mut bus {
                Bus::Pci(driver) => driver.kick(queue.into()),
                Bus::Mmio(driver) => driver.kick(queue.into()),
            },
            Action::Step => {
                world.happens();
                assert!(
                    workers.step(ROUNDS) < ROUNDS,
                    "the workers do not come to rest"
                );
            }
        }
    }
    let mut rings = bus.start(&memory, subject.kind.queues());
    let ring = &mut rings[0];
    let last = subject.kind.last();
    last.put(&memory);
    ring.submit(&last.buffers);
    match &mut bus {
        Bus::Pci(driver) => driver.kick(0),
        Bus::Mmio(driver) => driver.kick(0),
    }
    assert!(
        workers.step(ROUNDS) < ROUNDS,
        "the workers do not come to rest"
    );
    assert_eq!(bus.status(), 0xf, "a device that was reset lives");
    if let Some(written) = subject.kind.serves() {
        let used = ring.take().map(|used| used.length);
        assert_eq!(used, Some(written), "it serves");
    }
}
