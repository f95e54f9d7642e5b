// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `qemu-storage-daemon` and `virtiofsd` with a driver of bytes: no guest is needed to see that they understand us.

use hvkit_virtio_devices::device::{Device, Failure, Trouble};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{Driver, Ring, Vectors};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::vhost_user::{Options, SharedMemory, VhostUser};
use hvkit_virtio_devices::worker::Threads;
use hvkit_vmm::machine::address_map::AddressMap;
use hvkit_vmm::machine::memory::{Sharing, reserve_as};
use lab_kit::{skip, skip_if};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// How long anything may take: far longer than it does.
const PATIENCE: Duration = Duration::from_secs(60);
const HEADER: u64 = 0x8_0000;
const STATUS: u64 = 0x8_1000;
const DATA: u64 = 0x10_0000;

/// A daemon that ends with this.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Daemon {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("the daemon starts"))
    }

    /// As by `kill -9`.
    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    fn connect(&mut self, socket: &Path) -> UnixStream {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                return stream;
            }
            let ended = self.0.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon has ended: {ended:?}");
            assert!(Instant::now() < end, "nobody listens");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A driver of one device, whose worker has a thread of its own.
struct Machine {
    memory: Arc<GuestMemoryMmap>,
    driver: Driver<VirtioPci<Arc<GuestMemoryMmap>>>,
    told: Arc<Mutex<Vec<String>>>,
}

impl Machine {
    fn new(socket: UnixStream, options: Options) -> Self {
        let map = AddressMap::new(4 << 20, 40).unwrap();
        let memory = Arc::new(reserve_as(&map, Sharing::Shared).unwrap());
        let shared = SharedMemory::of(&*memory).unwrap();
        let device: Box<dyn Device<_>> = Box::new(VhostUser::new(socket, options, shared).unwrap());
        let runner =
            Threads::new(|name, body| thread::Builder::new().name(name).spawn(body).map(drop));
        let told = Arc::<Mutex<Vec<String>>>::default();
        let (failures, troubles) = (told.clone(), told.clone());
        let vectors = Arc::new(Vectors::default());
        let function = VirtioPci::new(device, memory.clone(), vectors, Box::new(runner)).unwrap();
        let function = function
            .with_report(move |why: &Failure| failures.lock().unwrap().push(why.to_string()))
            .with_trouble_report(move |why: &Trouble| {
                troubles.lock().unwrap().push(why.to_string());
            });
        Self {
            memory,
            driver: Driver::probe(function),
            told,
        }
    }

    fn start(&mut self, queues: u16) -> Vec<Ring> {
        self.driver.enable_msix();
        self.driver.negotiate(u64::MAX);
        let rings = (0..queues)
            .map(|queue| {
                let at = 0x1_0000 + 0x4000 * u64::from(queue);
                self.driver.queue(queue, &self.memory, at, 64)
            })
            .collect();
        assert_eq!(self.driver.set_status(0xf), 0xf);
        rings
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Notifies `queue` and waits for the answer to what was submitted to it: its length.
    fn answer(&mut self, queue: u16, ring: &mut Ring) -> u32 {
        self.driver.kick(queue);
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = ring.take() {
                return used.length;
            }
            assert!(
                Instant::now() < end,
                "no answer; {:?}",
                self.told.lock().unwrap()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// A block request in 512-byte sectors: its status.
    fn request(&mut self, ring: &mut Ring, kind: u32, sector: u64, length: u32) -> u8 {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.put(HEADER, &header);
        self.put(STATUS, &[0xee]);
        let data = match kind {
            0 => Writable(DATA, length),
            _ => Readable(DATA, length),
        };
        ring.submit(&[Readable(HEADER, 16), data, Writable(STATUS, 1)]);
        self.answer(0, ring);
        self.get(STATUS, 1)[0]
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at / 512 * 7 + at % 251) as u8)
        .collect()
}

#[test]
fn qemus_storage_daemon_serves_a_disk() {
    skip_if!(skip::missing(&["/usr/bin/qemu-storage-daemon"]));
    let folder = tempfile::tempdir().unwrap();
    let (image, socket) = (folder.path().join("image"), folder.path().join("socket"));
    fs::write(&image, pattern(1 << 20)).unwrap();
    let (image, path) = (image.to_str().unwrap(), socket.to_str().unwrap());
    let mut daemon = Daemon::start(Command::new("/usr/bin/qemu-storage-daemon").args([
        "--blockdev",
        &format!("driver=file,node-name=disk,filename={image}"),
        "--export",
        &format!("type=vhost-user-blk,id=disk,node-name=disk,writable=on,num-queues=2,addr.type=unix,addr.path={path}"),
    ]));
    let mut machine = Machine::new(daemon.connect(&socket), Options::block().with_queues(2));
    assert_eq!(machine.driver.get(machine.driver.device, 0, 8), 2048);
    let mut rings = machine.start(2);
    let ring = &mut rings[0];
    let expected = pattern(1 << 20);
    for sector in [0, 1, 2040, 77] {
        assert_eq!(machine.request(ring, 0, sector, 4096), 0);
        let at = sector as usize * 512;
        assert_eq!(machine.get(DATA, 4096), expected[at..at + 4096]);
    }
    machine.put(DATA, &[0xab; 1024]);
    assert_eq!(machine.request(ring, 1, 9, 1024), 0);
    // A pause in between, and a reset.
    machine.driver.function.pause();
    assert_eq!(fs::read(image).unwrap()[9 * 512..11 * 512], [0xab; 1024]);
    machine.driver.function.resume();
    assert_eq!(machine.request(ring, 0, 100, 512), 0);
    assert_eq!(machine.driver.set_status(0), 0);
    let mut rings = machine.start(1);
    let ring = &mut rings[0];
    assert_eq!(machine.request(ring, 0, 10, 512), 0);
    assert_eq!(machine.get(DATA, 512), [0xab; 512]);
    assert_eq!(*machine.told.lock().unwrap(), [""; 0]);
    // It notes what is in flight, so its end is an error and no hang.
    daemon.kill();
    assert_eq!(machine.request(ring, 0, 10, 512), 1);
    // One after the other, by a thread of its own: none is overlooked.
    for _ in 0..500 {
        assert_eq!(machine.request(ring, 1, 10, 512), 1);
    }
    let told = machine.told.lock().unwrap().clone();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].ends_with("the back end is gone"), "{told:?}");
}

#[test]
fn virtiofsd_answers_the_first_request() {
    const DAEMON: &str = "/usr/lib/qemu/virtiofsd";
    skip_if!(skip::missing(&[DAEMON]));
    let folder = tempfile::tempdir().unwrap();
    let (source, socket) = (folder.path().join("source"), folder.path().join("socket"));
    fs::create_dir(&source).unwrap();
    let mut daemon = Daemon::start(
        Command::new(DAEMON)
            .arg(format!("--socket-path={}", socket.display()))
            .args(["-o", &format!("source={}", source.display())])
            .args(["-o", "sandbox=chroot", "-o", "log_level=err", "-f"]),
    );
    let options = Options::file_system("host").unwrap();
    let mut machine = Machine::new(daemon.connect(&socket), options);
    let mut rings = machine.start(2);
    // FUSE_INIT for 7.31: length, operation 26, number, node, user, group, process; then major, minor, read-ahead, flags.
    let mut asked = [0; 40 + 64];
    for (at, word) in [
        (0, 104u32),
        (4, 26),
        (8, 0x1234),
        (40, 7),
        (44, 31),
        (48, 0x2_0000),
    ] {
        asked[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    machine.put(HEADER, &asked[..56]);
    machine.put(HEADER, &56u32.to_le_bytes());
    rings[1].submit(&[Readable(HEADER, 56), Writable(DATA, 80)]);
    let length = machine.answer(1, &mut rings[1]);
    // Length, no error, the number that was asked with, major version 7.
    let answer = machine.get(DATA, 80);
    let word = |at: usize| u32::from_le_bytes(answer[at..at + 4].try_into().unwrap());
    assert_eq!(word(0), length);
    assert_eq!([word(4), word(8), word(12), word(16)], [0, 0x1234, 0, 7]);
    assert_eq!(*machine.told.lock().unwrap(), [""; 0]);
}
