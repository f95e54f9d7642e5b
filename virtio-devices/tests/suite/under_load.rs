// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Workers in threads of their own, whose driver goes on while they work: they stop when they are told to, and miss no
//! notification.

use std::any::Any;
use std::io::Write;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hvkit_virtio_devices::block::{Block, Options};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::fake::Buffer::{self, Readable, Writable};
use hvkit_virtio_devices::fake::{Driver, Ring, Vectors};
use hvkit_virtio_devices::iommu::SharedEndpoint;
use hvkit_virtio_devices::net::{self, Net, Wire};
use hvkit_virtio_devices::pci::{MsiError, MsiMessage, MsiVectors, PciFunction};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::transport::state::SaveError;
use hvkit_virtio_devices::worker::Threads;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, Iommu as _, Permissions};
use vmm_sys_util::eventfd::EventFd;

use crate::hostile_kinds::KINDS;
use crate::support::guest::{Memory, ring_at};
use crate::support::{header, image, memory};
use crate::vsock::{Packet, op};

/// VIRTIO_F_IN_ORDER, which a driver that uses its chains again in any order does without.
const IN_ORDER: u64 = 1 << 35;
/// Descriptors of a queue.
const SIZE: u16 = 64;
/// Chains of a queue.
const CHAINS: u16 = 16;

const HEADER: u64 = 0x8_0000;
const STATUS: u64 = 0x8_1000;
const PAGES: u64 = 0x8_2000;
const DATA: u64 = 0xa_0000;

/// A worker answers a request to stop in that time.
const SOON: Duration = Duration::from_secs(1);
/// What takes that long never comes.
const NEVER: Duration = Duration::from_secs(60);

type Function = Driver<VirtioPci<Memory>>;

/// A driver's end of one queue, in any thread: chains that are used again and again, by event index.
struct Queue {
    ring: Ring,
    kick: EventFd,
    posted: u16,
    idle: Vec<u16>,
    posts: u64,
    kicks: u64,
}

impl Queue {
    fn new(ring: Ring, kick: EventFd, chain: &[Buffer]) -> Self {
        let length = chain.len() as u16;
        let mut idle = Vec::new();
        for first in (0..CHAINS).map(|i| i * length) {
            for (buffer, at) in chain.iter().zip(first..) {
                let more = u16::from(at + 1 < first + length);
                let words = match *buffer {
                    Readable(address, length) => (address, length, more, at + 1),
                    Writable(address, length) => (address, length, more | 2, at + 1),
                };
                ring.descriptor(ring.table, at, words);
            }
            idle.push(first);
        }
        Self {
            ring,
            kick,
            posted: 0,
            idle,
            posts: 0,
            kicks: 0,
        }
    }

    /// Makes a chain available, and notifies the device if it wants to be: "Used Buffer Notification Suppression"
    /// turned round (2.7.10).
    fn post(&mut self) {
        let Some(head) = self.idle.pop() else {
            return;
        };
        self.ring.offer(head);
        self.posted = self.posted.wrapping_add(1);
        self.posts += 1;
        // Our index first, then the device's wish.
        fence(Ordering::SeqCst);
        let avail_event = self.ring.get16(self.ring.used + 4 + 8 * u64::from(SIZE));
        if self.posted == avail_event.wrapping_add(1) {
            self.kick.write(1).unwrap();
            self.kicks += 1;
        }
    }

    /// Takes a chain back.
    fn take(&mut self) -> bool {
        let used = self.ring.take();
        if let Some(used) = used {
            self.idle.push(used.head as u16);
        }
        used.is_some()
    }

    /// Waits until a chain is used, and leaves it there.
    fn wait(&self) {
        let before = Instant::now();
        let seen = self.posted.wrapping_sub(self.under_way());
        while self.ring.get16(self.ring.used + 2) == seen {
            assert!(before.elapsed() < NEVER, "a notification was missed");
            std::hint::spin_loop();
        }
    }

    fn under_way(&self) -> u16 {
        CHAINS - self.idle.len() as u16
    }
}

/// A driver that takes what is used and makes more available while it is interrupted: between the worker's last look at the
/// queue and its wish to be notified.
#[derive(Default)]
struct Prompt {
    queues: Mutex<Vec<Queue>>,
    /// Chains that are still to be made available, of each queue.
    left: [AtomicU64; 2],
    /// Frames for the driver come from here.
    wire: Option<UnixDatagram>,
}

impl Prompt {
    /// Makes one chain of `queue` available, and what it waits for.
    fn post(&self, at: usize) {
        if let (Some(wire), 0) = (&self.wire, at) {
            wire.send(&[7; 100]).unwrap();
        }
        self.queues.lock().unwrap()[at].post();
    }

    /// Waits until all chains were available and are used.
    fn wait(&self) {
        let before = Instant::now();
        let rests = || {
            let queues = self.queues.lock().unwrap();
            let left = self.left.iter().map(|left| left.load(Ordering::SeqCst));
            left.sum::<u64>() == 0 && queues.iter().all(|queue| queue.under_way() == 0)
        };
        while !rests() {
            assert!(before.elapsed() < NEVER, "a notification was missed");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl MsiVectors for Prompt {
    fn route(&self, _vector: u16, _message: MsiMessage) -> Result<(), MsiError> {
        Ok(())
    }

    fn mask(&self, _vector: u16) -> Result<(), MsiError> {
        Ok(())
    }

    fn deliver(&self, vector: u16) -> Result<(), MsiError> {
        // 0 is the configuration's.
        let Some(at) = usize::from(vector).checked_sub(1) else {
            return Ok(());
        };
        while self.queues.lock().unwrap()[at].take() {}
        let less = |left: u64| left.checked_sub(1);
        let left = self.left[at].fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        if left.is_ok() {
            self.post(at);
        }
        Ok(())
    }

    fn event(&self, _vector: u16) -> Option<EventFd> {
        None
    }
}

/// A device whose workers are threads, and its queues, of chains like `chain` of their number.
fn live(
    device: Box<dyn Device<Memory>>,
    memory: &Memory,
    queues: &[u16],
    chain: impl Fn(u16) -> Vec<Buffer>,
) -> (Function, Vec<Queue>) {
    let vectors = Arc::new(Vectors::default());
    interrupted(device, vectors, memory, queues, chain)
}

/// The same, with interrupts that lead to `vectors`.
fn interrupted(
    device: Box<dyn Device<Memory>>,
    vectors: Arc<dyn MsiVectors>,
    memory: &Memory,
    queues: &[u16],
    chain: impl Fn(u16) -> Vec<Buffer>,
) -> (Function, Vec<Queue>) {
    let threads =
        Threads::new(|name, body| std::thread::Builder::new().name(name).spawn(body).map(drop));
    let function = VirtioPci::new(device, memory.clone(), vectors, Box::new(threads));
    let mut driver = Driver::probe(function.unwrap());
    driver.negotiate(!IN_ORDER);
    let queues = queues.iter().map(|queue| {
        let ring = driver.queue(*queue, memory, ring_at(*queue), SIZE);
        let doorbells = driver.function.doorbells();
        let kick = doorbells[usize::from(*queue)].event.try_clone();
        Queue::new(ring, kick.unwrap(), &chain(*queue))
    });
    let queues = queues.collect();
    driver.enable_msix();
    assert_eq!(driver.set_status(0xf), 0xf);
    (driver, queues)
}

/// What keeps a queue of a kind of device busy.
fn chain(kind: &str, queue: u16) -> Vec<Buffer> {
    let even = queue.is_multiple_of(2);
    match kind {
        kind if kind.starts_with("disk") => {
            vec![
                Readable(HEADER, 16),
                Writable(DATA, 0x8000),
                Writable(STATUS, 1),
            ]
        }
        "entropy" => vec![Writable(DATA, 0x1_0000)],
        "net" | "net by a stream" if queue == 2 => vec![Readable(HEADER, 2), Writable(STATUS, 1)],
        "net of two pairs" if queue == 4 => vec![Readable(HEADER, 4), Writable(STATUS, 1)],
        "pmem" | "iommu" if even => vec![Readable(HEADER, 20), Writable(STATUS, 4)],
        // The first two queues' are page numbers.
        "balloon" if queue < 3 => vec![Readable(PAGES, 0x1000)],
        "balloon" => vec![Writable(PAGES, 0x1000)],
        "vsock" if queue == 1 => vec![Readable(HEADER, 44)],
        "vsock" | "iommu" => vec![Writable(DATA, 0x1000)],
        "console of three ports" if queue == 3 => vec![Readable(HEADER, 8)],
        _ if even => vec![Writable(DATA, 0x1000)],
        _ => vec![Readable(DATA, 0x1000)],
    }
}

/// What all chains of a kind of device that are read begin with.
fn head(kind: &str) -> Vec<u8> {
    match kind {
        // VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET to two.
        "net of two pairs" => vec![4, 0, 2, 0],
        // ATTACH an endpoint to a domain.
        "iommu" => vec![1, 0, 0, 0, 1, 0, 0, 0, 0x18],
        // Data for a connection that there is not, which is answered.
        "vsock" => Packet {
            from: (3, 1),
            to: (2, 1),
            len: 0,
            kind: 1,
            op: op::RW,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
        .bytes(),
        // VIRTIO_CONSOLE_DEVICE_READY.
        "console of three ports" => vec![0, 0, 0, 0, 0, 0, 1, 0],
        // A disk's read of the first sectors; persistent memory's flush.
        _ => vec![0; 16],
    }
}

/// As much as the other end takes now. What comes from there is left, so that it is blocked the other way.
fn flood(end: &dyn Any) {
    let sent = |result: std::io::Result<usize>| result.is_ok();
    if let Some(end) = end.downcast_ref::<UnixDatagram>() {
        while sent(end.send(&[7; 1500])) {}
    } else if let Some(ends) = end.downcast_ref::<Vec<UnixDatagram>>() {
        ends.iter()
            .for_each(|end| while sent(end.send(&[7; 1500])) {});
    } else if let Some(mut end) = end.downcast_ref::<UnixStream>() {
        // A frame of 60 bytes behind its length: too small to be taken in part.
        let frame = [&[0, 0, 0, 60][..], &[7; 60]].concat();
        while sent(end.write(&frame)) {}
    } else if let Some(ends) = end.downcast_ref::<Vec<UnixStream>>() {
        for mut end in ends {
            while sent(end.write(&[7; 64])) {}
        }
    } else if let Some(endpoint) = end.downcast_ref::<SharedEndpoint>() {
        let _ = endpoint.translate(GuestAddress(1 << 40), 4, Permissions::Read);
    }
}

/// The issue's own bound, so it is measured. A machine under load may be late once.
fn soon(name: &str, mut act: impl FnMut() -> bool) {
    let mut late = Vec::new();
    while late.len() < 2 {
        let before = Instant::now();
        let stopped = act();
        let took = before.elapsed();
        if stopped && took < SOON {
            return;
        }
        late.push((stopped, took));
    }
    panic!("{name}: {late:?}");
}

#[test]
fn every_device_s_workers_stop_within_a_second_under_load() {
    for kind in &KINDS {
        // The same device as without the move.
        if kind.name == "vsock after a move" {
            continue;
        }
        let name = kind.name;
        let memory = memory();
        memory
            .write_slice(&head(name), GuestAddress(HEADER))
            .unwrap();
        let (device, end) = (kind.make)();
        let chains = |queue| chain(name, queue);
        let (mut driver, mut queues) = live(device, &memory, kind.queues, chains);
        let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for queue in &mut queues {
                        while queue.take() {
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        while !queue.idle.is_empty() {
                            queue.post();
                        }
                    }
                    std::thread::yield_now();
                }
            });
            // Ends the other thread whatever happens here.
            let all = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..4 {
                    // In the midst of work, which is what it is about.
                    let (before, old) = (Instant::now(), served.load(Ordering::Relaxed));
                    while served.load(Ordering::Relaxed) < old + 100 {
                        flood(&*end);
                        assert!(before.elapsed() < NEVER, "{name}: nothing is served");
                        std::thread::yield_now();
                    }
                    soon(name, || {
                        driver.function.pause();
                        let saved = driver.function.save();
                        let stopped = !matches!(saved, Err(SaveError::Running));
                        driver.function.resume();
                        stopped
                    });
                }
                assert_eq!(driver.status(), 0xf, "{name}");
                soon(name, || driver.set_status(0) == 0);
            }));
            over.store(true, Ordering::Relaxed);
            if let Err(why) = all {
                std::panic::resume_unwind(why);
            }
        });
    }
}

/// Numbers that are not all alike (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// The driver makes more available as soon as it sees something used: while the worker still publishes, or has just asked
/// to be notified. One notification that were missed would never be made up for.
fn rounds(queue: &mut Queue, count: u64, mut between: impl FnMut()) {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut post = |queue: &mut Queue| {
        if !queue.idle.is_empty() {
            queue.post();
            between();
        }
    };
    for _ in 0..count {
        if queue.under_way() == 0 {
            post(queue);
        }
        let more = dice.below(3);
        // At once, or somewhere into what the worker does after that.
        let pause = dice.below(2) * dice.below(300);
        queue.wait();
        for _ in 0..pause {
            std::hint::spin_loop();
        }
        for _ in 0..more {
            post(queue);
        }
        while queue.take() {}
    }
    while queue.under_way() > 0 {
        queue.wait();
        queue.take();
    }
}

/// A disk of one queue, and what its chains ask.
fn disk(memory: &Memory) -> (Box<Block>, NamedTempFile) {
    let file = image(64);
    memory
        .write_slice(&header(0, 5), GuestAddress(HEADER))
        .unwrap();
    let block = Block::open(Options::new(file.path())).unwrap();
    (Box::new(block), file)
}

fn read(_queue: u16) -> Vec<Buffer> {
    vec![
        Readable(HEADER, 16),
        Writable(DATA, 512),
        Writable(STATUS, 1),
    ]
}

#[test]
fn a_disk_misses_no_notification_while_it_works() {
    let memory = memory();
    let (block, _file) = disk(&memory);
    let (_driver, mut queues) = live(block, &memory, &[0], read);
    rounds(&mut queues[0], 20_000, || ());
    // Some came without one: the worker had not asked.
    let Queue { posts, kicks, .. } = queues[0];
    assert!((1..posts).contains(&kicks), "{kicks} of {posts}");
}

#[test]
fn what_is_made_available_in_an_interrupt_is_seen() {
    let memory = memory();
    let (block, _file) = disk(&memory);
    let prompt = Arc::new(Prompt::default());
    prompt.left[0].store(5000, Ordering::SeqCst);
    let (_driver, queues) = interrupted(block, prompt.clone(), &memory, &[0], read);
    *prompt.queues.lock().unwrap() = queues;
    prompt.post(0);
    prompt.wait();
}

#[test]
fn what_is_made_available_in_an_interrupt_of_a_card_is_seen() {
    let memory = memory();
    let (end, wire) = UnixDatagram::pair().unwrap();
    for end in [&end, &wire] {
        end.set_nonblocking(true).unwrap();
    }
    let prompt = Arc::new(Prompt {
        wire: Some(end),
        ..Prompt::default()
    });
    let net = Box::new(Net::new(net::Options::new(), Wire::Frames(wire.into())));
    let chain = |queue| match queue {
        0 => vec![Writable(DATA, 2000)],
        _ => vec![Readable(HEADER, 100)],
    };
    let (_driver, queues) = interrupted(net, prompt.clone(), &memory, &[0, 1], chain);
    *prompt.queues.lock().unwrap() = queues;
    for (at, left) in prompt.left.iter().enumerate() {
        left.store(5000, Ordering::SeqCst);
        prompt.post(at);
    }
    prompt.wait();
}

#[test]
fn a_card_misses_no_notification_while_it_works_both_ways() {
    let memory = memory();
    let (end, wire) = UnixDatagram::pair().unwrap();
    wire.set_nonblocking(true).unwrap();
    end.set_write_timeout(Some(NEVER)).unwrap();
    let net = Net::new(net::Options::new(), Wire::Frames(wire.into()));
    let chain = |queue| match queue {
        0 => vec![Writable(DATA, 2000)],
        _ => vec![Readable(HEADER, 100)],
    };
    let (_driver, mut queues) = live(Box::new(net), &memory, &[0, 1], chain);
    let mut sent = queues.pop().unwrap();
    let mut received = queues.pop().unwrap();
    // At the other end, who takes all that comes and sends as much.
    let echo = end.try_clone().unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            echo.set_read_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            while !over.load(Ordering::Relaxed) {
                let _ = echo.recv(&mut [0; 2000]);
            }
        });
        let (to, from) = (
            scope.spawn(|| {
                rounds(&mut received, 10_000, || {
                    assert_eq!(end.send(&[7; 100]).unwrap(), 100);
                });
            }),
            scope.spawn(|| rounds(&mut sent, 10_000, || ())),
        );
        let all = (to.join(), from.join());
        over.store(true, Ordering::Relaxed);
        all.0.unwrap();
        all.1.unwrap();
    });
}
