// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thread that waits for events which KVM cannot take: those of interrupts that a remapping unit refuses, and of pins of
//! an I/O APIC that is ours.

use crate::confine::{Confiner, Kind};
use crate::machine::stop::Stop;
use crate::machine::threads::PanicWatch;
use crate::wake::Wake;
use rustix::fd::AsFd;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

const NAME: &str = "interrupts";
/// Events that are taken at a time.
const BATCH: usize = 16;
/// Who is waited for when it is time to end.
const END: u64 = 0;

type Action = Arc<dyn Fn() + Send + Sync>;

struct Shared {
    epoll: Epoll,
    end: Wake,
    ending: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    watched: BTreeMap<u64, (EventFd, Action)>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut ready = [EpollEvent::default(); BATCH];
        while !self.ending.load(Ordering::Acquire) {
            let count = match self.epoll.wait(-1, &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("interrupts are not waited for any more: {error}");
                    return;
                }
            };
            for event in ready.iter().take(count) {
                let state = self.state();
                let action = match state.watched.get(&event.data()) {
                    // Whoever stopped watching meanwhile finds the event as it was.
                    Some((event, action)) if event.read().is_ok() => Arc::clone(action),
                    _ => continue,
                };
                drop(state);
                action();
            }
        }
    }
}

/// The thread. It ends when this is dropped.
pub struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state();
        f.debug_list().entries(state.watched.keys()).finish()
    }
}

impl Watcher {
    /// A thread, confined by `confiner`, that waits for nothing yet. Should it panic, the machine stops.
    ///
    /// # Errors
    ///
    /// The host has no thread, or no descriptor.
    pub fn start(stop: &Stop, confiner: &Confiner) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            epoll: Epoll::new()?,
            end: Wake::new()?,
            ending: AtomicBool::new(false),
            state: Mutex::default(),
        });
        let end = shared.end.as_fd().as_raw_fd();
        let event = EpollEvent::new(EventSet::IN, END);
        shared.epoll.ctl(ControlOperation::Add, end, event)?;
        let watch = PanicWatch::new(NAME.to_owned(), stop.clone());
        let (theirs, confiner) = (Arc::clone(&shared), confiner.clone());
        let thread = thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || {
                let watch = watch;
                match confiner.enter(Kind::Interrupts) {
                    Ok(()) => theirs.run(),
                    Err(error) => log::error!("interrupts are not waited for: {error}"),
                }
                drop(watch);
            })?;
        Ok(Watcher {
            shared,
            thread: Some(thread),
        })
    }

    /// Calls `action` in the thread each time that `event` is found written, until the result is dropped; and perhaps
    /// once more, if that is happening just then.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn watch(
        &self,
        event: &EventFd,
        action: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Watched> {
        let event = event.try_clone()?;
        let fd = event.as_raw_fd();
        let mut state = self.shared.state();
        state.last = state.last.wrapping_add(1);
        let token = state.last;
        state.watched.insert(token, (event, Arc::new(action)));
        drop(state);
        let watched = Watched {
            shared: Arc::clone(&self.shared),
            token,
        };
        let event = EpollEvent::new(EventSet::IN, token);
        self.shared.epoll.ctl(ControlOperation::Add, fd, event)?;
        Ok(watched)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        self.shared.end.signal();
        // The last to know of it may be the thread itself.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic has been told by then.
            let _ = thread.join();
        }
    }
}

/// An event that is watched for as long as this value lives.
pub struct Watched {
    shared: Arc<Shared>,
    token: u64,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.token).finish()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let gone = self.shared.state().watched.remove(&self.token);
        if let Some((event, _)) = gone {
            let fd = event.as_raw_fd();
            // It is not there if adding it failed; and it goes by itself when the descriptor does.
            let _ = self
                .shared
                .epoll
                .ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[test]
    fn what_is_watched_is_told_and_then_not() {
        let watcher = Watcher::start(&Stop::new().unwrap(), &Confiner::off()).unwrap();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let (told, heard) = mpsc::channel();
        let watched = watcher.watch(&event, move || told.send(()).unwrap());
        let patience = Duration::from_secs(10);
        for _ in 0..2 {
            event.write(1).unwrap();
            heard.recv_timeout(patience).unwrap();
        }
        drop(watched);
        event.write(1).unwrap();
        drop(watcher);
        // Nobody heard it, and it stays.
        assert!(heard.try_recv().is_err());
        assert_eq!(event.read().unwrap(), 1);
    }

    #[test]
    fn an_action_may_end_its_own_watch_and_the_watcher() {
        let watcher = Arc::new(Watcher::start(&Stop::new().unwrap(), &Confiner::off()).unwrap());
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let (told, heard) = mpsc::channel();
        let own = Arc::new(Mutex::new(None::<(Watched, Arc<Watcher>)>));
        let theirs = Arc::clone(&own);
        let watched = watcher.watch(&event, move || {
            *theirs.lock().unwrap() = None;
            told.send(()).unwrap();
        });
        *own.lock().unwrap() = Some((watched.unwrap(), watcher));
        event.write(1).unwrap();
        heard.recv_timeout(Duration::from_secs(10)).unwrap();
    }
}
