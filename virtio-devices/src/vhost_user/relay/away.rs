// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device whose back end is gone, until another goes on with it.
//!
//! Where that one has to begin, so that nothing is done twice and nothing is lost:
//!
//! | what is known of what was in flight | where the next one goes on |
//! |---|---|
//! | the back end notes it in memory that outlives it | at the used ring's index, and it reads the notes |
//! | the same, of a packed queue | at the used place that is noted |
//! | the queue is in order | at the used ring's index |
//! | our ledger of both rings, and the available ring shows the same from there on | at the used ring's index |
//! | our ledger, and something was used out of turn | behind it: what was in flight is answered with errors |
//! | nothing; a network card, and all that the rings still show was used in turn | at the used ring's index |
//! | nothing | nowhere: the driver is to reset the device |

use std::io;
use std::time::Duration;

use vm_memory::{GuestAddressSpace, GuestMemory};

use super::{Relay, Served, State};
use crate::device::{Failure, Trouble};
use crate::features::Features;
use crate::queue::{Begun, Left, Reach};
use crate::vhost_user::error::BackEndError;
use crate::vhost_user::in_flight::{InFlight, used_index};
use crate::vhost_user::message::Request;
use crate::worker::Progress;

/// A timer that is set to nothing never ends.
const AT_ONCE: Duration = Duration::from_micros(1);

/// How another back end can go on with a queue.
enum Way {
    /// From this index on.
    From(u16),
    /// Behind what is in flight: those chains, of which the first is to be used at this index.
    Behind(u16, Vec<u16>),
}

/// What is known of what the back end that is gone has done.
pub(super) struct Known<'m, M: GuestMemory + ?Sized> {
    memory: &'m M,
    in_flight: Option<&'m InFlight>,
    ordered: bool,
    packed: bool,
    /// A network card, which what the rings still show is enough for.
    says: bool,
}

impl<'m, M: GuestMemory + ?Sized> Known<'m, M> {
    pub(super) fn of<A: GuestAddressSpace>(
        relay: &Relay<A>,
        memory: &'m M,
        in_flight: Option<&'m InFlight>,
    ) -> Self {
        Self {
            memory,
            in_flight,
            ordered: relay.features.contains(Features::IN_ORDER),
            packed: relay.is_packed(),
            says: relay.shared.kind.says_when_lost(),
        }
    }

    fn left(&self, queue: &Served) -> Option<Left> {
        let (index, config) = (queue.active.index, queue.active.queue.config());
        self.in_flight?.left(index, config, self.memory, queue.base)
    }

    fn way(&self, queue: &mut Served) -> Option<Way> {
        if self.packed {
            // Without notes, nothing has been begun since it stopped there.
            let used = match self.in_flight {
                Some(_) => self.left(queue)?.used,
                None => queue.base,
            };
            return Some(Way::From(used));
        }
        let reach = Reach::new(self.memory);
        let used = used_index(self.memory, queue.active.queue.config().device_area)?;
        if let Some(ledger) = &mut queue.ledger {
            ledger.look(&reach);
            return match ledger.in_flight() {
                Some((used, begun)) if ledger.is_next(&reach, &begun) => Some(Way::From(used)),
                Some((used, begun)) => Some(Way::Behind(used, begun)),
                None if self.says => ledger.showed_order(&reach).map(Way::From),
                None => None,
            };
        }
        if !self.ordered && self.in_flight.is_none() {
            // Nothing has been begun since it stopped there.
            return Some(Way::From(queue.base));
        }
        if !self.ordered {
            // Notes that make no sense to us are no help to another.
            self.left(queue)?;
        }
        Some(Way::From(used))
    }

    /// Where a queue is whose chains nobody answers, and what is in flight there that whoever goes on would not find.
    pub(super) fn rest(&self, queue: &mut Served) -> Option<(u16, Vec<Begun>)> {
        Some(match self.way(queue)? {
            Way::Behind(used, begun) => (used, begun.into_iter().map(Begun::Split).collect()),
            // In order, what is not used is next.
            Way::From(used) if self.ordered && !self.packed => (used, Vec::new()),
            Way::From(used) => (used, self.left(queue).map_or(Vec::new(), |left| left.begun)),
        })
    }
}

impl<A: GuestAddressSpace> Relay<A> {
    /// Whether it waits for another back end when its own is gone.
    pub(super) fn is_patient(&self) -> bool {
        self.shared.search().is_on()
    }

    /// Finds where another back end can go on with each queue; whether it can.
    pub(super) fn find_bases(&mut self, in_flight: Option<&InFlight>) -> bool {
        let ways: Option<Vec<_>> = {
            let memory = self.memory.memory();
            let known = Known::of(self, &*memory, in_flight);
            let way = |queue: &mut Served| known.way(queue);
            self.queues.iter_mut().map(way).collect()
        };
        let Some(ways) = ways else { return false };
        for (at, way) in ways.into_iter().enumerate() {
            let base = match way {
                Way::From(base) => base,
                Way::Behind(used, begun) => self.answer(at, used, begun),
            };
            if let Some(queue) = self.queues.get_mut(at) {
                queue.base = base;
            }
        }
        true
    }

    /// Answers what was `begun` with errors; where the queue goes on then.
    fn answer(&self, at: usize, used: u16, begun: Vec<u16>) -> u16 {
        let Some(queue) = self.queues.get(at) else {
            return used;
        };
        let index = queue.active.index;
        let begun = begun.into_iter().map(Begun::Split).collect();
        let Some(mut stand_in) = queue.stand_in(self, used, begun) else {
            return used;
        };
        match stand_in.answer_begun(&self.shared.kind, &self.memory, &self.interrupts) {
            Ok(count) => self.interrupts.trouble(&Trouble {
                index,
                count,
                source: io::Error::other("the process that had begun them is gone"),
            }),
            Err(source) => {
                let why = Failure::Queue { index, source };
                self.interrupts.needs_reset(&why);
            }
        }
        stand_in.position().used
    }

    /// From now on another back end is looked for, because of `why` if that is news, to go on at each queue's base with what is noted `in_flight`.
    pub(super) fn wait_for_another(
        &mut self,
        why: Option<&BackEndError>,
        in_flight: Option<InFlight>,
    ) {
        // What the one that is gone reports is nothing to the next.
        let _ = self.error.read();
        let memory = self.memory.memory();
        let begun = |queue: &Served| {
            let (index, config) = (queue.active.index, queue.active.queue.config());
            let left = in_flight
                .as_ref()?
                .left(index, config, &*memory, queue.base);
            Some(left.is_none_or(|left| !left.begun.is_empty()))
        };
        let unfinished = self.queues.iter().filter_map(begun).any(|begun| begun);
        drop(memory);
        self.shared.set_unfinished(unfinished);
        self.state = State::Away(in_flight);
        self.say_served(false);
        let left = {
            let mut search = self.shared.search();
            why.into_iter().for_each(|why| search.lost(why));
            search.left()
        };
        self.wake_after(left);
    }

    /// Tells the driver whether somebody serves the device, where it can be told.
    fn say_served(&self, served: bool) {
        let lost = std::mem::replace(&mut self.shared.config().lost, !served);
        if lost == served && self.shared.kind.says_when_lost() {
            self.interrupts.config();
        }
    }

    fn wake_after(&mut self, left: Duration) {
        // Refused only by a host without memory; then the device waits for its reset.
        let _ = self.timer.reset(left.max(AT_ONCE), None);
    }

    /// Looks for another back end, if it is time to.
    pub(super) fn look_for_another(&mut self) -> Progress {
        // Takes the events, so that the next ones are seen.
        let _ = self.links.wait(0, &mut [Default::default(); 4]);
        let left = self.shared.search().left();
        if !left.is_zero() {
            self.wake_after(left);
            return Progress::Wait;
        }
        match self.go_on() {
            Ok(()) => Progress::More,
            Err(why) => {
                let mut search = self.shared.search();
                search.refused(&why);
                let left = search.left();
                drop(search);
                self.wake_after(left);
                Progress::Wait
            }
        }
    }

    /// Connects to another back end, and has it go on.
    fn go_on(&mut self) -> Result<(), BackEndError> {
        self.shared.search().wait();
        let mut found = self.shared.find()?;
        let State::Away(in_flight) = std::mem::replace(&mut self.state, State::Stopped) else {
            return Ok(());
        };
        // One that was given up, and did not die, may have gone on until it saw that.
        let is_known = self.find_bases(in_flight.as_ref());
        self.state = State::Away(in_flight);
        if !is_known {
            let why = BackEndError::Gone { asked: None };
            let standing = self.queues.iter().map(|_| None).collect();
            self.lose(why, standing);
            return Ok(());
        }
        let State::Away(in_flight) = &mut self.state else {
            return Ok(());
        };
        let rings: Vec<_> = self.queues.iter().map(|q| q.ring(&self.error)).collect();
        let patience = self.shared.search().patience();
        // Told of changes of the device's addresses from here on, and not before it has been told of all of them.
        let mut front = self.shared.front();
        found.take_space(&mut front);
        *front = found;
        let prepared = front.prepare(self.features, &self.shared.memory, &rings, in_flight);
        prepared.map_err(|why| front.end(why))?;
        // It has answered in time so far. From here on it serves, and is not to be given up in haste.
        front.set_patience(patience);
        let started = front.start(&rings, self.shared.end());
        drop(front);
        let in_flight = in_flight.take();
        let watched = self.watch_link().map_err(|source| BackEndError::Host {
            asked: Request::SET_VRING_ENABLE,
            source,
        });
        self.shared.set_unfinished(false);
        self.live(in_flight, started.and(watched));
        if let State::Live(_) = self.state {
            self.shared.search().found();
            self.say_served(true);
        }
        Ok(())
    }
}
