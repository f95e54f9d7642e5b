// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Time for limits that passes only when a test says so.

use std::cell::Cell;
use std::time::Duration;

thread_local! {
    static NOW: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// A clock that stands, of this thread, until it is dropped: the [limits](crate::limit) of devices that are made here, and whose workers
/// are [stepped here](super::ByHand), go by it. Their timers do not: a queue that may go on is to be kicked.
#[derive(Debug)]
pub struct Clock(());

impl Clock {
    /// Has time stand. Of two clocks of one thread, the last counts.
    #[expect(clippy::new_without_default, reason = "it does something")]
    pub fn new() -> Self {
        NOW.set(Some(Duration::ZERO));
        Self(())
    }

    /// Has so much time pass at once.
    pub fn pass(&self, time: Duration) {
        NOW.set(NOW.get().map(|now| now.saturating_add(time)));
    }

    /// What a clock of this thread says, if there is one.
    pub(crate) fn now() -> Option<Duration> {
        NOW.get()
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        NOW.set(None);
    }
}
