// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that carries vhost-user into a guest: between another machine's VMM that says anything, with any files, and a
//! program in this guest that answers anything, behind a window that comes and goes.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use arbitrary::{Arbitrary, Unstructured};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{ByHand, Driver, Ring, Vectors};
use hvkit_virtio_devices::pci::{PciFunction, Window};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::vhost_user::GuestBackEnd;
use hvkit_virtio_devices::vhost_user::channel::{Channel, MOST_FILES};
use hvkit_virtio_devices::vhost_user::to_guest::Options;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

mod host;
mod other;

use host::{FakeHost, Handle, WINDOW};
use other::{Other, REPLY, VERSION, head, words};

/// Bytes of guest memory.
const MEMORY: usize = 0x4_0000;
/// Where messages are put, by their chain's head, and the longest.
const MESSAGES: u64 = 0x1_0000;
const MESSAGE: u32 = 0x1100;
/// Where answers lie.
const ANSWERS: u64 = 0x3_0000;
/// Descriptors of a queue.
const SIZE: u16 = 16;
/// The most things that happen.
const ACTIONS: usize = 24;
/// Rounds in which the worker must come to rest: messages of 12 bytes that fill a socket, 16 a round.
const ROUNDS: usize = 2000;
/// What the window has room for.
const ROOM: u64 = 0x1_0000;
/// Bytes of a file that can be shown.
const FILE: u64 = 0x8000;

/// A file that goes with a message.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Beside {
    /// Memory that cannot be made shorter.
    Sealed,
    /// Memory that can.
    Open,
    /// An event.
    Event,
    /// A socket whose other end is gone.
    Socket,
    /// No file in memory.
    Null,
}

/// A piece of memory, by pages of its file, as far as it is not odd.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Region {
    offset: u8,
    length: u8,
    odd: u8,
}

impl Region {
    fn words(self) -> [u64; 4] {
        let [offset, length] = [self.offset, self.length].map(|pages| u64::from(pages % 8) << 12);
        match self.odd {
            0..240 => [0, length + 0x1000, 0, offset & 0x3000],
            240..244 => [0, length | 0x800, 0, offset],
            244..248 => [0, length, 0, offset | 0x800],
            248..252 => [0, !0xfff, 0, offset],
            _ => [!0, length, !0, !0xfff],
        }
    }
}

/// What the other machine's VMM says.
#[derive(Arbitrary, Clone, Debug)]
enum Message {
    /// SET_MEM_TABLE, with so many files more or less, and a count of regions that is so wrong.
    Table(Vec<Region>, i8, u8, Beside),
    /// SET_VRING_KICK, CALL, ERR.
    Event(u8, u16, bool, Vec<Beside>),
    /// One with a word.
    Word(u8, u64),
    /// Anything.
    Raw(u8, u32, i16, Vec<u8>, Vec<Beside>),
}

/// What happens.
#[derive(Arbitrary, Clone, Debug)]
enum Action {
    /// Another connection of the other machine's, which says what is said from now on.
    Connect,
    Say(Message),
    /// Part of a message.
    Bytes(Vec<u8>),
    HangUp,
    /// Its driver kicks.
    Kick,
    /// The guest's program wants a connection, or not.
    Want(bool),
    /// It has room for a message, or for less.
    Offer(u16),
    /// It answers: a word.
    Answer(u8, u64),
    /// It answers anything, of any length.
    Nonsense(Vec<u8>, u16),
    /// The window is put elsewhere, or nowhere.
    Place(Option<u8>),
    /// The host refuses what it is asked, or not.
    Refuse(bool),
    /// The guest's driver begins again.
    Start,
    Step,
}

struct Bench {
    host: Arc<FakeHost>,
    memory: Arc<GuestMemoryMmap>,
    driver: Driver<VirtioPci<Arc<GuestMemoryMmap>>>,
    workers: ByHand,
    rings: Vec<Ring>,
    /// Room for messages that has not been used.
    offered: u16,
    path: PathBuf,
    others: Vec<Other>,
    /// Of the other machine's driver.
    events: Vec<OwnedFd>,
    /// What reached the program.
    carried: Vec<Vec<u8>>,
}

impl Bench {
    fn start(&mut self) {
        assert_eq!(self.driver.set_status(0), 0, "a reset completes");
        assert!(self.host.is_empty(), "shown after a reset");
        self.driver.function.config_write(4, &6u16.to_le_bytes());
        self.driver.negotiate(!(1 << 33));
        let queue = |queue: u16| {
            let at = 0x1000 + 0x2000 * u64::from(queue);
            self.driver.queue(queue, &self.memory, at, SIZE)
        };
        self.rings = [0, 1].map(queue).into();
        self.offered = 0;
        self.driver.set_status(0xf);
    }

    fn place(&mut self, at: Option<u8>) {
        let window = |address| Window {
            bar: 2,
            address,
            length: WINDOW,
        };
        let before = self.host.window.lock().expect("no panic").take();
        if let Some(address) = before {
            self.driver.function.window_removed(window(address));
            assert!(self.host.is_empty(), "shown without a window");
        }
        if let Some(at) = at {
            let address = (0x20 + u64::from(at)) << 32;
            *self.host.window.lock().expect("no panic") = Some(address);
            self.driver.function.window_added(window(address));
        }
    }

    fn status(&mut self) -> u64 {
        let region = self.driver.device;
        self.driver.get(region, 0, 4)
    }

    fn want(&mut self, wanted: bool) {
        let region = self.driver.device;
        self.driver.put(region, 0, 4, wanted.into());
    }

    fn connect(&mut self) {
        let Ok(socket) = UnixStream::connect(&self.path) else {
            return;
        };
        let channel = socket.try_clone().and_then(Channel::new);
        socket.set_nonblocking(true).expect("a socket");
        self.others.push(Other {
            socket,
            channel: channel.expect("a socket"),
            said: Vec::new(),
            heard: Vec::new(),
            full: false,
        });
    }

    fn file(&mut self, kind: Beside) -> OwnedFd {
        let memory = |seals| {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create("fuzz", flags).expect("a file");
            rustix::fs::ftruncate(&file, FILE).expect("a file");
            fcntl_add_seals(&file, seals).expect("a file");
            file
        };
        match kind {
            Beside::Sealed => memory(SealFlags::SHRINK),
            Beside::Open => memory(SealFlags::GROW),
            Beside::Event => {
                let event = eventfd(0, EventfdFlags::NONBLOCK).expect("an event");
                self.events.push(event.try_clone().expect("an event"));
                event
            }
            Beside::Socket => UnixStream::pair().expect("a pair of sockets").0.into(),
            Beside::Null => File::open("/dev/null").expect("a file").into(),
        }
    }

    fn say(&mut self, message: &Message) {
        let (mut raw, payload, beside) = match message {
            Message::Table(regions, more, wrong, kind) => {
                let regions = &regions[..regions.len().min(9)];
                let count = regions.len() as u32;
                let mut payload = [(count ^ u32::from(*wrong >> 6)).to_ne_bytes(), [0; 4]].concat();
                let all = regions.iter().flat_map(|region| region.words());
                payload.extend(all.flat_map(u64::to_ne_bytes));
                // Nearly always as many as there are regions.
                let more = if more % 16 == 0 { more / 16 } else { 0 };
                let files = regions.len().saturating_add_signed(more.into());
                let kinds = vec![*kind; files];
                (head(5, VERSION, payload.len() as u32), payload, kinds)
            }
            Message::Event(which, queue, none, beside) => {
                let word = u64::from(queue % 32) | u64::from(*none) << 8;
                let payload = word.to_ne_bytes().to_vec();
                let beside = if *none { Vec::new() } else { beside.clone() };
                (head(12 + u32::from(which % 3), VERSION, 8), payload, beside)
            }
            Message::Word(request, word) => {
                let payload = word.to_ne_bytes().to_vec();
                (head((request % 48).into(), VERSION, 8), payload, Vec::new())
            }
            Message::Raw(request, flags, more, payload, beside) => {
                let payload = payload[..payload.len().min(512)].to_vec();
                let size = payload.len().saturating_add_signed((*more).into());
                let flags = if flags % 4 == 0 {
                    VERSION ^ flags >> 2
                } else {
                    VERSION
                };
                (
                    head((*request).into(), flags, size as u32),
                    payload,
                    beside.clone(),
                )
            }
        };
        raw.extend(payload);
        let most = beside.into_iter().take(MOST_FILES);
        let files: Vec<OwnedFd> = most.map(|kind| self.file(kind)).collect();
        if let Some(other) = self.others.last_mut() {
            other.say(&raw, &files);
        }
    }

    fn offer(&mut self, length: u32) {
        if self.offered < SIZE && !self.rings.is_empty() {
            let head = self.rings[0].submit(&[Writable(MESSAGES, length)]);
            let at = MESSAGES + u64::from(head) * 0x1800;
            // Once more, by the head, of which each has a place of its own.
            self.rings[0].descriptor(self.rings[0].table, head, (at, length, 2, 0));
            self.offered += 1;
        }
    }

    fn answer(&mut self, raw: &[u8], length: u32) {
        let raw = &raw[..raw.len().min(0x400)];
        self.memory
            .write_slice(raw, GuestAddress(ANSWERS))
            .expect("inside");
        if let Some(transmit) = self.rings.get_mut(1) {
            transmit.submit(&[Readable(ANSWERS, length)]);
        }
        self.driver.kick(1);
    }

    fn step(&mut self) {
        self.driver.kick(0);
        let rounds = self.workers.step(ROUNDS);
        assert!(rounds < ROUNDS, "the worker does not come to rest");
        for other in &mut self.others {
            other.hear();
        }
        // What a device that needs a reset did is not looked at.
        while let Some(used) = self.rings.first_mut().and_then(Ring::take) {
            self.offered = self.offered.saturating_sub(1);
            let mut raw = vec![0; used.length as usize];
            let at = MESSAGES + u64::from(used.head) * 0x1800;
            self.memory
                .read_slice(&mut raw, GuestAddress(at))
                .expect("inside");
            self.carried(raw);
        }
    }

    /// A message that the program has: whole, and said by the other machine.
    fn carried(&mut self, raw: Vec<u8>) {
        let Some((head, payload)) = raw.split_first_chunk::<12>() else {
            panic!("{} bytes are no message", raw.len());
        };
        let [_, flags, size] = words(head);
        assert_eq!(flags & 7, VERSION, "a request's flags");
        assert_eq!(size as usize, payload.len(), "a whole message");
        let mut said = self.others.iter().map(|other| &other.said);
        assert!(
            said.any(|said| said.windows(raw.len()).any(|there| there == raw)),
            "nobody said {raw:x?}"
        );
        self.carried.push(raw);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Connect => self.connect(),
            Action::Say(message) => self.say(&message),
            Action::Bytes(bytes) => {
                if let Some(other) = self.others.last_mut() {
                    other.say(&bytes[..bytes.len().min(64)], &[]);
                }
            }
            Action::HangUp => {
                if let Some(other) = self.others.last() {
                    // It may be gone.
                    let _ = other.socket.shutdown(std::net::Shutdown::Both);
                }
            }
            Action::Kick => {
                for event in &self.events {
                    // One that is full has been heard.
                    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
                }
            }
            Action::Want(wanted) => self.want(wanted),
            Action::Offer(length) => self.offer(match length {
                0..0x800 => length.into(),
                _ => MESSAGE,
            }),
            Action::Answer(request, word) => {
                let head = head((request % 48).into(), VERSION | REPLY, 8);
                self.answer(&[&head[..], &word.to_ne_bytes()].concat(), 20);
            }
            Action::Nonsense(raw, length) => self.answer(&raw, length.into()),
            Action::Place(at) => self.place(at),
            Action::Refuse(refuses) => self.host.refuses.store(refuses, Ordering::Relaxed),
            Action::Start => self.start(),
            Action::Step => self.step(),
        }
    }

    /// After all that, a message of an honest machine reaches the program, and memory is shown.
    fn serves(&mut self) {
        self.host.refuses.store(false, Ordering::Relaxed);
        self.place(Some(0));
        self.start();
        // Those that were not taken yet go first.
        for other in &self.others {
            let _ = other.socket.shutdown(std::net::Shutdown::Both);
        }
        let before = self.others.len();
        self.connect();
        let last = [head(2, VERSION, 8), b"honestly".to_vec()].concat();
        let table = [head(5, VERSION, 40), vec![1, 0, 0, 0, 0, 0, 0, 0]].concat();
        let region = [0u64, 0x2000, 0, 0x1000].map(u64::to_ne_bytes).concat();
        let file = self.file(Beside::Sealed);
        let other = self.others.last_mut().expect("it listens");
        other.say(&last, &[]);
        other.say(&[table, region].concat(), &[file]);
        // Each may have said more messages than there is room for at once.
        for _ in 0..before + ACTIONS {
            self.carried.clear();
            for _ in 0..SIZE {
                self.offer(MESSAGE);
            }
            self.want(true);
            self.step();
            if self.carried.iter().rev().nth(1) == Some(&last) {
                break;
            }
        }
        let heard = self.carried.iter().rev().nth(1);
        assert_eq!(heard, Some(&last), "{} carried", self.carried.len());
        assert_eq!(self.status(), 3, "connected");
        let shown = self.host.shown.lock().expect("no panic").clone();
        assert!(matches!(shown[..], [(_, 0x2000)]), "{shown:x?}");
    }
}

/// A path that nobody else has.
fn path() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("hvkit-fuzz-{}-carried-{count}", std::process::id());
    std::env::temp_dir().join(name)
}

/// No panic; the worker comes to rest; only whole messages reach the program and only answers leave; memory is shown inside the
/// window, of files that cannot be made shorter, and nowhere once the window is gone; a reset completes, and the device serves.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let host = Arc::new(FakeHost::default());
    let path = path();
    let options = Options::new().with_memory(ROOM);
    let handle = Arc::new(Handle(Arc::clone(&host)));
    let device = GuestBackEnd::new(&path, options, handle, |_| ()).expect("a socket");
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let memory = Arc::new(memory);
    let workers = ByHand::default();
    let (runner, vectors) = (Box::new(workers.clone()), Arc::new(Vectors::default()));
    let function = VirtioPci::new(Box::new(device), Arc::clone(&memory), vectors, runner);
    let mut bench = Bench {
        host: Arc::clone(&host),
        memory,
        driver: Driver::probe(function.expect("a function")),
        workers,
        rings: Vec::new(),
        offered: 0,
        path,
        others: Vec::new(),
        events: Vec::new(),
        carried: Vec::new(),
    };
    bench.start();
    // As far as most inputs should be before anything happens.
    if bool::arbitrary(&mut input).unwrap_or(false) {
        bench.place(Some(1));
        (0..8).for_each(|_| bench.offer(MESSAGE));
        bench.want(true);
        bench.connect();
        bench.step();
    }
    for _ in 0..ACTIONS {
        let Ok(action) = Action::arbitrary(&mut input) else {
            break;
        };
        bench.act(action);
    }
    bench.step();
    bench.serves();
    bench.place(None);
    drop(bench);
    assert!(host.is_empty(), "shown by a device that is gone");
}
