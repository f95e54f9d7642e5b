// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device of ours that is served by vhost-user, to a VMM that says anything at all, in any order, with any files.

use std::cell::Cell;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use hvkit_virtio_devices::console::{Console, Port};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::vhost_user::back_end::{BackEnd, Memory};
use hvkit_virtio_devices::worker::{Progress, Runner, Running, StartError, Stopped, Worker};

use crate::peer::{Beside, GIVEN, MEMORY, Peer};

/// The most messages of an input.
const MESSAGES: usize = 32;
/// Rounds in which a worker must come to rest: a queue of 256 chains, 32 a round, and some.
const ROUNDS: usize = 100;
/// Where the VMM says that it has the memory itself.
const THEIRS: u64 = 0x7000_0000;
/// Header flags: version 1; that an answer is wanted.
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 1 << 3;

/// A piece of memory, by its beginning and length in the file, the guest and the VMM.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Region {
    guest: u16,
    length: u16,
    theirs: u16,
    offset: u16,
    /// As far as it is anything but what it seems.
    odd: u8,
}

impl Region {
    fn words(self) -> [u64; 4] {
        let [guest, theirs] = [self.guest, self.theirs].map(|at| u64::from(at) << 4);
        let (length, offset) = (u64::from(self.length), u64::from(self.offset));
        let words = [guest, length, THEIRS + theirs, offset];
        match self.odd {
            0..240 if offset + length <= GIVEN => words,
            // What reaches into the part that is not given is never accepted: it goes on beyond the file.
            0..240 => [guest, length + MEMORY, THEIRS, offset],
            240..245 => [!guest, length, THEIRS, offset],
            245..250 => [guest, length, !theirs, offset],
            250..254 => [guest, length | 1 << 40, THEIRS, offset],
            _ => [guest, length, THEIRS, !offset],
        }
    }
}

/// What a VMM says.
#[derive(Arbitrary, Clone, Debug)]
enum Message {
    /// One without a payload.
    Ask(u8),
    /// SET_FEATURES: VERSION_1 and what else.
    Features(u64),
    Protocol(u16),
    /// SET_MEM_TABLE, with so many files more or less.
    Table(Vec<Region>, i8),
    /// SET_VRING_NUM, BASE, ENABLE, GET_VRING_BASE.
    State(u8, u8, u16),
    /// SET_VRING_ADDR.
    Place(u8, [u16; 3], u8),
    /// SET_VRING_KICK, CALL, ERR.
    Event(u8, u8, Vec<Beside>),
    /// IOTLB_MSG: device address, bytes, the VMM's address, access, kind.
    Translate(u16, u16, u16, u8, u8),
    /// GET_CONFIG, SET_CONFIG.
    Config(bool, u8, u8, i8),
    /// SET_BACKEND_REQ_FD.
    Own(Vec<Beside>),
    /// All that brings a queue into service: bit 0, behind an IOMMU; bit 1, packed.
    Start(u8, u8),
    /// Anything.
    Raw(u32, u32, i16, Vec<u8>, Vec<Beside>),
}

/// Says them, and counts.
struct Vmm {
    peer: Peer,
    said: Cell<usize>,
    /// A message was shorter or longer than it said: who can say what the following bytes are.
    astray: Cell<bool>,
}

impl Vmm {
    fn all(&self, message: &[u8], beside: &[Beside]) {
        self.peer.say(message, beside);
        self.said.set(self.said.get() + 1);
    }

    fn send(&self, request: u32, payload: &[u8], beside: &[Beside]) {
        let head = [request, VERSION | NEED_REPLY, payload.len() as u32];
        self.all(&[&bytes(&head), payload].concat(), beside);
    }

    fn word(&self, request: u32, word: u64, beside: &[Beside]) {
        self.send(request, &word.to_ne_bytes(), beside);
    }

    fn table(&self, regions: &[Region], more: i8) {
        let mut payload = bytes(&[regions.len() as u32, 0]);
        payload.extend(regions.iter().flat_map(|region| longs(&region.words())));
        let files = regions.len().saturating_add_signed(more.into()).min(8);
        self.send(5, &payload, &vec![Beside::Memory; files]);
    }

    /// By the VMM's own addresses, or by the device's.
    fn place(&self, ring: u8, areas: [u16; 3], flags: u8) {
        let base = if flags & 0x80 == 0 { THEIRS } else { 0 };
        let [descriptors, used, available] = areas.map(|at| base + u64::from(at));
        let about = u64::from(ring) | u64::from(flags & 0x7f) << 32;
        self.send(9, &longs(&[about, descriptors, used, available, 0]), &[]);
    }

    fn say(&self, message: &Message) {
        match message {
            Message::Ask(which) => {
                let asked = [1, 3, 15, 17, 24][usize::from(which % 5)];
                self.send(asked, &[], &[]);
            }
            Message::Features(bits) => self.word(2, 1 << 32 | bits, &[]),
            Message::Protocol(bits) => self.word(16, (*bits).into(), &[]),
            Message::Table(regions, more) => self.table(&regions[..regions.len().min(9)], *more),
            Message::State(which, ring, value) => {
                let asked = [8, 10, 11, 18][usize::from(which % 4)];
                // A packed queue's position has two halves.
                let halves = if which & 4 == 0 { 1 } else { 0x1_0001 };
                let value = u32::from(*value) * halves;
                self.send(asked, &bytes(&[u32::from(*ring), value]), &[]);
            }
            Message::Place(ring, areas, flags) => self.place(*ring, *areas, *flags),
            Message::Event(which, ring, beside) => {
                let none = if beside.is_empty() { 1 << 8 } else { 0 };
                self.word(12 + u32::from(which % 3), u64::from(*ring) | none, beside);
            }
            Message::Translate(at, size, theirs, access, kind) => {
                let words = longs(&[
                    u64::from(*at),
                    u64::from(*size),
                    THEIRS + u64::from(*theirs),
                ]);
                let about = [*access, *kind, 0, 0, 0, 0, 0, 0];
                self.send(22, &[words, about.to_vec()].concat(), &[]);
            }
            Message::Config(write, at, size, more) => {
                let data = vec![0x5a; usize::from(*size).saturating_add_signed((*more).into())];
                let about = bytes(&[u32::from(*at), u32::from(*size), 0]);
                self.send(if *write { 25 } else { 24 }, &[about, data].concat(), &[]);
            }
            Message::Own(beside) => self.send(21, &[], beside),
            Message::Start(ring, how) => {
                let (behind, packed) = (u64::from(how & 1), u64::from(how >> 1 & 1));
                self.word(16, 1 << 3 | 1 << 5, &[]);
                self.word(2, 1 << 32 | 1 << 30 | behind << 33 | packed << 34, &[]);
                let all = Region {
                    guest: 0,
                    length: GIVEN as u16,
                    theirs: 0,
                    offset: 0,
                    odd: 0,
                };
                self.table(&[all], 0);
                self.send(8, &bytes(&[u32::from(*ring), 16]), &[]);
                let base = if packed == 0 { 0 } else { 0x8000_8000 };
                self.send(10, &bytes(&[u32::from(*ring), base]), &[]);
                self.place(*ring, [0x1000, 0x3000, 0x2000], (behind as u8) << 7);
                self.word(13, u64::from(*ring), &[Beside::Event]);
                self.word(12, u64::from(*ring), &[Beside::Event]);
                self.send(18, &bytes(&[u32::from(*ring), 1]), &[]);
            }
            Message::Raw(request, flags, more, payload, beside) => {
                let payload = &payload[..payload.len().min(512)];
                let size = payload.len().saturating_add_signed((*more).into());
                self.astray.set(self.astray.get() || *more != 0);
                let head = bytes(&[request % 64, VERSION ^ flags, size as u32]);
                self.all(&[&head, payload].concat(), beside);
            }
        }
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Has a worker do all it can when it is started, and when it is to stop.
struct AtOnce;

struct Waiting(Option<Box<dyn Worker>>);

fn work(worker: &mut dyn Worker) {
    for round in 0.. {
        assert!(round < ROUNDS, "a worker does not come to rest");
        let sources = worker.sources().len();
        let mut rests = |source| matches!(worker.ready(source), Progress::Wait | Progress::Done);
        if (0..sources).all(&mut rests) {
            break;
        }
    }
}

impl Runner for AtOnce {
    fn start(&mut self, mut worker: Box<dyn Worker>) -> Result<Box<dyn Running>, StartError> {
        worker.started();
        work(&mut *worker);
        Ok(Box::new(Waiting(Some(worker))))
    }
}

impl Running for Waiting {
    fn request_stop(&mut self) {}

    fn go_on(&mut self) -> bool {
        self.0.is_some()
    }

    fn stopped(&mut self, _patience: Duration) -> Stopped {
        self.0.take().map_or(Stopped::Gone, |mut worker| {
            work(&mut *worker);
            worker.stopping();
            Stopped::With(worker)
        })
    }
}

/// No panic, an end when the VMM hangs up, no write to memory that was not given, and at most one answer for each message.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok((several, words)) = <(bool, Vec<(u16, u64)>)>::arbitrary(&mut input) else {
        return;
    };
    let (peer, socket) = Peer::new(&words);
    let vmm = Vmm {
        peer,
        said: Cell::new(0),
        astray: Cell::new(false),
    };
    for _ in 0..MESSAGES {
        let Ok(message) = Message::arbitrary(&mut input) else {
            break;
        };
        vmm.say(&message);
    }
    vmm.peer.end();
    let device: Box<dyn Device<Memory>> = if several {
        let ports = ["a", "b"].map(|name| Port::new(name, std::io::sink()));
        Box::new(Console::new(ports.into()).expect("two ports"))
    } else {
        Box::new(Entropy::new(std::io::repeat(7)))
    };
    let served = BackEnd::new(socket, device, Box::new(AtOnce), |_| ())
        .expect("a socket")
        .with_patience(Duration::ZERO)
        .run();
    // A VMM that makes no sense is told so by the end of the connection.
    drop(served);
    let (said, astray) = (vmm.said.get(), vmm.astray.get());
    let answers = vmm.peer.answers();
    let mut left = &answers[..];
    let mut count = 0;
    while let Some((head, rest)) = left.split_first_chunk::<12>() {
        let (words, _) = head.as_chunks::<4>();
        let [_, flags, size] = [0, 1, 2].map(|word: usize| u32::from_ne_bytes(words[word]));
        assert_eq!(flags, VERSION | 1 << 2, "an answer's flags");
        left = rest.get(size as usize..).expect("a whole answer");
        count += 1;
    }
    assert!(left.is_empty(), "a whole answer");
    assert!(
        astray || count <= said,
        "{count} answers to {said} messages"
    );
}
