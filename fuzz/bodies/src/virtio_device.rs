// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio device on PCI or behind MMIO registers, whose driver does anything at all, in any order.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use hvkit_virtio_devices::balloon::{self, Balloon, Control};
use hvkit_virtio_devices::console::{Console, Port};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{ByHand, Driver, Line, MmioDriver, Ring, Vectors};
use hvkit_virtio_devices::net::{self, Net, Wire};
use hvkit_virtio_devices::pci::PciFunction;
use hvkit_virtio_devices::reclaim::HostPages;
use hvkit_virtio_devices::transport::mmio::VirtioMmio;
use hvkit_virtio_devices::transport::pci::VirtioPci;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of guest memory.
const MEMORY: usize = 0x1_0000;
/// The most actions of an input.
const ACTIONS: usize = 32;
/// Rounds in which workers must come to rest: a queue of 256 chains, 32 a round, and some.
const ROUNDS: usize = 100;

type Memory = Arc<GuestMemoryMmap>;

/// Which device, and where.
#[derive(Arbitrary, Debug)]
enum Subject {
    PciEntropy,
    PciConsole,
    MmioEntropy,
    MmioConsole,
    PciBalloon,
    MmioBalloon,
    PciNet,
    MmioNet,
}

impl Subject {
    fn is_on_pci(&self) -> bool {
        matches!(
            self,
            Self::PciEntropy | Self::PciConsole | Self::PciBalloon | Self::PciNet
        )
    }

    /// The queues that the honest part of the driver sets up.
    fn queues(&self) -> u16 {
        match self {
            // As a console of one port: the feature of several is not accepted.
            Self::PciEntropy | Self::PciConsole | Self::MmioEntropy | Self::MmioConsole => 1,
            Self::PciNet | Self::MmioNet => 2,
            // Without statistics, whose feature is not accepted either: hints and reports follow.
            Self::PciBalloon | Self::MmioBalloon => 4,
        }
    }
}

/// What is around a device.
#[derive(Default)]
struct World {
    /// The other end of a network card's wire.
    wire: Option<UnixDatagram>,
    balloon: Option<Control>,
}

impl World {
    /// Something happens that is not the driver's doing.
    fn happens(&self) {
        if let Some(wire) = &self.wire {
            // A wire that is full takes no more.
            let _ = wire.send(&[0x5a; 76]);
        }
        if let Some(balloon) = &self.balloon {
            balloon.ask_hints();
            balloon.set_target(balloon.target().wrapping_add(1));
        }
    }
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
    Mmio(MmioDriver<Memory>),
}

impl Bus {
    fn new(subject: &Subject, memory: &Memory, workers: &ByHand, world: &mut World) -> Self {
        let device: Box<dyn Device<Memory>> = match subject {
            Subject::PciEntropy | Subject::MmioEntropy => {
                Box::new(Entropy::new(std::io::repeat(7)))
            }
            Subject::PciConsole | Subject::MmioConsole => {
                let ports = ["a", "b"].map(|name| Port::new(name, std::io::sink()));
                Box::new(Console::new(ports.into()).expect("two ports"))
            }
            Subject::PciBalloon | Subject::MmioBalloon => {
                let options = balloon::Options::new()
                    .with_free_page_reporting()
                    .with_free_page_hints();
                let pages = Arc::new(HostPages::new(Arc::clone(memory)));
                let balloon = Balloon::new(options, pages).expect("an event");
                world.balloon = Some(balloon.control());
                Box::new(balloon)
            }
            Subject::PciNet | Subject::MmioNet => {
                let (ours, theirs) = UnixDatagram::pair().expect("a pair of sockets");
                for end in [&ours, &theirs] {
                    end.set_nonblocking(true).expect("a socket");
                }
                world.wire = Some(theirs);
                Box::new(Net::new(net::Options::new(), Wire::Frames(ours.into())))
            }
        };
        let (memory, runner) = (Arc::clone(memory), Box::new(workers.clone()));
        match subject.is_on_pci() {
            true => {
                let vectors = Arc::new(Vectors::default());
                let function = VirtioPci::new(device, memory, vectors, runner).expect("a function");
                Bus::Pci(Box::new(Driver::probe(function)))
            }
            false => {
                let line = Arc::new(Line::default());
                let device = VirtioMmio::new(device, memory, line, runner).expect("a device");
                Bus::Mmio(MmioDriver::probe(device))
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
    let mut rings = bus.start(&memory, subject.queues());
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
                rings[ring].submit(&[
                    Readable(read.into(), read_length.into()),
                    Writable(write.into(), write_length.into()),
                ]);
            }
            Action::Start => rings = bus.start(&memory, subject.queues()),
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
    let mut rings = bus.start(&memory, subject.queues());
    let ring = &mut rings[0];
    ring.submit(&[Writable(0x8000, 16)]);
    match &mut bus {
        Bus::Pci(driver) => driver.kick(0),
        Bus::Mmio(driver) => driver.kick(0),
    }
    assert!(
        workers.step(ROUNDS) < ROUNDS,
        "the workers do not come to rest"
    );
    assert_eq!(bus.status(), 0xf, "a device that was reset lives");
    if matches!(subject, Subject::PciEntropy | Subject::MmioEntropy) {
        assert_eq!(ring.take().map(|used| used.length), Some(16), "it serves");
    }
}
