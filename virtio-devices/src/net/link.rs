// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a card's link is up, and why not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::device::ConfigEvents;

/// The card's link as the guest sees it, in the hands of whoever runs the device.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// Bits of [`Cause`]: none, and it is up.
    down: Arc<AtomicU8>,
    /// The driver is asked to announce itself, and has not said that it did.
    announce: Arc<AtomicBool>,
    pub(super) events: ConfigEvents,
}

/// Whether a link carries frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// It does.
    Up,
    /// It does not.
    Down,
}

/// Whether a driver is to tell the network where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announce {
    Asked,
    Done,
}

bitflags::bitflags! {
    /// Why a link is down.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Cause: u8 {
        /// Whoever runs the device wants it so.
        const TAKEN = 1;
        /// The wire has ended, and carries nothing ever again.
        const WIRE = 2;
    }
}

impl Link {
    /// Takes the link down, or no longer, and tells the driver if that changes it. One whose wire has ended stays down.
    pub fn set(&self, state: LinkState) {
        match state {
            LinkState::Down => self.cut(Cause::TAKEN),
            LinkState::Up => {
                let taken = Cause::TAKEN.bits();
                if self.down.fetch_and(!taken, Ordering::SeqCst) == taken {
                    self.events.changed();
                }
            }
        }
    }

    /// It is down because of this, too.
    pub(super) fn cut(&self, cause: Cause) {
        if self.down.fetch_or(cause.bits(), Ordering::SeqCst) == 0 {
            self.events.changed();
        }
    }

    /// Asks the driver to announce itself, when it is next told that the configuration has changed; or no longer.
    pub(super) fn ask(&self, announce: Announce) {
        let asked = announce == Announce::Asked;
        self.announce.store(asked, Ordering::SeqCst);
    }

    /// Whether the driver is to announce itself.
    pub(super) fn announce(&self) -> Announce {
        match self.announce.load(Ordering::SeqCst) {
            true => Announce::Asked,
            false => Announce::Done,
        }
    }

    pub(super) fn causes(&self) -> Cause {
        Cause::from_bits_retain(self.down.load(Ordering::SeqCst))
    }

    /// The state.
    pub fn state(&self) -> LinkState {
        match self.causes().is_empty() {
            true => LinkState::Up,
            false => LinkState::Down,
        }
    }
}
