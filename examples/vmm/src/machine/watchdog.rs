// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A watchdog: a guest that does not reset it in time is stopped.
//!
//! virtio has no watchdog. This one is what ACPI describes by a WDAT table (`acpi/wdat.rs`): three registers of our
//! own choice on ports, which a driver finds in the table with what to write there. Linux (`wdat_wdt`) and
//! Windows have that driver; Debian's cloud kernel has none for the i6300ESB that other VMMs imitate.
//!
//! ```text
//!   +0  count     write: periods until it bites, from the next reset on; read: periods left
//!   +4  control   bit 0: running
//!   +8  reset     write 1: counts from the start again
//! ```

use super::stop::{Stop, StopReason};
use crate::bus::BusDevice;
use crate::confine::{Confiner, Kind};
use crate::snapshot::WatchdogState;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes of the registers.
pub const PORTS: u64 = 12;
/// Offsets of the registers, each of four bytes.
pub const COUNT: u16 = 0;
/// See [`COUNT`].
pub const CONTROL: u16 = 4;
/// See [`COUNT`].
pub const RESET: u16 = 8;
/// In [`CONTROL`].
pub const RUNNING: u32 = 1;

/// The unit of [`COUNT`], in milliseconds.
pub const PERIOD_MS: u32 = 100;
/// The largest count.
pub const MAX_COUNT: u32 = 0xffff;
/// The count after a reset of the machine: a minute.
const FIRST_COUNT: u32 = 600;

/// The registers, at times that are given.
#[derive(Debug)]
struct Countdown {
    count: u32,
    /// When it bites; none: it does not run.
    deadline: Option<Instant>,
    /// Since when it stands still, if it does.
    held: Option<Instant>,
}

impl Countdown {
    fn full(&self) -> Duration {
        Duration::from_millis(u64::from(self.count).saturating_mul(PERIOD_MS.into()))
    }

    /// Runs from now on, for two hours at most, of which every clock of the host's has more left.
    fn start(&mut self, now: Instant) {
        self.deadline = now.checked_add(self.full());
    }

    fn save(&self, now: Instant) -> WatchdogState {
        let now = self.held.unwrap_or(now);
        let left = |deadline: Instant| deadline.saturating_duration_since(now).as_millis();
        WatchdogState {
            count: self.count,
            left: self
                .deadline
                .map(|at| u64::try_from(left(at)).unwrap_or(u64::MAX)),
        }
    }

    /// With no more left than the largest count has, whoever says so.
    fn restored(state: &WatchdogState, now: Instant) -> Self {
        let most = u64::from(MAX_COUNT).saturating_mul(PERIOD_MS.into());
        Countdown {
            count: state.count.clamp(1, MAX_COUNT),
            deadline: state
                .left
                .and_then(|left| now.checked_add(Duration::from_millis(left.min(most)))),
            held: None,
        }
    }

    /// Stands still from now on.
    fn hold(&mut self, now: Instant) {
        self.held.get_or_insert(now);
    }

    /// Goes on, with as much left as there was.
    fn go_on(&mut self, now: Instant) {
        if let (Some(held), Some(deadline)) = (self.held.take(), &mut self.deadline) {
            let stood = now.saturating_duration_since(held);
            // Later than the clock goes is as good as never.
            *deadline = deadline.checked_add(stood).unwrap_or(*deadline);
        }
    }

    fn read(&self, offset: u64, now: Instant) -> u32 {
        match u16::try_from(offset) {
            Ok(COUNT) => match self.deadline {
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(now).as_millis();
                    let periods = left.checked_div(PERIOD_MS.into());
                    let periods = periods.and_then(|periods| u32::try_from(periods).ok());
                    periods.unwrap_or(MAX_COUNT)
                }
                None => self.count,
            },
            Ok(CONTROL) if self.deadline.is_some() => RUNNING,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32, now: Instant) {
        match u16::try_from(offset) {
            Ok(COUNT) => self.count = value.clamp(1, MAX_COUNT),
            Ok(CONTROL) if value & RUNNING == 0 => self.deadline = None,
            Ok(CONTROL) if self.deadline.is_none() => self.start(now),
            Ok(RESET) if value == 1 && self.deadline.is_some() => self.start(now),
            _ => {}
        }
    }
}

#[derive(Debug)]
struct Shared {
    countdown: Mutex<(Countdown, Life)>,
    changed: Condvar,
}

/// Whether the timer is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Wanted,
    Over,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Countdown, Life)> {
        self.countdown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the deadline, whatever it is by then; true if it has come.
    fn wait(&self) -> bool {
        let mut state = self.lock();
        loop {
            let (countdown, life) = &*state;
            if *life == Life::Over {
                return false;
            }
            let left = countdown
                .deadline
                .filter(|_| countdown.held.is_none())
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => return true,
                Some(left) => {
                    let woken = self.changed.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let woken = self.changed.wait(state);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }
}

/// The registers on a bus.
#[derive(Debug)]
pub struct Registers(Arc<Shared>);

impl BusDevice for Registers {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = self.0.lock().0.read(offset, Instant::now()).to_le_bytes();
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value) {
            *to = from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Ok(raw) = <[u8; 4]>::try_from(data) {
            let value = u32::from_le_bytes(raw);
            self.0.lock().0.write(offset, value, Instant::now());
            self.0.changed.notify_one();
        }
    }
}

/// The thread that waits for the deadline; it ends with the value.
#[derive(Debug)]
pub struct Timer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Timer {
    /// A watchdog that stops the machine of `stop`, and its registers. Its thread is confined by `confiner`.
    ///
    /// # Errors
    ///
    /// The host has no thread to give.
    pub fn start(stop: Stop, confiner: Confiner) -> io::Result<(Self, Registers)> {
        let countdown = Countdown {
            count: FIRST_COUNT,
            deadline: None,
            held: None,
        };
        let shared = Arc::new(Shared {
            countdown: Mutex::new((countdown, Life::Wanted)),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                if let Err(error) = confiner.enter(Kind::Watch) {
                    log::error!("{error}");
                    let thread = "watchdog".to_owned();
                    stop.ask(StopReason::Defect { thread });
                } else if theirs.wait() {
                    stop.ask(StopReason::Watchdog);
                }
            })?;
        let registers = Registers(Arc::clone(&shared));
        let thread = Some(thread);
        Ok((Timer { shared, thread }, registers))
    }
}

impl Timer {
    /// Its count, and how long it has left if it runs.
    #[must_use]
    pub fn save(&self) -> WatchdogState {
        self.shared.lock().0.save(Instant::now())
    }

    /// Stands still, because the machine does: a guest that cannot run cannot say that it is well.
    pub fn hold(&self) {
        self.shared.lock().0.hold(Instant::now());
        self.shared.changed.notify_one();
    }

    /// Goes on from where it stood still.
    pub fn go_on(&self) {
        self.shared.lock().0.go_on(Instant::now());
        self.shared.changed.notify_one();
    }

    /// Counts on from what was saved.
    pub fn restore(&self, state: &WatchdogState) {
        self.shared.lock().0 = Countdown::restored(state, Instant::now());
        self.shared.changed.notify_one();
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.shared.lock().1 = Life::Over;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has no way to panic; if it did, the machine is at its end here anyway.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_still_while_the_machine_does() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut countdown = Countdown {
            count: 50,
            deadline: None,
            held: None,
        };
        countdown.write(4, 1, start);
        countdown.hold(at(1000));
        // Asked for twice, as by a snapshot that is tried again: the first time counts.
        countdown.hold(at(2000));
        assert_eq!(countdown.save(at(60_000)).left, Some(4000));
        countdown.go_on(at(61_000));
        assert_eq!(countdown.deadline, Some(at(65_000)));
        countdown.go_on(at(62_000));
        assert_eq!(countdown.deadline, Some(at(65_000)), "it was not held");
    }

    #[test]
    fn a_held_timer_does_not_bite() {
        let (timer, mut registers) = {
            let stop = Stop::new().unwrap();
            Timer::start(stop.clone(), Confiner::off())
                .map(|(timer, registers)| ((timer, stop), registers))
                .unwrap()
        };
        let (timer, stop) = timer;
        timer.hold();
        registers.write(u64::from(COUNT), &1u32.to_le_bytes());
        registers.write(u64::from(CONTROL), &RUNNING.to_le_bytes());
        thread::sleep(Duration::from_millis(400));
        assert!(!stop.is_asked());
        timer.go_on();
        let bitten = (0..200).any(|_| {
            thread::sleep(Duration::from_millis(20));
            stop.is_asked()
        });
        assert!(bitten, "a tenth of a second was left");
    }

    #[test]
    fn it_counts_from_the_last_reset() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut countdown = Countdown {
            count: FIRST_COUNT,
            deadline: None,
            held: None,
        };
        assert_eq!(countdown.read(0, start), 600);
        assert_eq!(countdown.read(4, start), 0);
        // A reset does not start it.
        countdown.write(8, 1, start);
        assert_eq!(countdown.deadline, None);
        countdown.write(0, 50, start);
        countdown.write(4, 1, start);
        assert_eq!(countdown.deadline, Some(at(5000)));
        assert_eq!(countdown.read(0, at(1000)), 40);
        assert_eq!(countdown.read(4, at(1000)), 1);
        // Running already: nothing is won.
        countdown.write(4, 1, at(1000));
        assert_eq!(countdown.deadline, Some(at(5000)));
        countdown.write(8, 1, at(4000));
        assert_eq!(countdown.deadline, Some(at(9000)));
        assert_eq!(countdown.read(0, at(20_000)), 0);
        countdown.write(4, 0, at(4000));
        assert_eq!(countdown.deadline, None);
        for (value, count) in [(0, 1), (u32::MAX, MAX_COUNT)] {
            countdown.write(0, value, start);
            assert_eq!(countdown.count, count);
        }
        for offset in [1, 3, 9, 12, u64::MAX] {
            countdown.write(offset, 1, start);
            assert_eq!(countdown.read(offset, start), 0);
        }
    }

    #[test]
    fn it_counts_on_where_it_was_saved() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut countdown = Countdown {
            count: 50,
            deadline: None,
            held: None,
        };
        let state = |count, left| WatchdogState { count, left };
        assert_eq!(countdown.save(start), state(50, None));
        countdown.write(4, 1, start);
        assert_eq!(countdown.save(at(1200)), state(50, Some(3800)));
        let again = Countdown::restored(&state(50, Some(3800)), at(9000));
        assert_eq!((again.count, again.deadline), (50, Some(at(12_800))));
        let forged = Countdown::restored(&state(0, Some(u64::MAX)), start);
        assert_eq!((forged.count, forged.deadline), (1, Some(at(6_553_500))));
    }

    #[test]
    fn a_guest_that_is_late_is_stopped_and_one_that_is_not_is_not() {
        let stop = Stop::new().unwrap();
        let (timer, mut registers) = Timer::start(stop.clone(), Confiner::off()).unwrap();
        registers.write(0, &1u32.to_le_bytes());
        registers.write(4, &1u32.to_le_bytes());
        // A byte is none of its registers.
        registers.write(4, &[0]);
        let began = Instant::now();
        while !stop.is_asked() && began.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(stop.reason(), Some(&StopReason::Watchdog));
        assert!(began.elapsed() >= Duration::from_millis(50));
        drop(timer);

        let stop = Stop::new().unwrap();
        let (timer, mut registers) = Timer::start(stop.clone(), Confiner::off()).unwrap();
        registers.write(4, &1u32.to_le_bytes());
        let mut control = [0; 4];
        registers.read(4, &mut control);
        assert_eq!(control, [1, 0, 0, 0]);
        drop(timer);
        assert!(!stop.is_asked());
    }
}
