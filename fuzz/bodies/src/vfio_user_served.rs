// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A PCI function of ours that is served by vfio-user, to a VMM that says anything at all, in any order, with any files.

use std::cell::Cell;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::ByHand;
use hvkit_virtio_devices::pci::{PciFunction, Window};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_vmm::vfio_user::Server;
use hvkit_vmm::vfio_user::server::{Events, GivenMemory};

use crate::peer::{Beside, GIVEN, MEMORY, Peer};

/// The most messages of an input.
const MESSAGES: usize = 32;
/// Rounds in which the device must come to rest: a queue of 256 chains, 32 a round, and some.
const ROUNDS: usize = 100;
/// Vectors of a device with one queue.
const VECTORS: u16 = 2;
/// Bytes of a header, and the flags of a reply and of one that refuses.
const HEADER: usize = 16;
const REPLY: u32 = 1;
const ERROR: u32 = 1 << 5;

/// A function whose device works whenever it was touched.
struct Busy {
    function: VirtioPci<GivenMemory>,
    workers: ByHand,
}

impl Busy {
    fn work(&mut self) {
        let rounds = self.workers.step(ROUNDS);
        assert!(rounds < ROUNDS, "the device does not come to rest");
    }
}

impl PciFunction for Busy {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        assert!(usize::from(offset) + data.len() <= 256, "inside");
        self.function.config_read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        assert!(usize::from(offset) + data.len() <= 256, "inside");
        self.function.config_write(offset, data);
        self.work();
    }

    fn windows(&self) -> Vec<Window> {
        self.function.windows()
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        self.function.bar_read(bar, offset, data);
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        self.function.bar_write(bar, offset, data);
        self.work();
    }

    fn reset(&mut self) {
        self.function.reset();
    }
}

/// What a VMM says.
#[derive(Arbitrary, Clone, Debug)]
enum Message {
    /// DMA_MAP: rights, offset, address, bytes; as far as it is anything but what it seems; files.
    Map(u8, u16, u16, u16, u8, Vec<Beside>),
    /// DMA_UNMAP: flags, address, bytes.
    Unmap(u8, u16, u16),
    /// DEVICE_GET_INFO and RESET, REGION_INFO and IRQ_INFO.
    Ask(u8, u8),
    /// DEVICE_SET_IRQS: flags, index, start, count.
    Events(u8, u8, u8, u8, Vec<Beside>),
    /// REGION_READ, REGION_WRITE: region, offset, bytes.
    Read(u8, u16, u8),
    Write(u8, u16, Vec<u8>),
    /// A write to the common configuration.
    Common(u8, u32),
    /// All that brings the queue into service.
    Start,
    /// Anything.
    Raw(u16, u32, i16, Vec<u8>, Vec<Beside>),
}

/// Says them, and counts.
struct Vmm {
    peer: Peer,
    said: Cell<usize>,
    /// A message was shorter or longer than it said: who can say what the following bytes are.
    astray: Cell<bool>,
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl Vmm {
    fn all(&self, command: u16, flags: u32, more: i16, payload: &[u8], beside: &[Beside]) {
        let number = self.said.get();
        self.said.set(number + 1);
        self.astray.set(self.astray.get() || more != 0);
        let size = (HEADER + payload.len()).saturating_add_signed(more.into());
        let first = number as u32 & 0xffff | u32::from(command) << 16;
        let head = words(&[first, size as u32, flags, 0]);
        self.peer.say(&[&head, payload].concat(), beside);
    }

    fn send(&self, command: u16, payload: &[u8], beside: &[Beside]) {
        self.all(command, 0, 0, payload, beside);
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) {
        let place = [longs(&[offset]), words(&[region, data.len() as u32])].concat();
        self.send(10, &[&place, data].concat(), &[]);
    }

    fn map(&self, rights: u8, [offset, address, size]: [u64; 3], beside: &[Beside]) {
        let place = longs(&[offset, address, size]);
        let payload = [words(&[32, rights.into()]), place].concat();
        self.send(2, &payload, beside);
    }

    fn say(&self, message: &Message) {
        match message {
            Message::Map(rights, offset, address, size, odd, beside) => {
                let [offset, address, size] = [*offset, *address, *size].map(u64::from);
                let place = match odd {
                    0..240 if offset + size <= GIVEN => [offset, address, size],
                    // What reaches into the part that is not given is never accepted: it goes on beyond the file.
                    0..240 => [offset, address, size + MEMORY],
                    240..248 => [!offset, address, size],
                    248..252 => [offset, !address, size],
                    _ => [offset, address, !size],
                };
                self.map(*rights, place, beside);
            }
            Message::Unmap(flags, address, size) => {
                let place = longs(&[u64::from(*address), u64::from(*size)]);
                self.send(
                    3,
                    &[words(&[24, u32::from(flags % 4)]), place].concat(),
                    &[],
                );
            }
            Message::Ask(which, index) => {
                let asked = [4, 13, 5, 7][usize::from(which % 4)];
                self.send(
                    asked,
                    &words(&[32, 0, u32::from(*index), 0, 0, 0, 0, 0]),
                    &[],
                );
            }
            Message::Events(flags, index, start, count, beside) => {
                let [flags, index, start, count] = [*flags, *index, *start, *count].map(u32::from);
                self.send(8, &words(&[20, flags, index, start, count]), beside);
            }
            Message::Read(region, offset, count) => {
                let place = longs(&[u64::from(*offset)]);
                let about = words(&[u32::from(*region), u32::from(*count)]);
                self.send(9, &[place, about].concat(), &[]);
            }
            Message::Write(region, offset, data) => {
                self.write(
                    u32::from(*region),
                    u64::from(*offset),
                    &data[..data.len().min(64)],
                );
            }
            Message::Common(offset, value) => {
                // As wide as the field is, most often ("Common configuration structure layout", 4.1.4.3).
                let width = match offset {
                    0x14 | 0x15 => 1,
                    0x10..0x14 | 0x16..0x20 => 2,
                    _ => 4,
                };
                self.write(0, u64::from(*offset), &value.to_le_bytes()[..width]);
            }
            Message::Start => self.start(),
            Message::Raw(command, flags, more, payload, beside) => {
                let payload = &payload[..payload.len().min(512)];
                self.all(command % 20, *flags, *more, payload, beside);
            }
        }
    }

    /// Memory, interrupts, bus mastering, and queue 0 with 16 descriptors.
    fn start(&self) {
        self.map(3, [0, 0, GIVEN], &[Beside::Memory]);
        // VFIO_IRQ_SET_DATA_EVENTFD and ACTION_TRIGGER, MSI-X, both vectors.
        self.send(8, &words(&[20, 0x24, 2, 0, 2]), &[Beside::Event; 2]);
        self.write(7, 4, &6u16.to_le_bytes());
        let common = |offset, data: &[u8]| self.write(0, offset, data);
        common(0x14, &[0]);
        common(0x14, &[3]);
        common(0x08, &1u32.to_le_bytes());
        common(0x0c, &1u32.to_le_bytes());
        common(0x14, &[11]);
        common(0x16, &[0, 0]);
        common(0x18, &16u16.to_le_bytes());
        common(0x1a, &1u16.to_le_bytes());
        for (offset, area) in [(0x20, 0x1000u64), (0x28, 0x2000), (0x30, 0x3000)] {
            common(offset, &area.to_le_bytes()[..4]);
            common(offset + 4, &area.to_le_bytes()[4..]);
        }
        common(0x1c, &[1, 0]);
        common(0x14, &[15]);
        // Queue 0 is notified.
        common(0x3000, &[0, 0]);
    }
}

/// No panic, an end when the VMM hangs up, no write to memory that was not given, and a reply to each message at most.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok((greets, memory)) = <(u8, Vec<(u16, u64)>)>::arbitrary(&mut input) else {
        return;
    };
    let (peer, socket) = Peer::new(&memory);
    let vmm = Vmm {
        peer,
        said: Cell::new(0),
        astray: Cell::new(false),
    };
    if greets != 0 {
        vmm.send(
            1,
            b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":8}}\0",
            &[],
        );
    }
    for _ in 0..MESSAGES {
        let Ok(message) = Message::arbitrary(&mut input) else {
            break;
        };
        vmm.say(&message);
    }
    vmm.peer.end();

    let given = GivenMemory::default();
    let events = Arc::new(Events::new(VECTORS));
    let (workers, vectors) = (ByHand::default(), Arc::clone(&events));
    let device = Box::new(Entropy::new(std::io::repeat(7)));
    let runner = Box::new(workers.clone());
    let function = VirtioPci::new(device, given.clone(), vectors, runner).expect("a function");
    let function = Box::new(Busy { function, workers });
    let server = Server::new(socket, function, given, events).expect("a socket");
    // A VMM that does not begin as it should is told so by the end of the connection.
    drop(server.run());
    let (said, astray) = (vmm.said.get(), vmm.astray.get());
    check(&vmm.peer.answers(), (!astray).then_some(said));
}

/// Replies are whole, and one for each message at most, in their order, if it is known how many were `said`.
fn check(answers: &[u8], said: Option<usize>) {
    let (mut left, mut next) = (answers, 0);
    while let Some((head, rest)) = left.split_first_chunk::<HEADER>() {
        let (words, _) = head.as_chunks::<4>();
        let [first, size, flags, error] =
            [0, 1, 2, 3].map(|word: usize| u32::from_ne_bytes(words[word]));
        let number = first as usize & 0xffff;
        if let Some(said) = said {
            assert!((next..said).contains(&number), "a reply to {number}");
            next = number + 1;
        }
        assert_eq!(flags & 0xf, REPLY);
        assert_eq!(flags & ERROR != 0, error != 0, "message {number}: {error}");
        let length = (size as usize)
            .checked_sub(HEADER)
            .expect("with its header");
        left = rest.get(length..).expect("a whole reply");
    }
    assert!(left.is_empty(), "a whole reply");
}
