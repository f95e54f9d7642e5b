// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices that `hostile_devices` attacks, and how one sees that each serves.

use std::any::Any;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hvkit_virtio_devices::balloon::{self, Balloon};
use hvkit_virtio_devices::block::{Access, Block, Options};
use hvkit_virtio_devices::console::{Console, Port};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::Ring;
use hvkit_virtio_devices::net::{Net, Wire};
use hvkit_virtio_devices::pmem::{Backing, Pmem, Writes};
use hvkit_virtio_devices::reclaim::{Reclaim, ReclaimError};
use hvkit_virtio_devices::vsock::Vsock;

use crate::support::guest::{Guest, Memory, Transport};
use crate::support::{header, image, pattern};
use crate::vsock::{Packet, op};

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x9000;
pub(crate) const DATA: u64 = 0xa000;
/// What takes that long hangs. A tenth is what workers have; the rest is for a machine under load.
const HANGS: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Refused,
    Wedged,
    Failed,
}
use Verdict::{Pass, Refused};

/// A device and what is at its other end.
type Made = (Box<dyn Device<Memory>>, Box<dyn Any>);

/// A kind of device, and how one sees that it serves.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    make: fn() -> Made,
    pub(crate) queues: &'static [u16],
    /// Sends an honest request and says whether it was served, and rightly.
    honest: fn(&mut Subject) -> bool,
}

pub(crate) const KINDS: [Kind; 8] = [
    Kind {
        name: "disk",
        make: || {
            let file = image(64);
            let options = Options::new(file.path()).with_access(Access::ReadOnly);
            (Box::new(Block::open(options).unwrap()), Box::new(file))
        },
        queues: &[0],
        honest: |subject| {
            subject.guest.write(HEADER, &header(0, 5));
            subject.guest.write(STATUS, &[0xee]);
            let buffers = [
                Readable(HEADER, 16),
                Writable(DATA, 512),
                Writable(STATUS, 1),
            ];
            subject.rings[0].submit(&buffers);
            subject.guest.kick(0);
            subject.settle()
                && subject.rings[0].take().is_some()
                && subject.guest.read(STATUS, 1) == [0]
                && subject.guest.read(DATA, 512) == pattern(5 * 512, 512)
        },
    },
    Kind {
        name: "entropy",
        make: || (Box::new(Entropy::new(std::io::repeat(0x5a))), Box::new(())),
        queues: &[0],
        honest: |subject| {
            subject.guest.write(DATA, &[0; 16]);
            subject.rings[0].submit(&[Writable(DATA, 16)]);
            subject.guest.kick(0);
            subject.settle()
                && subject.rings[0].take().map(|used| used.length) == Some(16)
                && subject.guest.read(DATA, 16) == [0x5a; 16]
        },
    },
    Kind {
        name: "net",
        make: || {
            let (ours, theirs) = UnixDatagram::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.set_nonblocking(true).unwrap();
            let options = hvkit_virtio_devices::net::Options::new();
            let net = Net::new(options, Wire::Frames(OwnedFd::from(theirs)));
            (Box::new(net), Box::new(ours))
        },
        queues: &[0, 1],
        honest: |subject| sends(subject, 1, |end| end.downcast_ref().unwrap()),
    },
    Kind {
        name: "net of two pairs",
        make: || {
            let (ends, wires): (Vec<_>, Vec<_>) = (0..2)
                .map(|_| {
                    let (ours, theirs) = UnixDatagram::pair().unwrap();
                    ours.set_nonblocking(true).unwrap();
                    theirs.set_nonblocking(true).unwrap();
                    (ours, Wire::Frames(OwnedFd::from(theirs)))
                })
                .unzip();
            let options = hvkit_virtio_devices::net::Options::new();
            let net = Net::with_pairs(options, wires).unwrap();
            (Box::new(net), Box::new(ends))
        },
        queues: &[0, 1, 2, 3, 4],
        honest: |subject| {
            // VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET to two, then a frame on the second wire.
            subject.guest.write(DATA, &[4, 0, 2, 0]);
            subject.guest.write(STATUS, &[0xee]);
            subject.rings[4].submit(&[Readable(DATA, 4), Writable(STATUS, 1)]);
            subject.guest.kick(4);
            let obeyed = subject.settle()
                && subject.rings[4].take().is_some()
                && subject.guest.read(STATUS, 1) == [0];
            obeyed && sends(subject, 3, |end| &end.downcast_ref::<Vec<_>>().unwrap()[1])
        },
    },
    Kind {
        name: "console",
        make: || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.set_nonblocking(true).unwrap();
            let input = theirs.try_clone().unwrap();
            let port = Port::new("tty", theirs).with_input(input);
            (Box::new(Console::new(vec![port]).unwrap()), Box::new(ours))
        },
        queues: &[0, 1],
        honest: |subject| {
            let end: &UnixStream = subject.other_end.downcast_ref().unwrap();
            let mut end = end;
            let mut heard = [0; 4096];
            while end.read(&mut heard).is_ok_and(|count| count > 0) {}
            subject.guest.write(DATA, b"honest");
            subject.rings[1].submit(&[Readable(DATA, 6)]);
            subject.guest.kick(1);
            let settled = subject.settle();
            let end: &UnixStream = subject.other_end.downcast_ref().unwrap();
            let mut end = end;
            let count = end.read(&mut heard).unwrap_or(0);
            settled && heard[..count] == *b"honest" && subject.rings[1].take().is_some()
        },
    },
    Kind {
        name: "balloon",
        make: || {
            let taken = Taken::default();
            let options = balloon::Options::new().with_free_page_reporting();
            let balloon = Balloon::new(options, Arc::new(taken.clone())).unwrap();
            (Box::new(balloon), Box::new(taken))
        },
        // The last as Linux counts: it is for reporting.
        queues: &[0, 1, 2, 3],
        honest: |subject| {
            subject.guest.write(DATA, &7u32.to_le_bytes());
            subject.rings[0].submit(&[Readable(DATA, 4)]);
            subject.guest.kick(0);
            let settled = subject.settle();
            let taken: &Taken = subject.other_end.downcast_ref().unwrap();
            let last = taken.0.lock().unwrap().last().copied();
            settled && last == Some((0x7000, 0x1000)) && subject.rings[0].take().is_some()
        },
    },
    Kind {
        name: "pmem",
        make: || {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(2 << 20).unwrap();
            let backing = Backing::open(file.path(), Writes::Kept).unwrap();
            let pmem = Pmem::new(backing, 1 << 32).unwrap();
            (Box::new(pmem), Box::new(file))
        },
        queues: &[0],
        honest: |subject| {
            subject.guest.write(HEADER, &[0; 4]);
            subject.guest.write(STATUS, &[0xee; 4]);
            subject.rings[0].submit(&[Readable(HEADER, 4), Writable(STATUS, 4)]);
            subject.guest.kick(0);
            subject.settle()
                && subject.rings[0].take().map(|used| used.length) == Some(4)
                && subject.guest.read(STATUS, 4) == [0; 4]
        },
    },
    Kind {
        name: "vsock",
        make: || {
            let folder = tempfile::TempDir::new().unwrap();
            let path = folder.path().join("vsock");
            let vsock = Vsock::new(3, &path).unwrap();
            // So that there is something for the guest, and its queue for receiving is looked at.
            let mut knocking = UnixStream::connect(&path).unwrap();
            knocking.write_all(b"CONNECT 1234\n").unwrap();
            (Box::new(vsock), Box::new((folder, knocking)))
        },
        // Not the one for events, which is looked at after a restore.
        queues: &[0, 1],
        honest: |subject| {
            let (folder, _): &(tempfile::TempDir, UnixStream) =
                subject.other_end.downcast_ref().unwrap();
            let mut client = UnixStream::connect(folder.path().join("vsock")).unwrap();
            client.set_nonblocking(true).unwrap();
            client.write_all(b"CONNECT 77\n").unwrap();
            let place = |i: u64| 0xe000 + 128 * i;
            let heads: Vec<u16> = (0..8)
                .map(|i| subject.rings[0].submit(&[Writable(place(i), 128)]))
                .collect();
            subject.guest.kick(0);
            let mut settled = subject.settle();
            let mut asked = None;
            while let Some(used) = subject.rings[0].take() {
                let i = heads.iter().position(|head| u32::from(*head) == used.head);
                let raw = subject.guest.read(place(i.unwrap_or(0) as u64), 44);
                let packet = Packet::read(&raw);
                if (packet.op, packet.to.1) == (op::REQUEST, 77) {
                    asked = Some(packet);
                }
            }
            let Some(asked) = asked else { return false };
            for (op, data) in [(op::RESPONSE, &b""[..]), (op::RW, b"honest")] {
                let packet = asked.answer(op, data.len() as u32);
                subject.guest.write(HEADER, &packet.bytes());
                subject.guest.write(DATA, data);
                let buffers = [Readable(HEADER, 44), Readable(DATA, data.len() as u32)];
                subject.rings[1].submit(&buffers);
                subject.guest.kick(1);
                settled &= subject.settle();
            }
            let mut heard = [0; 64];
            let count = client.read(&mut heard).unwrap_or(0);
            let expected = format!("OK {}\nhonest", asked.from.1);
            settled && heard[..count] == *expected.as_bytes()
        },
    },
];

/// Whether a frame in queue `queue` comes out of a wire.
fn sends(subject: &mut Subject, queue: u16, wire: fn(&dyn Any) -> &UnixDatagram) -> bool {
    subject.guest.write(DATA, &[7; 100]);
    subject.rings[usize::from(queue)].submit(&[Readable(DATA, 100)]);
    subject.guest.kick(queue);
    let settled = subject.settle();
    // What the attack sent comes first.
    let (mut frame, mut last) = ([0; 200], false);
    while let Ok(count) = wire(&*subject.other_end).recv(&mut frame) {
        last = frame[..count] == [7; 100];
    }
    settled && last && subject.rings[usize::from(queue)].take().is_some()
}

/// Remembers what it is given.
#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<(u64, u64)>>>);

impl Reclaim for Taken {
    fn reclaim(&self, address: u64, length: u64) -> Result<(), ReclaimError> {
        self.0.lock().unwrap().push((address, length));
        Ok(())
    }
}

pub(crate) struct Subject {
    pub(crate) guest: Guest,
    pub(crate) rings: Vec<Ring>,
    other_end: Box<dyn Any>,
}

impl Subject {
    pub(crate) fn new(kind: &Kind, transport: Transport) -> Self {
        let (device, other_end) = (kind.make)();
        let mut guest = Guest::new(device, transport);
        let rings = guest.start(u64::MAX, kind.queues);
        Self {
            guest,
            rings,
            other_end,
        }
    }

    /// Lets the workers run; whether they come to rest.
    pub(crate) fn settle(&self) -> bool {
        let before = Instant::now();
        self.guest.workers.step(1000) < 1000 && before.elapsed() < HANGS
    }

    pub(crate) fn verdict(&mut self, kind: &Kind) -> Verdict {
        if !self.settle() {
            return Verdict::Wedged;
        }
        for ring in &mut self.rings {
            // A hostile ring may have more used than a driver would ever take.
            for _ in 0..300 {
                if ring.take().is_none() {
                    break;
                }
            }
        }
        let live = self.guest.status() & 0x44 == 0x04;
        let served = live && (kind.honest)(self);
        let verdict = if served { Pass } else { Refused };
        if live && !served && self.guest.status() & 0x40 == 0 {
            return Verdict::Wedged;
        }
        if self.guest.set_status(0) != 0 {
            return Verdict::Wedged;
        }
        self.rings = self.guest.start(u64::MAX, kind.queues);
        if (kind.honest)(self) {
            verdict
        } else {
            Verdict::Wedged
        }
    }
}
