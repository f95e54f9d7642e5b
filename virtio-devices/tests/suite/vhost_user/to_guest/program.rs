// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest with the device, and a program in it that speaks in raw words; a host that remembers what it shows.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{Region, Ring};
use hvkit_virtio_devices::pci::{PciFunction, Window};
use hvkit_virtio_devices::vhost_user::GuestBackEnd;
use hvkit_virtio_devices::vhost_user::to_guest::{Held, Host, Mapping, Options, PeerError};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vmm_sys_util::eventfd::EventFd;

use crate::support::guest::{Bus, Guest, Transport};
use crate::vhost_user::PATIENCE;

/// Where the window is.
pub(super) const WINDOW: u64 = 0x20_0000_0000;
/// Where memory begins in it.
pub(super) const MEMORY: u64 = 0x20_0000;
/// What there is room for.
pub(super) const ROOM: u64 = 0x10_0000;
const BUFFERS: u64 = 0x4_0000;
const BUFFER: u64 = 0x2000;
const ANSWER: u64 = 0x6_0000;

/// Memory that is shown: its address, its file and where in that, and its bytes.
pub(super) type Shown = (u64, Arc<File>, u64, u64);

/// What a host shows now.
#[derive(Default)]
pub(super) struct FakeHost {
    pub(super) shown: Arc<Mutex<Vec<Shown>>>,
    pub(super) rings: Arc<Mutex<Vec<(u64, EventFd)>>>,
    pub(super) refuse: Mutex<bool>,
}

impl FakeHost {
    fn check(&self) -> io::Result<()> {
        match *self.refuse.lock().unwrap() {
            true => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            false => Ok(()),
        }
    }

    pub(super) fn shown(&self) -> MutexGuard<'_, Vec<Shown>> {
        self.shown.lock().unwrap()
    }

    /// Addresses, offsets in files and lengths of what is shown.
    pub(super) fn places(&self) -> Vec<(u64, u64, u64)> {
        self.shown()
            .iter()
            .map(|(at, _, offset, length)| (*at, *offset, *length))
            .collect()
    }

    /// Addresses of doorbells.
    pub(super) fn doorbells(&self) -> Vec<u64> {
        self.rings
            .lock()
            .unwrap()
            .iter()
            .map(|(at, _)| *at)
            .collect()
    }

    /// As a guest that writes there. Whether somebody hears it.
    pub(super) fn ring(&self, address: u64) -> bool {
        let rings = self.rings.lock().unwrap();
        let ring = rings.iter().find(|(at, _)| *at == address);
        ring.is_some_and(|(_, event)| event.write(1).is_ok())
    }
}

struct Piece {
    file: Arc<File>,
    offset: u64,
    length: u64,
    shown: Arc<Mutex<Vec<Shown>>>,
}

impl Host for FakeHost {
    fn map(&self, file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<Box<dyn Mapping>> {
        self.check()?;
        Ok(Box::new(Piece {
            file: Arc::new(file.try_clone_to_owned()?.into()),
            offset,
            length,
            shown: Arc::clone(&self.shown),
        }))
    }

    fn ring(&self, address: u64, event: &EventFd) -> io::Result<Held> {
        self.check()?;
        let rings = Arc::clone(&self.rings);
        assert!(!self.doorbells().contains(&address), "two at {address:#x}");
        rings.lock().unwrap().push((address, event.try_clone()?));
        Ok(Held::new(move || {
            rings.lock().unwrap().retain(|(at, _)| *at != address);
        }))
    }
}

impl Mapping for Piece {
    fn show(&self, address: u64) -> io::Result<Held> {
        let shown = Arc::clone(&self.shown);
        let mut now = shown.lock().unwrap();
        // As KVM has it: slots do not overlap.
        let free =
            |(at, _, _, length): &Shown| address + self.length <= *at || at + length <= address;
        assert!(now.iter().all(free), "{address:#x}: {now:x?}");
        now.push((address, Arc::clone(&self.file), self.offset, self.length));
        drop(now);
        Ok(Held::new(move || {
            shown.lock().unwrap().retain(|(at, ..)| *at != address);
        }))
    }
}

/// The guest and its program.
pub(super) struct Program {
    pub(super) guest: Guest,
    pub(super) host: Arc<FakeHost>,
    pub(super) receive: Ring,
    pub(super) transmit: Ring,
    pub(super) socket: PathBuf,
    /// Why connections ended; nothing where one began.
    pub(super) told: Arc<Mutex<Vec<String>>>,
    _folder: tempfile::TempDir,
}

impl Program {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let host = Arc::new(FakeHost::default());
        let told = Arc::<Mutex<Vec<String>>>::default();
        let tell = Arc::clone(&told);
        let report = move |end: Option<&PeerError>| {
            tell.lock()
                .unwrap()
                .push(end.map_or_else(String::new, ToString::to_string));
        };
        let options = Options::new().with_memory(ROOM);
        let device = GuestBackEnd::new(&socket, options, host.clone(), report).unwrap();
        let mut guest = Guest::new(Box::new(device), Transport::Pci);
        let mut rings = guest.start(1 << 32, &[0, 1]);
        let (transmit, receive) = (rings.pop().unwrap(), rings.pop().unwrap());
        let mut program = Self {
            guest,
            host,
            receive,
            transmit,
            socket,
            told,
            _folder: folder,
        };
        program.place(WINDOW);
        program
    }

    /// One whose driver wants a connection, and has room for messages.
    pub(super) fn ready() -> Self {
        let mut program = Self::new();
        for index in 0..8 {
            program.offer(index);
        }
        program.want();
        program
    }

    pub(super) fn function(&mut self) -> &mut impl PciFunction {
        match &mut self.guest.bus {
            Bus::Pci(driver) => &mut driver.function,
            Bus::Mmio(_) => unreachable!("it is on PCI"),
        }
    }

    pub(super) fn window(address: u64) -> Window {
        Window {
            bar: 2,
            address,
            length: 0x40_0000,
        }
    }

    /// The window is there from now on.
    pub(super) fn place(&mut self, address: u64) {
        self.function().window_added(Self::window(address));
    }

    /// Has notifications come by vector 3 and what follows.
    pub(super) fn choose_vectors(&mut self) {
        for index in 0..16u16 {
            self.function().bar_write(2, 0x1000, &index.to_le_bytes());
            self.function()
                .bar_write(2, 0x1002, &(3 + index).to_le_bytes());
        }
    }

    pub(super) fn want(&mut self) {
        self.guest.set_config(0, &[1, 0, 0, 0]);
    }

    pub(super) fn status(&mut self) -> u64 {
        self.guest.config(0, 4)
    }

    /// Gives the device room for a message.
    pub(super) fn offer(&mut self, index: u64) {
        self.receive
            .submit(&[Writable(BUFFERS + index * BUFFER, 0x1100)]);
        self.guest.kick(0);
    }

    pub(super) fn connect(&mut self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        self.until("connection", |program| {
            (program.status() == 3).then_some(())
        });
        stream
    }

    pub(super) fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            self.guest.step();
            if let Some(done) = done(self) {
                return done;
            }
            assert!(
                Instant::now() < end,
                "no {what}; {:?}",
                self.told.lock().unwrap()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The next message, if one has come: request, flags and payload. Its buffer is offered again.
    pub(super) fn message(&mut self) -> Option<(u32, u32, Vec<u8>)> {
        self.guest.step();
        let used = self.receive.take()?;
        let address = BUFFERS + u64::from(used.head) % 8 * BUFFER;
        let raw = self.guest.read(address, used.length as usize);
        self.receive.submit(&[Writable(address, 0x1100)]);
        self.guest.kick(0);
        let word = |at: usize| u32::from_ne_bytes(raw[at..at + 4].try_into().unwrap());
        assert_eq!(word(8) as usize + 12, raw.len(), "{raw:x?}");
        Some((word(0), word(4), raw[12..].to_vec()))
    }

    pub(super) fn next_message(&mut self) -> (u32, u32, Vec<u8>) {
        self.until("message", Self::message)
    }

    /// Sends `raw`, and waits until it is taken.
    pub(super) fn send(&mut self, raw: &[u8]) {
        self.guest.write(ANSWER, raw);
        self.transmit.submit(&[Readable(ANSWER, raw.len() as u32)]);
        self.guest.kick(1);
        self.until("answer taken", |program| program.transmit.take());
    }

    pub(super) fn answer(&mut self, request: u32, payload: &[u8]) {
        self.send(&message(request, 5, payload));
    }

    /// The window's memory as it is shown, in the file that it is.
    pub(super) fn memory(&self, offset: u64) -> (Arc<File>, u64) {
        let address = WINDOW + MEMORY + offset;
        let shown = self.host.shown();
        let found = shown
            .iter()
            .find(|(at, _, _, length)| (*at..at + length).contains(&address));
        let (at, file, start, _) = found.expect("memory is shown there");
        (Arc::clone(file), start + (address - at))
    }

    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) {
        let (file, at) = self.memory(offset);
        file.read_exact_at(bytes, at).unwrap();
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        let (file, at) = self.memory(offset);
        file.write_all_at(bytes, at).unwrap();
    }

    /// Vectors that came since the last call.
    pub(super) fn vectors(&mut self) -> Vec<u16> {
        self.guest.vectors.delivered()
    }

    /// A structure by its capability's type: its place, and what follows.
    pub(super) fn capability(&mut self, cfg_type: u8) -> (Region, Vec<u8>) {
        let byte = |program: &mut Self, at: u16| {
            let mut byte = [0];
            program.function().config_read(at, &mut byte);
            byte[0]
        };
        let mut at = u16::from(byte(self, 0x34));
        while at != 0 {
            let raw: Vec<u8> = (0..24).map(|offset| byte(self, at + offset)).collect();
            if raw[0] == 9 && raw[3] == cfg_type {
                let word = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().unwrap());
                let region = Region {
                    bar: raw[4],
                    offset: word(8).into(),
                    length: word(12).into(),
                };
                return (region, raw[16..usize::from(raw[2])].to_vec());
            }
            at = raw[1].into();
        }
        panic!("no capability of type {cfg_type}");
    }
}

/// A message in raw words.
pub(super) fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let head = [request, flags, payload.len() as u32].map(u32::to_ne_bytes);
    [head.as_flattened(), payload].concat()
}

/// A table of memory: the guest's address, length, the VMM's address, offset in the file, of each region.
pub(super) fn table(count: u32, regions: &[[u64; 4]]) -> Vec<u8> {
    let words = regions.as_flattened().iter();
    let mut raw = [count.to_ne_bytes(), [0; 4]].concat();
    raw.extend(words.flat_map(|word| word.to_ne_bytes()));
    raw
}

/// A file in memory of `length` bytes, with these seals.
pub(super) fn memory_file(length: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("other-machine", flags).unwrap();
    ftruncate(&file, length).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}
