// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A runner of workers on an event loop: rust-vmm's event-manager, which may watch other things of the VMM's too.
//!
//! ```text
//!   start ---- RemoteEndpoint ---> EventManager::run, one thread
//!                                    |-- Member { worker, sources, wake }
//!                                    '-- Member { worker, sources, wake }
//! ```
//!
//! A member has one call of each source that wants one, then the loop looks at the others: a worker with a full queue keeps nobody waiting for
//! longer than a call. A worker that panics takes the loop with it, and all on it: whoever wants less gives each a thread.

use std::io;
use std::os::fd::RawFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId};
use hvkit_virtio_devices::worker::{Progress, Runner, Running, StartError, Stopped, Worker};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Calls workers in the thread that runs an event manager.
///
/// `start` waits for that thread, so it has to run already and cannot itself be the one that starts a device: a vCPU's thread does, when
/// the driver sets DRIVER_OK.
#[derive(Clone)]
pub(crate) struct EventLoop(RemoteEndpoint<Member>);

impl EventLoop {
    /// By the manager of which this is an endpoint.
    pub(crate) fn new(manager: RemoteEndpoint<Member>) -> Self {
        Self(manager)
    }
}

impl Runner for EventLoop {
    fn start(&mut self, worker: Box<dyn Worker>) -> Result<Box<dyn Running>, StartError> {
        let name = worker.name();
        let failed = |source| StartError {
            name: name.clone(),
            source,
        };
        let control = Arc::new(Control {
            wake: EventFd::new(EFD_NONBLOCK).map_err(failed)?,
            state: Mutex::new(State::Called),
            id: Mutex::new(None),
        });
        let (give, back) = channel();
        let sources = worker.sources();
        let member = Member {
            wanted: vec![true; sources.len()],
            sources,
            worker: Some(worker),
            control: Arc::clone(&control),
            manager: self.0.clone(),
            give,
            trouble: None,
        };
        let theirs = Arc::clone(&control);
        let added = self.0.call_blocking(move |ops| {
            let id = ops.add_subscriber(member);
            let trouble = ops.subscriber_mut(id)?.trouble.take();
            if trouble.is_some() {
                ops.remove_subscriber(id)?;
            }
            *theirs.id() = Some(id);
            Ok(trouble)
        });
        match added {
            Ok(None) => Ok(Box::new(OnLoop { control, back })),
            Ok(Some(trouble)) => Err(failed(trouble)),
            Err(gone) => Err(failed(of(&gone))),
        }
    }
}

fn of(error: &event_manager::Error) -> io::Error {
    io::Error::other(error.to_string())
}

/// Whether a worker is to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Called,
    /// It is to stop.
    Asked,
    /// It has been handed back.
    Ended,
}

/// What the loop and who started a worker share.
struct Control {
    /// Readable when the worker is to be called again, or to stop.
    wake: EventFd,
    state: Mutex<State>,
    id: Mutex<Option<SubscriberId>>,
}

impl Control {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self) -> MutexGuard<'_, Option<SubscriberId>> {
        self.id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails only if the counter is full, and then the loop has been told.
        let _ = self.wake.write(1);
    }
}

/// A worker on the loop.
pub(crate) struct Member {
    worker: Option<Box<dyn Worker>>,
    sources: Vec<RawFd>,
    /// Those that are to be called.
    wanted: Vec<bool>,
    control: Arc<Control>,
    manager: RemoteEndpoint<Member>,
    give: Sender<Box<dyn Worker>>,
    /// Why its sources cannot be watched.
    trouble: Option<io::Error>,
}

/// What says that it was [`Control::wake`]: no source has this place.
const WAKE: u32 = u32::MAX;

impl Member {
    fn watch(&self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        ops.add(Events::with_data(&self.control.wake, WAKE, EventSet::IN))?;
        for (fd, index) in self.sources.iter().zip(0..) {
            let changes = EventSet::IN | EventSet::EDGE_TRIGGERED;
            ops.add(Events::with_data_raw(*fd, index, changes))?;
        }
        Ok(())
    }

    /// Calls the worker once for each source that wants it.
    fn call(&mut self) -> Progress {
        let Some(worker) = self.worker.as_mut() else {
            return Progress::Wait;
        };
        let mut all = Progress::Wait;
        for (index, want) in self
            .wanted
            .iter_mut()
            .enumerate()
            .filter(|(_, want)| **want)
        {
            match worker.ready(index) {
                Progress::Wait => *want = false,
                // The others on the loop, and then it again. Who shares the processor has been let by the system call between.
                Progress::More | Progress::Yield => all = Progress::More,
                Progress::Done => return Progress::Done,
            }
        }
        all
    }

    /// Hands the worker back, and leaves the loop.
    fn end(&mut self, ops: &mut EventOps<'_>) {
        let Some(mut worker) = self.worker.take() else {
            return;
        };
        let _ = ops.remove(Events::empty(&self.control.wake));
        for fd in &self.sources {
            let _ = ops.remove(Events::empty_raw(*fd));
        }
        worker.stopping();
        // Nobody may be left to take it.
        let _ = self.give.send(worker);
        let control = Arc::clone(&self.control);
        // Not now: the loop is in the middle of this member.
        let _ = self.manager.fire(move |ops| {
            if let Some(id) = control.id().take() {
                let _ = ops.remove_subscriber(id);
            }
        });
    }
}

impl MutEventSubscriber for Member {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.watch(ops) {
            self.trouble = Some(of(&error));
            return;
        }
        if let Some(worker) = self.worker.as_mut() {
            worker.started();
        }
        self.control.wake();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.data() == WAKE {
            let _ = self.control.wake.read();
            let mut state = self.control.state();
            if *state == State::Asked {
                *state = State::Ended;
                drop(state);
                return self.end(ops);
            }
        } else if let Some(want) = self.wanted.get_mut(events.data() as usize) {
            *want = true;
        }
        match self.call() {
            Progress::Wait => {}
            Progress::More | Progress::Yield => self.control.wake(),
            Progress::Done => {
                *self.control.state() = State::Ended;
                self.end(ops);
            }
        }
    }
}

/// A worker on the loop, for who started it.
struct OnLoop {
    control: Arc<Control>,
    back: Receiver<Box<dyn Worker>>,
}

impl Running for OnLoop {
    fn request_stop(&mut self) {
        let mut state = self.control.state();
        if *state == State::Called {
            *state = State::Asked;
        }
        self.control.wake();
    }

    fn stopped(&mut self, patience: Duration) -> Stopped {
        match self.back.recv_timeout(patience) {
            Ok(worker) => Stopped::With(worker),
            Err(RecvTimeoutError::Timeout) => Stopped::NotYet,
            Err(RecvTimeoutError::Disconnected) => Stopped::Gone,
        }
    }

    fn go_on(&mut self) -> bool {
        let mut state = self.control.state();
        if *state == State::Asked {
            *state = State::Called;
        }
        *state == State::Called
    }
}

impl Drop for OnLoop {
    fn drop(&mut self) {
        self.request_stop();
    }
}
