// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices of other processes behind an IOMMU: what their back ends are told, word by word, and our own back end, which asks.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{Behind, ByHand, Driver, Ring, Tables, Vectors};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::vhost_user::{AddressSpace, Options, SharedMemory, VhostUser};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, Permissions};

use super::liar::{Liar, Lie};
use super::ours::serve;
use super::raw::{AWAY, PAGE, RING, Raw, TRANSLATED, update, words};
use super::{DATA, HEADER, PATIENCE, STATUS, device, shared_memory};
use crate::support::guest::Memory;
use crate::support::{header, image, pattern};

const IO_ERROR: u8 = 1;

/// A guest with a disk behind its IOMMU.
struct Translated {
    memory: Memory,
    view: Behind,
    space: AddressSpace,
    workers: ByHand,
    driver: Driver<VirtioPci<Behind>>,
}

impl Translated {
    fn new(socket: UnixStream) -> Self {
        let memory = shared_memory();
        let options = Options::block().with_patience(PATIENCE).with_translations();
        let shared = SharedMemory::of(&*memory).unwrap();
        let device = VhostUser::new(socket, options, shared).unwrap();
        let space = device.address_space().unwrap();
        let view = Tables::before(&memory);
        let workers = ByHand::default();
        let vectors = Arc::new(Vectors::default());
        let runner = Box::new(workers.clone());
        let function = VirtioPci::new(Box::new(device), Arc::clone(&view), vectors, runner);
        let driver = Driver::probe(function.unwrap().with_access_platform());
        Self {
            memory,
            view,
            space,
            workers,
            driver,
        }
    }

    /// As a guest does it: in the tables, and the device is told.
    fn map(&self, address: u64, length: u64, target: u64, access: Permissions) {
        self.view.iommu().map(address, length, target, access);
        let range = address..address + length;
        self.space.map(range, target, access).unwrap();
    }

    fn unmap(&self, address: u64, length: u64) {
        self.view.iommu().unmap(address, length);
        self.space.unmap(address..address + length);
    }

    /// Maps what a queue and its requests' heads need.
    fn map_the_usual(&self) {
        for page in (RING..RING + 0x4000).step_by(0x1000) {
            self.map(AWAY + page, PAGE, page, Permissions::ReadWrite);
        }
        self.map(AWAY + HEADER, PAGE, HEADER, Permissions::Read);
        self.map(AWAY + STATUS, PAGE, STATUS, Permissions::Write);
    }

    /// Goes to DRIVER_OK with a queue in the device's addresses.
    fn start(&mut self) -> Ring {
        let driver = &mut self.driver;
        assert_ne!(driver.negotiate(u64::MAX) & TRANSLATED, 0);
        let ring = driver.queue_behind(0, &self.memory, RING, 16, AWAY);
        assert_eq!(driver.set_status(0xf), 0xf);
        ring
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = std::time::Instant::now() + PATIENCE;
        while !done(self) {
            self.workers.step(10);
            assert!(std::time::Instant::now() < end, "no {what}");
            thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Reads `length` bytes from `sector` into what is at the device's address `to`: the request's status.
    fn read(&mut self, ring: &mut Ring, sector: u64, to: u64, length: u32) -> u8 {
        let memory = Arc::clone(&self.memory);
        memory
            .write_slice(&header(0, sector), GuestAddress(HEADER))
            .unwrap();
        memory.write_slice(&[0xee], GuestAddress(STATUS)).unwrap();
        ring.submit(&[
            Readable(AWAY + HEADER, 16),
            Writable(to, length),
            Writable(AWAY + STATUS, 1),
        ]);
        self.driver.kick(0);
        self.until("answer", |_| ring.take().is_some());
        let mut status = [0];
        memory
            .read_slice(&mut status, GuestAddress(STATUS))
            .unwrap();
        status[0]
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let from = GuestAddress(address);
        self.memory.read_slice(&mut bytes, from).unwrap();
        bytes
    }

    fn faults(&self) -> Vec<(u64, Permissions)> {
        self.view.iommu().take_faults()
    }
}

#[test]
fn our_disk_reaches_what_the_guest_maps_and_no_longer() {
    let image = image(128);
    let (socket, serving) = serve(&image);
    let mut guest = Translated::new(socket);
    guest.map_the_usual();
    // Two pages side by side for the device, and not in memory.
    guest.map(AWAY, PAGE, DATA + 0x5000, Permissions::ReadWrite);
    guest.map(AWAY + PAGE, PAGE, DATA, Permissions::ReadWrite);
    let mut ring = guest.start();
    assert_eq!(guest.read(&mut ring, 3, AWAY + 0xc00, 2048), 0);
    assert_eq!(guest.bytes(DATA + 0x5c00, 1024), pattern(3 * 512, 1024));
    assert_eq!(guest.bytes(DATA, 1024), pattern(5 * 512, 1024));
    // A mapping that comes while the device runs.
    guest.map(AWAY + 2 * PAGE, PAGE, DATA + 0x8000, Permissions::Write);
    assert_eq!(guest.read(&mut ring, 9, AWAY + 2 * PAGE, 512), 0);
    assert_eq!(guest.bytes(DATA + 0x8000, 512), pattern(9 * 512, 512));
    assert_eq!(guest.faults(), []);
    // One that goes; the guest's unit sees what the device tried.
    guest.unmap(AWAY, PAGE);
    assert_eq!(guest.read(&mut ring, 7, AWAY, 512), IO_ERROR);
    assert_eq!(guest.bytes(DATA + 0x5000, 512), [0; 512]);
    guest.until("fault", |guest| {
        guest.faults() == [(AWAY, Permissions::Write)]
    });
    // One that may not be written.
    guest.map(AWAY, PAGE, DATA + 0x5000, Permissions::Read);
    assert_eq!(guest.read(&mut ring, 7, AWAY, 512), IO_ERROR);
    assert_eq!(guest.bytes(DATA + 0x5000, 512), [0; 512]);
    // And another in its place.
    guest.map(AWAY, PAGE, DATA + 0x6000, Permissions::ReadWrite);
    assert_eq!(guest.read(&mut ring, 8, AWAY, 512), 0);
    assert_eq!(guest.bytes(DATA + 0x6000, 512), pattern(8 * 512, 512));
    // A reset, after which everything is told anew.
    guest.driver.set_status(0);
    let mut ring = guest.start();
    assert_eq!(guest.read(&mut ring, 11, AWAY, 512), 0);
    assert_eq!(guest.bytes(DATA + 0x6000, 512), pattern(11 * 512, 512));
    drop(guest);
    assert!(serving.join().unwrap().starts_with("hung up; "));
}

#[test]
fn a_back_end_that_cannot_translate_is_refused() {
    let memory = shared_memory();
    let refused = |liar: Liar| {
        let options = Options::block().with_translations();
        device(liar.serve(), options, &memory)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refused(Liar::new(99, Lie::HangUp)),
        "the back end has no translated addresses (VIRTIO_F_ACCESS_PLATFORM)"
    );
    for (protocol, lacks) in [
        (
            1 << 5 | 1 << 9,
            "acknowledgement (VHOST_USER_PROTOCOL_F_REPLY_ACK), which translated addresses need",
        ),
        (
            1 << 3 | 1 << 9,
            "channel of its own (VHOST_USER_PROTOCOL_F_BACKEND_REQ), which translated addresses need",
        ),
    ] {
        let mut liar = Liar::new(15, Lie::Value(protocol));
        liar.features |= TRANSLATED;
        assert_eq!(refused(liar), format!("the back end has no {lacks}"));
    }
}

#[test]
fn what_is_not_shared_cannot_be_mapped() {
    let mut liar = Liar::new(99, Lie::HangUp);
    liar.features |= TRANSLATED;
    let guest = Translated::new(liar.serve());
    // Beyond the end, around it, and over the border of two regions, which lie side by side.
    for (target, length) in [
        (0x20_0000, 1),
        (u64::MAX, 2),
        (0xf_f000, 0x2000),
        (0x1f_f000, 0x1001),
    ] {
        let error = guest
            .space
            .map(AWAY..AWAY + length, target, Permissions::Read);
        assert!(error.is_err(), "{target:#x}");
    }
    let memory = shared_memory();
    let socket = Liar::new(99, Lie::HangUp).serve();
    let other = device(socket, Options::block(), &memory).unwrap();
    assert!(other.address_space().is_none());
}

#[test]
fn a_back_end_is_told_word_by_word() {
    let mut liar = Liar::new(99, Lie::HangUp);
    liar.features |= TRANSLATED;
    let (heard, own) = (liar.heard.clone(), liar.own.clone());
    let mut guest = Translated::new(liar.serve());
    let host = |address| {
        let address = GuestAddress(address);
        guest.memory.get_host_address(address).unwrap() as u64
    };
    let ours = host(0);
    guest.map(AWAY + RING, 0x4000, RING, Permissions::ReadWrite);
    guest.map(AWAY + 0x8000, PAGE, DATA, Permissions::Read);
    guest.unmap(AWAY + 0x8000, PAGE);
    guest.map(AWAY + 0x9000, PAGE, DATA, Permissions::Write);
    // Nothing before the guest has a driver.
    assert!(
        heard
            .lock()
            .unwrap()
            .iter()
            .all(|(number, _)| *number != 22)
    );
    guest.start();
    // VHOST_IOTLB_UPDATE is 2, behind the access in the last word.
    let update = |access: u64| access | 2 << 8;
    let told = |heard: &Mutex<Vec<(u32, Vec<u8>)>>| -> Vec<[u64; 4]> {
        let heard = heard.lock().unwrap();
        let told = heard.iter().filter(|(number, _)| *number == 22);
        told.map(|(_, payload)| words(payload)).collect()
    };
    let mut expected = vec![
        [AWAY + 0x9000, PAGE, ours + DATA, update(2)],
        [AWAY + RING, 0x4000, ours + RING, update(3)],
    ];
    assert_eq!(told(&heard), expected);
    {
        // VERSION_1 and ACCESS_PLATFORM are settled; the queue is where the driver put it, and not in our process.
        let heard = heard.lock().unwrap();
        let payload = |number: u32| {
            let found = heard.iter().find(|(asked, _)| *asked == number);
            found.unwrap().1.clone()
        };
        let features = u64::from_ne_bytes(payload(2).try_into().unwrap());
        assert_eq!(features & (1 << 32 | TRANSLATED), 1 << 32 | TRANSLATED);
        let [_, table, used, available] = words(&payload(9));
        let at = |offset: u64| AWAY + RING + offset;
        assert_eq!([table, available], [at(0), at(16 * 16)]);
        assert!(used > available && used % 4 == 0);
        let numbers: Vec<_> = heard.iter().map(|(number, _)| *number).collect();
        let place = |number| numbers.iter().position(|n| *n == number).unwrap();
        assert!(place(9) < place(22) && place(22) < place(12));
    }
    // Changes.
    guest.unmap(AWAY + 0x9000, PAGE);
    guest.map(AWAY + 0xa000, PAGE, DATA + PAGE, Permissions::ReadWrite);
    expected.push([AWAY + 0x9000, PAGE, 0, 3 << 8]);
    expected.push([AWAY + 0xa000, PAGE, ours + DATA + PAGE, update(3)]);
    assert_eq!(told(&heard), expected);
    // What it has forgotten, and what nobody knows: VHOST_USER_BACKEND_IOTLB_MSG is 1, VHOST_IOTLB_MISS is 1.
    let mut channel = own.lock().unwrap().take().expect("no channel");
    channel.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut ask = |guest: &mut Translated, address: u64, access: u64, kind: u64| {
        let head = [1u32, 1 | 8, 32].map(u32::to_ne_bytes).concat();
        let body = [address, 0, 0, access | kind << 8].map(u64::to_ne_bytes);
        channel.write_all(&[head, body.concat()].concat()).unwrap();
        let answered = thread::scope(|scope| {
            let channel = &mut channel;
            let answer = scope.spawn(move || {
                let mut answer = [0; 20];
                channel.read_exact(&mut answer).unwrap();
                answer
            });
            guest.until("answer", |_| answer.is_finished());
            answer.join().unwrap()
        });
        let head = [1u32, 1 | 4, 8].map(u32::to_ne_bytes).concat();
        assert_eq!(answered[..12], head);
        u64::from_ne_bytes(answered[12..].try_into().unwrap())
    };
    assert_eq!(ask(&mut guest, AWAY + 0xa123, 1, 1), 0);
    expected.push([AWAY + 0xa000, PAGE, ours + DATA + PAGE, update(3)]);
    assert_eq!(told(&heard), expected);
    assert_eq!(guest.faults(), []);
    assert_eq!(ask(&mut guest, AWAY + 0x9000, 2, 1), 1);
    assert_eq!(ask(&mut guest, u64::MAX, 1, 1), 1);
    // VHOST_IOTLB_ACCESS_FAIL is 4: heard, and the unit's to report.
    assert_eq!(ask(&mut guest, AWAY + 0x8000, 3, 4), 0);
    assert_eq!(told(&heard), expected);
    let mut faults = Vec::new();
    guest.until("faults", |guest| {
        faults.extend(guest.faults());
        faults.len() == 2
    });
    let expected = [
        (AWAY + 0x9000, Permissions::Write),
        (AWAY + 0x8000, Permissions::ReadWrite),
    ];
    assert_eq!(faults, expected);
    assert_eq!(guest.driver.status() & 0x40, 0);
}

#[test]
fn a_back_end_that_does_not_acknowledge_is_lost() {
    for lie in [Lie::HangUp, Lie::Shorter, Lie::Value(1)] {
        let mut liar = Liar::new(22, lie);
        liar.features |= TRANSLATED;
        let mut guest = Translated::new(liar.serve());
        guest.map_the_usual();
        guest.map(AWAY, PAGE, DATA, Permissions::ReadWrite);
        let mut ring = guest.start();
        // The driver is answered all the same, by the addresses that the guest gave.
        assert_eq!(guest.read(&mut ring, 0, AWAY, 512), IO_ERROR, "{lie:?}");
        // And whoever maps is not held up.
        guest.unmap(AWAY, PAGE);
    }
}

/// The queue is nowhere until the back end was told where, and it asks for that; and so is a buffer.
#[test]
fn our_back_end_asks() {
    let image = image(128);
    let (socket, serving) = serve(&image);
    let mut front = Raw::begin(socket);
    let front_memory = Arc::clone(&front.memory);
    let mut queue = front.queue();
    let (ring, kick) = (&mut queue.ring, &queue.kick);
    // It cannot begin, asks for the first page, and nobody answers that but by an update.
    assert_eq!(front.asked(), (1, [AWAY + RING, 0, 0, 1 | 1 << 8]));
    assert_eq!(front.translation(update(RING, RING, 3)), 0);
    // The used ring is on another page: that it will be written is said.
    let used = ring.used & !(PAGE - 1);
    assert_ne!(used, RING);
    assert_eq!(front.asked(), (1, [AWAY + ring.used, 0, 0, 2 | 1 << 8]));
    assert_eq!(front.translation(update(used, used, 3)), 0);
    assert_eq!(front.translation(update(HEADER, HEADER, 1)), 0);
    assert_eq!(front.translation(update(STATUS, STATUS, 2)), 0);
    let write = |bytes: &[u8], to: u64| front.memory.write_slice(bytes, GuestAddress(to)).unwrap();
    write(&header(0, 6), HEADER);
    write(&[0xee], STATUS);
    ring.submit(&[
        Readable(AWAY + HEADER, 16),
        Writable(AWAY + DATA, 512),
        Writable(AWAY + STATUS, 1),
    ]);
    kick.write(1).unwrap();
    // The buffer is unknown: this time it waits for the answer.
    assert_eq!(front.asked(), (1 | 8, [AWAY + DATA, 0, 0, 2 | 1 << 8]));
    assert_eq!(front.translation(update(DATA, DATA + 0x3000, 2)), 0);
    front.answer(0);
    let end = std::time::Instant::now() + PATIENCE;
    while ring.take().is_none() {
        assert!(std::time::Instant::now() < end, "no answer");
        thread::sleep(std::time::Duration::from_millis(1));
    }
    let mut data = vec![0; 512];
    front
        .memory
        .read_slice(&mut data, GuestAddress(DATA + 0x3000))
        .unwrap();
    assert_eq!(data, pattern(6 * 512, 512));
    assert_eq!(data, fs::read(image.path()).unwrap()[6 * 512..7 * 512]);
    // An answer that is late fails that request, and is not taken for one to the next.
    let request = |ring: &mut Ring, to: u64| {
        ring.submit(&[
            Readable(AWAY + HEADER, 16),
            Writable(AWAY + to, 512),
            Writable(AWAY + STATUS, 1),
        ]);
        kick.write(1).unwrap();
    };
    let ended = |ring: &mut Ring| {
        let end = std::time::Instant::now() + PATIENCE;
        while ring.take().is_none() {
            assert!(std::time::Instant::now() < end, "no answer");
            thread::sleep(std::time::Duration::from_millis(1));
        }
        let mut status = [0];
        let at = GuestAddress(STATUS);
        front_memory.read_slice(&mut status, at).unwrap();
        status[0]
    };
    let unknown = DATA + 0x1_0000;
    request(ring, unknown);
    let miss = |page: u64| (1 | 8, [AWAY + page, 0, 0, 2 | 1 << 8]);
    assert_eq!(front.asked(), miss(unknown));
    assert_eq!(ended(ring), IO_ERROR);
    request(ring, unknown + PAGE);
    assert_eq!(front.asked(), miss(unknown + PAGE));
    front.answer(1);
    assert_eq!(front.translation(update(unknown + PAGE, DATA, 2)), 0);
    front.answer(0);
    assert_eq!(ended(ring), 0);
    drop(front);
    assert_eq!(serving.join().unwrap(), "hung up; ");
}

#[test]
fn translations_that_make_no_sense_end_it() {
    for words in [
        // A miss and a failure, which are the back end's to tell; nothing; memory that it was not given; an end beyond the end.
        [AWAY, PAGE, 0, 1 << 8],
        [AWAY, PAGE, 0, 4 << 8],
        [AWAY, PAGE, 0, 0],
        [AWAY, PAGE, 0, 2 << 8 | 4],
        [AWAY, PAGE, 0, 2 << 8 | 3],
        [u64::MAX, 2, 0, 3 << 8],
    ] {
        let image = image(8);
        let (mut socket, serving) = serve(&image);
        let head = [22u32, 1, 32].map(u32::to_ne_bytes).concat();
        let body = words.map(u64::to_ne_bytes).concat();
        socket.write_all(&[head, body].concat()).unwrap();
        assert_eq!(
            serving.join().unwrap(),
            "the VMM's IOTLB_MSG of 32 bytes makes no sense",
            "{words:x?}"
        );
    }
}
