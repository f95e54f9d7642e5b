// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Free page hints: the host asks once, and the guest names the pages that it has free at that time.
//!
//! ```text
//!   host    ask: command id N in the configuration ........................ done
//!   driver          N:32 (readable)   pages (writable) ...   STOP:32 (readable)   takes its pages back
//! ```
//!
//! A hint says that what is in a page need not be kept, unless the guest writes to it later: the driver may take a
//! page back at any time without a word. So nothing is done to the pages here. Who copies the guest's memory while it
//! tracks writes may leave out what was hinted and not written since.
//!
//! "Free Page Hinting" (5.5.6.6).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::GuestMemory;

use super::Shared;
use crate::queue::{Chain, Reach};
use crate::reclaim::PAGE;
use crate::serve::{Answer, Handler, Served};

/// VIRTIO_BALLOON_CMD_ID_STOP: nothing is asked for, and no pages follow.
pub(super) const STOP: u32 = 0;
/// VIRTIO_BALLOON_CMD_ID_DONE: the driver may take its pages back.
pub(super) const DONE: u32 = 1;
/// The first identifier of a round.
const FIRST: u32 = 2;

/// Ranges that are remembered. Drivers give blocks of 4 MiB and more, and neighbours are joined; a driver that gives
/// single pages far apart loses the rest, which is then copied.
const RANGES: usize = 1 << 14;

/// Where a round of hints is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Round {
    /// There is none.
    #[default]
    Idle,
    /// The guest was asked, and has not begun.
    Asked,
    /// It has begun.
    Begun,
    /// It has begun, and has said that there are no more, or the host has ended it. What is hinted now is of no round.
    Complete,
}

/// What a guest has hinted in the last round. Its word alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// How far it is.
    pub round: Round,
    /// Free pages as first address and length in bytes: whole pages, apart from each other. Not all of them are in
    /// memory if the guest lies.
    pub ranges: BTreeMap<u64, u64>,
}

impl Hints {
    /// Bytes of all ranges.
    pub fn bytes(&self) -> u64 {
        // They are apart, so the sum is below 2^64.
        self.ranges.values().sum()
    }

    /// Adds `start` up to `end`, joined with what overlaps it or touches it.
    fn add(&mut self, start: u64, end: u64) {
        let (mut first, mut last) = (start, end);
        // At most as many as there are, and each is gone afterwards.
        while let Some((&at, &length)) = self.ranges.range(..=last).next_back()
            && at.saturating_add(length) >= first
        {
            self.ranges.remove(&at);
            (first, last) = (first.min(at), last.max(at.saturating_add(length)));
        }
        if self.ranges.len() < RANGES {
            self.ranges.insert(first, last.saturating_sub(first));
        }
    }
}

/// Begins a round and returns its identifier: another than the one before.
pub(super) fn begin(shared: &Shared) -> u32 {
    ask(shared, &mut shared.hints())
}

/// Begins one, of whoever has the lock: round and command change together.
fn ask(shared: &Shared, hints: &mut Hints) -> u32 {
    *hints = Hints {
        round: Round::Asked,
        ..Hints::default()
    };
    let last = shared.last_round.load(Ordering::SeqCst);
    let id = last.checked_add(1).unwrap_or(FIRST).max(FIRST);
    shared.last_round.store(id, Ordering::SeqCst);
    shared.command.store(id, Ordering::SeqCst);
    id
}

/// Ends a round, if there is one; true if so. "The device MUST ignore pages that are provided with a command ID that does
/// not match the current value" (5.5.6.6.2), and that is DONE now.
pub(super) fn end(shared: &Shared) -> bool {
    let mut hints = shared.hints();
    let open = shared.command.load(Ordering::SeqCst) > DONE;
    if open {
        shared.command.store(DONE, Ordering::SeqCst);
        hints.round = match hints.round {
            Round::Begun | Round::Complete => Round::Complete,
            Round::Asked | Round::Idle => Round::Idle,
        };
    }
    open
}

/// As after a reset.
pub(super) fn forget(shared: &Shared) {
    let mut hints = shared.hints();
    shared.command.store(STOP, Ordering::SeqCst);
    *hints = Hints::default();
}

/// Reads what the driver hints.
pub(super) struct Hint {
    shared: Arc<Shared>,
}

impl Hint {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The driver answers to a command, or says that it has no more.
    fn command(&self, id: u32) {
        let mut hints = self.shared.hints();
        // Under the lock: to a question that came meanwhile it is no answer.
        let asked = self.shared.command.load(Ordering::SeqCst);
        hints.round = match (hints.round, id) {
            (Round::Asked, id) if id == asked && id >= FIRST => Round::Begun,
            (Round::Begun, STOP) => Round::Complete,
            // An answer to a question of before.
            (round, _) => round,
        };
    }
}

impl<A> Handler<A> for Hint {
    fn name(&self) -> String {
        "balloon-hint".to_owned()
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let mut served = Served::default();
        let mut id = [0; 4];
        // A buffer that is not in memory says nothing.
        if let Ok(4) = chain.readable().read(reach, &mut id) {
            self.command(u32::from_le_bytes(id));
        }
        let mut hints = self.shared.hints();
        if hints.round == Round::Begun {
            for segment in chain.writable_segments() {
                // Only whole pages. The end does not wrap.
                let end = segment.address.saturating_add(segment.length.into()) & !(PAGE - 1);
                let start = segment.address.checked_next_multiple_of(PAGE);
                if let Some(start) = start
                    && start < end
                {
                    hints.add(start, end);
                    served.moved = served.moved.saturating_add(end.saturating_sub(start));
                }
            }
        }
        Answer::Done(served)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::balloon::{Balloon, Options};
    use crate::reclaim::{Reclaim, ReclaimError};

    proptest! {
        /// Against a set of single pages.
        #[test]
        fn ranges_are_the_pages_that_were_added_and_apart(
            added in prop::collection::vec((0u64..64, 1u64..9), 0..40)
        ) {
            let mut hints = Hints::default();
            let mut model = std::collections::BTreeSet::new();
            for (first, count) in added {
                hints.add(first * PAGE, (first + count) * PAGE);
                model.extend(first..first + count);
            }
            let mut pages = Vec::new();
            let mut before = None;
            for (&at, &length) in &hints.ranges {
                prop_assert!(before.is_none_or(|end| end < at));
                before = Some(at + length);
                pages.extend(at / PAGE..(at + length) / PAGE);
            }
            prop_assert_eq!(hints.bytes(), model.len() as u64 * PAGE);
            prop_assert_eq!(pages, model.into_iter().collect::<Vec<_>>());
        }
    }

    /// The device compares with "the current value in free_page_hint_cmd_id" (5.5.6.6.2), not with that of before: the
    /// host asks anew while the worker has an answer to its last question in hand.
    #[test]
    fn an_answer_is_to_what_is_asked_when_it_counts() {
        let balloon = Balloon::new(Options::new(), Arc::new(NoMemory)).unwrap();
        let shared = Arc::clone(&balloon.shared);
        let first = begin(&shared);
        let mut asks = shared.hints();
        std::thread::scope(|scope| {
            scope.spawn(|| Hint::new(Arc::clone(&shared)).command(first));
            // Long enough for the worker to come as far as it can.
            std::thread::sleep(Duration::from_millis(200));
            ask(&shared, &mut asks);
            drop(asks);
        });
        assert_eq!(shared.hints().round, Round::Asked);
    }

    #[derive(Debug)]
    struct NoMemory;

    impl Reclaim for NoMemory {
        fn reclaim(&self, _address: u64, _length: u64) -> Result<(), ReclaimError> {
            Ok(())
        }
    }

    #[test]
    fn a_guest_dictates_no_more_than_so_many_ranges() {
        let mut hints = Hints::default();
        for i in 0..2 * RANGES as u64 {
            hints.add(2 * i * PAGE, (2 * i + 1) * PAGE);
        }
        assert_eq!(hints.ranges.len(), RANGES);
        // One that joins two takes no more room.
        hints.add(PAGE, 2 * PAGE);
        assert_eq!(hints.ranges[&0], 3 * PAGE);
    }
}
