// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that carries vhost-user into a guest: between another machine's VMM that says anything, with any files, and a
//! program in this guest that answers anything, behind a window that comes and goes.

mod host;
mod other;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arbitrary::{Arbitrary, Unstructured};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{ByHand, Driver, Ring, Vectors};
use hvkit_virtio_devices::pci::{PciFunction, Window};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::vhost_user::GuestBackEnd;
use hvkit_virtio_devices::vhost_user::channel::MOST_FILES;
use hvkit_virtio_devices::vhost_user::to_guest::Options;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use host::{FakeHost, Handle, WINDOW};
use other::{Beside, Message, Other, REPLY, VERSION, head, words};

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
        if let Ok(socket) = UnixStream::connect(&self.path) {
            self.others.push(Other::new(socket));
        }
    }

    fn file(&mut self, kind: Beside) -> OwnedFd {
        let file = kind.file();
        if let Beside::Event = kind {
            self.events.push(file.try_clone().expect("an event"));
        }
        file
    }

    fn say(&mut self, message: &Message) {
        let (raw, beside) = message.raw();
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
