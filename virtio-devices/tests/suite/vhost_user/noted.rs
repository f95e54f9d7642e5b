// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Our own back end and the notes of what is in flight, by "Inflight I/O tracking": with rust-vmm's front end and raw words.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use hvkit_virtio_devices::device::{ActivateError, Activation, ActiveQueue, Device};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{Ring, Used};
use hvkit_virtio_devices::features::{DeviceType, Features};
use hvkit_virtio_devices::queue::Position;
use hvkit_virtio_devices::vhost_user::back_end;
use hvkit_virtio_devices::worker::{Progress, Worker};
use vhost::vhost_user::message::{VhostUserInflight, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ours::{serve, serve_device};
use super::{PATIENCE, shared_memory};
use crate::support::guest::Memory;
use crate::support::{header, image, pattern};

const SIZE: u16 = 16;
/// Bytes of one queue's area: a head and 16 descriptors, to a multiple of 64.
const AREA: u64 = 320;

/// A front end of rust-vmm's, which has settled everything but where queue 0 goes on.
struct Front {
    front: Frontend,
    memory: Memory,
    ring: Ring,
    kick: EventFd,
}

impl Front {
    fn new(image: &tempfile::NamedTempFile, memory: Memory, ring: Ring) -> Self {
        let (socket, _) = serve(image);
        Self::at(socket, memory, ring)
    }

    /// Gives it these notes of queue 0, and returns the file that they are in.
    fn give(&mut self, area: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(area, 0).unwrap();
        let told = VhostUserInflight::new(AREA, 0, 1, SIZE);
        let given = self.front.set_inflight_fd(&told, file.as_raw_fd());
        given.unwrap();
        file
    }

    fn at(socket: UnixStream, memory: Memory, ring: Ring) -> Self {
        let mut front = Frontend::from_stream(socket, 2);
        front.get_features().unwrap();
        front.set_owner().unwrap();
        let protocol = front.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD));
        front.set_protocol_features(protocol).unwrap();
        front.set_features(1 << 30 | 1 << 32).unwrap();
        let regions: Vec<_> = memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
            .collect();
        front.set_mem_table(&regions).unwrap();
        Self {
            front,
            memory,
            ring,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    fn start(&mut self, base: u16) {
        self.place(base);
        self.front.set_vring_kick(0, &self.kick).unwrap();
        self.front.set_vring_enable(0, true).unwrap();
        self.kick.write(1).unwrap();
    }

    fn start_with_doubt(&mut self, base: u16) {
        self.place(base);
        let _ = self.front.set_vring_kick(0, &self.kick);
        let _ = self.front.set_vring_enable(0, true);
    }

    fn place(&mut self, base: u16) {
        let host = |address| {
            let host = self.memory.get_host_address(GuestAddress(address));
            host.unwrap() as u64
        };
        let place = VringConfigData {
            queue_max_size: 256,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: host(self.ring.table),
            used_ring_addr: host(self.ring.used),
            avail_ring_addr: host(self.ring.available),
            log_addr: None,
        };
        self.front.set_vring_num(0, SIZE).unwrap();
        self.front.set_vring_base(0, base).unwrap();
        self.front.set_vring_addr(0, &place).unwrap();
    }

    /// Makes a read of one sector available.
    fn read(&mut self, sector: u64) -> u16 {
        let at = 0x8_0000 + 0x1000 * sector;
        let asked = header(0, sector);
        self.memory.write_slice(&asked, GuestAddress(at)).unwrap();
        self.ring.submit(&[
            Readable(at, 16),
            Writable(at + 0x200, 512),
            Writable(at + 0x100, 1),
        ])
    }

    fn used(&mut self) -> Used {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = self.ring.take() {
                return used;
            }
            assert!(Instant::now() < end, "no answer");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn words(file: &File, queue: u64) -> [u16; 4] {
    let mut raw = [0; 8];
    file.read_exact_at(&mut raw, AREA * queue + 8).unwrap();
    [0, 2, 4, 6].map(|at| u16::from_ne_bytes([raw[at], raw[at + 1]]))
}

fn in_flight(file: &File, head: u16) -> u8 {
    let mut raw = [0];
    let at = 16 + 16 * u64::from(head);
    file.read_exact_at(&mut raw, at).unwrap();
    raw[0]
}

#[test]
fn a_disk_of_ours_notes_what_it_does() {
    let image = image(64);
    let memory = shared_memory();
    let ring = Ring::new(memory.clone(), 0x1_0000, SIZE);
    let mut front = Front::new(&image, memory, ring);
    let (told, file) = front
        .front
        .get_inflight_fd(&VhostUserInflight::new(0, 0, 2, SIZE))
        .unwrap();
    assert_eq!(
        (
            { told.mmap_size },
            { told.mmap_offset },
            { told.num_queues },
            { told.queue_size }
        ),
        (2 * AREA, 0, 2, SIZE)
    );
    assert_eq!(file.metadata().unwrap().len(), 2 * AREA);
    assert_eq!(words(&file, 0), [0; 4]);
    // Nobody can make it shorter under us.
    assert!(file.set_len(8).is_err());
    front
        .front
        .set_inflight_fd(&told, file.as_raw_fd())
        .unwrap();
    front.start(0);
    let heads = [3, 4].map(|sector| front.read(sector));
    front.kick.write(1).unwrap();
    for head in heads {
        assert_eq!(front.used().head, u32::from(head));
    }
    // Version, descriptors, the head used last, the used ring's index; soon after that was shown.
    let end = Instant::now() + PATIENCE;
    while words(&file, 0) != [1, SIZE, heads[1], 2] || in_flight(&file, heads[1]) != 0 {
        assert!(Instant::now() < end, "{:x?}", words(&file, 0));
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(in_flight(&file, heads[0]), 0);
    // The other queue was never started.
    assert_eq!(words(&file, 1), [0; 4]);
    assert_eq!(front.front.get_vring_base(0).unwrap(), 2);
    // Asked for anew, they are empty.
    let (_, anew) = front
        .front
        .get_inflight_fd(&VhostUserInflight::new(0, 0, 1, SIZE))
        .unwrap();
    assert_eq!(words(&anew, 0), [0; 4]);
}

#[test]
fn a_disk_of_ours_finishes_what_another_process_has_begun() {
    let image = image(64);
    let memory = shared_memory();
    let ring = Ring::new(memory.clone(), 0x1_0000, SIZE);
    let mut front = Front::new(&image, memory, ring);
    let heads = [1, 2, 3, 4].map(|sector| front.read(sector));
    // It had begun the first three, the third first; the second was used, and the driver shown it: that was not noted any more.
    // Of the fourth it had not heard.
    let element = u64::from(heads[1]).to_le_bytes();
    let at = GuestAddress(front.ring.used + 4);
    front.memory.write_slice(&element, at).unwrap();
    front.ring.put16(front.ring.used + 2, 1);
    assert_eq!(front.used().head, u32::from(heads[1]));
    let mut area = vec![0; AREA as usize];
    for (at, word) in [(8, 1), (10, SIZE), (12, heads[1]), (14, 0)] {
        area[at..at + 2].copy_from_slice(&word.to_ne_bytes());
    }
    for (head, counter) in [(heads[2], 5), (heads[0], 6), (heads[1], 7)] {
        let at = 16 + 16 * usize::from(head);
        area[at] = 1;
        area[at + 8] = counter;
    }
    let file = front.give(&area);
    front.start(1);
    let order = [0; 3].map(|_| front.used().head);
    assert_eq!(order, [heads[2], heads[0], heads[3]].map(u32::from));
    for sector in [1, 3, 4] {
        let at = GuestAddress(0x8_0200 + 0x1000 * sector);
        let mut data = [0; 512];
        front.memory.read_slice(&mut data, at).unwrap();
        assert_eq!(data.to_vec(), pattern(512 * sector, 512), "{sector}");
    }
    assert_eq!(front.front.get_vring_base(0).unwrap(), 4);
    assert_eq!(words(&file, 0), [1, SIZE, heads[3], 4]);
}

/// Notes that make no sense, and an index that is not the used ring's: the queue is not served.
#[test]
fn notes_that_make_no_sense_end_it() {
    let last = u16::MAX.to_ne_bytes();
    for (at, word, base) in [
        // Another version, another size, a link to nowhere, more used than there are descriptors.
        (8, 2u16.to_ne_bytes(), 1),
        (10, 17u16.to_ne_bytes(), 1),
        (12, last, 1),
        (14, 900u16.to_ne_bytes(), 1),
        (8, 1u16.to_ne_bytes(), 0),
    ] {
        let image = image(64);
        let memory = shared_memory();
        let ring = Ring::new(memory.clone(), 0x1_0000, SIZE);
        let mut front = Front::new(&image, memory, ring);
        front.ring.put16(front.ring.used + 2, 1);
        let mut area = vec![0; AREA as usize];
        for (at, word) in [(8, 1), (10, SIZE)] {
            area[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        area[at..at + 2].copy_from_slice(&word);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&area, 0).unwrap();
        let told = VhostUserInflight::new(AREA, 0, 1, SIZE);
        front
            .front
            .set_inflight_fd(&told, file.as_raw_fd())
            .unwrap();
        // It may hang up at any of the last.
        front.start_with_doubt(base);
        assert!(front.front.get_vring_base(0).is_err(), "{at} {word:?}");
    }
}

/// A disk whose worker panics at the first call.
struct Fragile;

impl Device<back_end::Memory> for Fragile {
    fn device_type(&self) -> DeviceType {
        DeviceType::BLOCK
    }

    fn features(&self) -> Features {
        Features::empty()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![SIZE]
    }

    fn config_read(&self, _offset: u64, _data: &mut [u8]) {}

    fn config_write(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(
        &mut self,
        activation: Activation<back_end::Memory>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let queues = activation.queues.into_iter();
        Ok(queues
            .map(|queue| Box::new(Panicking(queue)) as Box<dyn Worker>)
            .collect())
    }

    fn reset(&mut self) {}
}

struct Panicking(ActiveQueue);

impl Worker for Panicking {
    fn name(&self) -> String {
        "panicking".to_owned()
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.0.kick.as_raw_fd()]
    }

    fn positions(&self) -> Vec<(u16, Position)> {
        Vec::new()
    }

    fn ready(&mut self, _index: usize) -> Progress {
        panic!("on purpose");
    }
}

/// The VMM learns of it when it asks, and not when our patience (10 s) is at its end: nobody finishes what is in flight.
#[test]
fn a_worker_that_is_gone_finishes_nothing() {
    let memory = shared_memory();
    let ring = Ring::new(memory.clone(), 0x1_0000, SIZE);
    let (socket, _) = serve_device(Box::new(Fragile));
    let mut front = Front::at(socket, memory, ring);
    let head = front.read(1);
    let mut area = vec![0; AREA as usize];
    for (at, word) in [(8, 1), (10, SIZE)] {
        area[at..at + 2].copy_from_slice(&word.to_ne_bytes());
    }
    area[16 + 16 * usize::from(head)] = 1;
    let file = front.give(&area);
    front.start(0);
    let before = Instant::now();
    assert!(front.front.get_vring_base(0).is_err());
    assert_eq!(in_flight(&file, head), 1);
    let took = before.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
}
