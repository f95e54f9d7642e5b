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

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use vm_memory::Permissions;

use super::watched::Watched;
use crate::vhost_user::translation::{Mapped, Ranges};
use crate::worker::Worker;

/// Pins of a call. One more, and it has pinned everything.
const MOST: usize = 4096;
/// Pins that are looked at for one that a new one goes on from: those of a request's parts, among which are the same pages again and again.
const RECENT: usize = 4;

/// The workers of a device.
#[derive(Default)]
pub(super) struct Uses(pub(super) Mutex<Vec<Weak<Use>>>);

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
        Box::new(Watched::new(worker, its))
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
    pub(super) fn end(&self) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Permissions = Permissions::Read;
    const WRITE: Permissions = Permissions::Write;

    /// What leads so far away, for anything.
    fn led(parts: &[(Range<u64>, u64)]) -> Ranges {
        let mut ranges = Ranges::default();
        for (range, distance) in parts {
            let target = range.start.wrapping_add(*distance);
            ranges.map(range.clone(), target, Permissions::ReadWrite);
        }
        ranges
    }

    fn found(its: &Use, ranges: &Ranges, wanted: Range<u64>, access: Permissions) -> bool {
        its.find(ranges, &wanted, access).is_ok()
    }

    fn pins(its: &Use) -> Vec<(Range<u64>, Permissions)> {
        let state = its.state();
        let pins = state.pins.iter().map(|pin| &pin.found);
        pins.map(|found| (found.range.clone(), found.access))
            .collect()
    }

    /// Whether somebody would wait for it.
    fn is_waited_for(its: &Use, addresses: Range<u64>) -> bool {
        !its.wait(&addresses, Instant::now())
    }

    #[test]
    fn what_is_pinned_is_what_was_wanted_and_neighbours_are_one() {
        let ranges = led(&[(0x1000..0x9000, 0x10_0000), (0x9000..0xa000, 0)]);
        let its = Use::default();
        // Part of what is known; what goes on from it; part of that; the same elsewhere, for another access, and over the end of what leads as far away.
        for (wanted, access) in [
            (0x1800..0x2000, WRITE),
            (0x2000..0x2400, WRITE),
            (0x1900..0x2200, WRITE),
            (0x5000..0x5010, WRITE),
            (0x1900..0x2200, READ),
            (0x8ff0..0x9010, READ),
            (0x9000..0x9010, READ),
        ] {
            assert!(found(&its, &ranges, wanted, access));
        }
        assert_eq!(
            pins(&its),
            [
                (0x1800..0x2400, WRITE),
                (0x5000..0x5010, WRITE),
                (0x1900..0x2200, READ),
                (0x8ff0..0x9000, READ),
                (0x9000..0x9010, READ),
            ]
        );
        assert!(!found(&its, &ranges, 0xa000..0xa001, READ));
        for (addresses, waited) in [
            (0x1000..0x1800, false),
            (0x1000..0x1801, true),
            (0x23ff..0x2400, true),
            (0x2400..0x5000, false),
            (0x5008..0x5008, false),
            (0..u64::MAX, true),
        ] {
            assert_eq!(
                is_waited_for(&its, addresses.clone()),
                waited,
                "{addresses:x?}"
            );
        }
        its.end();
        assert!(!is_waited_for(&its, 0..u64::MAX));
    }

    #[test]
    fn too_many_pins_are_everything_until_the_call_ends() {
        let all = led(&[(0..1 << 40, 0)]);
        let its = Use::default();
        let page = |index: usize| (index as u64) << 13;
        for index in 0..MOST {
            assert!(found(&its, &all, page(index)..page(index) + 1, READ));
        }
        assert!(!is_waited_for(&its, page(MOST)..page(MOST) + 1));
        assert!(found(&its, &all, page(MOST)..page(MOST) + 1, READ));
        assert_eq!(its.state().pins.len(), MOST);
        assert!(is_waited_for(&its, page(MOST)..page(MOST) + 1));
        assert!(is_waited_for(&its, 1 << 50..1 << 51));
        // Nobody knows where all of it led: who asks has lost it.
        {
            let asking = its.ask();
            assert!(asking.find(&all, &(0..1), READ).is_ok());
        }
        {
            let asking = its.ask();
            assert!(its.wait(&(1 << 50..1 << 51), Instant::now()));
            assert!(matches!(asking.find(&all, &(0..1), READ), Err(Gap::Moved)));
        }
        // That was one access.
        assert!(its.ask().find(&all, &(0..1), READ).is_ok());
        its.end();
        assert!(!is_waited_for(&its, 0..u64::MAX));
    }

    #[test]
    fn what_a_call_has_found_is_looked_for_again_after_it_has_asked() {
        let before = led(&[(0x1000..0x4000, 0x10_0000)]);
        let parts = |middle: u64| {
            let end = (0x3000..0x4000, 0x10_0000);
            led(&[(0x1000..0x2000, 0x10_0000), (0x2000..0x3000, middle), end])
        };
        let holes = led(&[(0x1000..0x2000, 0x10_0000), (0x3000..0x4000, 0x10_0000)]);
        let its = Use::default();
        let all = 0..u64::MAX;
        let again = |now: &Ranges, forgotten: Range<u64>| {
            assert!(found(&its, &before, 0x1800..0x3800, READ));
            let asking = its.ask();
            assert!(its.wait(&forgotten, Instant::now()), "it asks");
            let found = asking.find(now, &(0x1000..0x1001), WRITE);
            found.map_err(|gap| match gap {
                Gap::Missing { address, .. } => Some(address),
                Gap::Moved => None,
            })
        };
        assert!(again(&before, all.clone()).is_ok());
        assert!(again(&parts(0x10_0000), all.clone()).is_ok());
        assert_eq!(again(&parts(0), all.clone()).unwrap_err(), None);
        assert_eq!(again(&holes, all.clone()).unwrap_err(), Some(0x2000));
        // What was not forgotten is not looked for, and it is as it was.
        assert!(again(&holes, 0..0x1800).is_ok());
        // It does not ask any more.
        assert!(is_waited_for(&its, all));
    }
}
