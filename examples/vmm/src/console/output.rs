// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest prints, gathered into lines: a system call for each byte would cost more than
//! the guest's exit for it.
//!
//! A line is written when it ends, when the buffer is full, or when [`Deadline`] passes, so that a
//! prompt appears too.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that wait at most.
const CAPACITY: usize = 1024;
/// How long an unfinished line waits, in nanoseconds: less than a user notices.
const DELAY: i64 = 5_000_000;

/// A timer that runs while an unfinished line waits.
#[derive(Debug)]
pub struct Deadline {
    timer: OwnedFd,
    running: AtomicBool,
}

impl Deadline {
    /// A timer that does not run.
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        Ok(Deadline {
            timer,
            running: AtomicBool::new(false),
        })
    }

    /// Starts the timer, unless it runs.
    fn start(&self) {
        if self.running.swap(true, Ordering::AcqRel) {
            return;
        }
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: 0,
                tv_nsec: DELAY,
            },
        };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            log::warn!("console timer: {error}; a prompt may appear late");
        }
    }

    /// To be called when the timer's descriptor is readable, before the line is written: a byte
    /// that arrives in between starts the timer again.
    pub fn passed(&self) {
        let mut count = [0; 8];
        // Empty if another wake-up was first; the timer has then been dealt with.
        let _ = rustix::io::read(&self.timer, &mut count);
        self.running.store(false, Ordering::Release);
    }
}

impl AsFd for Deadline {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// A buffer in front of the place where output goes.
pub struct Output {
    waiting: Vec<u8>,
    to: Box<dyn Write + Send>,
    deadline: Option<Arc<Deadline>>,
    failed: bool,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("waiting", &self.waiting.len())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl Output {
    /// Output to `to`. Without a deadline only whole lines, full buffers and [`drain`](Self::drain)
    /// write.
    #[must_use]
    pub fn new(to: Box<dyn Write + Send>, deadline: Option<Arc<Deadline>>) -> Self {
        Output {
            waiting: Vec::with_capacity(CAPACITY),
            to,
            deadline,
            failed: false,
        }
    }

    /// Writes what waits. A place that fails once is given nothing more: the guest is not to be
    /// stopped by a closed pipe.
    pub fn drain(&mut self) {
        if !self.failed
            && !self.waiting.is_empty()
            && let Err(error) = self
                .to
                .write_all(&self.waiting)
                .and_then(|()| self.to.flush())
        {
            self.failed = true;
            log::warn!("console output is lost from here on: {error}");
        }
        self.waiting.clear();
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        if bytes.ends_with(b"\n") || self.waiting.len() >= CAPACITY {
            self.drain();
        } else if let Some(deadline) = &self.deadline {
            deadline.start();
        }
        Ok(bytes.len())
    }

    /// Does nothing: the UART asks for it after each byte.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Remembers each write.
    #[derive(Clone, Default)]
    struct Place(Arc<Mutex<Vec<Vec<u8>>>>);
    impl Write for Place {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn print(output: &mut Output, text: &str) {
        for byte in text.bytes() {
            output.write_all(&[byte]).unwrap();
        }
    }

    #[test]
    fn a_line_is_one_write_and_a_prompt_waits() {
        let place = Place::default();
        let mut output = Output::new(Box::new(place.clone()), None);
        print(&mut output, "one\ntwo\nlogin: ");
        assert_eq!(*place.0.lock().unwrap(), [b"one\n", b"two\n"]);
        output.drain();
        assert_eq!(place.0.lock().unwrap()[2], b"login: ");
        output.drain();
        assert_eq!(place.0.lock().unwrap().len(), 3);
    }

    #[test]
    fn a_guest_that_never_ends_its_line_fills_no_memory() {
        let place = Place::default();
        let mut output = Output::new(Box::new(place.clone()), None);
        print(&mut output, &"x".repeat(3 * CAPACITY + 1));
        assert_eq!(place.0.lock().unwrap().len(), 3);
        assert_eq!(output.waiting.len(), 1);
    }

    #[test]
    fn a_prompt_starts_the_timer() {
        let deadline = Arc::new(Deadline::new().unwrap());
        let mut output = Output::new(Box::new(Place::default()), Some(Arc::clone(&deadline)));
        print(&mut output, "done\n");
        // The bytes before the line's end started it; that it passes is harmless.
        assert!(deadline.running.load(Ordering::Acquire));
        let mut fds = [rustix::event::PollFd::new(
            &*deadline,
            rustix::event::PollFlags::IN,
        )];
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        assert_eq!(rustix::event::poll(&mut fds, Some(&second)).unwrap(), 1);
        deadline.passed();
        assert!(!deadline.running.load(Ordering::Acquire));
    }

    #[test]
    fn a_closed_place_is_given_up_once() {
        struct Closed(Arc<Mutex<u32>>);
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                *self.0.lock().unwrap() += 1;
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let tries = Arc::new(Mutex::new(0));
        let mut output = Output::new(Box::new(Closed(Arc::clone(&tries))), None);
        print(&mut output, "one\ntwo\n");
        assert_eq!(*tries.lock().unwrap(), 1);
        assert!(output.waiting.is_empty());
    }
}
