// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The worker of a device that another process serves: it starts and stops that process's work, passes its
//! interrupts on, and sees when it is gone.
//!
//! ```text
//!   driver --- kick ------------------------------> back end     the doorbell's own event: nobody in between
//!   driver <-- interrupt --- Relay <--- call ------ back end
//!   stopped   --> started: features, memory, queues ---> back end serves
//!   back end serves --> stopping: where does each queue go on? ---> stopped, nothing in flight
//!   back end gone   --> stand-ins refuse what was begun and what comes
//!                   or another is waited for, which goes on with it
//! ```

use std::io;
use std::iter;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemory};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use self::away::Known;
use super::address_space::Astray;
use super::device::Shared;
use super::error::BackEndError;
use super::front_end::Own;
use super::in_flight::{InFlight, used_index};
use super::ledger::Ledger;
use super::queues::Ring;
use super::stand_in::StandIn;
use crate::device::{Activation, ActiveQueue, Failure, Interrupts, Trouble};
use crate::features::Features;
use crate::queue::{Begun, Layout, Position, Queue, Reach};
use crate::worker::{Progress, Worker};

/// Requests of the back end's own that are taken in one call.
const OWN_REQUESTS: usize = 16;

/// What becomes readable.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// The connection: the back end is gone, or has a request of its own.
    Link,
    /// It is time to look for another back end.
    Timer,
    /// An error on any queue.
    Error,
    /// A queue's kick, when it is ours to serve.
    Kick,
    /// Used buffers in the queue of that place in the list.
    Call(usize),
}

struct Served {
    active: ActiveQueue,
    call: EventFd,
    layout: Layout,
    /// Where it goes on while it is stopped: as [`Position::used`].
    base: u16,
    /// What is in flight, where the back end does not say.
    ledger: Option<Ledger>,
}

mod away;
mod stop;

enum State {
    Stopped,
    /// The back end serves, and notes there what it has begun.
    Live(Option<InFlight>),
    /// It is gone. Those of queues that nobody answers only say where these are.
    Lost(Vec<StandIn>),
    /// It is gone, and another is to go on where each queue has its base, and with what is noted there.
    Away(Option<InFlight>),
}

pub(super) struct Relay<A> {
    shared: Arc<Shared>,
    memory: A,
    features: Features,
    queues: Vec<Served>,
    error: EventFd,
    /// Watches kicks while they are ours to serve, and nothing before: those are the back end's.
    kicks: Epoll,
    /// Watches the connection, which is another one in time.
    links: Epoll,
    timer: TimerFd,
    interrupts: Arc<dyn Interrupts>,
    sources: Vec<(Source, RawFd)>,
    state: State,
}

impl<A: GuestAddressSpace> Relay<A> {
    pub(super) fn new(shared: Arc<Shared>, activation: Activation<A>) -> io::Result<Self> {
        let Activation {
            memory,
            features,
            queues,
            interrupts,
        } = activation;
        let layout = Layout::of(features);
        let served = |active: ActiveQueue| {
            Ok(Served {
                call: EventFd::new(EFD_NONBLOCK)?,
                layout,
                base: active.queue.position().available,
                ledger: None,
                active,
            })
        };
        let queues: Vec<_> = queues.into_iter().map(served).collect::<io::Result<_>>()?;
        let error = EventFd::new(EFD_NONBLOCK)?;
        let (kicks, links, timer) = (Epoll::new()?, Epoll::new()?, TimerFd::new()?);
        let mut sources = vec![
            (Source::Link, links.as_raw_fd()),
            (Source::Timer, timer.as_raw_fd()),
            (Source::Error, error.as_raw_fd()),
            (Source::Kick, kicks.as_raw_fd()),
        ];
        let calls = queues.iter().map(|queue| queue.call.as_raw_fd());
        sources.extend(calls.enumerate().map(|(at, fd)| (Source::Call(at), fd)));
        let relay = Self {
            shared,
            memory,
            features,
            queues,
            error,
            kicks,
            links,
            timer,
            interrupts,
            sources,
            state: State::Stopped,
        };
        relay.watch_link()?;
        Ok(relay)
    }

    /// Watches the connection as it is now. One that was watched before has been closed, which ended that.
    fn watch_link(&self) -> io::Result<()> {
        let (connection, own) = self.shared.front().sources();
        for fd in iter::once(connection).chain(own) {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
            self.links.ctl(ControlOperation::Add, fd, event)?;
        }
        Ok(())
    }

    /// Sets the back end to work.
    fn start(&mut self) {
        let rings: Vec<_> = self.queues.iter().map(|q| q.ring(&self.error)).collect();
        let mut front = self.shared.front();
        if front.is_over() && self.is_patient() {
            drop(front);
            return self.wait_for_another(None, None);
        }
        let mut in_flight = None;
        let prepared = front.prepare(self.features, &self.shared.memory, &rings, &mut in_flight);
        let started = match prepared {
            Ok(()) => front.start(&rings, self.shared.end()),
            // Where the driver has put its queues, no back end could serve them.
            Err(why) if !matches!(why, BackEndError::Torn { .. }) && self.is_patient() => {
                drop(front);
                // Nothing was begun.
                return self.wait_for_another(Some(&why), None);
            }
            Err(why) => {
                drop(front);
                let standing = self
                    .queues
                    .iter()
                    .map(|q| q.stand_in(self, q.base, Vec::new()));
                let standing = standing.collect();
                return self.lose(why, standing);
            }
        };
        drop(front);
        self.live(in_flight, started);
    }

    /// The back end serves, if it has `started`, and notes what is in flight there.
    fn live(&mut self, in_flight: Option<InFlight>, started: Result<(), BackEndError>) {
        // Of a packed queue, which is written over, and of one in order, an account of both rings says nothing more.
        let told = self.is_packed() || self.features.contains(Features::IN_ORDER);
        for queue in &mut self.queues {
            let ours = !told && in_flight.is_none();
            queue.ledger = ours.then(|| Ledger::new(*queue.active.queue.config(), queue.base));
            // What came while nobody served. Fails only if the counter is full, and then it is readable.
            let _ = queue.active.kick.write(1);
        }
        self.state = State::Live(in_flight);
        if let Err(why) = started {
            self.lost(why);
        }
    }

    fn is_packed(&self) -> bool {
        self.features.contains(Features::RING_PACKED)
    }

    /// Passes an interrupt on.
    fn pass_on(&mut self, at: usize) {
        if let Some(queue) = self.queues.get_mut(at)
            && queue.call.read().is_ok()
        {
            if let Some(ledger) = &mut queue.ledger {
                ledger.look(&Reach::new(&*self.memory.memory()));
            }
            self.interrupts.queue(queue.active.index);
        }
    }

    /// The back end is lost while it served.
    fn lost(&mut self, why: BackEndError) {
        let State::Live(in_flight) = std::mem::replace(&mut self.state, State::Stopped) else {
            return;
        };
        // What it had used, it may not have told.
        for queue in &self.queues {
            self.interrupts.queue(queue.active.index);
        }
        // Where nobody notes what is in flight in packed queues, nobody knows it.
        let known = in_flight.is_some() || !self.is_packed();
        let in_flight = if known && self.is_patient() && self.find_bases(in_flight.as_ref()) {
            return self.wait_for_another(Some(&why), in_flight);
        } else {
            in_flight
        };
        let memory = self.memory.memory();
        let (packed, ordered) = (self.is_packed(), self.features.contains(Features::IN_ORDER));
        let rest = Known::of(self, &*memory, in_flight.as_ref());
        let kind = &self.shared.kind;
        let begun = self.queues.iter_mut().map(|queue| {
            let config = *queue.active.queue.config();
            if !kind.is_refusable(queue.active.index) {
                return known.then(|| rest.rest(queue)).flatten();
            }
            if let Some(ledger) = &mut queue.ledger {
                ledger.look(&Reach::new(&*memory));
                let (used, begun) = ledger.in_flight()?;
                return Some((used, begun.into_iter().map(Begun::Split).collect()));
            }
            if ordered && !packed {
                // Used in the order in which they came: what is not used is next.
                return Some((used_index(&*memory, config.device_area)?, Vec::new()));
            }
            let Some(notes) = &in_flight else {
                // Of a packed queue nobody knows. A split one has a ledger while the back end serves it: this one had stopped.
                return (!packed).then(|| (queue.base, Vec::new()));
            };
            let left = notes.left(queue.active.index, &config, &*memory, queue.base)?;
            Some((left.used, left.begun))
        });
        let begun: Vec<_> = begun.collect();
        drop(memory);
        let standing = self.queues.iter().zip(begun).map(|(queue, begun)| {
            let (used, begun) = begun?;
            queue.stand_in(self, used, begun)
        });
        let standing = standing.collect();
        self.lose(why, standing);
    }

    /// From now on `standing` answer the driver; where there is none, nobody knows what the back end had begun.
    fn lose(&mut self, why: BackEndError, standing: Vec<Option<StandIn>>) {
        let kind = &self.shared.kind;
        let known =
            self.queues.iter().zip(&standing).all(|(queue, stand_in)| {
                stand_in.is_some() || !kind.is_refusable(queue.active.index)
            });
        let standing: Vec<_> = standing.into_iter().flatten().collect();
        for queue in self.queues.iter().filter(|_| known) {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
            let fd = queue.active.kick.as_raw_fd();
            // Refused only by a host without memory; then the driver waits.
            let _ = self.kicks.ctl(ControlOperation::Add, fd, event);
        }
        self.shared.config().lost = true;
        let says = kind.says_when_lost();
        self.state = State::Lost(if known { standing } else { Vec::new() });
        if says {
            self.interrupts.config();
        }
        if !known && !says {
            // Its driver has to begin anew wherever it is restored.
            self.shared.set_unfinished(false);
            self.interrupts.needs_reset(&Failure::BackEnd(why));
            return;
        }
        let (count, _) = self.refuse();
        self.interrupts.trouble(&Trouble {
            index: self.queues.first().map_or(0, |queue| queue.active.index),
            count,
            source: io::Error::other(why),
        });
    }

    /// Refuses what there is.
    fn refuse(&mut self) -> (u64, Progress) {
        // Takes the events, so that the next ones are seen.
        let mut events = [EpollEvent::default(); 16];
        let _ = self.kicks.wait(0, &mut events);
        let State::Lost(standing) = &mut self.state else {
            return (0, Progress::Wait);
        };
        let (mut all, mut progress) = (0, Progress::Wait);
        let kind = &self.shared.kind;
        for stand_in in &mut *standing {
            // What is to be received does not come; only its place in the queue is kept.
            if !kind.is_refusable(stand_in.index()) {
                continue;
            }
            let (count, after) = stand_in.work(kind, &self.memory, &self.interrupts);
            all = count.saturating_add(all);
            if after == Progress::More {
                progress = after;
            }
        }
        // Of a queue that has nobody, nobody can say where it goes on; of one that needs a reset, nobody asks.
        let unknown = kind.says_when_lost() && standing.len() < self.queues.len();
        let unfinished = unknown || standing.iter().any(StandIn::has_begun);
        self.shared.set_unfinished(unfinished);
        (all, progress)
    }

    /// Takes requests of the back end's own.
    fn own_requests(&mut self) -> Result<Progress, BackEndError> {
        for _ in 0..OWN_REQUESTS {
            let asked = self.shared.front().own_request(&self.shared.memory)?;
            match asked {
                None => return Ok(Progress::Wait),
                Some(Own::Answered) => {}
                Some(Own::ConfigChanged) => {
                    let mut given = self.shared.ask_config()?;
                    self.interrupts
                        .config_changes(&mut || self.shared.set_config(std::mem::take(&mut given)));
                }
                Some(Own::Astray(Astray { address, access })) => {
                    // So that whoever translates records the fault; not with the connection in hand, of which it may have to
                    // tell a change. Should the driver have mapped it meanwhile, there is none.
                    // vm-memory's own translation table does not look whether the end is one.
                    if address < u64::MAX {
                        let memory = self.memory.memory();
                        let _ = memory.check_range(GuestAddress(address), 1, access);
                    }
                }
            }
        }
        Ok(Progress::More)
    }
}

impl Served {
    fn ring<'r>(&'r self, error: &'r EventFd) -> Ring<'r> {
        Ring {
            index: self.active.index,
            config: *self.active.queue.config(),
            layout: self.layout,
            base: self.position(),
            kick: &self.active.kick,
            call: &self.call,
            error,
        }
    }

    /// Where it goes on, with nothing in flight but what is noted.
    fn position(&self) -> Position {
        Position {
            available: self.base,
            used: self.base,
        }
    }

    /// Somebody who goes on at `used`, after `begun`.
    fn stand_in<A: GuestAddressSpace>(
        &self,
        relay: &Relay<A>,
        used: u16,
        begun: Vec<Begun>,
    ) -> Option<StandIn> {
        let position = Position {
            available: used,
            used,
        };
        let config = self.active.queue.config();
        let memory = relay.memory.memory();
        let mut queue = Queue::restored(config, relay.features, &*memory, position).ok()?;
        queue.map(&*memory).withdraw(&begun).ok()?;
        let kick = self.active.kick.try_clone().ok()?;
        Some(StandIn::new(self.active.index, queue, kick, begun))
    }
}

impl<A: GuestAddressSpace + Send> Worker for Relay<A> {
    fn name(&self) -> String {
        // Its thread makes connections, as others may not.
        let again = if self.is_patient() { "-again" } else { "" };
        format!("{}{again}", self.shared.kind.name())
    }

    fn sources(&self) -> Vec<RawFd> {
        self.sources.iter().map(|(_, fd)| *fd).collect()
    }

    fn positions(&self) -> Vec<(u16, Position)> {
        let standing = match &self.state {
            State::Lost(standing) => standing.as_slice(),
            State::Stopped | State::Live(_) | State::Away(_) => &[],
        };
        let position = |queue: &Served| {
            let index = queue.active.index;
            let stand_in = standing.iter().find(|stand_in| stand_in.index() == index);
            let stopped = queue.position();
            (index, stand_in.map_or(stopped, StandIn::position))
        };
        self.queues.iter().map(position).collect()
    }

    fn started(&mut self) {
        if let State::Stopped = self.state {
            self.start();
        }
    }

    fn stopping(&mut self) {
        if let State::Live(in_flight) = &mut self.state {
            let in_flight = in_flight.take();
            match self.stop(in_flight.as_ref()) {
                Ok(()) => self.state = State::Stopped,
                Err(why) => {
                    self.state = State::Live(in_flight);
                    self.lost(why);
                }
            }
        }
    }

    fn ready(&mut self, index: usize) -> Progress {
        let Some((source, _)) = self.sources.get(index) else {
            return Progress::Wait;
        };
        if let State::Away(_) = self.state {
            // Whatever this was called for, too.
            return self.look_for_another();
        }
        if let State::Lost(_) = self.state {
            // Whatever this was called for: there may be more to refuse than the last call did, and no kick for it.
            return self.refuse().1;
        }
        let found = match *source {
            Source::Link => {
                // Takes the events, so that the next ones are seen.
                let mut events = [EpollEvent::default(); 4];
                let _ = self.links.wait(0, &mut events);
                let looked = self.shared.front().look();
                looked.and_then(|()| self.own_requests())
            }
            Source::Timer => Ok(Progress::Wait),
            Source::Error => match self.error.read() {
                Ok(_) => Err(self.shared.front().end(BackEndError::Ring)),
                // None was there.
                Err(_) => Ok(Progress::Wait),
            },
            Source::Call(at) => {
                self.pass_on(at);
                Ok(Progress::Wait)
            }
            Source::Kick => Ok(Progress::Wait),
        };
        found.unwrap_or_else(|why| {
            self.lost(why);
            // To refuse what is left.
            Progress::More
        })
    }
}
