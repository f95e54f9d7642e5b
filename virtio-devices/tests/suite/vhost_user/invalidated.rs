// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Our back end, whose VMM takes a mapping away while it is used: VHOST_IOTLB_INVALIDATE, which is acknowledged when nothing that it led to
//! is used any more.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hvkit_virtio_devices::block::{Block, HostCache, Options};
use hvkit_virtio_devices::device::{ActivateError, Activation, ActiveQueue, Device};
use hvkit_virtio_devices::fake::Buffer;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::features::{DeviceType, Features};
use hvkit_virtio_devices::queue::Position;
use hvkit_virtio_devices::vhost_user::back_end;
use hvkit_virtio_devices::worker::{Progress, Worker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::ours::serve_device;
use super::raw::{AWAY, PAGE, Queue, RING, Raw, update};
use super::{DATA, HEADER, PATIENCE, STATUS};
use crate::support::{header, pattern};

const OTHER: u64 = DATA + 8 * PAGE;
/// It wants an answer.
const MISS: u32 = 1 | 8;

/// What the device does in one call.
type Step = Box<dyn FnOnce(&back_end::Memory) + Send>;

/// A device that does what a test says, in a call of its worker.
struct Told(Arc<Mutex<Receiver<Step>>>);

struct ToldWorker {
    steps: Arc<Mutex<Receiver<Step>>>,
    memory: back_end::Memory,
    queue: ActiveQueue,
}

impl Device<back_end::Memory> for Told {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }
    fn features(&self) -> Features {
        Features::empty()
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![16]
    }
    fn config_read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn config_write(&mut self, _offset: u64, _data: &[u8]) {}
    fn activate(
        &mut self,
        activation: Activation<back_end::Memory>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let Activation { memory, queues, .. } = activation;
        let worker = |queue| ToldWorker {
            steps: Arc::clone(&self.0),
            memory: Arc::clone(&memory),
            queue,
        };
        let boxed = |queue| Box::new(worker(queue)) as Box<dyn Worker>;
        Ok(queues.into_iter().map(boxed).collect())
    }
    fn reset(&mut self) {}
}

impl Worker for ToldWorker {
    fn name(&self) -> String {
        "told".to_owned()
    }
    fn sources(&self) -> Vec<RawFd> {
        vec![self.queue.kick.as_raw_fd()]
    }
    fn positions(&self) -> Vec<(u16, Position)> {
        vec![self.queue.position()]
    }
    fn ready(&mut self, _index: usize) -> Progress {
        let step = self.steps.lock().unwrap().try_recv();
        match step {
            Ok(step) => {
                step(&self.memory);
                Progress::More
            }
            Err(_) => Progress::Wait,
        }
    }
}

/// The front end, and a device whose calls the test makes.
struct Machine {
    front: Raw,
    queue: Queue,
    steps: Sender<Step>,
    serving: JoinHandle<String>,
}

impl Machine {
    fn new() -> Self {
        let (steps, theirs) = channel();
        let told = Told(Arc::new(Mutex::new(theirs)));
        let (socket, serving) = serve_device(Box::new(told));
        let mut front = Raw::begin(socket);
        let queue = ready(&mut front);
        Self {
            front,
            queue,
            steps,
            serving,
        }
    }

    /// Has the device do that, in a call of its own.
    fn call(&self, step: impl FnOnce(&back_end::Memory) + Send + 'static) {
        self.steps.send(Box::new(step)).unwrap();
        self.queue.kick.write(1).unwrap();
    }

    /// A call that finds `DATA`, then `OTHER`, and fills both if both were found: the channels on which it says that it has found the first,
    /// waits, and says how it ended.
    fn call_for_both(&self) -> (Receiver<()>, Sender<()>, Receiver<Result<(), String>>) {
        let ((found, has_found), (go, goes), (ended, end)) = (channel(), channel(), channel());
        self.call(move |memory| {
            let of = |address| {
                let at = GuestAddress(AWAY + address);
                let mut slices = memory
                    .get_slices(at, 512, Permissions::Write)
                    .map_err(|error| error.to_string())?;
                Ok(slices.next().unwrap().unwrap())
            };
            let first = of(DATA).unwrap();
            found.send(()).unwrap();
            goes.recv().unwrap();
            let filled = of(OTHER).map(|other| {
                first.copy_from(&[0xaa; 512]);
                other.copy_from(&[0xbb; 512]);
            });
            ended.send(filled).unwrap();
        });
        (has_found, go, end)
    }

    fn filled(&self, address: u64) -> u8 {
        self.front.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn end(self) {
        drop((self.front, self.queue));
        assert_eq!(self.serving.join().unwrap(), "hung up; ");
    }
}

/// A queue whose pages were told of.
fn ready(front: &mut Raw) -> Queue {
    for page in (RING..RING + 4 * PAGE).step_by(PAGE as usize) {
        assert_eq!(front.translation(update(page, page, 3)), 0);
    }
    front.queue()
}

fn invalidate(address: u64, size: u64) -> [u64; 4] {
    [address, size, 0, 3 << 8]
}

const EVERYTHING: [u64; 4] = [0, u64::MAX, 0, 3 << 8];

/// The device asks where `address` leads, to write there, and waits.
fn assert_asks(front: &mut Raw, address: u64) {
    assert_eq!(front.asked(), (MISS, [AWAY + address, 0, 0, 2 | 1 << 8]));
}

#[test]
fn a_call_that_has_found_it_is_waited_for() {
    let mut machine = Machine::new();
    machine.front.translation(update(DATA, DATA, 3));
    machine.front.translation(update(OTHER, OTHER, 3));
    let (found, go, end) = machine.call_for_both();
    found.recv_timeout(PATIENCE).unwrap();
    // Its neighbours, and nothing: at once.
    let front = &mut machine.front;
    assert_eq!(front.translation(invalidate(AWAY + DATA - PAGE, PAGE)), 0);
    assert_eq!(front.translation(invalidate(AWAY + DATA + PAGE, PAGE)), 0);
    assert_eq!(front.translation(invalidate(AWAY + DATA, 0)), 0);
    front.tell(invalidate(AWAY + DATA, PAGE));
    assert!(front.is_silent(), "it may still be written");
    go.send(()).unwrap();
    assert_eq!(front.acknowledged(), 0);
    // Whoever heard that finds all of it written.
    assert_eq!(machine.filled(DATA), 0xaa);
    assert_eq!(end.recv_timeout(PATIENCE).unwrap(), Ok(()));
    // The next call finds nothing there.
    let (tell, told) = channel();
    machine.call(move |memory| {
        let at = GuestAddress(AWAY + DATA);
        tell.send(memory.write_obj(1u8, at).is_err()).unwrap();
    });
    assert_asks(&mut machine.front, DATA);
    machine.front.answer(1);
    assert!(told.recv_timeout(PATIENCE).unwrap());
    // Nobody is in a call: at once.
    assert_eq!(machine.front.translation(EVERYTHING), 0);
    machine.end();
}

/// The VMM gives no answer before it has the acknowledgement, and takes everything away of which all stays: Linux in its lazy mode.
#[test]
fn a_call_that_asks_is_not_waited_for_and_goes_on() {
    let mut machine = Machine::new();
    machine.front.translation(update(DATA, DATA, 3));
    let (found, go, end) = machine.call_for_both();
    found.recv_timeout(PATIENCE).unwrap();
    go.send(()).unwrap();
    let front = &mut machine.front;
    assert_asks(front, OTHER);
    assert_eq!(front.translation(EVERYTHING), 0);
    assert_eq!(front.translation(update(OTHER, OTHER, 3)), 0);
    front.answer(0);
    // What it has found before, again; and once more, because that goes too before it hears the answer.
    assert_asks(front, DATA);
    assert_eq!(front.translation(update(DATA, DATA, 3)), 0);
    assert_eq!(front.translation(EVERYTHING), 0);
    front.answer(0);
    assert_asks(front, DATA);
    assert_eq!(front.translation(update(DATA, DATA, 3)), 0);
    front.answer(0);
    // And what it asked for at first, which is gone by now.
    assert_asks(front, OTHER);
    assert_eq!(front.translation(update(OTHER, OTHER, 3)), 0);
    front.answer(0);
    assert_eq!(end.recv_timeout(PATIENCE).unwrap(), Ok(()));
    assert_eq!([DATA, OTHER].map(|at| machine.filled(at)), [0xaa, 0xbb]);
    machine.end();
}

#[test]
fn a_call_that_begins_to_ask_is_waited_for_no_longer() {
    let mut machine = Machine::new();
    machine.front.translation(update(DATA, DATA, 3));
    let (found, go, end) = machine.call_for_both();
    found.recv_timeout(PATIENCE).unwrap();
    let front = &mut machine.front;
    front.tell(EVERYTHING);
    assert!(front.is_silent(), "it may still be written");
    go.send(()).unwrap();
    // For both, and for either first: it may be told of what went before it asks or after.
    let mut asked = vec![front.asked()];
    assert_eq!(front.acknowledged(), 0);
    for last in [false, true] {
        let (flags, [address, ..]) = asked[usize::from(last)];
        assert_eq!(flags, MISS);
        let page = address - AWAY;
        assert_eq!(front.translation(update(page, page, 3)), 0);
        front.answer(0);
        if !last {
            asked.push(front.asked());
        }
    }
    let mut addresses = [0, 1].map(|at| asked[at].1[0]);
    addresses.sort_unstable();
    assert_eq!(addresses, [AWAY + DATA, AWAY + OTHER]);
    assert_eq!(end.recv_timeout(PATIENCE).unwrap(), Ok(()));
    assert_eq!([DATA, OTHER].map(|at| machine.filled(at)), [0xaa, 0xbb]);
    machine.end();
}

/// Nowhere, elsewhere, and not for writing any more.
#[test]
fn what_leads_elsewhere_after_the_answer_fails_the_access() {
    const ELSEWHERE: &str = "what was found before it leads elsewhere now";
    let now = [
        (None, "it leads nowhere"),
        (Some(update(DATA, DATA + PAGE, 3)), ELSEWHERE),
        (
            Some(update(DATA, DATA, 1)),
            "it leads where such an access may not go",
        ),
    ];
    for (now, why) in now {
        let mut machine = Machine::new();
        machine.front.translation(update(DATA, DATA, 3));
        let (found, go, end) = machine.call_for_both();
        found.recv_timeout(PATIENCE).unwrap();
        go.send(()).unwrap();
        let front = &mut machine.front;
        assert_asks(front, OTHER);
        assert_eq!(front.translation(invalidate(AWAY + DATA, PAGE)), 0);
        assert_eq!(front.translation(update(OTHER, OTHER, 3)), 0);
        front.answer(0);
        assert_asks(front, DATA);
        let code = now.map_or(1, |now| front.translation(now));
        front.answer(code);
        let error = end.recv_timeout(PATIENCE).unwrap().unwrap_err();
        assert!(error.contains(why), "{error}");
        for page in [DATA, DATA + PAGE, OTHER] {
            assert_eq!(machine.filled(page), 0, "{why}");
        }
        // The next call has nothing to do with it.
        let (tell, told) = channel();
        machine.call(move |memory| {
            let at = GuestAddress(AWAY + OTHER);
            tell.send(memory.write_obj(0xccu8, at).is_ok()).unwrap();
        });
        assert!(told.recv_timeout(PATIENCE).unwrap());
        assert_eq!(machine.filled(OTHER), 0xcc);
        machine.end();
    }
}

const LENGTH: u64 = 0x4_0000;
const WHOLE: Buffer = Writable(AWAY + DATA, LENGTH as u32);

/// A disk's requests, whose buffer is taken away while they are under way: after the acknowledgement nothing comes there any more, and what is
/// not done fails.
fn nothing_comes_after_the_acknowledgement(parts: &[Buffer], options: impl Fn(&Path) -> Options) {
    // Not where other temporary files are: that may be memory.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("disk.img");
    std::fs::write(&path, pattern(1, parts.len() as u64 * LENGTH)).unwrap();
    let disk = Block::open(options(&path)).unwrap();
    let (socket, serving) = serve_device(Box::new(disk));
    let mut front = Raw::begin(socket);
    let mut queue = ready(&mut front);
    front.translation(update(HEADER, HEADER, 1));
    front.translation(update(STATUS, STATUS, 2));
    let memory = Arc::clone(&front.memory);
    memory
        .write_slice(&header(0, 0), GuestAddress(HEADER))
        .unwrap();
    let bytes = || {
        let mut bytes = vec![0; LENGTH as usize];
        memory.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
        bytes
    };
    let requests = 16 / (parts.len() as u16 + 2);
    for round in 0..60 {
        let all = [AWAY + DATA, LENGTH, update(DATA, DATA, 3)[2], 3 | 2 << 8];
        assert_eq!(front.translation(all), 0);
        for _ in 0..requests {
            let ends = [Readable(AWAY + HEADER, 16), Writable(AWAY + STATUS, 1)];
            queue.ring.submit(&[&ends[..1], parts, &ends[1..]].concat());
        }
        queue.kick.write(1).unwrap();
        // When the first of it has come, or at another moment each time.
        let wait = match round % 2 {
            0 => PATIENCE,
            _ => Duration::from_micros(5 * round),
        };
        let begun = Instant::now();
        while memory.read_obj::<u64>(GuestAddress(DATA)).unwrap() == 0 && begun.elapsed() < wait {
            std::hint::spin_loop();
        }
        front.tell(invalidate(AWAY + DATA, LENGTH));
        let (mut taken, mut acknowledged) = (0, false);
        let end = Instant::now() + PATIENCE;
        while taken < requests || !acknowledged {
            assert!(Instant::now() < end, "{taken} {acknowledged}");
            if !acknowledged && readable(&front.socket) {
                assert_eq!(front.acknowledged(), 0);
                // The guest uses the page for something else.
                memory
                    .write_slice(&[0; LENGTH as usize], GuestAddress(DATA))
                    .unwrap();
                acknowledged = true;
            }
            // Only once it has the acknowledgement; the guest knows nothing of it.
            if acknowledged && readable(&front.own) {
                front.asked();
                front.answer(1);
            }
            taken += u16::from(queue.ring.take().is_some());
            std::thread::yield_now();
        }
        assert!(bytes() == [0; LENGTH as usize], "written, in round {round}");
    }
    drop(front);
    assert!(serving.join().unwrap().starts_with("hung up; "));
}

fn readable(socket: &UnixStream) -> bool {
    let mut socket = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut socket, Some(&Timespec::default())).unwrap() > 0
}

#[test]
fn a_disk_writes_nothing_after_the_acknowledgement() {
    // The same buffer again and again, so that it takes long.
    nothing_comes_after_the_acknowledgement(&[WHOLE; 14], |path| Options::new(path));
}

/// What its io_uring moves while no call is made goes where nothing leads any more.
#[test]
fn a_disk_with_a_ring_writes_nothing_after_the_acknowledgement() {
    nothing_comes_after_the_acknowledgement(&[WHOLE], |path| {
        Options::new(path).with_host_cache(HostCache::Bypassed)
    });
}
