// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio device on PCI or behind MMIO registers, whose driver does anything at all, in any order.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use arbitrary::{Arbitrary, Unstructured};
use hvkit_virtio_devices::balloon::{self, Balloon, Control};
use hvkit_virtio_devices::console::{Console, Port};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{ByHand, Driver, Line, MmioDriver, Ring, Vectors};
use hvkit_virtio_devices::net::{self, Net, Wire};
use hvkit_virtio_devices::pci::PciFunction;
use hvkit_virtio_devices::pmem::{self, Backing, Pmem, Writes};
use hvkit_virtio_devices::reclaim::HostPages;
use hvkit_virtio_devices::transport::mmio::VirtioMmio;
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::vsock::Vsock;
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
    PciVsock,
    MmioVsock,
    PciPmem,
    MmioPmem,
}

impl Subject {
    fn is_on_pci(&self) -> bool {
        matches!(
            self,
            Self::PciEntropy
                | Self::PciConsole
                | Self::PciBalloon
                | Self::PciNet
                | Self::PciVsock
                | Self::PciPmem
        )
    }

    /// The queues that the honest part of the driver sets up.
    fn queues(&self) -> u16 {
        match self {
            // As a console of one port: the feature of several is not accepted.
            Self::PciEntropy | Self::PciConsole | Self::MmioEntropy | Self::MmioConsole => 1,
            Self::PciPmem | Self::MmioPmem => 1,
            Self::PciVsock | Self::MmioVsock => 3,
            // Two pairs and the control queue.
            Self::PciNet | Self::MmioNet => 5,
            // Without statistics, whose feature is not accepted either: hints and reports follow.
            Self::PciBalloon | Self::MmioBalloon => 4,
        }
    }
}

/// What is around a device.
#[derive(Default)]
struct World {
    /// The other ends of a network card's wires.
    wires: Vec<UnixDatagram>,
    balloon: Option<Control>,
    sockets: Option<Sockets>,
}

impl World {
    /// Something happens that is not the driver's doing.
    fn happens(&mut self) {
        if let Some(sockets) = &mut self.sockets {
            sockets.happen();
        }
        for wire in &self.wires {
            // A wire that is full takes no more.
            let _ = wire.send(&[0x5a; 76]);
        }
        if let Some(balloon) = &self.balloon {
            balloon.ask_hints();
            balloon.set_target(balloon.target().wrapping_add(1));
        }
    }
}

/// The host's side of a socket device: who connects, and who listens at the guest's port 1.
struct Sockets {
    path: PathBuf,
    listener: UnixListener,
    streams: Vec<UnixStream>,
}

impl Sockets {
    /// At a path that nobody else has.
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hvkit-fuzz-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(port(&path)).expect("a socket");
        listener.set_nonblocking(true).expect("a socket");
        Self {
            path,
            listener,
            streams: Vec::new(),
        }
    }

    /// One connects, one is accepted, all say something, and the first hears and goes in the end.
    fn happen(&mut self) {
        if let Ok(mut stream) = UnixStream::connect(&self.path) {
            let _ = stream.write_all(b"CONNECT 1\nhello");
            self.streams.push(stream);
        }
        if let Ok((stream, _)) = self.listener.accept() {
            self.streams.push(stream);
        }
        for stream in &mut self.streams {
            stream.set_nonblocking(true).expect("a socket");
            let _ = stream.read(&mut [0; 256]);
            let _ = stream.write(&[0x5a; 200]);
        }
        if self.streams.len() > 4 {
            self.streams.remove(0);
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(port(&self.path));
    }
}

/// Where a guest's connection to the host's port 1 leads.
fn port(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("_1");
    name.into()
}

/// A packet of a socket device, as near to a good one as the words let it be ("Device Operation", 5.10.6).
fn packet(words: [u16; 3]) -> [u8; 44] {
    let [length, ports, operation] = words;
    // The first port that the device takes for the host's end, or the one where somebody listens.
    let host = if ports & 1 == 0 {
        1
    } else {
        1 << 30 | u32::from(ports >> 2)
    };
    let guest = u32::from(ports >> 1 & 1) + 1;
    let mut raw = [0; 44];
    let mut put = |at: usize, field: &[u8]| raw[at..at + field.len()].copy_from_slice(field);
    put(0, &3u64.to_le_bytes());
    put(8, &2u64.to_le_bytes());
    put(16, &guest.to_le_bytes());
    put(20, &host.to_le_bytes());
    put(24, &u32::from(length).to_le_bytes());
    put(28, &1u16.to_le_bytes());
    put(30, &(operation & 0xf).to_le_bytes());
    put(32, &u32::from(operation >> 4 & 3).to_le_bytes());
    put(36, &u32::from(operation).to_le_bytes());
    raw
}

/// A file of 2 MiB without a name, by a name that it has nevertheless.
fn backing() -> Backing {
    static FILE: OnceLock<File> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let name = format!("hvkit-fuzz-{}-pmem", std::process::id());
        let path = std::env::temp_dir().join(name);
        let file = File::create(&path).expect("a file");
        file.set_len(pmem::ALIGNMENT).expect("a file");
        std::fs::remove_file(&path).expect("our file");
        file
    });
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Backing::open(Path::new(&path), Writes::Kept).expect("our file")
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
                let mut wire = || {
                    let (ours, theirs) = UnixDatagram::pair().expect("a pair of sockets");
                    for end in [&ours, &theirs] {
                        end.set_nonblocking(true).expect("a socket");
                    }
                    world.wires.push(theirs);
                    Wire::Frames(ours.into())
                };
                let wires = vec![wire(), wire()];
                Box::new(Net::with_pairs(net::Options::new(), wires).expect("two pairs"))
            }
            Subject::PciVsock | Subject::MmioVsock => {
                let sockets = Sockets::new();
                let vsock = Vsock::new(3, &sockets.path).expect("a socket");
                world.sockets = Some(sockets);
                Box::new(vsock)
            }
            Subject::PciPmem | Subject::MmioPmem => {
                Box::new(Pmem::new(backing(), 1 << 32).expect("a place"))
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
                if world.sockets.is_some() && ring == 1 {
                    // What is sent through a socket is mostly nonsense: here it is nearly right.
                    let at = u64::from(read).min(MEMORY as u64 - 44);
                    let words = [read_length, write, write_length];
                    memory
                        .write_slice(&packet(words), GuestAddress(at))
                        .expect("inside");
                    rings[1].submit(&[Readable(at, 44), Readable(0x8000, read_length.into())]);
                    continue;
                }
                if !world.wires.is_empty() && ring == 4 {
                    // So is what is said to a card: how many pairs of queues are used.
                    let at = u64::from(read).min(MEMORY as u64 - 4);
                    let command = [4, 0, write_length.to_le_bytes()[0] % 4, 0];
                    memory
                        .write_slice(&command, GuestAddress(at))
                        .expect("inside");
                    rings[4].submit(&[Readable(at, 4), Writable(write.into(), 1)]);
                    continue;
                }
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
    // Long enough for a packet's header, which somebody on the host may have caused.
    let length = if world.sockets.is_some() { 256 } else { 16 };
    match subject {
        Subject::PciPmem | Subject::MmioPmem => {
            memory
                .write_obj(0u32, GuestAddress(0x9000))
                .expect("inside");
            ring.submit(&[Readable(0x9000, 4), Writable(0x8000, 4)])
        }
        _ => ring.submit(&[Writable(0x8000, length)]),
    };
    match &mut bus {
        Bus::Pci(driver) => driver.kick(0),
        Bus::Mmio(driver) => driver.kick(0),
    }
    assert!(
        workers.step(ROUNDS) < ROUNDS,
        "the workers do not come to rest"
    );
    assert_eq!(bus.status(), 0xf, "a device that was reset lives");
    let served = match subject {
        Subject::PciEntropy | Subject::MmioEntropy => 16,
        Subject::PciPmem | Subject::MmioPmem => 4,
        _ => return,
    };
    let used = ring.take().map(|used| used.length);
    assert_eq!(used, Some(served), "it serves");
}
