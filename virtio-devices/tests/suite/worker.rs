// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Workers in threads: they run when they are told to, stop when they are told to, and come back.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hvkit_virtio_devices::block::{Block, Options};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{Driver, Ring, Vectors};
use hvkit_virtio_devices::queue::Position;
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::worker::{Body, Progress, Runner, Stopped, Threads, Worker, serve};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What a test waits for at most; nothing here takes a hundredth of it.
const LONG: Duration = Duration::from_secs(10);

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn threads() -> Threads<impl FnMut(String, Body) -> io::Result<()> + Send> {
    Threads::new(|name, body| std::thread::Builder::new().name(name).spawn(body).map(drop))
}

/// Calls `on_ready` and does as it says.
struct Scripted<F> {
    events: Vec<EventFd>,
    on_ready: F,
}

impl<F: FnMut(usize, bool) -> Progress + Send> Worker for Scripted<F> {
    fn name(&self) -> String {
        "scripted".into()
    }
    fn sources(&self) -> Vec<RawFd> {
        self.events.iter().map(AsRawFd::as_raw_fd).collect()
    }
    fn positions(&self) -> Vec<(u16, Position)> {
        Vec::new()
    }
    fn ready(&mut self, index: usize) -> Progress {
        let readable = self.events[index].read().is_ok();
        (self.on_ready)(index, readable)
    }
}

/// Reports each call: which source, and whether it was readable.
fn reporting(events: &[&EventFd]) -> (Box<dyn Worker>, Receiver<(usize, bool)>) {
    let (report, reports) = channel();
    let events = events
        .iter()
        .map(|event| event.try_clone().unwrap())
        .collect();
    let on_ready = move |index, readable| {
        report.send((index, readable)).unwrap();
        Progress::Wait
    };
    (Box::new(Scripted { events, on_ready }), reports)
}

#[test]
fn a_worker_is_called_once_at_first_and_then_when_a_source_is_readable() {
    let (first, second) = (event(), event());
    let (worker, reports) = reporting(&[&first, &second]);
    let mut running = threads().start(worker).unwrap();
    let next = || reports.recv_timeout(LONG).unwrap();
    assert_eq!([next(), next()], [(0, false), (1, false)]);
    second.write(1).unwrap();
    assert_eq!(next(), (1, true));
    first.write(3).unwrap();
    assert_eq!(next(), (0, true));
    assert!(
        reports.recv_timeout(Duration::from_millis(20)).is_err(),
        "called for nothing"
    );
    running.request_stop();
    assert!(matches!(running.stopped(LONG), Stopped::With(_)));
}

#[test]
fn a_worker_that_lets_others_run_is_called_again_without_an_event() {
    let (report, reports) = channel();
    let mut calls = 0;
    let on_ready = move |_, readable| {
        report.send(readable).unwrap();
        calls += 1;
        match calls {
            1..4 => Progress::Yield,
            _ => Progress::Wait,
        }
    };
    let worker = Box::new(Scripted {
        events: vec![event()],
        on_ready,
    });
    let mut running = threads().start(worker).unwrap();
    let called: Vec<bool> = (0..4)
        .map(|_| reports.recv_timeout(LONG).unwrap())
        .collect();
    assert_eq!(called, [false; 4]);
    let more = reports.recv_timeout(Duration::from_millis(20));
    assert!(more.is_err(), "called for nothing");
    running.request_stop();
    assert!(matches!(running.stopped(LONG), Stopped::With(_)));
}

#[test]
fn a_worker_that_comes_back_can_be_started_again() {
    let kick = event();
    let (worker, reports) = reporting(&[&kick]);
    let mut runner = threads();
    let mut running = runner.start(worker).unwrap();
    reports.recv_timeout(LONG).unwrap();
    running.request_stop();
    let Stopped::With(worker) = running.stopped(LONG) else {
        panic!("not stopped")
    };
    assert!(
        matches!(running.stopped(LONG), Stopped::Gone),
        "handed out twice"
    );
    // What comes while nobody runs it is seen after the next start.
    kick.write(1).unwrap();
    let mut running = runner.start(worker).unwrap();
    assert_eq!(reports.recv_timeout(LONG).unwrap(), (0, true));
    running.request_stop();
    assert!(matches!(running.stopped(LONG), Stopped::With(_)));
}

#[test]
fn a_busy_worker_stops_when_asked() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let on_ready = move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
        Progress::More
    };
    let worker = Box::new(Scripted {
        events: vec![event()],
        on_ready,
    });
    let mut running = threads().start(worker).unwrap();
    while calls.load(Ordering::Relaxed) < 1000 {
        std::thread::yield_now();
    }
    running.request_stop();
    assert!(matches!(running.stopped(LONG), Stopped::With(_)));
}

#[test]
fn a_worker_that_hangs_is_not_waited_for() {
    let (release, wait): (Sender<()>, _) = channel();
    let wait = Mutex::new(wait);
    let (enter, entered) = channel();
    let on_ready = move |_, _| {
        enter.send(()).unwrap();
        let _ = wait.lock().unwrap().recv();
        Progress::Wait
    };
    let worker = Box::new(Scripted {
        events: vec![event()],
        on_ready,
    });
    let mut running = threads().start(worker).unwrap();
    entered.recv_timeout(LONG).unwrap();
    running.request_stop();
    let before = Instant::now();
    assert!(matches!(
        running.stopped(Duration::from_millis(50)),
        Stopped::NotYet
    ));
    assert!(matches!(running.stopped(Duration::ZERO), Stopped::NotYet));
    assert!(before.elapsed() < LONG);
    drop(release);
    assert!(matches!(running.stopped(LONG), Stopped::With(_)));
}

/// Not to stop after all: before the call that it is in returns, and once it has come back.
#[test]
fn a_worker_that_is_to_go_on_goes_on() {
    let (release, wait): (Sender<()>, _) = channel();
    let wait = Mutex::new(wait);
    let (enter, entered) = channel();
    let kick = event();
    let on_ready = move |_, readable| {
        enter.send(readable).unwrap();
        wait.lock().unwrap().recv().unwrap();
        Progress::Wait
    };
    let worker = Box::new(Scripted {
        events: vec![kick.try_clone().unwrap()],
        on_ready,
    });
    let mut running = threads().start(worker).unwrap();
    let called = || entered.recv_timeout(LONG).unwrap();
    called();
    for _ in 0..50 {
        running.request_stop();
        let now = running.stopped(Duration::ZERO);
        assert!(matches!(now, Stopped::NotYet));
        assert!(running.go_on());
        release.send(()).unwrap();
        // As after a start: once for what may have come meanwhile.
        assert!(!called());
        // A stop that is taken back is no stop for the next time.
        release.send(()).unwrap();
        kick.write(1).unwrap();
        assert!(called());
    }
    // The last word counts.
    running.request_stop();
    assert!(running.go_on());
    running.request_stop();
    release.send(()).unwrap();
    let end = Instant::now();
    let stopped = loop {
        match running.stopped(Duration::from_millis(10)) {
            Stopped::NotYet => assert!(end.elapsed() < LONG, "not stopped"),
            stopped => break stopped,
        }
    };
    assert!(!running.go_on(), "it has come back");
    assert!(matches!(stopped, Stopped::With(_)));
}

#[test]
fn a_worker_that_panics_is_gone() {
    let on_ready = |_, _| panic!("on purpose");
    let worker = Box::new(Scripted {
        events: vec![event()],
        on_ready,
    });
    let mut running = threads().start(worker).unwrap();
    let begun = Instant::now();
    while !running.is_gone() {
        assert!(begun.elapsed() < LONG, "it is not gone");
    }
    assert!(matches!(running.stopped(LONG), Stopped::Gone));
}

#[test]
fn a_worker_that_is_done_comes_back_by_itself() {
    let worker = Box::new(Scripted {
        events: vec![event()],
        on_ready: |_, _| Progress::Done,
    });
    let mut running = threads().start(worker).unwrap();
    assert!(!running.is_gone());
    assert!(matches!(running.stopped(LONG), Stopped::With(_)));
    assert!(!running.is_gone());
}

#[test]
fn dropping_the_handle_ends_the_worker() {
    let kick = event();
    let (worker, reports) = reporting(&[&kick]);
    let running = threads().start(worker).unwrap();
    reports.recv_timeout(LONG).unwrap();
    drop(running);
    // The worker, and its end of the channel, are dropped with the thread.
    assert_eq!(
        reports.recv_timeout(LONG),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
    );
}

#[test]
fn a_thread_that_cannot_be_made_is_an_error() {
    let (worker, _reports) = reporting(&[&event()]);
    let refuse = |_, _| Err(io::Error::from(io::ErrorKind::WouldBlock));
    let Err(error) = Threads::new(refuse).start(worker) else {
        panic!("started")
    };
    assert_eq!(error.name, "scripted");
    assert_eq!(error.source.kind(), io::ErrorKind::WouldBlock);
}

/// Watches a regular file, which has no readiness.
pub(crate) struct Watching(pub(crate) std::fs::File);

impl Worker for Watching {
    fn name(&self) -> String {
        "watching".into()
    }
    fn sources(&self) -> Vec<RawFd> {
        vec![self.0.as_raw_fd()]
    }
    fn positions(&self) -> Vec<(u16, Position)> {
        Vec::new()
    }
    fn ready(&mut self, _index: usize) -> Progress {
        Progress::Done
    }
}

#[test]
fn a_source_that_cannot_be_watched_is_an_error() {
    let file = tempfile::tempfile().unwrap();
    assert!(serve(&mut Watching(file), &event()).is_err());
}

/// A queue's kick is never read: each write to it has to be told of all the same.
#[test]
fn a_source_that_nobody_reads_is_told_of_at_each_write() {
    struct Deaf(EventFd, Sender<()>);
    impl Worker for Deaf {
        fn name(&self) -> String {
            "deaf".into()
        }
        fn sources(&self) -> Vec<RawFd> {
            vec![self.0.as_raw_fd()]
        }
        fn positions(&self) -> Vec<(u16, Position)> {
            Vec::new()
        }
        fn ready(&mut self, _index: usize) -> Progress {
            self.1.send(()).unwrap();
            Progress::Wait
        }
    }
    let kick = event();
    let (tell, told) = channel();
    let worker = Deaf(kick.try_clone().unwrap(), tell);
    let mut running = threads().start(Box::new(worker)).unwrap();
    told.recv_timeout(LONG).unwrap();
    for _ in 0..100 {
        kick.write(1).unwrap();
        told.recv_timeout(LONG).unwrap();
    }
    running.request_stop();
    assert!(matches!(running.stopped(LONG), Stopped::With(_)));
}

/// A disk in a thread of its own, and its driver.
struct Disk {
    driver: Driver<VirtioPci<Arc<GuestMemoryMmap>>>,
    memory: Arc<GuestMemoryMmap>,
    vectors: Arc<Vectors>,
    _image: NamedTempFile,
}

impl Disk {
    fn new() -> Self {
        let image = crate::support::image(64);
        let memory = crate::support::memory();
        let vectors = Arc::new(Vectors::default());
        let block = Box::new(Block::open(Options::new(image.path())).unwrap());
        let (interrupts, runner) = (vectors.clone(), Box::new(threads()));
        let function = VirtioPci::new(block, memory.clone(), interrupts, runner).unwrap();
        Self {
            driver: Driver::probe(function),
            memory,
            vectors,
            _image: image,
        }
    }

    /// Brings it up; its queue.
    fn start(&mut self) -> Ring {
        self.driver.enable_msix();
        self.driver.negotiate(u64::MAX);
        let ring = self.driver.queue(0, &self.memory, 0x1000, 256);
        self.driver.set_status(0xf);
        let header = crate::support::header(0, 9);
        self.memory
            .write_slice(&header, GuestAddress(0x8000))
            .unwrap();
        ring
    }

    /// Reads sector 9 to 0x10000.
    fn read(&mut self, ring: &mut Ring) {
        ring.submit(&[
            Readable(0x8000, 16),
            Writable(0x1_0000, 512),
            Writable(0x9000, 1),
        ]);
        self.driver.kick(0);
        let before = Instant::now();
        while ring.take().is_none() {
            assert!(before.elapsed() < LONG, "no answer");
            std::thread::yield_now();
        }
    }
}

/// One request at a time, each with one kick: one that were lost would never be answered.
#[test]
fn a_disk_in_a_thread_misses_no_kick() {
    let mut disk = Disk::new();
    let mut ring = disk.start();
    for _ in 0..500 {
        disk.read(&mut ring);
    }
}

#[test]
fn a_disk_works_in_a_thread() {
    let mut disk = Disk::new();
    for _ in 0..20 {
        let mut ring = disk.start();
        disk.read(&mut ring);
        let mut data = vec![0; 512];
        disk.memory
            .read_slice(&mut data, GuestAddress(0x1_0000))
            .unwrap();
        assert_eq!(data, crate::support::pattern(9 * 512, 512));
        // A machine under load may need longer than the write waits; then a driver polls.
        let before = Instant::now();
        let mut status = disk.driver.set_status(0);
        while status != 0 {
            assert!(before.elapsed() < LONG, "no end");
            status = disk.driver.status();
        }
    }
    assert!(!disk.vectors.delivered().is_empty());
}
