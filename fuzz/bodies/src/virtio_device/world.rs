// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is around a device: the other ends of what it is connected to, and the files behind it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use hvkit_virtio_devices::balloon::Control;
use hvkit_virtio_devices::block::{self, Block, Capacity};
use hvkit_virtio_devices::iommu::SharedEndpoint;
use hvkit_virtio_devices::pmem::{self, Backing, Writes};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, IommuMemory};

/// What is around a device.
#[derive(Default)]
pub(super) struct World {
    /// The other ends of a network card's wires.
    pub(super) wires: Vec<UnixDatagram>,
    pub(super) balloon: Option<Control>,
    pub(super) sockets: Option<Sockets>,
    /// A disk's image, and its size as the guest has it.
    pub(super) disk: Option<(File, Capacity)>,
    /// Memory as a device behind an IOMMU sees it.
    pub(super) behind: Option<IommuMemory<GuestMemoryMmap, SharedEndpoint>>,
}

impl World {
    /// Something happens that is not the driver's doing.
    pub(super) fn happens(&mut self) {
        if let Some(sockets) = &mut self.sockets {
            sockets.happen();
        }
        for wire in &self.wires {
            // To one card, a group, and all; with a tag of VLAN 0x5a and without. A wire that is full takes no more.
            for first in [0x5a, 0x5b, 0xff] {
                let mut frame = [0x5a; 76];
                frame[12..18].fill(first);
                frame[24..28].copy_from_slice(&[0x81, 0, 0, first]);
                let _ = wire.send(&frame);
                let _ = wire.send(&[first; 76]);
            }
        }
        if let Some((file, capacity)) = &self.disk {
            // It becomes shorter, until it is too short, and then longer than it was.
            let length = match capacity.sectors() {
                0..=40 => 200 << 9,
                sectors => (sectors - 40) << 9,
            };
            file.set_len(length).expect("our file");
            assert_eq!(capacity.look_again().expect("whole sectors") << 9, length);
        }
        if let Some(behind) = &self.behind {
            // Some of what is mapped, and some of what is not, which is reported.
            for at in [0, 0x1000, 0x8000, 0xfff8, u64::MAX] {
                let _ = behind.read_obj::<u64>(GuestAddress(at));
                let _ = behind.write_obj(at, GuestAddress(at));
            }
        }
        if let Some(balloon) = &self.balloon {
            balloon.ask_hints();
            balloon.set_target(balloon.target().wrapping_add(1));
        }
    }
}

/// The host's side of a socket device: who connects, and who listens at the guest's port 1.
pub(super) struct Sockets {
    pub(super) path: PathBuf,
    listener: UnixListener,
    streams: Vec<UnixStream>,
}

impl Sockets {
    /// At a path that nobody else has.
    pub(super) fn new() -> Self {
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

/// A file of 2 MiB without a name, by a name that it has nevertheless.
pub(super) fn backing() -> Backing {
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

/// A disk of 128 sectors and two queues, and what it is in.
pub(super) fn disk() -> (Block, (File, Capacity)) {
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file"));
    file.set_len(128 << 9).expect("a file");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let options = block::Options::new(path).with_serial("fuzz").with_queues(2);
    let block = Block::open(options).expect("our file");
    let capacity = block.capacity();
    (block, (file, capacity))
}
