// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the workers of a translated device have found and may still use: an INVALIDATE is acknowledged when none of it is used any
//! more.
//!
//! ```text
//!   worker:      call begins --> pin --> pin ... ask the VMM, see that all of it still leads there ... --> call ends
//!   connection:           INVALIDATE: forget the range, then wait for the calls that have pinned any of it ----^ --> acknowledge
//! ```
//!
//! A call's pins are the device's addresses that it has found. It pins while it holds the lock of what is known, which an INVALIDATE
//! takes to forget, and only then looks for pins: so it sees each that was found before. Between calls a worker has nothing of the
//! guest's memory; what an io_uring moves for a disk meanwhile is in buffers of the disk's own, and where it goes is found anew when it
//! has moved.
//!
//! A call that asks the VMM is not waited for: the VMM may answer nothing before it has our acknowledgement. Such a call sees
//! to itself: with the answer, it looks for those of its pins that were forgotten meanwhile, and asks for them too. Where all lead to where
//! they led, it goes on, so an INVALIDATE of all there is (of Linux, in its lazy mode) costs no request anything. Where one does not, what
//! it has asked for fails, and the request with it.
//!
//! What remains is a driver that takes away what the device is using, while the device asks: the queue itself, which is found once
//! for a call, is then written where it lay until that call ends. And a call that shows the driver some chains before it goes on with others
//! (a vsock's) fails one of these if it asks for it while a buffer of those is unmapped.
//! An UPDATE of what leads elsewhere already is not waited for either: a VMM invalidates first.

use std::cell::RefCell;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use vm_memory::Permissions;

use crate::queue::Position;
use crate::vhost_user::translation::{Mapped, Ranges};
use crate::worker::{Progress, Worker};

/// Pins of a call. One more, and it has pinned everything.
const MOST: usize = 4096;
/// Pins that are looked at for one that a new one goes on from: those of a request's parts, among which are the same pages again and again.
const RECENT: usize = 4;

thread_local! {
    /// The call that this thread is in. It is that of one device: a worker finds nothing in another's memory.
    static CALL: RefCell<Option<Arc<Use>>> = const { RefCell::new(None) };
}

/// The call of a worker that the thread is in.
pub(super) fn call() -> Option<Arc<Use>> {
    CALL.try_with(|call| call.borrow().clone()).ok().flatten()
}

/// The workers of a device.
#[derive(Default)]
pub(super) struct Uses(Mutex<Vec<Weak<Use>>>);

/// What one worker uses.
#[derive(Default)]
pub(super) struct Use {
    state: Mutex<State>,
    /// The call has ended, or asks.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Which call it is.
    call: u64,
    pins: Vec<Pin>,
    /// There were too many pins: it may use anything.
    everything: bool,
    /// Some of everything was forgotten while it asked.
    lost: bool,
    /// It waits for the VMM.
    asking: bool,
    /// Somebody waits for a change.
    awaited: bool,
}

/// Addresses, and where they led.
struct Pin {
    found: Mapped,
    /// Forgotten while the call asked.
    stale: bool,
}

/// What stands between a call and what it wants.
pub(super) enum Gap {
    /// Where `address` leads is not known, or not that it may be used for `access`.
    Missing {
        address: u64,
        access: Permissions,
        /// Known, and not for that.
        forbidden: bool,
    },
    /// What it has found before leads elsewhere now, or nobody knows any more what it has found.
    Moved,
}

impl Uses {
    /// `worker`, whose calls are from now on known here.
    pub(super) fn watch(&self, worker: Box<dyn Worker>) -> Box<dyn Worker> {
        let its = Arc::<Use>::default();
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uses.retain(|other| other.strong_count() > 0);
        uses.push(Arc::downgrade(&its));
        Box::new(Watched { worker, its })
    }

    /// Waits until no call uses any of `addresses`, which are forgotten by now; those that ask are told instead. `false`: one does at `end`.
    pub(super) fn wait(&self, addresses: &Range<u64>, end: Instant) -> bool {
        let uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut uses = uses.iter().filter_map(Weak::upgrade);
        uses.all(|its| its.wait(addresses, end))
    }
}

impl Use {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `wanted` begins with, for `access`, of what `ranges` knows. It is pinned, so that whoever forgets it later waits for this call.
    pub(super) fn find(
        &self,
        ranges: &Ranges,
        wanted: &Range<u64>,
        access: Permissions,
    ) -> Result<Mapped, Gap> {
        let found = look(ranges, wanted.start, access)?;
        self.state().pin(&found, wanted, access);
        Ok(found)
    }

    /// The call asks the VMM, until it has found what it wants or the result is dropped.
    pub(super) fn ask(&self) -> Asking<'_> {
        let mut state = self.state();
        state.asking = true;
        self.tell(&mut state);
        Asking(self)
    }

    fn tell(&self, state: &mut State) {
        if std::mem::take(&mut state.awaited) {
            self.changed.notify_all();
        }
    }

    /// The call has ended.
    fn end(&self) {
        let mut state = self.state();
        state.call = state.call.wrapping_add(1);
        state.pins.clear();
        state.everything = false;
        state.go_on();
        self.tell(&mut state);
    }

    fn wait(&self, addresses: &Range<u64>, end: Instant) -> bool {
        let mut state = self.state();
        // A later one finds nothing of it.
        let call = state.call;
        while state.call == call && state.uses(addresses) {
            if state.asking {
                state.forget(addresses);
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state.awaited = true;
            let waited = self.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

/// A call that asks the VMM.
pub(super) struct Asking<'u>(&'u Use);

impl Asking<'_> {
    /// As [`Use::find`], if all that the call has found before leads where it led. Then it does not ask any more.
    pub(super) fn find(
        &self,
        ranges: &Ranges,
        wanted: &Range<u64>,
        access: Permissions,
    ) -> Result<Mapped, Gap> {
        let mut state = self.0.state();
        state.look_again(ranges)?;
        let found = look(ranges, wanted.start, access)?;
        state.pin(&found, wanted, access);
        // While `ranges` cannot change, so that whoever forgets something next waits for this call.
        state.go_on();
        Ok(found)
    }
}

impl Drop for Asking<'_> {
    /// If it has not found it, what it was for fails, and nobody uses what was found for that.
    fn drop(&mut self) {
        self.0.state().go_on();
    }
}

impl State {
    fn pin(&mut self, found: &Mapped, wanted: &Range<u64>, access: Permissions) {
        let range = wanted.start..wanted.end.min(found.range.end);
        let offset = range.start.wrapping_sub(found.range.start);
        let found = Mapped {
            target: found.target.wrapping_add(offset),
            range,
            access,
        };
        let mut recent = self.pins.iter_mut().rev().take(RECENT);
        if recent.any(|pin| pin.takes(&found)) {
            return;
        }
        if self.pins.len() >= MOST {
            self.everything = true;
            return;
        }
        self.pins.push(Pin {
            found,
            stale: false,
        });
    }

    fn uses(&self, addresses: &Range<u64>) -> bool {
        let pinned = |pin: &Pin| overlap(&pin.found.range, addresses);
        !addresses.is_empty() && (self.everything || self.pins.iter().any(pinned))
    }

    /// `addresses` are forgotten, and it is not waited for.
    fn forget(&mut self, addresses: &Range<u64>) {
        self.lost |= self.everything;
        for pin in &mut self.pins {
            pin.stale |= overlap(&pin.found.range, addresses);
        }
    }

    /// Whether what was forgotten leads where it led.
    fn look_again(&mut self, ranges: &Ranges) -> Result<(), Gap> {
        if self.lost {
            return Err(Gap::Moved);
        }
        for pin in self.pins.iter_mut().filter(|pin| pin.stale) {
            let Mapped { range, access, .. } = pin.found.clone();
            let mut at = range.start;
            while at < range.end {
                let found = look(ranges, at, access)?;
                if distance(&found) != distance(&pin.found) {
                    return Err(Gap::Moved);
                }
                at = found.range.end;
            }
        }
        Ok(())
    }

    /// It asks no more.
    fn go_on(&mut self) {
        if std::mem::take(&mut self.asking) {
            self.lost = false;
            for pin in &mut self.pins {
                pin.stale = false;
            }
        }
    }
}

impl Pin {
    /// Takes `more` in, if it is part of it or goes on from it.
    fn takes(&mut self, more: &Mapped) -> bool {
        let Mapped { range, access, .. } = &mut self.found;
        let touches = range.start <= more.range.start && more.range.start <= range.end;
        if !touches || *access != more.access || distance(&self.found) != distance(more) {
            return false;
        }
        let end = self.found.range.end.max(more.range.end);
        self.found.range.end = end;
        true
    }
}

/// What to add to an address to come to where it leads.
fn distance(found: &Mapped) -> u64 {
    found.target.wrapping_sub(found.range.start)
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// What is known of `address`.
pub(super) fn look(ranges: &Ranges, address: u64, access: Permissions) -> Result<Mapped, Gap> {
    let found = ranges.at(address);
    let forbidden = found.is_some();
    let found = found.filter(|found| found.access.allow(access));
    found.ok_or(Gap::Missing {
        address,
        access,
        forbidden,
    })
}

/// A worker whose calls are known.
struct Watched {
    worker: Box<dyn Worker>,
    its: Arc<Use>,
}

impl Watched {
    /// Calls it.
    fn within<T>(&mut self, call: impl FnOnce(&mut dyn Worker) -> T) -> T {
        let _call = Call::begin(&self.its);
        call(self.worker.as_mut())
    }
}

/// A call that this thread is in, until it is dropped.
struct Call {
    its: Arc<Use>,
    /// What the thread was in before.
    outer: Option<Arc<Use>>,
}

impl Call {
    fn begin(its: &Arc<Use>) -> Self {
        let outer = CALL.try_with(|call| call.replace(Some(Arc::clone(its))));
        Self {
            its: Arc::clone(its),
            outer: outer.ok().flatten(),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let outer = self.outer.take();
        // A thread without that has ended.
        let _ = CALL.try_with(|call| call.replace(outer));
        self.its.end();
    }
}

impl Worker for Watched {
    fn name(&self) -> String {
        self.worker.name()
    }

    fn sources(&self) -> Vec<RawFd> {
        self.worker.sources()
    }

    fn positions(&self) -> Vec<(u16, Position)> {
        self.worker.positions()
    }

    fn started(&mut self) {
        self.within(|worker| worker.started());
    }

    fn stopping(&mut self) {
        self.within(|worker| worker.stopping());
    }

    fn ready(&mut self, index: usize) -> Progress {
        self.within(|worker| worker.ready(index))
    }
}
