// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio-iommu as its driver sees it, in raw words; and a disk behind it, whose ring and buffers go through it.

use std::sync::Arc;

use hvkit_virtio_devices::block::{Block, Options};
use hvkit_virtio_devices::fake::{Buffer, ByHand, Driver, Ring, Vectors};
use hvkit_virtio_devices::iommu::{
    AtBoot, EndpointError, Iommu, Limits, Reserved, SharedEndpoint, Span,
};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, IommuMemory, Permissions};

use crate::support::{header, image, memory, pattern};

use Buffer::{Readable, Writable};

const ALL: u64 = u64::MAX;
/// The disk's endpoint: PCI 00:03.0.
const DISK: u32 = 0x18;

const OK: u8 = 0;
const INVAL: u8 = 4;
const NOENT: u8 = 6;

type Through = Arc<IommuMemory<GuestMemoryMmap, SharedEndpoint>>;

struct World {
    memory: Arc<GuestMemoryMmap>,
    workers: ByHand,
    vectors: Arc<Vectors>,
    driver: Driver<VirtioPci<Arc<GuestMemoryMmap>>>,
    through: Through,
    requests: Ring,
    events: Ring,
}

/// A virtio-iommu that is up, with all features, and the disk's view of memory.
fn world(at_boot: AtBoot, features: u64) -> World {
    let memory = memory();
    let iommu = Iommu::new(Limits::default(), at_boot).unwrap();
    let messages = Reserved::Messages(Span {
        first: 0xfee0_0000,
        last: 0xfeef_ffff,
    });
    let endpoint = iommu.add_endpoint(DISK, vec![messages]).unwrap();
    assert_eq!(
        iommu.add_endpoint(DISK, vec![]).unwrap_err(),
        EndpointError::Taken(DISK)
    );
    let many = vec![messages; 22];
    assert_eq!(
        iommu.add_endpoint(1, many).unwrap_err(),
        EndpointError::TooManyReserved(22)
    );
    let through = Arc::new(IommuMemory::new((*memory).clone(), endpoint, true, ()));
    let (vectors, workers) = (Arc::new(Vectors::default()), ByHand::default());
    let runner = Box::new(workers.clone());
    let function = VirtioPci::new(
        Box::new(iommu),
        Arc::clone(&memory),
        vectors.clone(),
        runner,
    )
    .unwrap();
    let mut driver = Driver::probe(function);
    driver.enable_msix();
    driver.negotiate(features);
    let requests = driver.queue(0, &memory, 0x1000, 64);
    let events = driver.queue(1, &memory, 0x4000, 64);
    assert_eq!(driver.set_status(0xf), 0xf);
    World {
        memory,
        workers,
        vectors,
        driver,
        through,
        requests,
        events,
    }
}

impl World {
    /// Sends a request's readable part; returns the status and the used length.
    fn request(&mut self, words: &[u8]) -> (u8, u32) {
        let room = Writable(0x7100, 4);
        self.send(words, &[room], 0x7100)
    }

    fn send(&mut self, words: &[u8], room: &[Buffer], status: u64) -> (u8, u32) {
        self.memory
            .write_slice(words, GuestAddress(0x7000))
            .unwrap();
        self.memory
            .write_slice(&[0xee; 4], GuestAddress(status))
            .unwrap();
        let mut buffers = vec![Readable(0x7000, words.len() as u32)];
        buffers.extend(room);
        self.requests.submit(&buffers);
        self.driver.kick(0);
        assert!(self.workers.step(100) < 100);
        let used = self.requests.take().expect("answered");
        (self.byte(status), used.length)
    }

    fn byte(&self, at: u64) -> u8 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Whether the disk could read a byte there.
    fn reads(&self, iova: u64) -> bool {
        self.through
            .check_range(GuestAddress(iova), 1, Permissions::Read)
    }
}

fn attach(domain: u32, endpoint: u32, flags: u32) -> Vec<u8> {
    [
        &[1, 0, 0, 0],
        &domain.to_le_bytes()[..],
        &endpoint.to_le_bytes(),
        &flags.to_le_bytes(),
        &[0; 4],
    ]
    .concat()
}

fn map(domain: u32, first: u64, last: u64, target: u64, flags: u32) -> Vec<u8> {
    let places = [first, last, target].map(u64::to_le_bytes).concat();
    [
        &[3, 0, 0, 0],
        &domain.to_le_bytes()[..],
        &places,
        &flags.to_le_bytes(),
    ]
    .concat()
}

fn unmap(domain: u32, first: u64, last: u64) -> Vec<u8> {
    let places = [first, last].map(u64::to_le_bytes).concat();
    [&[4, 0, 0, 0], &domain.to_le_bytes()[..], &places, &[0; 4]].concat()
}

#[test]
fn configuration_in_raw_words() {
    let mut world = world(AtBoot::Bypass, ALL);
    assert_eq!(world.driver.config(2, 2), 0x1040 + 23, "device ID");
    // INPUT_RANGE, DOMAIN_RANGE, MAP_UNMAP, PROBE, BYPASS_CONFIG.
    assert_eq!(world.driver.offered() & 0xff, 0b101_0111);
    let device = world.driver.device;
    for (offset, width, value) in [
        (0, 8, 0xffff_ffff_ffff_f000),
        (8, 8, 0),
        (16, 8, 0xffff_ffff_ffff),
        (24, 4, 0),
        (28, 4, 0xffff_ffff),
        (32, 4, 512),
        (36, 1, 1),
        (37, 2, 0),
        (40, 8, 0),
    ] {
        assert_eq!(
            world.driver.get(device, offset, width),
            value,
            "offset {offset}"
        );
    }
}

#[test]
fn bypass_is_the_drivers_to_write() {
    let mut world = world(AtBoot::Bypass, ALL);
    let device = world.driver.device;
    assert!(world.reads(0x1234));
    world.driver.put(device, 36, 1, 0);
    assert!(!world.reads(0x1234));
    assert_eq!(world.driver.get(device, 36, 1), 0);
    world.driver.put(device, 36, 1, 7);
    assert_eq!(world.driver.get(device, 36, 1), 0, "no such value");
    world.driver.put(device, 32, 8, 1 << 32);
    assert!(world.reads(0x1234), "a wider write reaches it");
    assert_eq!(
        world.driver.get(device, 32, 4),
        512,
        "and nothing beside it"
    );
    // It stays over a reset.
    assert_eq!(world.driver.set_status(0), 0);
    assert!(world.reads(0x1234));
}

#[test]
fn requests_are_answered_in_raw_words() {
    let mut world = world(AtBoot::Block, ALL);
    assert_eq!(world.request(&attach(1, 99, 0)), (NOENT, 4));
    assert_eq!(world.request(&attach(1, DISK, 0)), (OK, 4));
    assert_eq!(
        world.request(&map(1, 0x10_0000, 0x10_1fff, 0x8000, 3)),
        (OK, 4)
    );
    assert_eq!(
        world.request(&map(1, 0x10_1000, 0x10_2fff, 0, 3)),
        (INVAL, 4)
    );
    assert!(world.reads(0x10_1fff) && !world.reads(0x10_2000));
    assert_eq!(world.request(&unmap(1, 0x10_0000, 0x10_1fff)), (OK, 4));
    assert!(!world.reads(0x10_0000));
    assert_eq!(world.request(&[1, 0, 0]), (INVAL, 4), "cut short");
    assert_eq!(
        world.vectors.delivered(),
        [1; 6],
        "one interrupt a request, by the queue's vector"
    );
}

#[test]
fn a_bypass_domain_needs_its_feature() {
    let mut with = world(AtBoot::Block, ALL);
    assert_eq!(with.request(&attach(1, DISK, 1)), (OK, 4));
    assert!(with.reads(0x1234));
    let mut without = world(AtBoot::Block, ALL & !(1 << 6));
    assert_eq!(without.request(&attach(1, DISK, 1)), (INVAL, 4));
    assert!(!without.reads(0x1234));
}

#[test]
fn probe_tells_what_is_reserved() {
    let mut world = world(AtBoot::Block, ALL);
    let probe = |endpoint: u32| [&[5, 0, 0, 0], &endpoint.to_le_bytes()[..], &[0; 64]].concat();
    let room = [Writable(0x8000, 512), Writable(0x7100, 4)];
    assert_eq!(world.send(&probe(DISK), &room, 0x7100), (OK, 516));
    let mut properties = [0_u8; 48];
    world
        .memory
        .read_slice(&mut properties, GuestAddress(0x8000))
        .unwrap();
    assert_eq!(properties[..4], [1, 0, 20, 0], "RESV_MEM, 20 bytes follow");
    assert_eq!(properties[4..8], [1, 0, 0, 0], "messages");
    assert_eq!(properties[8..16], 0xfee0_0000_u64.to_le_bytes());
    assert_eq!(properties[16..24], 0xfeef_ffff_u64.to_le_bytes());
    assert_eq!(properties[24..28], [0; 4], "the end of the list");
    assert_eq!(world.send(&probe(7), &room, 0x7100).0, NOENT);
    // Less room than probe_size.
    let short = [Writable(0x8000, 511), Writable(0x7100, 4)];
    assert_eq!(world.send(&probe(DISK), &short, 0x7100).0, INVAL);
}

#[test]
fn a_refused_access_is_reported() {
    let mut world = world(AtBoot::Block, ALL);
    // Before there is a buffer: kept.
    assert!(!world.reads(0x5678));
    world.events.submit(&[Writable(0x9000, 24)]);
    world.events.submit(&[Writable(0x9100, 24)]);
    world.driver.kick(1);
    world.workers.step(100);
    assert_eq!(world.events.take().map(|used| used.length), Some(24));
    let mut report = [0_u8; 24];
    world
        .memory
        .read_slice(&mut report, GuestAddress(0x9000))
        .unwrap();
    let domain = [
        &[1, 0, 0, 0],
        &[1, 1, 0, 0],
        &DISK.to_le_bytes()[..],
        &[0; 4],
        &0x5678_u64.to_le_bytes(),
    ]
    .concat();
    assert_eq!(report[..], domain, "reason DOMAIN, READ and ADDRESS");
    assert_eq!(world.events.take(), None);
    // In a domain: MAPPING, of a write.
    world.request(&attach(1, DISK, 0));
    world.request(&map(1, 0, 0xfff, 0, 1));
    assert!(
        !world
            .through
            .check_range(GuestAddress(0x10), 1, Permissions::Write)
    );
    world.workers.step(100);
    assert!(
        world.events.take().is_some(),
        "without a notification of the driver's"
    );
    world
        .memory
        .read_slice(&mut report, GuestAddress(0x9100))
        .unwrap();
    assert_eq!(
        (report[0], &report[4..8], report[16]),
        (2, &[2, 1, 0, 0][..], 0x10)
    );
}

/// "If a request type is not recognized, the device SHOULD NOT write the buffer and SHOULD set the used length to zero"
/// (5.13.6.2), and so it does where there is no tail to write to (5.13.6).
#[test]
fn a_request_of_no_known_type_or_without_a_tail_is_returned_unwritten() {
    const UNTOUCHED: u8 = 0xee;
    let mut world = world(AtBoot::Block, ALL);
    assert_eq!(world.request(&[9, 0, 0, 0]), (UNTOUCHED, 0));
    for room in [&[Writable(0x7100, 3)][..], &[]] {
        let sent = world.send(&attach(1, DISK, 0), room, 0x7100);
        assert_eq!(sent, (UNTOUCHED, 0));
    }
    assert_eq!(
        world.request(&map(1, 0, 0xfff, 0, 1)),
        (NOENT, 4),
        "no ATTACH was done"
    );
    assert_eq!(
        world.request(&attach(1, DISK, 0)),
        (OK, 4),
        "and it goes on"
    );
    assert_eq!(world.driver.status(), 0xf);
}

#[test]
fn an_event_buffer_without_room_stops_the_device() {
    let mut world = world(AtBoot::Block, ALL);
    world.events.submit(&[Writable(0x9000, 23)]);
    assert!(!world.reads(0));
    world.driver.kick(1);
    world.workers.step(100);
    assert_ne!(world.driver.status() & 0x40, 0, "DEVICE_NEEDS_RESET");
    assert_eq!(world.driver.set_status(0), 0, "and a reset is enough");
}

#[test]
fn a_reset_ends_every_domain() {
    let mut world = world(AtBoot::Block, ALL);
    world.request(&attach(1, DISK, 0));
    world.request(&map(1, 0, 0xffff, 0, 3));
    assert!(world.reads(0));
    assert_eq!(world.driver.set_status(0), 0);
    assert!(!world.reads(0));
}

/// A disk whose ring is at I/O addresses that are its guest-physical ones plus 1 GiB.
#[test]
fn a_disk_behind_it() {
    const SHIFT: u64 = 1 << 30;
    let mut world = world(AtBoot::Block, ALL);
    let file = image(8);
    let workers = ByHand::default();
    let block = Block::open(Options::new(file.path())).unwrap();
    let vectors = Arc::new(Vectors::default());
    let function = VirtioPci::<Through>::new(
        Box::new(block),
        Arc::clone(&world.through),
        vectors,
        Box::new(workers.clone()),
    );
    let mut disk = Driver::probe(function.unwrap());
    disk.enable_msix();

    world.request(&attach(5, DISK, 0));
    // Ring, header and status at 0x2_0000; one page of data, of which the disk is to write.
    assert_eq!(
        world
            .request(&map(5, SHIFT + 0x2_0000, SHIFT + 0x2_ffff, 0x2_0000, 3))
            .0,
        OK
    );
    assert_eq!(
        world
            .request(&map(5, 0x7000_0000, 0x7000_0fff, 0x3_0000, 2))
            .0,
        OK
    );

    disk.negotiate(ALL);
    let mut ring = Ring::new(Arc::clone(&world.memory), 0x2_0000, 64);
    let common = disk.common;
    disk.put(common, 0x16, 2, 0);
    disk.put(common, 0x18, 2, 64);
    for (offset, address) in [
        (0x20, ring.table),
        (0x28, ring.available),
        (0x30, ring.used),
    ] {
        disk.put(common, offset, 8, address + SHIFT);
    }
    disk.put(common, 0x1c, 2, 1);
    assert_eq!(disk.set_status(0xf), 0xf);

    let read = |world: &World, disk: &mut Driver<_>, ring: &mut Ring, data: u64| {
        world
            .memory
            .write_slice(&header(0, 2), GuestAddress(0x2_8000))
            .unwrap();
        world
            .memory
            .write_obj(0xee_u8, GuestAddress(0x2_9000))
            .unwrap();
        ring.submit(&[
            Readable(SHIFT + 0x2_8000, 16),
            Writable(data, 512),
            Writable(SHIFT + 0x2_9000, 1),
        ]);
        disk.kick(0);
        assert!(workers.step(100) < 100);
        assert!(ring.take().is_some(), "answered");
        world.byte(0x2_9000)
    };
    assert_eq!(read(&world, &mut disk, &mut ring, 0x7000_0200), OK);
    let mut data = vec![0; 512];
    world
        .memory
        .read_slice(&mut data, GuestAddress(0x3_0200))
        .unwrap();
    assert_eq!(data, pattern(2 * 512, 512));

    // What is not mapped is not reached: an error for the driver, nothing written, a report.
    let before = world.memory.read_obj::<u64>(GuestAddress(0x2000)).unwrap();
    assert_eq!(read(&world, &mut disk, &mut ring, 0x2000), 1, "IOERR");
    assert_eq!(
        world.memory.read_obj::<u64>(GuestAddress(0x2000)).unwrap(),
        before
    );
    assert_eq!(world.request(&unmap(5, 0x7000_0000, 0x7000_0fff)).0, OK);
    assert_eq!(read(&world, &mut disk, &mut ring, 0x7000_0200), 1, "IOERR");
}

/// "avail_event" (2.7.10): behind the 64 elements of the used ring.
#[test]
fn the_driver_is_asked_to_tell_of_its_next_buffer_for_a_fault() {
    let mut w = world(AtBoot::Block, ALL);
    let avail_event = GuestAddress(w.events.used + 4 + 8 * 64);
    for round in 1..4u16 {
        assert!(!w.reads(0x5000));
        assert!(w.workers.step(100) < 100);
        let asked: u16 = w.memory.read_obj(avail_event).unwrap();
        assert_eq!(asked, round - 1);
        w.events.submit(&[Writable(0x8000, 24)]);
        w.driver.kick(1);
        assert!(w.workers.step(100) < 100);
        assert!(w.events.take().is_some(), "round {round}");
    }
}
