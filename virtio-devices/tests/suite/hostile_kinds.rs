// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices that `hostile_devices` attacks, and how one sees that each serves.

use std::any::Any;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use hvkit_virtio_devices::balloon::{self, Balloon};
use hvkit_virtio_devices::block::{Access, Block, Engine, Format, HostCache, Options};
use hvkit_virtio_devices::console::{Console, Port};
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::iommu::{AtBoot, Iommu, Limits, SharedEndpoint};
use hvkit_virtio_devices::net::{FrameStream, Net, Wire};
use hvkit_virtio_devices::pmem::{Backing, Pmem, Writes};
use hvkit_virtio_devices::reclaim::{Reclaim, ReclaimError};
use hvkit_virtio_devices::vsock::Vsock;
use tempfile::{NamedTempFile, TempDir};
use vm_memory::{GuestAddress, Iommu as _, Permissions};

use crate::formats::{CLUSTER, qcow2};
use crate::hostile_subject::Verdict::{Pass, Refused};
use crate::hostile_subject::{Kind, Made, Subject};
use crate::moved::moved;
use crate::support::{header, image, pattern};
use crate::vsock::{Packet, op};

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x9000;
pub(crate) const DATA: u64 = 0xa000;
const SECTORS: u64 = 64;

/// What most kinds have in common.
const PLAIN: Kind = Kind {
    name: "",
    make: || panic!("of no kind"),
    queues: &[0],
    attacked: &[0],
    begin: |_| (),
    honest: |_| false,
    without_queues: Refused,
    untouched: |_| true,
};

/// A disk without the host's cache, not where other temporary files are: that may be memory, which has no other.
fn uncached(engine: Engine) -> Made {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("disk.img");
    std::fs::write(&path, pattern(0, SECTORS * 512)).unwrap();
    let options = Options::new(&path).with_engine(engine);
    let bypassed = options.clone().with_host_cache(HostCache::Bypassed);
    let block = Block::open(bypassed).unwrap_or_else(|error| {
        lab_kit::skip::skip(&format!("no disk without the host's cache here: {error}"));
        Block::open(options).unwrap()
    });
    if let (Engine::Ring, Some(why)) = (engine, block.no_ring()) {
        lab_kit::skip::skip(&format!("no io_uring here: {why}"));
    }
    (Box::new(block), Box::new((folder, path)))
}

/// An honest read of sector 5.
fn reads(subject: &mut Subject) -> bool {
    subject.guest.write(HEADER, &header(0, 5));
    subject.guest.write(STATUS, &[0xee]);
    subject.guest.write(DATA, &[0xee; 512]);
    let buffers = [
        Readable(HEADER, 16),
        Writable(DATA, 512),
        Writable(STATUS, 1),
    ];
    subject.rings[0].submit(&buffers);
    subject.guest.kick(0);
    subject.served(0)
        && subject.guest.read(STATUS, 1) == [0]
        && subject.guest.read(DATA, 512) == pattern(5 * 512, 512)
}

fn is_as_it_was(path: &Path) -> bool {
    std::fs::read(path).unwrap() == pattern(0, SECTORS * 512)
}

fn uncached_is_as_it_was(end: &dyn Any) -> bool {
    is_as_it_was(&end.downcast_ref::<(TempDir, PathBuf)>().unwrap().1)
}

/// A device of sockets, and a client that knocks, so that there is something for the guest.
struct Sockets {
    folder: TempDir,
    knocking: Vec<UnixStream>,
}

impl Sockets {
    fn path(&self) -> PathBuf {
        self.folder.path().join(format!("s{}", self.knocking.len()))
    }

    /// One more device.
    fn device(&mut self) -> Box<Vsock> {
        let name = format!("s{}", self.knocking.len() + 1);
        let path = self.folder.path().join(name);
        let vsock = Vsock::new(3, &path).unwrap();
        let mut knocking = UnixStream::connect(&path).unwrap();
        knocking.write_all(b"CONNECT 1234\n").unwrap();
        self.knocking.push(knocking);
        Box::new(vsock)
    }
}

fn sockets() -> Made {
    let mut sockets = Sockets {
        folder: TempDir::new().unwrap(),
        knocking: Vec::new(),
    };
    (sockets.device(), Box::new(sockets))
}

/// A console whose ports have sockets at their other ends.
fn console(ports: usize) -> Made {
    let (ends, ports): (Vec<_>, Vec<_>) = (0..ports)
        .map(|_| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.set_nonblocking(true).unwrap();
            let input = theirs.try_clone().unwrap();
            (ours, Port::new("tty", theirs).with_input(input))
        })
        .unzip();
    (Box::new(Console::new(ports).unwrap()), Box::new(ends))
}

/// Whether what port `port` is told by `queue` comes out of it.
fn says(subject: &mut Subject, port: usize, queue: usize) -> bool {
    let mut heard = [0; 4096];
    let mut hear = |subject: &Subject| {
        let ends: &Vec<UnixStream> = subject.other_end.downcast_ref().unwrap();
        let mut end = &ends[port];
        let count = end.read(&mut heard).unwrap_or(0);
        heard[..count].to_vec()
    };
    while !hear(subject).is_empty() {}
    subject.guest.write(DATA, b"honest");
    subject.rings[queue].submit(&[Readable(DATA, 6)]);
    subject.guest.kick(queue as u16);
    let served = subject.served(queue);
    served && hear(subject) == b"honest"
}

pub(crate) static KINDS: [Kind; 15] = [
    Kind {
        name: "disk",
        make: || {
            let file = image(SECTORS);
            let options = Options::new(file.path()).with_access(Access::ReadOnly);
            (Box::new(Block::open(options).unwrap()), Box::new(file))
        },
        honest: reads,
        untouched: |end| is_as_it_was(end.downcast_ref::<NamedTempFile>().unwrap().path()),
        ..PLAIN
    },
    Kind {
        name: "disk by a ring",
        make: || uncached(Engine::Ring),
        honest: reads,
        untouched: uncached_is_as_it_was,
        ..PLAIN
    },
    Kind {
        name: "disk without cache",
        make: || uncached(Engine::Calls),
        honest: reads,
        untouched: uncached_is_as_it_was,
        ..PLAIN
    },
    Kind {
        name: "disk in qcow2",
        make: || {
            let folder = TempDir::new().unwrap();
            let path = folder.path().join("disk.qcow2");
            qcow2(&path, &pattern(0, CLUSTER), None);
            let options = Options::new(&path).with_format(Format::Qcow2);
            let before = std::fs::read(&path).unwrap();
            let block = Block::open(options).unwrap();
            (Box::new(block), Box::new((folder, path, before)))
        },
        honest: reads,
        untouched: |end| {
            let (_, path, before): &(TempDir, PathBuf, Vec<u8>) = end.downcast_ref().unwrap();
            std::fs::read(path).unwrap() == *before
        },
        ..PLAIN
    },
    Kind {
        name: "entropy",
        make: || (Box::new(Entropy::new(std::io::repeat(0x5a))), Box::new(())),
        honest: |subject| {
            subject.guest.write(DATA, &[0; 16]);
            subject.rings[0].submit(&[Writable(DATA, 16)]);
            subject.guest.kick(0);
            subject.settle()
                && subject.rings[0].take().map(|used| used.length) == Some(16)
                && subject.guest.read(DATA, 16) == [0x5a; 16]
        },
        ..PLAIN
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
        queues: &[0, 1, 2],
        attacked: &[0, 1, 2],
        honest: |subject| sends(subject, 1, |end| end.downcast_ref().unwrap()),
        ..PLAIN
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
        attacked: &[0, 1, 2, 3, 4],
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
        ..PLAIN
    },
    Kind {
        name: "net by a stream",
        make: || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let options = hvkit_virtio_devices::net::Options::new();
            let net = Net::new(options, Wire::Stream(FrameStream::new(theirs).unwrap()));
            (Box::new(net), Box::new(ours))
        },
        queues: &[0, 1, 2],
        attacked: &[0, 1, 2],
        honest: |subject| {
            subject.guest.write(DATA, &[7; 100]);
            subject.rings[1].submit(&[Readable(DATA, 100)]);
            subject.guest.kick(1);
            let served = subject.served(1);
            let mut end: &UnixStream = subject.other_end.downcast_ref().unwrap();
            // What the attack sent comes first.
            let mut heard = Vec::new();
            let _ = end.read_to_end(&mut heard);
            served && heard.ends_with(&[&[0, 0, 0, 88][..], &[7; 88]].concat())
        },
        ..PLAIN
    },
    Kind {
        name: "console",
        make: || console(1),
        queues: &[0, 1],
        attacked: &[0, 1],
        honest: |subject| says(subject, 0, 1),
        // Without a port it is one all the same.
        without_queues: Pass,
        ..PLAIN
    },
    Kind {
        name: "console of three ports",
        make: || console(3),
        queues: &[0, 1, 2, 3, 4, 5, 6, 7],
        attacked: &[0, 1, 2, 3, 4, 5, 6, 7],
        honest: |subject| says(subject, 0, 1) && says(subject, 2, 7),
        // But not without the control queues that it has accepted.
        ..PLAIN
    },
    Kind {
        name: "balloon",
        make: || {
            let taken = Taken::default();
            let options = balloon::Options::new()
                .with_free_page_hints()
                .with_free_page_reporting();
            let balloon = Balloon::new(options, Arc::new(taken.clone())).unwrap();
            (Box::new(balloon), Box::new(taken))
        },
        queues: &[0, 1, 2, 3, 4],
        attacked: &[0, 1, 2, 3, 4],
        honest: |subject| {
            subject.guest.write(DATA, &7u32.to_le_bytes());
            subject.rings[0].submit(&[Readable(DATA, 4)]);
            subject.guest.kick(0);
            let settled = subject.settle();
            let taken: &Taken = subject.other_end.downcast_ref().unwrap();
            let last = taken.0.lock().unwrap().last().copied();
            settled && last == Some((0x7000, 0x1000)) && subject.rings[0].take().is_some()
        },
        ..PLAIN
    },
    Kind {
        name: "pmem",
        make: || {
            let file = NamedTempFile::new().unwrap();
            file.as_file().set_len(2 << 20).unwrap();
            let backing = Backing::open(file.path(), Writes::Kept).unwrap();
            let pmem = Pmem::new(backing, 1 << 32).unwrap();
            (Box::new(pmem), Box::new(file))
        },
        honest: |subject| {
            subject.guest.write(HEADER, &[0; 4]);
            subject.guest.write(STATUS, &[0xee; 4]);
            subject.rings[0].submit(&[Readable(HEADER, 4), Writable(STATUS, 4)]);
            subject.guest.kick(0);
            subject.settle()
                && subject.rings[0].take().map(|used| used.length) == Some(4)
                && subject.guest.read(STATUS, 4) == [0; 4]
        },
        ..PLAIN
    },
    Kind {
        name: "vsock",
        make: sockets,
        queues: &[0, 1],
        attacked: &[0, 1],
        honest: answers,
        ..PLAIN
    },
    Kind {
        name: "vsock after a move",
        make: sockets,
        queues: &[0, 1, 2],
        // Which is looked at when there is an event to tell.
        attacked: &[2],
        begin: |subject| {
            let sockets: &mut Sockets = subject.other_end.downcast_mut().unwrap();
            let device = sockets.device();
            subject.guest = moved(&mut subject.guest, device);
        },
        honest: answers,
        ..PLAIN
    },
    Kind {
        name: "iommu",
        make: || {
            let iommu = Iommu::new(Limits::default(), AtBoot::Block).unwrap();
            let endpoint = iommu.add_endpoint(0x18, Vec::new()).unwrap();
            (Box::new(iommu), Box::new(endpoint))
        },
        queues: &[0, 1],
        attacked: &[0, 1],
        // A fault to tell of.
        begin: |subject| {
            let endpoint: &SharedEndpoint = subject.other_end.downcast_ref().unwrap();
            let at = GuestAddress(0x5000);
            assert!(endpoint.translate(at, 4, Permissions::Read).is_err());
        },
        honest: |subject| {
            // ATTACH the endpoint to domain 1.
            let attach = [
                1, 0, 0, 0, 1, 0, 0, 0, 0x18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ];
            subject.guest.write(HEADER, &attach);
            subject.guest.write(STATUS, &[0xee; 4]);
            subject.rings[0].submit(&[Readable(HEADER, 20), Writable(STATUS, 4)]);
            subject.guest.kick(0);
            subject.served(0) && subject.guest.read(STATUS, 4) == [0; 4]
        },
        ..PLAIN
    },
];

/// Whether a client of the host's reaches the guest, and hears it.
fn answers(subject: &mut Subject) -> bool {
    let sockets: &Sockets = subject.other_end.downcast_ref().unwrap();
    let mut client = UnixStream::connect(sockets.path()).unwrap();
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
}

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
