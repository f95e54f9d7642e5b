// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The part of a device that moves data, and who runs it.
//!
//! ```text
//!   Device::activate --> Worker --> Runner::start --> Running
//!                          ^                            |  request_stop, then stopped(patience)
//!                          '----------------------------'  (the worker comes back), or go_on (it does not)
//! ```
//!
//! A [`Worker`] has no thread of its own and never waits. A [`Runner`] is the VMM's choice: one thread
//! per worker ([`Threads`], whose threads the VMM spawns), an event loop (the example `event_loop` has one over rust-vmm's event-manager), or a test that
//! calls it by hand.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::queue::Position;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What a worker wants after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing left: call again when a source is readable.
    Wait,
    /// There is more, but it was time to return: call again soon, also if nothing is readable.
    More,
    /// Nothing left, and there is likely to be more when others that share the processor have run, the driver among them: let them, then
    /// call again, also if nothing is readable. Nobody notifies until then.
    Yield,
    /// Nothing will come of any further call: the device has failed until it is reset.
    Done,
}

/// Moves data between queues and a backend, a bounded amount per call.
pub trait Worker: Send {
    /// A short name for a thread or a log: what is served, not who serves it.
    fn name(&self) -> String;

    /// File descriptors that become readable when this worker has something to do. To be watched for the change
    /// (edge-triggered): one may stay readable while the worker waits for another, and a queue's kick is never read, so
    /// that it stays readable once the driver has notified. Asked once, when it is started; they live as long as the worker.
    fn sources(&self) -> Vec<RawFd>;

    /// The queues that it serves, by number, and where each goes on. Asked while it is not called; then nothing is in
    /// flight.
    fn positions(&self) -> Vec<(u16, Position)>;

    /// It is started: called once before the others, where it will be called from then on. A worker that only watches
    /// over somebody else's work sets that going here, and may wait for it for a bounded time.
    fn started(&mut self) {}

    /// It was asked to stop: called once after the others, before it is handed back. When this returns, nothing that
    /// it set going does anything any more.
    fn stopping(&mut self) {}

    /// Does what there is to do for the source at `index` of [`sources`](Self::sources).
    ///
    /// Returns within a fraction of a second, so that a request to stop is seen. Must accept a call for a
    /// source that is not readable: every source is called once after a start, because what was waiting
    /// before a pause gives no event.
    fn ready(&mut self, index: usize) -> Progress;
}

/// Why a worker could not be started.
#[derive(Debug, thiserror::Error)]
#[error("worker {name} could not be started")]
pub struct StartError {
    /// [`Worker::name`].
    pub name: String,
    /// Why, from the host.
    #[source]
    pub source: io::Error,
}

/// Runs workers.
pub trait Runner: Send {
    /// Begins to call `worker`.
    fn start(&mut self, worker: Box<dyn Worker>) -> Result<Box<dyn Running>, StartError>;
}

/// A worker that is being run.
///
/// Dropping it asks the worker to stop and does not wait.
pub trait Running: Send {
    /// Asks for an end. Returns at once; may be called again.
    fn request_stop(&mut self);

    /// Waits for the end that was asked for, at most `patience`.
    fn stopped(&mut self, patience: Duration) -> Stopped;

    /// Whether it has ended and will not be handed back, as far as is known now: it panicked. No end need have been asked for.
    fn is_gone(&self) -> bool {
        false
    }

    /// Takes back what was asked for. `true`: the worker is called again, now or when the call that it is in returns.
    /// `false`: it has stopped by then, and [`stopped`](Self::stopped) has it.
    fn go_on(&mut self) -> bool;
}

/// Whether a worker has stopped.
pub enum Stopped {
    /// It has, and can be started again.
    With(Box<dyn Worker>),
    /// It has, and is gone: it panicked, or was handed out before.
    Gone,
    /// Not yet: it is in a call that has not returned.
    NotYet,
}

impl std::fmt::Debug for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::With(_) => "With(..)",
            Self::Gone => "Gone",
            Self::NotYet => "NotYet",
        })
    }
}

/// Calls `worker` when its sources are readable, in the calling thread, until `stop` is readable.
///
/// Returns early if the worker is [`Progress::Done`].
pub fn serve(worker: &mut dyn Worker, stop: &EventFd) -> io::Result<()> {
    worker.started();
    let served = watch(worker, stop);
    worker.stopping();
    served
}

fn watch(worker: &mut dyn Worker, stop: &EventFd) -> io::Result<()> {
    const STOP: u64 = u64::MAX;
    let epoll = Epoll::new()?;
    let watch = |fd, events, data| {
        let event = EpollEvent::new(events, data);
        epoll.ctl(ControlOperation::Add, fd, event)
    };
    watch(stop.as_raw_fd(), EventSet::IN, STOP)?;
    let sources = worker.sources();
    let changes = EventSet::IN | EventSet::EDGE_TRIGGERED;
    for (fd, index) in sources.iter().zip(0..) {
        watch(*fd, changes, index)?;
    }
    let mut wanted = vec![true; sources.len()];
    let mut events = vec![EpollEvent::default(); sources.len().saturating_add(1)];
    loop {
        let timeout = if wanted.contains(&true) { 0 } else { -1 };
        let count = match epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for event in events.iter().take(count) {
            if event.data() == STOP {
                return Ok(());
            }
            if let Some(want) = usize::try_from(event.data())
                .ok()
                .and_then(|i| wanted.get_mut(i))
            {
                *want = true;
            }
        }
        for (index, want) in wanted.iter_mut().enumerate().filter(|(_, want)| **want) {
            match worker.ready(index) {
                Progress::Wait => *want = false,
                Progress::More => {}
                Progress::Yield => std::thread::yield_now(),
                Progress::Done => return Ok(()),
            }
        }
    }
}

/// What a new thread runs.
pub type Body = Box<dyn FnOnce() + Send>;

/// A runner that gives each worker a thread. The VMM makes the threads: it knows their priority, their
/// seccomp filter, and how to name them.
///
/// ```
/// use hvkit_virtio_devices::worker::Threads;
/// let runner = Threads::new(|name, body| {
///     std::thread::Builder::new().name(name).spawn(body).map(drop)
/// });
/// # let _ = runner;
/// ```
#[derive(Debug)]
pub struct Threads<S> {
    spawn: S,
}

impl<S: FnMut(String, Body) -> io::Result<()> + Send> Threads<S> {
    /// A runner that calls `spawn` with a name and what to run, once for each worker.
    pub fn new(spawn: S) -> Self {
        Self { spawn }
    }
}

impl<S: FnMut(String, Body) -> io::Result<()> + Send> Runner for Threads<S> {
    fn start(&mut self, mut worker: Box<dyn Worker>) -> Result<Box<dyn Running>, StartError> {
        let name = worker.name();
        let failed = |source| StartError {
            name: name.clone(),
            source,
        };
        let control = Arc::new(ThreadControl {
            stop: EventFd::new(EFD_NONBLOCK).map_err(failed)?,
            after: Mutex::new(After::Return),
        });
        let theirs = Arc::clone(&control);
        let (give, back) = channel();
        let body = Box::new(move || {
            // An epoll that cannot be made leaves the device idle; the worker still comes back, so a
            // reset works and another start may succeed.
            while {
                let _ = serve(worker.as_mut(), &theirs.stop);
                theirs.goes_on()
            } {}
            // Nobody may be left to take it.
            let _ = give.send(worker);
        });
        (self.spawn)(name.clone(), body).map_err(failed)?;
        Ok(Box::new(Thread { control, back }))
    }
}

/// What becomes of a worker whose calls have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// It is handed back.
    Return,
    /// It is called again: it was not to stop after all.
    Again,
    /// It has been handed back.
    Returned,
}

/// What a thread and who started it share.
struct ThreadControl {
    stop: EventFd,
    after: Mutex<After>,
}

impl ThreadControl {
    fn after(&self) -> MutexGuard<'_, After> {
        self.after.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker's calls have ended: whether there are to be more.
    fn goes_on(&self) -> bool {
        let mut after = self.after();
        let again = *after == After::Again;
        *after = match again {
            true => After::Return,
            false => After::Returned,
        };
        if again {
            // What was asked for is taken back. An error means that it has not come to that.
            let _ = self.stop.read();
        }
        again
    }
}

struct Thread {
    control: Arc<ThreadControl>,
    back: Receiver<Box<dyn Worker>>,
}

impl Running for Thread {
    fn request_stop(&mut self) {
        let mut after = self.control.after();
        if *after == After::Again {
            *after = After::Return;
        }
        // Fails only if the counter is full, and then the thread has been told.
        let _ = self.control.stop.write(1);
    }

    fn go_on(&mut self) -> bool {
        let mut after = self.control.after();
        if *after == After::Return {
            *after = After::Again;
        }
        *after == After::Again
    }

    fn is_gone(&self) -> bool {
        // A thread that ends says first that it hands the worker back, unless it panics; either way it lets go of this.
        let has_ended = Arc::strong_count(&self.control) == 1;
        has_ended && *self.control.after() != After::Returned
    }

    fn stopped(&mut self, patience: Duration) -> Stopped {
        match self.back.recv_timeout(patience) {
            Ok(worker) => Stopped::With(worker),
            Err(RecvTimeoutError::Timeout) => Stopped::NotYet,
            Err(RecvTimeoutError::Disconnected) => Stopped::Gone,
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.request_stop();
    }
}
