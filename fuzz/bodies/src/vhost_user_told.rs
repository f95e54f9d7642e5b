// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio device that another process serves by vhost-user: one that answers as it should but for some lies, and writes what it
//! likes into the memory that it was given.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{ByHand, Driver, PackedRing, Ring, Vectors};
use hvkit_virtio_devices::pci::PciFunction;
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::vhost_user::channel::Channel;
use hvkit_virtio_devices::vhost_user::{Options, Reconnection, SharedMemory, VhostUser};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::peer::next;

/// Bytes of guest memory.
const MEMORY: usize = 0x1_0000;
/// VIRTIO_F_RING_PACKED.
const PACKED: u64 = 1 << 34;
/// The most things that happen.
const ACTIONS: usize = 16;
/// Rounds in which workers must come to rest.
const ROUNDS: usize = 100;
/// How long the process has for an answer. Where it would be silent, it hangs up; but what it takes and does not finish is waited for.
const PATIENCE: Duration = Duration::from_millis(50);

/// What kind of device.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Block,
    Net,
    Files,
}

impl Kind {
    fn options(self) -> Options {
        let options = match self {
            Self::Block => Options::block().with_queues(2),
            Self::Net => Options::net(None, None),
            Self::Files => Options::file_system("fuzz").expect("a short tag"),
        };
        options.with_queue_size(16).with_patience(PATIENCE)
    }

    fn queues(self) -> u16 {
        2
    }
}

/// What is wrong with an answer.
#[derive(Arbitrary, Clone, Debug)]
enum Lie {
    /// Its first word.
    Value(u64),
    /// Its size, and how much of it comes.
    Size(i8, i8),
    /// Its header.
    Header(u8, u8),
    Twice,
    Files(u8),
    /// A request of the process's own goes before it: request, flags, and what it has.
    Own(u8, u8, Vec<u8>),
    HangUp,
}

/// What the process is like, and what it does at which message.
#[derive(Arbitrary, Clone, Debug)]
struct Character {
    /// Bits of features and of the protocol that are not as they would be.
    features: u64,
    protocol: u16,
    /// What it notes of queue 0, from the version on, before it has anything to.
    notes: [u16; 8],
    lies: Vec<(u8, Lie)>,
}

/// What happens at our end.
#[derive(Arbitrary, Clone, Debug)]
enum Action {
    /// The process writes to memory.
    Scribble(u16, u64),
    Submit(u8, u16, u16, u16, u16),
    Kick(u8),
    Step,
    /// The driver resets the device, and brings it up again.
    Start,
    /// The driver reads the device's configuration.
    Config(u8),
}

struct Process {
    channel: Channel,
    character: Character,
    own: Option<Channel>,
    heard: u8,
}

impl Process {
    /// Until it hangs up, or the other end does.
    fn run(mut self) {
        while self.one().is_some() {}
    }

    fn one(&mut self) -> Option<()> {
        let heard = next::<3>(&self.channel, (2, 0), PATIENCE)?;
        let ([request, flags, _], payload, mut files) = heard;
        if request == 21 {
            let socket = files.pop().map(UnixStream::from)?;
            self.own = Some(Channel::new(socket).ok()?);
        }
        let number = self.heard;
        self.heard = self.heard.wrapping_add(1);
        let Some((answer, beside)) = self.honest(request, flags, &payload) else {
            return Some(());
        };
        let lies = self.character.lies.iter();
        let lie = lies.clone().find(|(at, _)| *at == number);
        self.answer(request, answer, beside, lie.map(|(_, lie)| lie))
    }

    /// What an honest process would answer, with a file if that is asked for.
    fn honest(&self, request: u32, flags: u32, payload: &[u8]) -> Option<(Vec<u8>, Option<File>)> {
        let word = |word: u64| Some((word.to_ne_bytes().to_vec(), None));
        match request {
            // VERSION_1, ACCESS_PLATFORM and the protocol's.
            1 => word((3 << 32 | 1 << 30) ^ self.character.features),
            // MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD.
            15 => word(0x1229 ^ u64::from(self.character.protocol)),
            17 => word(4),
            11 | 24 => Some((payload.to_vec(), None)),
            31 => {
                let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).ok()?);
                file.set_len(0x4000).ok()?;
                // Notes from the start, of queues of 16.
                for (at, word) in (8..).step_by(2).zip(self.character.notes) {
                    file.write_all_at(&word.to_ne_bytes(), at).ok()?;
                }
                let mut answer = payload.to_vec();
                answer
                    .get_mut(..8)?
                    .copy_from_slice(&0x4000u64.to_ne_bytes());
                Some((answer, Some(file)))
            }
            _ if flags & 8 != 0 => word(0),
            _ => None,
        }
    }

    fn answer(
        &self,
        mut request: u32,
        mut answer: Vec<u8>,
        beside: Option<File>,
        lie: Option<&Lie>,
    ) -> Option<()> {
        let mut files: Vec<OwnedFd> = beside.into_iter().map(OwnedFd::from).collect();
        let (mut flags, mut size, mut times, mut last) = (5u32, answer.len() as u32, 1, false);
        match lie {
            None => {}
            Some(Lie::Value(value)) => {
                let length = answer.len().min(8);
                answer[..length].copy_from_slice(&value.to_ne_bytes()[..length]);
            }
            Some(Lie::Size(more, come)) => {
                size = size.wrapping_add_signed((*more).into());
                let length = answer.len().saturating_add_signed((*come).into());
                answer.resize(length, 0x5a);
                // Whoever waits for the rest waits for the end.
                last = size as usize > length;
            }
            Some(Lie::Header(other, bits)) => {
                request ^= u32::from(*other);
                flags ^= u32::from(*bits);
            }
            Some(Lie::Twice) => times = 2,
            Some(Lie::Files(count)) => {
                let file = || memfd_create("fuzz", MemfdFlags::CLOEXEC).ok();
                files.extend((0..count % 8).filter_map(|_| file()));
                files.truncate(8);
            }
            Some(Lie::Own(request, flags, payload)) => self.own_request(*request, *flags, payload),
            Some(Lie::HangUp) => return None,
        }
        let head = [request, flags, size].map(u32::to_ne_bytes);
        let message = [head.as_flattened(), &answer].concat();
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        for _ in 0..times {
            let end = Instant::now() + PATIENCE;
            self.channel.send(&message, &files, end).ok()?;
        }
        (!last).then_some(())
    }

    fn own_request(&self, request: u8, flags: u8, payload: &[u8]) {
        let Some(own) = &self.own else { return };
        let payload = &payload[..payload.len().min(64)];
        let words = [
            u32::from(request % 8),
            1 ^ u32::from(flags),
            payload.len() as u32,
        ];
        let message = [words.map(u32::to_ne_bytes).as_flattened(), payload].concat();
        // The other end may be gone.
        let _ = own.send(&message, &[], Instant::now() + PATIENCE);
    }
}

/// What a driver has of a queue.
enum Queue {
    Split(Ring),
    Packed(PackedRing),
}

/// The driver, and what it drives.
struct Bench {
    kind: Kind,
    packed: bool,
    memory: Arc<GuestMemoryMmap>,
    driver: Driver<VirtioPci<Arc<GuestMemoryMmap>>>,
    workers: ByHand,
    rings: Vec<Queue>,
}

impl Bench {
    fn start(&mut self) {
        assert_eq!(self.driver.set_status(0), 0, "a reset completes");
        self.driver.function.config_write(4, &6u16.to_le_bytes());
        // Of what is offered, all but ACCESS_PLATFORM.
        let accepted = self.driver.negotiate_packed(!(1 << 33));
        self.packed = accepted & PACKED != 0;
        let queue = |queue| {
            // A packed one is in three pages.
            let at = 0x1000 + 0x3000 * u64::from(queue);
            match self.packed {
                false => Queue::Split(self.driver.queue(queue, &self.memory, at, 16)),
                true => Queue::Packed(self.driver.queue_packed(queue, &self.memory, at, 16)),
            }
        };
        self.rings = (0..self.kind.queues()).map(queue).collect();
        self.driver.set_status(0xf);
    }

    fn act(&mut self, action: &Action, scribbled: &File) {
        match action {
            Action::Scribble(at, word) => {
                let at = u64::from(*at).min(MEMORY as u64 - 8);
                scribbled
                    .write_all_at(&word.to_le_bytes(), at)
                    .expect("inside");
            }
            Action::Submit(ring, read, read_length, write, write_length) => {
                let ring = usize::from(*ring) % self.rings.len();
                let buffers = [
                    Readable((*read).into(), (*read_length).into()),
                    Writable((*write).into(), (*write_length).into()),
                ];
                match &mut self.rings[ring] {
                    Queue::Split(ring) => ring.submit(&buffers),
                    Queue::Packed(ring) => ring.submit(&buffers),
                };
            }
            Action::Kick(queue) => self.driver.kick((*queue).into()),
            Action::Step => self.step(),
            Action::Start => self.start(),
            Action::Config(at) => {
                let mut data = [0; 4];
                let at = 0x2000 + u64::from(*at);
                self.driver.function.bar_read(0, at, &mut data);
            }
        }
    }

    fn step(&self) {
        let rounds = self.workers.step(ROUNDS);
        assert!(rounds < ROUNDS, "the workers do not come to rest");
    }
}

/// No panic, no worker that runs on, and a reset that completes, whatever the process says.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok((kind, character)) = <(Kind, Character)>::arbitrary(&mut input) else {
        return;
    };
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file"));
    file.set_len(MEMORY as u64).expect("a file");
    let scribbled = file.try_clone().expect("a file");
    let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
    let memory = Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).expect("memory"));
    let shared = SharedMemory::of(&*memory).expect("a file");
    let (socket, theirs) = UnixStream::pair().expect("a pair of sockets");
    // Who offers packed queues is asked for them.
    let options = match character.features & PACKED {
        0 => kind.options(),
        _ => kind.options().with_packed_rings(),
    };
    // Some wait for another process, which never comes.
    let options = match character.features >> 63 {
        0 => options,
        _ => options.with_reconnection(Reconnection::new("/nowhere/at/all", PATIENCE)),
    };
    let process = Process {
        channel: Channel::new(theirs).expect("a socket"),
        character,
        own: None,
        heard: 0,
    };
    let process = thread::spawn(move || process.run());
    if let Ok(device) = VhostUser::new(socket, options, shared) {
        let workers = ByHand::default();
        let runner = Box::new(workers.clone());
        let vectors = Arc::new(Vectors::default());
        let function = VirtioPci::new(Box::new(device), Arc::clone(&memory), vectors, runner);
        let mut bench = Bench {
            kind,
            packed: false,
            memory,
            driver: Driver::probe(function.expect("a function")),
            workers,
            rings: Vec::new(),
        };
        bench.start();
        for _ in 0..ACTIONS {
            let Ok(action) = Action::arbitrary(&mut input) else {
                break;
            };
            bench.act(&action, &scribbled);
        }
        bench.start();
        bench.step();
    }
    process.join().expect("no panic of ours");
}
