// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pairs of queues, a wire each, and how many of them the driver uses.
//!
//! "Multiqueue" of "Control Virtqueue" (5.1.6.5): after a reset one pair is used, then as many as the driver says.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use super::MAX_PAIRS;
use super::frames::Wire;
use crate::features::Features;

/// Whether frames come from a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attached {
    /// They do.
    Yes,
    /// They go to the other wires.
    No,
}

/// A wire, and whether the driver uses the pair of queues at its end.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) wire: Wire,
    used: AtomicBool,
}

impl Line {
    fn new(wire: Wire) -> Self {
        Self {
            wire,
            used: AtomicBool::new(true),
        }
    }

    /// Whether what comes may be put into the receive queue.
    pub(super) fn is_used(&self) -> bool {
        self.used.load(Ordering::SeqCst)
    }

    fn set(&self, attached: Attached) -> io::Result<()> {
        match attached {
            // No frame is taken from a wire that is about to be attached nowhere.
            Attached::No if self.used.swap(false, Ordering::SeqCst) => self.wire.attach(attached),
            Attached::Yes if !self.is_used() => {
                self.wire.attach(attached)?;
                self.used.store(true, Ordering::SeqCst);
                Ok(())
            }
            Attached::Yes | Attached::No => Ok(()),
        }
    }
}

/// All pairs of a card.
#[derive(Debug)]
pub(super) struct Pairs {
    /// 1 to [`MAX_PAIRS`].
    lines: Vec<Arc<Line>>,
    used: AtomicU16,
}

impl Pairs {
    pub(super) fn one(wire: Wire) -> Self {
        Self::of(vec![wire])
    }

    fn of(wires: Vec<Wire>) -> Self {
        let lines = wires.into_iter().map(|wire| Arc::new(Line::new(wire)));
        Self {
            lines: lines.collect(),
            used: AtomicU16::new(1),
        }
    }

    /// Fails with the number of `wires` if there may not be so many.
    pub(super) fn new(wires: Vec<Wire>) -> Result<Self, usize> {
        let most = usize::from(MAX_PAIRS);
        if wires.is_empty() || wires.len() > most {
            return Err(wires.len());
        }
        Ok(Self::of(wires))
    }

    /// How many there are.
    pub(super) fn most(&self) -> u16 {
        // At most MAX_PAIRS.
        self.lines.len() as u16
    }

    /// How many the driver uses.
    pub(super) fn used(&self) -> u16 {
        self.used.load(Ordering::SeqCst)
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = &Arc<Line>> {
        self.lines.iter()
    }

    /// What all wires can do.
    pub(super) fn features(&self) -> Features {
        let each = self.lines.iter().map(|line| line.wire.features());
        each.reduce(|all, one| all & one).unwrap_or_default()
    }

    /// Tells the wires what the driver can take.
    pub(super) fn negotiated(&self, features: Features) -> io::Result<()> {
        let mut lines = self.lines.iter();
        lines.try_for_each(|line| line.wire.negotiated(features))
    }

    /// Remembers how many are to be used once the driver is there; says whether there are so many.
    pub(super) fn plan(&self, used: u16) -> bool {
        let known = (1..=self.most()).contains(&used);
        if known {
            self.used.store(used, Ordering::SeqCst);
        }
        known
    }

    /// Uses `used` of them, at most all: frames come from those and from no other.
    pub(super) fn set(&self, used: u16) -> io::Result<()> {
        let used = used.clamp(1, self.most());
        self.used.store(used, Ordering::SeqCst);
        // Those that go first, so that no frame is steered to one that nobody serves.
        let (stay, go) = self.lines.split_at_checked(used.into()).unwrap_or_default();
        let mut set = Ok(());
        for (lines, attached) in [(go, Attached::No), (stay, Attached::Yes)] {
            for line in lines {
                set = set.and(line.set(attached));
            }
        }
        set
    }
}
