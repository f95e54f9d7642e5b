// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thread that starts threads, for those that may not.
//!
//! A driver switches its device on, and the device's threads start: in the middle of an exit, on the thread that faces
//! the guest. So that it needs no right to make threads, it asks this one, which does nothing else.

use super::{ConfineError, Confiner, Kind};
use crate::machine::stop::Stop;
use crate::machine::threads::PanicWatch;
use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};

/// What a thread does.
type Body = Box<dyn FnOnce() + Send>;

enum Wish {
    Start {
        name: String,
        body: Body,
        answer: SyncSender<io::Result<()>>,
    },
    End,
}

/// The thread, for as long as this lives. Clones of [`Starter`] ask it.
#[derive(Debug)]
pub struct Nursery {
    wishes: Sender<Wish>,
    confiner: Confiner,
    thread: Option<JoinHandle<()>>,
}

/// By which threads are started.
#[derive(Clone, Debug)]
pub struct Starter {
    wishes: Sender<Wish>,
    confiner: Confiner,
}

impl Nursery {
    /// Starts it, confined by `confiner`, as are the threads that it starts. One that panics stops the machine.
    pub fn new(confiner: &Confiner, stop: &Stop) -> Result<Self, ConfineError> {
        let (wishes, received) = channel();
        let (ready, is_ready) = sync_channel(1);
        let (ours, confiner, stop) = (confiner.clone(), confiner.clone(), stop.clone());
        let failed = |source| ConfineError::Host {
            action: "start a thread",
            source,
        };
        let thread = thread::Builder::new()
            .name("nursery".to_owned())
            .spawn(move || {
                let confined = confiner.enter(Kind::Nursery);
                let goes_on = confined.is_ok();
                // `new` waits for this, or has ended with an error.
                if ready.send(confined).is_ok() && goes_on {
                    serve(&received, &confiner, &stop);
                }
            })
            .map_err(failed)?;
        let nursery = Nursery {
            wishes,
            confiner: ours,
            thread: Some(thread),
        };
        let gone = || failed(io::ErrorKind::BrokenPipe.into());
        is_ready.recv().map_err(|_| gone())??;
        Ok(nursery)
    }

    /// By which others start threads.
    #[must_use]
    pub fn starter(&self) -> Starter {
        Starter {
            wishes: self.wishes.clone(),
            confiner: self.confiner.clone(),
        }
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        let _ = self.wishes.send(Wish::End);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that starts threads panicked");
        }
    }
}

impl Starter {
    /// For a thread that its owner starts, while that is still possible.
    #[must_use]
    pub fn confiner(&self) -> &Confiner {
        &self.confiner
    }

    /// Starts a thread of this name.
    pub fn start(&self, name: String, body: Body) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let (answer, answered) = sync_channel(1);
        let wish = Wish::Start { name, body, answer };
        self.wishes.send(wish).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }
}

fn serve(wishes: &Receiver<Wish>, confiner: &Confiner, stop: &Stop) {
    while let Ok(Wish::Start { name, body, answer }) = wishes.recv() {
        let (confiner, stop) = (confiner.clone(), stop.clone());
        let thread = thread::Builder::new().name(name.clone()).spawn(move || {
            let kind = Kind::of_device(&name);
            let watch = PanicWatch::new(name, stop);
            match confiner.enter(kind) {
                Ok(()) => body(),
                // Whoever waits for this device's thread finds it gone.
                Err(error) => log::error!("{error}"),
            }
            drop(watch);
        });
        // Whoever asked waits for this.
        let _ = answer.send(thread.map(drop));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::stop::StopReason;
    use std::time::{Duration, Instant};

    #[test]
    fn threads_start_by_name_and_a_panic_stops_the_machine() {
        let stop = Stop::new().unwrap();
        let nursery = Nursery::new(&Confiner::off(), &stop).unwrap();
        let starter = nursery.starter();
        let (tell, told) = channel();
        let body = move || {
            let name = thread::current().name().map(str::to_owned);
            tell.send(name).unwrap();
        };
        starter.start("a".to_owned(), Box::new(body)).unwrap();
        let name = told.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(name.as_deref(), Some("a"));

        let panic = || std::panic::resume_unwind(Box::new("on purpose"));
        starter.start("b".to_owned(), Box::new(panic)).unwrap();
        let patience = Instant::now() + Duration::from_secs(10);
        while !stop.is_asked() {
            assert!(Instant::now() < patience);
            thread::yield_now();
        }
        let thread = "b".to_owned();
        assert_eq!(stop.reason(), Some(&StopReason::Defect { thread }));

        drop(nursery);
        let late = starter.start("c".to_owned(), Box::new(|| {}));
        assert!(late.is_err(), "nobody is there to start it");
    }
}
