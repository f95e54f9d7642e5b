// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is to be said to a server: whose turn it is, and what is said as soon as the server reads.
//!
//! Whoever holds a lock of the machine's (the unit's, at an invalidation) must not wait for another process's reading. It
//! leaves its message here; whoever speaks next, or the connection's own thread, says it first. So messages arrive in the
//! order in which they were left or sent.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Messages that wait; some 100 bytes each.
const MOST: usize = 16_384;

/// Whether what was left is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It is said as soon as the server reads.
    Yes,
    /// So much waits already that the server must read first.
    Full,
}

#[derive(Debug, Default)]
struct Later {
    messages: VecDeque<Vec<u8>>,
    ended: bool,
}

/// A server's outbox.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Held while something is said.
    turn: Mutex<()>,
    later: Mutex<Later>,
    due: Condvar,
}

/// The right to speak.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    outbox: &'a Outbox,
    _held: MutexGuard<'a, ()>,
}

impl Outbox {
    fn later(&self) -> MutexGuard<'_, Later> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of the caller, who says first what was left.
    pub(super) fn turn(&self) -> Turn<'_> {
        Turn {
            outbox: self,
            _held: self.turn.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Leaves `message`, and waits for nobody.
    pub(super) fn leave(&self, message: Vec<u8>) -> Kept {
        let mut later = self.later();
        if later.messages.len() >= MOST {
            return Kept::Full;
        }
        later.messages.push_back(message);
        drop(later);
        self.due.notify_one();
        Kept::Yes
    }

    /// Waits until something was left. `None`: nothing will be said any more.
    pub(super) fn wait(&self) -> Option<Turn<'_>> {
        let idle = |later: &mut Later| later.messages.is_empty() && !later.ended;
        let later = self.due.wait_while(self.later(), idle);
        let ended = later.unwrap_or_else(PoisonError::into_inner).ended;
        (!ended).then(|| self.turn())
    }

    /// Nothing is said any more, and nothing kept.
    pub(super) fn end(&self) {
        let mut later = self.later();
        later.ended = true;
        later.messages.clear();
        drop(later);
        self.due.notify_all();
    }
}

impl Turn<'_> {
    /// What was left, up to now, one by one.
    pub(super) fn left(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let count = self.outbox.later().messages.len();
        (0..count).map_while(|_| self.outbox.later().messages.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_much_is_kept_and_said_in_order() {
        let outbox = Outbox::default();
        let word = |number: usize| number.to_ne_bytes().to_vec();
        assert!((0..MOST).all(|number| outbox.leave(word(number)) == Kept::Yes));
        assert_eq!(outbox.leave(word(MOST)), Kept::Full);
        let turn = outbox.wait().unwrap();
        assert!(turn.left().take(2).eq([word(0), word(1)]));
        // What is left meanwhile is for the next turn.
        let mut rest = turn.left();
        assert_eq!(rest.next(), Some(word(2)));
        assert_eq!(outbox.leave(word(MOST)), Kept::Yes);
        assert!(rest.eq((3..MOST).map(word)));
        assert!(turn.left().eq([word(MOST)]));
        drop(turn);
        outbox.leave(word(0));
        outbox.end();
        assert!(outbox.wait().is_none());
        assert_eq!(outbox.turn().left().count(), 0);
    }
}
