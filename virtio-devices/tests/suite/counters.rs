// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each queue of each device counts what it has done, and nothing that another has.

use std::io::Write;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;

use hvkit_virtio_devices::balloon::{self, Balloon};
use hvkit_virtio_devices::block::{Block, Options};
use hvkit_virtio_devices::console::{Console, Port};
use hvkit_virtio_devices::counters::{Counters, Counts};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::{self, Readable, Writable};
use hvkit_virtio_devices::fake::Ring;
use hvkit_virtio_devices::iommu::{AtBoot, Iommu, Limits};
use hvkit_virtio_devices::net::{self, Net, Wire};
use hvkit_virtio_devices::pmem::{Backing, Pmem, Writes};
use hvkit_virtio_devices::reclaim::HostPages;
use hvkit_virtio_devices::vsock::Vsock;
use vm_memory::{GuestAddress, Iommu as _, Permissions};

use crate::moved::moved;
use crate::support::guest::{Guest, Memory, TRANSPORTS, Transport};
use crate::support::{header, image, memory};
use crate::vsock::{Packet, op};

const IN: u64 = 0x8000;
const OUT: u64 = 0x9000;
const DATA: u64 = 0xa000;

/// A device that is up, and the numbers of its queues.
struct Counted {
    guest: Guest,
    rings: Vec<Ring>,
    counters: Vec<Counters>,
}

impl Counted {
    fn new(device: Box<dyn Device<Memory>>, transport: Transport) -> Self {
        let counters = device.counters();
        assert_eq!(counters.len(), device.queue_sizes().len());
        let queues: Vec<u16> = (0..counters.len() as u16).collect();
        // What lies past the rings of ten queues is the requests'.
        let mut guest = Guest::in_memory(device, transport, memory());
        let rings = guest.start(u64::MAX, &queues);
        let all = vec![Counts::default(); counters.len()];
        let counted = Self {
            guest,
            rings,
            counters,
        };
        assert_eq!(counted.now(), all);
        counted
    }

    fn now(&self) -> Vec<Counts> {
        self.counters.iter().map(Counters::read).collect()
    }

    /// Has a chain served by queue `at`, which counts it and its `bytes`, and an interrupt; no other counts anything.
    fn counts(&mut self, at: usize, chain: &[Buffer], bytes: u64) {
        let mut expected = self.now();
        self.rings[at].submit(chain);
        self.guest.run(at as u16);
        assert!(self.rings[at].take().is_some(), "queue {at}: not served");
        expected[at].chains += 1;
        expected[at].bytes += bytes;
        expected[at].interrupts += 1;
        assert_eq!(self.now(), expected, "queue {at}");
    }
}

#[test]
fn a_disk_s_queues_count_apart() {
    for transport in TRANSPORTS {
        let file = image(64);
        let options = Options::new(file.path()).with_queues(3);
        let mut disk = Counted::new(Box::new(Block::open(options).unwrap()), transport);
        disk.guest.write(IN, &header(0, 5));
        let read = [Readable(IN, 16), Writable(DATA, 512), Writable(OUT, 1)];
        for queue in [0, 2, 1, 2] {
            disk.counts(queue, &read, 512);
        }
    }
}

/// The first failure of each queue is told, whatever another's did.
#[test]
fn a_disk_s_queues_tell_of_trouble_apart() {
    let file = image(64);
    let options = Options::new(file.path()).with_queues(2);
    let mut disk = Counted::new(Box::new(Block::open(options).unwrap()), Transport::Pci);
    // Somebody has shortened the image.
    file.as_file().set_len(512).unwrap();
    disk.guest.write(IN, &header(0, 5));
    let read = [Readable(IN, 16), Writable(DATA, 512), Writable(OUT, 1)];
    // Three are two, told of, and one that is not.
    for (queue, times) in [(0, 3), (1, 1)] {
        for _ in 0..times {
            disk.rings[queue].submit(&read);
            disk.guest.run(queue as u16);
        }
    }
    let told = disk.guest.told.lock().unwrap().clone();
    let begin: Vec<&str> = told
        .iter()
        .map(|t| t.split(" requests").next().unwrap())
        .collect();
    assert_eq!(begin, ["queue 0: 1", "queue 0: 2", "queue 1: 1"]);
    assert_eq!(
        disk.now().iter().map(|c| c.errors).collect::<Vec<_>>(),
        [3, 1]
    );
}

#[test]
fn entropy_and_persistent_memory_count() {
    for transport in TRANSPORTS {
        let mut entropy = Counted::new(Box::new(Entropy::new(std::io::repeat(1))), transport);
        entropy.counts(0, &[Writable(DATA, 16)], 16);
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(2 << 20).unwrap();
        let backing = Backing::open(file.path(), Writes::Kept).unwrap();
        let pmem = Pmem::new(backing, 1 << 32).unwrap();
        let mut pmem = Counted::new(Box::new(pmem), transport);
        pmem.counts(0, &[Readable(IN, 4), Writable(OUT, 4)], 0);
    }
}

#[test]
fn a_balloon_s_queues_count_apart() {
    for transport in TRANSPORTS {
        let options = balloon::Options::new()
            .with_free_page_hints()
            .with_free_page_reporting();
        let pages = Arc::new(HostPages::new(memory()));
        let balloon = Balloon::new(options, pages).unwrap();
        let control = balloon.control();
        let mut balloon = Counted::new(Box::new(balloon), transport);
        balloon.guest.write(IN, &[7, 0, 0, 0]);
        balloon.counts(0, &[Readable(IN, 4)], 4096);
        balloon.counts(1, &[Readable(IN, 4)], 4096);
        control.ask_statistics().unwrap();
        balloon.counts(2, &[Readable(IN, 10)], 0);
        control.ask_hints();
        balloon.counts(3, &[Writable(0x10_0000, 0x1000)], 0);
        balloon.counts(4, &[Writable(0x10_0000, 0x1000)], 4096);
    }
}

#[test]
fn a_card_s_queues_count_apart() {
    for transport in TRANSPORTS {
        let pairs = [(), ()].map(|()| UnixDatagram::pair().unwrap());
        let (ends, wires): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let wires = wires.into_iter().map(|wire| {
            wire.set_nonblocking(true).unwrap();
            Wire::Frames(wire.into())
        });
        let card = Net::with_pairs(net::Options::new(), wires.collect()).unwrap();
        let mut card = Counted::new(Box::new(card), transport);
        // VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET to two.
        card.guest.write(IN, &[4, 0, 2, 0]);
        card.counts(4, &[Readable(IN, 4), Writable(OUT, 1)], 0);
        for pair in [0, 1] {
            ends[pair].send(&[0; 100]).unwrap();
            card.counts(2 * pair, &[Writable(DATA, 2000)], 100);
            card.counts(2 * pair + 1, &[Readable(DATA, 80)], 80);
        }
    }
}

#[test]
fn a_console_s_queues_count_apart() {
    for transport in TRANSPORTS {
        let pairs = [(), ()].map(|()| UnixStream::pair().unwrap());
        let (mut ends, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let ports = theirs.into_iter().map(|end| {
            end.set_nonblocking(true).unwrap();
            Port::new("port", end.try_clone().unwrap()).with_input(end)
        });
        let console = Console::new(ports.collect()).unwrap();
        let mut console = Counted::new(Box::new(console), transport);
        // VIRTIO_CONSOLE_DEVICE_READY, then the first answer.
        console.guest.write(IN, &[0, 0, 0, 0, 0, 0, 1, 0]);
        console.counts(3, &[Readable(IN, 8)], 8);
        console.counts(2, &[Writable(OUT, 64)], 8);
        for (end, [to, from]) in ends.iter_mut().zip([[0, 1], [4, 5]]) {
            end.write_all(b"abc").unwrap();
            console.counts(to, &[Writable(DATA, 64)], 3);
            console.counts(from, &[Readable(DATA, 5)], 5);
        }
    }
}

#[test]
fn a_socket_device_s_queues_count_apart() {
    for transport in TRANSPORTS {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let vsock = |name: &str| Box::new(Vsock::new(42, &path(name)).unwrap());
        let mut sockets = Counted::new(vsock("a"), transport);
        let mut client = UnixStream::connect(path("a")).unwrap();
        client.write_all(b"CONNECT 77\n").unwrap();
        sockets.counts(0, &[Writable(OUT, 128)], 0);
        let asked = Packet::read(&sockets.guest.read(OUT, 44));
        sockets
            .guest
            .write(IN, &asked.answer(op::RESPONSE, 0).bytes());
        sockets.counts(1, &[Readable(IN, 44)], 0);
        sockets.guest.write(IN, &asked.answer(op::RW, 9).bytes());
        sockets.counts(1, &[Readable(IN, 44), Readable(DATA, 9)], 9);
        // The one event there is comes of a move.
        let other = vsock("b");
        let counters = Device::<Memory>::counters(&*other);
        let guest = moved(&mut sockets.guest, other);
        let mut moved = Counted {
            guest,
            rings: sockets.rings,
            counters,
        };
        moved.counts(2, &[Writable(OUT, 4)], 4);
    }
}

#[test]
fn an_iommu_s_queues_count_apart() {
    for transport in TRANSPORTS {
        let iommu = Iommu::new(Limits::default(), AtBoot::Block).unwrap();
        let endpoint = iommu.add_endpoint(0x18, Vec::new()).unwrap();
        let mut iommu = Counted::new(Box::new(iommu), transport);
        // ATTACH the endpoint to domain 1.
        iommu.guest.write(IN, &[1, 0, 0, 0, 1, 0, 0, 0, 0x18]);
        iommu.counts(0, &[Readable(IN, 20), Writable(OUT, 4)], 24);
        let refused = endpoint.translate(GuestAddress(0x5000), 4, Permissions::Read);
        assert!(refused.is_err());
        iommu.counts(1, &[Writable(OUT, 24)], 24);
    }
}
