// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Workers on rust-vmm's event loop, by the runner of the example: what a thread of their own gives them, they have here.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use event_manager::{EventManager, RemoteEndpoint};
use hvkit_virtio_devices::block::{Block, Options};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{Driver, Ring, Vectors};
use hvkit_virtio_devices::queue::Position;
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::worker::{Progress, Runner, Stopped, Worker};
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::support::guest::Memory;
use crate::support::{header, image, memory};
use crate::worker::Watching;
use runner::{EventLoop, Member};

#[path = "../../examples/event_loop/runner.rs"]
mod runner;

/// What a test waits for at most; nothing here takes a hundredth of it.
const LONG: Duration = Duration::from_secs(10);

/// A loop in a thread of its own.
struct Looping {
    endpoint: RemoteEndpoint<Member>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Looping {
    fn new() -> Self {
        let mut manager = EventManager::<Member>::new().unwrap();
        let (endpoint, over) = (manager.remote_endpoint(), Arc::new(AtomicBool::new(false)));
        let theirs = Arc::clone(&over);
        let thread = thread::spawn(move || {
            while !theirs.load(Ordering::Acquire) {
                manager.run().unwrap();
            }
        });
        Self {
            endpoint,
            over,
            thread: Some(thread),
        }
    }

    fn runner(&self) -> EventLoop {
        EventLoop::new(self.endpoint.clone())
    }

    fn id(&self) -> ThreadId {
        self.thread.as_ref().unwrap().thread().id()
    }
}

impl Drop for Looping {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        self.endpoint.kick().unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// Calls `on_ready`, and tells of its end.
struct Scripted<F> {
    event: EventFd,
    on_ready: F,
    ended: Sender<ThreadId>,
}

impl<F: FnMut() -> Progress + Send> Worker for Scripted<F> {
    fn name(&self) -> String {
        "scripted".into()
    }
    fn sources(&self) -> Vec<RawFd> {
        vec![self.event.as_raw_fd()]
    }
    fn positions(&self) -> Vec<(u16, Position)> {
        Vec::new()
    }
    fn stopping(&mut self) {
        self.ended.send(thread::current().id()).unwrap();
    }
    fn ready(&mut self, _index: usize) -> Progress {
        (self.on_ready)()
    }
}

fn scripted(
    event: &EventFd,
    on_ready: impl FnMut() -> Progress + Send + 'static,
) -> (Box<dyn Worker>, std::sync::mpsc::Receiver<ThreadId>) {
    let (ended, end) = channel();
    let event = event.try_clone().unwrap();
    let worker = Scripted {
        event,
        on_ready,
        ended,
    };
    (Box::new(worker), end)
}

/// A driver of `device`, with its queue at `base`.
fn begin(
    device: Box<dyn Device<Memory>>,
    memory: &Memory,
    on_loop: &Looping,
    base: u64,
) -> (Driver<VirtioPci<Memory>>, Ring) {
    let told = Arc::new(Vectors::default());
    let function = VirtioPci::new(device, memory.clone(), told, Box::new(on_loop.runner()));
    let mut driver = Driver::probe(function.unwrap());
    let queue = driver_ok(&mut driver, memory, base);
    (driver, queue)
}

fn driver_ok(driver: &mut Driver<VirtioPci<Memory>>, memory: &Memory, base: u64) -> Ring {
    driver.negotiate(1 << 32);
    let queue = driver.queue(0, memory, base, 16);
    assert_eq!(driver.set_status(0xf), 0xf);
    queue
}

fn answered(queue: &mut Ring) -> u32 {
    let end = Instant::now() + LONG;
    loop {
        if let Some(used) = queue.take() {
            return used.length;
        }
        assert!(Instant::now() < end, "no answer");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Two devices on one thread; each is paused, goes on, is reset, and begins again.
#[test]
fn devices_share_a_loop() {
    let on_loop = Looping::new();
    let memory = memory();
    let file = image(64);
    let disk = Box::new(Block::open(Options::new(file.path())).unwrap());
    let (mut disk, mut writes) = begin(disk, &memory, &on_loop, 0x1_0000);
    let entropy = Box::new(Entropy::new(std::io::repeat(0x5a)));
    let (mut entropy, mut bytes) = begin(entropy, &memory, &on_loop, 0x2_0000);
    for turn in 0..8u8 {
        let sector = u64::from(turn);
        memory
            .write_slice(&header(1, sector), GuestAddress(0x4000))
            .unwrap();
        memory
            .write_slice(&[turn ^ 0xa5; 512], GuestAddress(0x5000))
            .unwrap();
        memory
            .write_slice(&[0xee; 16], GuestAddress(0x6000))
            .unwrap();
        writes.submit(&[
            Readable(0x4000, 16),
            Readable(0x5000, 512),
            Writable(0x6000, 1),
        ]);
        bytes.submit(&[Writable(0x6001, 8)]);
        disk.kick(0);
        entropy.kick(0);
        assert_eq!(answered(&mut writes), 1);
        assert_eq!(answered(&mut bytes), 8);
        let mut seen = [0; 10];
        memory.read_slice(&mut seen, GuestAddress(0x6000)).unwrap();
        assert_eq!(
            seen,
            [0, 0x5a, 0x5a, 0x5a, 0x5a, 0x5a, 0x5a, 0x5a, 0x5a, 0xee]
        );
        let at = usize::from(turn) * 512;
        assert_eq!(
            std::fs::read(file.path()).unwrap()[at..at + 512],
            [turn ^ 0xa5; 512]
        );
        match turn {
            2 => {
                disk.function.pause();
                entropy.function.pause();
                disk.function.resume();
                entropy.function.resume();
            }
            5 => {
                for (driver, queue, base) in [
                    (&mut disk, &mut writes, 0x1_0000),
                    (&mut entropy, &mut bytes, 0x2_0000),
                ] {
                    assert_eq!(driver.set_status(0), 0, "the worker has not come back");
                    *queue = driver_ok(driver, &memory, base);
                }
            }
            _ => {}
        }
    }
}

/// A worker that always has more stops nobody, and stops when it is asked, in the loop's thread.
#[test]
fn a_busy_worker_keeps_nobody_waiting() {
    let on_loop = Looping::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let (busy, busy_ended) = scripted(&event(), move || {
        count.fetch_add(1, Ordering::Relaxed);
        Progress::More
    });
    let (quiet_event, (called, quiet_called)) = (event(), channel());
    let (quiet, quiet_ended) = scripted(&quiet_event, move || {
        called.send(thread::current().id()).unwrap();
        Progress::Wait
    });
    let mut runner = on_loop.runner();
    let mut busy = runner.start(busy).unwrap();
    let mut quiet = runner.start(quiet).unwrap();
    // Once for what came before it was started, then for each event.
    for _ in 0..20 {
        let before = calls.load(Ordering::Relaxed);
        assert_eq!(quiet_called.recv_timeout(LONG).unwrap(), on_loop.id());
        let end = Instant::now() + LONG;
        while calls.load(Ordering::Relaxed) < before + 100 {
            assert!(Instant::now() < end, "called no more");
            thread::yield_now();
        }
        assert!(quiet_called.try_recv().is_err(), "called for nothing");
        quiet_event.write(1).unwrap();
    }
    for (running, ended) in [(&mut busy, busy_ended), (&mut quiet, quiet_ended)] {
        running.request_stop();
        assert!(matches!(running.stopped(LONG), Stopped::With(_)));
        assert_eq!(ended.try_recv().unwrap(), on_loop.id());
        assert!(
            matches!(running.stopped(LONG), Stopped::Gone),
            "handed out twice"
        );
        assert!(!running.go_on(), "it has come back");
    }
    let after = calls.load(Ordering::Relaxed);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(calls.load(Ordering::Relaxed), after, "called after its end");
}

/// Not to stop after all, while it is in a call; the last word counts.
#[test]
fn a_worker_that_is_to_go_on_goes_on() {
    let on_loop = Looping::new();
    let kick = event();
    let ((enter, entered), (release, wait)) = (channel(), channel::<()>());
    let wait = std::sync::Mutex::new(wait);
    let (worker, ended) = scripted(&kick, move || {
        enter.send(()).unwrap();
        wait.lock().unwrap().recv().unwrap();
        Progress::Wait
    });
    let mut running = on_loop.runner().start(worker).unwrap();
    for _ in 0..20 {
        entered.recv_timeout(LONG).unwrap();
        running.request_stop();
        assert!(matches!(running.stopped(Duration::ZERO), Stopped::NotYet));
        assert!(running.go_on());
        release.send(()).unwrap();
        kick.write(1).unwrap();
    }
    assert!(ended.try_recv().is_err(), "it was stopped");
    // The wake of a stop that was taken back calls it no more than the events do.
    while entered.recv_timeout(Duration::from_millis(50)).is_ok() {
        running.request_stop();
        assert!(running.go_on());
        running.request_stop();
        release.send(()).unwrap();
    }
    running.request_stop();
    assert!(matches!(running.stopped(LONG), Stopped::With(_)));
}

#[test]
fn a_worker_that_is_done_comes_back_by_itself_and_one_that_nobody_holds_ends() {
    let on_loop = Looping::new();
    let (worker, ended) = scripted(&event(), || Progress::Done);
    let mut running = on_loop.runner().start(worker).unwrap();
    assert!(matches!(running.stopped(LONG), Stopped::With(_)));
    assert_eq!(ended.recv_timeout(LONG).unwrap(), on_loop.id());

    let (worker, ended) = scripted(&event(), || Progress::Wait);
    drop(on_loop.runner().start(worker).unwrap());
    ended.recv_timeout(LONG).unwrap();
    // And the worker is dropped, with its end of the channel.
    assert_eq!(
        ended.recv_timeout(LONG),
        Err(RecvTimeoutError::Disconnected)
    );
}

#[test]
fn what_cannot_be_watched_is_an_error_and_so_is_a_loop_that_is_gone() {
    let on_loop = Looping::new();
    let watching = || Box::new(Watching(tempfile::tempfile().unwrap()));
    let mut runner = on_loop.runner();
    let refused = runner.start(watching()).err().expect("started");
    assert_eq!(refused.name, "watching");
    drop(on_loop);
    assert!(runner.start(watching()).is_err());
}
