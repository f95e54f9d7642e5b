// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thread wakes another that waits on file descriptors.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::io;
use std::time::Duration;

/// A descriptor that is readable after [`signal`](Self::signal) and until
/// [`clear`](Self::clear).
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// Not signalled.
    pub fn new() -> io::Result<Self> {
        Ok(Wake(eventfd(
            0,
            EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC,
        )?))
    }

    /// Wakes whoever waits.
    pub fn signal(&self) {
        // It fails only when the counter is full, and then it is signalled already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Waits until it is signalled, and no longer than `patience`; whether it is. It stays so.
    #[must_use]
    pub fn within(&self, patience: Duration) -> bool {
        // One that is too long for the kernel is none; a signal cuts a wait short.
        let patience = Timespec::try_from(patience).ok();
        let mut sources = [PollFd::new(self, PollFlags::IN)];
        matches!(poll(&mut sources, patience.as_ref()), Ok(1..))
    }

    /// Whether it was signalled; from now on it is not.
    pub fn clear(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_add_up_to_one() {
        let wake = Wake::new().unwrap();
        assert!(!wake.clear());
        wake.signal();
        wake.signal();
        assert!(wake.clear());
        assert!(!wake.clear());
    }

    #[test]
    fn who_waits_does_not_clear_it() {
        let wake = Wake::new().unwrap();
        assert!(!wake.within(Duration::from_millis(1)));
        wake.signal();
        for _ in 0..2 {
            assert!(wake.within(Duration::from_secs(3600)));
        }
        assert!(wake.clear());
    }
}
