// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One queue served by one worker: batches, publication, limits and numbers, the same for every device.
//!
//! ```text
//!   kick, source, timer --> ready --> pop --> Handler::serve --+--> complete   done
//!                                       ^                      '--> put back   later: when the source says so
//!                                       '------ up to a batch ------'   then publish, interrupt?
//! ```
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

mod handler;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{GuestAddressSpace, GuestMemory};

pub(crate) use handler::{Answer, Handler, Served};

use crate::counters::Counters;
use crate::device::{ActivateError, ActiveQueue, Failure, Interrupts, Trouble};
use crate::limit::Limiter;
use crate::queue::{Chain, Head, Mapped, Notify, Position};
use crate::worker::{Progress, Worker};

/// Chains after which what is done is published, and the worker looks whether it is to stop.
const BATCH_CHAINS: u32 = 32;
/// Bytes of data after which the same happens.
const BATCH_BYTES: u64 = 8 << 20;

/// How long one look for what is under way takes at most, when a worker stops.
const PATIENCE: Duration = Duration::from_millis(100);

/// How many more looks there are when the host has failed, and may never serve what is under way.
const LOOKS: u32 = 50;

/// A worker that serves one queue.
pub(crate) struct QueueServer<A, H> {
    memory: A,
    active: ActiveQueue,
    chain: Chain,
    serving: Serving<H>,
    /// The host has failed, which was told: what is under way may never be served.
    is_given_up: bool,
}

/// A chain that was popped and not answered yet, and the room in it.
struct Held {
    head: Head,
    room: u64,
}

/// Why a batch ended.
enum Batch {
    /// Nothing more is available, after so many chains.
    Drained(u32),
    /// It was time.
    Full,
    /// The next chain waits for the handler's source or for the limiter.
    Waiting,
}

impl<A: GuestAddressSpace, H: Handler<A>> QueueServer<A, H> {
    pub(crate) fn new(
        memory: A,
        active: ActiveQueue,
        interrupts: Arc<dyn Interrupts>,
        handler: H,
    ) -> Self {
        Self {
            memory,
            chain: Chain::new(),
            serving: Serving {
                index: active.index,
                handler,
                limiter: None,
                counters: Counters::default(),
                interrupts,
                held: Vec::new(),
                heads: Vec::new(),
            },
            active,
            is_given_up: false,
        }
    }

    pub(crate) fn with_limiter(mut self, limiter: Option<Limiter>) -> Self {
        self.serving.limiter = limiter;
        self
    }

    pub(crate) fn with_counters(mut self, counters: Counters) -> Self {
        self.serving.counters = counters;
        self
    }

    fn work(&mut self) -> Result<Progress, Failure> {
        let memory = self.memory.memory();
        let index = self.active.index;
        let broken = |source| Failure::Queue { index, source };
        let mut queue = self.active.queue.map(&*memory);
        queue.disable_kicks().map_err(broken)?;
        let serving = &mut self.serving;
        let finished = serving.finish(&mut queue);
        let batch = finished.and_then(|()| serving.batch(&mut queue, &mut self.chain));
        let told = serving.handler.submit();
        // Much has finished by the time that the host has been told of it, and is shown to the driver at once.
        let batch = match serving.finish(&mut queue) {
            Ok(()) => batch,
            Err(broken) => Err(broken),
        };
        // What was done before something went wrong is done, and the driver is to know.
        let notify = queue.publish().map_err(broken)?;
        if notify == Notify::Yes {
            serving.counters.interrupted();
            serving.interrupts.queue(index);
        }
        // Nothing more can be served: what is under way would wait for ever.
        let told = told.inspect_err(|_| {
            self.is_given_up = true;
            queue.fail();
        });
        let told = told.map_err(ActivateError::from)?;
        // One batch a call, also if a quick driver has made more available: a request to stop comes between.
        let more = match batch? {
            Batch::Full => true,
            Batch::Waiting => false,
            // The driver is spared the next notification, and its next chains come as one batch.
            Batch::Drained(1..) if told && serving.handler.is_stream() => {
                return Ok(Progress::Yield);
            }
            Batch::Drained(_) => queue.enable_kicks().map_err(broken)?,
        };
        Ok(match more || !told {
            true => Progress::More,
            false => Progress::Wait,
        })
    }

    /// Shows the driver what is served by now.
    fn settle(&mut self) -> Result<(), Failure> {
        let memory = self.memory.memory();
        let index = self.active.index;
        let broken = |source| Failure::Queue { index, source };
        let mut queue = self.active.queue.map(&*memory);
        let serving = &mut self.serving;
        serving.finish(&mut queue)?;
        if queue.publish().map_err(broken)? == Notify::Yes {
            serving.counters.interrupted();
            serving.interrupts.queue(index);
        }
        Ok(())
    }
}

/// What a batch needs besides the queue.
struct Serving<H> {
    index: u16,
    handler: H,
    limiter: Option<Limiter>,
    counters: Counters,
    interrupts: Arc<dyn Interrupts>,
    /// Those that were popped and not answered yet.
    held: Vec<Held>,
    /// Chains under way, by number.
    heads: Vec<Option<Head>>,
}

impl<H> Serving<H> {
    /// Tells of the first failure, then ever more seldom: a guest can cause as many as it likes.
    fn trouble(&self, source: io::Error) {
        let (index, count) = (self.index, self.counters.failed());
        if count.is_power_of_two() {
            self.interrupts.trouble(&Trouble {
                index,
                count,
                source,
            });
        }
    }

    /// Completes a chain that was under way, which has paid, and counts what it came to.
    fn complete<M: GuestMemory + ?Sized>(
        &mut self,
        queue: &mut Mapped<'_, M>,
        head: Head,
        served: Served,
    ) -> Result<(), Failure> {
        let index = self.index;
        let broken = |source| Failure::Queue { index, source };
        queue.complete(head, served.written).map_err(broken)?;
        self.count(1, served);
        Ok(())
    }

    fn pay(&self, moved: u64) {
        if let Some(limiter) = &self.limiter {
            limiter.pay(moved);
        }
    }

    /// Counts what some chains came to.
    #[inline]
    fn count(&mut self, chains: u64, served: Served) {
        self.counters.served(chains, served.moved);
        if let Some(source) = served.trouble {
            self.trouble(source);
        }
    }

    /// Completes all that was under way and is served.
    fn finish<A, M: GuestMemory + ?Sized>(
        &mut self,
        queue: &mut Mapped<'_, M>,
    ) -> Result<(), Failure>
    where
        H: Handler<A>,
    {
        while let Some((number, served)) = self.handler.finished(queue.reach()) {
            if let Some(head) = self.heads.get_mut(number).and_then(Option::take) {
                self.complete(queue, head, served)?;
            }
        }
        Ok(())
    }

    /// Serves chains until none is left or it is time to publish.
    fn batch<A, M: GuestMemory + ?Sized>(
        &mut self,
        queue: &mut Mapped<'_, M>,
        chain: &mut Chain,
    ) -> Result<Batch, Failure>
    where
        H: Handler<A>,
    {
        let index = self.index;
        let broken = |source| Failure::Queue { index, source };
        let (mut bytes, mut answers) = (0u64, 0u32);
        while answers < BATCH_CHAINS && bytes < BATCH_BYTES {
            if self.held.is_empty()
                && let Some(limiter) = &mut self.limiter
                && !limiter.allows()
            {
                self.counters.waited();
                return Ok(Batch::Waiting);
            }
            let answer = match queue.pop(chain).map_err(broken)? {
                Some(head) => {
                    let room = chain.writable().len();
                    self.held.push(Held { head, room });
                    self.handler.serve(queue.reach(), chain)
                }
                None if self.held.is_empty() => return Ok(Batch::Drained(answers)),
                None => self.handler.no_more(queue.reach()),
            };
            match answer {
                // There are no more of them than the queue has.
                Answer::More => continue,
                Answer::Done(served) => {
                    bytes = bytes.saturating_add(served.moved);
                    self.pay(served.moved);
                    self.done(queue, served)?;
                }
                Answer::UnderWay { number, moved } => {
                    bytes = bytes.saturating_add(moved);
                    self.pay(moved);
                    if self.heads.len() <= number {
                        self.heads.resize_with(number.saturating_add(1), || None);
                    }
                    if let Some(place) = self.heads.get_mut(number) {
                        *place = self.held.pop().map(|held| held.head);
                    }
                }
                Answer::Later => {
                    self.put_back(queue);
                    return Ok(Batch::Waiting);
                }
                Answer::Retry => self.put_back(queue),
                Answer::Gone(source) => {
                    self.put_back(queue);
                    self.trouble(source);
                    return Ok(Batch::Waiting);
                }
                Answer::Unanswerable => {
                    queue.fail();
                    let head = self.held.first().map_or(0, |held| held.head.index());
                    self.held.clear();
                    return Err(Failure::Unanswerable { index, head });
                }
                Answer::Short => {
                    // Asked before they are given back: a notification is to come for what is beyond them.
                    let more = queue.enable_kicks().map_err(broken)?;
                    self.put_back(queue);
                    return Ok(if more { Batch::Full } else { Batch::Waiting });
                }
            }
            answers = answers.saturating_add(1);
        }
        Ok(Batch::Full)
    }

    /// Completes the chains that were written to, and gives back the others.
    #[inline]
    fn done<M: GuestMemory + ?Sized>(
        &mut self,
        queue: &mut Mapped<'_, M>,
        served: Served,
    ) -> Result<(), Failure> {
        let index = self.index;
        let broken = |source| Failure::Queue { index, source };
        // Most requests have a chain each.
        if self.held.len() == 1
            && let Some(Held { head, room }) = self.held.pop()
        {
            let written = u64::from(served.written).min(room);
            queue.complete(head, written as u32).map_err(broken)?;
            self.count(1, served);
            return Ok(());
        }
        let mut left = u64::from(served.written);
        let mut covered = 0u64;
        let needed = |held: &&Held| {
            let needed = covered < left;
            covered = covered.saturating_add(held.room);
            needed
        };
        let used = self.held.iter().take_while(needed).count().max(1);
        while self.held.len() > used
            && let Some(held) = self.held.pop()
        {
            queue.put_back(held.head);
        }
        let chains = self.held.len() as u64;
        for Held { head, room } in self.held.drain(..) {
            let here = left.min(room);
            left = left.saturating_sub(here);
            let written = u32::try_from(here).unwrap_or(u32::MAX);
            queue.complete(head, written).map_err(broken)?;
        }
        self.count(chains, served);
        Ok(())
    }

    /// Gives back what was popped and not answered, the last first.
    fn put_back<M: GuestMemory + ?Sized>(&mut self, queue: &mut Mapped<'_, M>) {
        while let Some(held) = self.held.pop() {
            queue.put_back(held.head);
        }
    }
}

impl<A: GuestAddressSpace + Send, H: Handler<A>> Worker for QueueServer<A, H> {
    fn name(&self) -> String {
        self.serving.handler.name()
    }

    fn sources(&self) -> Vec<RawFd> {
        let timer = self.serving.limiter.as_ref().map(Limiter::source);
        [
            Some(self.active.kick.as_raw_fd()),
            self.serving.handler.source(),
            timer,
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn positions(&self) -> Vec<(u16, Position)> {
        vec![self.active.position()]
    }

    /// Waits for what is under way, as a call that does not return would: who has asked has patience of its own, and
    /// the device is not reset before. Where the host has failed, it is not waited for without end.
    fn stopping(&mut self) {
        let mut looks = self.is_given_up.then_some(LOOKS);
        while self.serving.handler.under_way() && looks != Some(0) {
            let waited = self.serving.handler.wait(PATIENCE);
            looks = looks.map(|left: u32| left.saturating_sub(1));
            if let (Err(why), None) = (waited, looks) {
                looks = Some(LOOKS);
                self.is_given_up = true;
                self.active.queue.fail();
                let why = ActivateError::from(why).into();
                self.serving.interrupts.needs_reset(&why);
            }
            if let Err(why) = self.settle() {
                // Only this once: the queue is at its end.
                self.serving.interrupts.needs_reset(&why);
            }
        }
    }

    fn ready(&mut self, _index: usize) -> Progress {
        // The kick is not read, which would be a system call for nothing: watched for the change, it tells of each write anew,
        // also of one during the work, and its count is nobody's business.
        if self.active.queue.is_failed() {
            return Progress::Done;
        }
        self.work().unwrap_or_else(|why| {
            self.serving.interrupts.needs_reset(&why);
            Progress::Done
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vm_memory::{GuestAddress, GuestMemoryMmap};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::features::Features;
    use crate::queue::{Queue, QueueConfig, Reach};

    /// Of a host that fails for good: how often it was waited for.
    struct Stuck(u32);

    impl<A> Handler<A> for Stuck {
        fn name(&self) -> String {
            "stuck".to_owned()
        }

        fn serve<M: GuestMemory + ?Sized>(&mut self, _: &Reach<'_, M>, _: &Chain) -> Answer {
            Answer::Later
        }

        fn submit(&mut self) -> io::Result<bool> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn under_way(&self) -> bool {
            true
        }

        fn wait(&mut self, _patience: Duration) -> io::Result<()> {
            self.0 += 1;
            assert!(self.0 < 1000, "it waits without end");
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[derive(Default)]
    struct Told(Mutex<Vec<String>>);

    impl Interrupts for Told {
        fn queue(&self, _index: u16) {}
        fn config(&self) {}
        fn needs_reset(&self, why: &Failure) {
            self.0.lock().unwrap().push(why.to_string());
        }
        fn trouble(&self, _trouble: &Trouble) {}
    }

    /// The server of a queue that such a host serves, and what is told.
    fn stuck() -> (QueueServer<Arc<GuestMemoryMmap<()>>, Stuck>, Arc<Told>) {
        let ranges = [(GuestAddress(0), 0x4000)];
        let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
        let config = QueueConfig {
            size: 16,
            descriptor_area: 0,
            driver_area: 0x1000,
            device_area: 0x2000,
        };
        let active = ActiveQueue {
            index: 3,
            queue: Queue::new(&config, Features::VERSION_1, &*memory).unwrap(),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        };
        let told = Arc::new(Told::default());
        let server = QueueServer::new(memory, active, told.clone(), Stuck(0));
        (server, told)
    }

    #[test]
    fn a_host_that_has_failed_is_not_waited_for_without_end() {
        let (mut server, told) = stuck();
        server.stopping();
        assert_eq!(server.serving.handler.0, LOOKS + 1);
        assert_eq!(told.0.lock().unwrap().len(), 1);
        // What was never served is not passed by.
        assert_eq!(server.ready(0), Progress::Done);
    }

    /// Whichever call the host refuses first.
    #[test]
    fn a_host_that_failed_before_it_is_told_once() {
        let (mut server, told) = stuck();
        assert_eq!(server.ready(0), Progress::Done);
        server.stopping();
        assert_eq!(server.serving.handler.0, LOOKS);
        assert_eq!(told.0.lock().unwrap().len(), 1);
        assert_eq!(server.ready(0), Progress::Done);
    }
}
