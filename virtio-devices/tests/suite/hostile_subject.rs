// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device under attack, and what is said of it afterwards.

use std::any::Any;
use std::time::{Duration, Instant};

use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::fake::Ring;

use crate::support::guest::{Bus, Guest, Memory, Transport};

/// Rounds of calls that a worker may ask for: one that asks for more goes on for ever.
const ROUNDS: usize = 1000;
/// What takes that long hangs. A tenth is what workers have; the rest is for a machine under load.
pub(crate) const HANGS: Duration = Duration::from_secs(10);

/// DEVICE_NEEDS_RESET.
const NEEDS_RESET: u8 = 0x40;
/// DRIVER_OK.
const DRIVER_OK: u8 = 0x04;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Refused,
    Wedged,
    Failed,
}
use Verdict::{Failed, Pass, Refused, Wedged};

/// A device and what is at its other end.
pub(crate) type Made = (Box<dyn Device<Memory>>, Box<dyn Any>);

/// A kind of device, and how one sees that it serves.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) make: fn() -> Made,
    /// Those that are set up: all from 0 on.
    pub(crate) queues: &'static [u16],
    /// Those of them that are attacked.
    pub(crate) attacked: &'static [u16],
    /// Brings it, live, to where it looks at its queues.
    pub(crate) begin: fn(&mut Subject),
    /// Sends an honest request and says whether it was served, and rightly.
    pub(crate) honest: fn(&mut Subject) -> bool,
    /// What comes of a driver that sets up no queue at all.
    pub(crate) without_queues: Verdict,
    /// Whether what is at the other end is as no attack may leave it otherwise.
    pub(crate) untouched: fn(&dyn Any) -> bool,
}

/// What an attack leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The rings: the device serves an honest request on them, or says that it does not.
    Rings,
    /// A live device without rings that an honest driver could use: it rests, or says that it has failed.
    Live,
    /// No live device: it was reset, or never came to life, and does nothing.
    Nothing,
}

pub(crate) struct Subject {
    pub(crate) guest: Guest,
    pub(crate) rings: Vec<Ring>,
    pub(crate) other_end: Box<dyn Any>,
    pub(crate) kind: &'static Kind,
    pub(crate) left: Left,
    /// The registers that say how to tell the driver are anything.
    pub(crate) deaf: bool,
    /// A worker did not come to rest.
    spun: bool,
}

impl Subject {
    pub(crate) fn new(kind: &'static Kind, transport: Transport, features: u64) -> Self {
        let (device, other_end) = (kind.make)();
        let mut guest = Guest::new(device, transport);
        let rings = guest.start(features, kind.queues);
        let mut subject = Self {
            guest,
            rings,
            other_end,
            kind,
            left: Left::Rings,
            deaf: false,
            spun: false,
        };
        (kind.begin)(&mut subject);
        subject
    }

    /// Lets the workers run; whether they come to rest. The verdict remembers if they do not.
    pub(crate) fn settle(&mut self) -> bool {
        let before = Instant::now();
        let rests = self.guest.workers.step(ROUNDS) < ROUNDS && before.elapsed() < HANGS;
        self.spun |= !rests;
        rests
    }

    /// Waits for a chain of `queue` to be used, by whatever is under way; not if the device has failed.
    pub(crate) fn served(&mut self, queue: usize) -> bool {
        let before = Instant::now();
        while self.settle() && self.guest.status() & NEEDS_RESET == 0 && before.elapsed() < HANGS {
            if self.rings[queue].take().is_some() {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    /// Goes to DRIVER_OK with queues that are in place by now.
    pub(crate) fn go_live(&mut self) {
        self.guest.set_status(0xf);
        let live = self.guest.status() & (NEEDS_RESET | DRIVER_OK) == DRIVER_OK;
        if live {
            (self.kind.begin)(self);
        }
    }

    pub(crate) fn verdict(&mut self) -> Verdict {
        self.settle();
        for ring in &mut self.rings {
            // A hostile ring may have more used than a driver would ever take.
            for _ in 0..300 {
                if ring.take().is_none() {
                    break;
                }
            }
        }
        let verdict = self.of_what_is_left();
        if self.spun || self.guest.set_status(0) != 0 {
            return Wedged;
        }
        let kind = self.kind;
        if !(kind.untouched)(&*self.other_end) {
            return Failed;
        }
        self.rings = self.guest.start(u64::MAX, kind.queues);
        match (kind.honest)(self) && !self.spun {
            true => verdict,
            false => Wedged,
        }
    }

    fn of_what_is_left(&mut self) -> Verdict {
        let status = self.guest.status();
        if self.left == Left::Nothing {
            let idle = status & (NEEDS_RESET | DRIVER_OK) == 0 && self.guest.workers.running() == 0;
            return if idle { Pass } else { Wedged };
        }
        if status & DRIVER_OK == 0 {
            return Wedged;
        }
        let failed = |subject: &mut Self| subject.guest.status() & NEEDS_RESET != 0;
        let serves = !failed(self) && (self.left == Left::Live || (self.kind.honest)(self));
        match failed(self) {
            true if self.is_told() => Refused,
            // "The device MUST send a device configuration change notification" (2.1.2).
            true => Failed,
            false if serves => Pass,
            false => Wedged,
        }
    }

    /// Whether the driver was told that the configuration has changed.
    fn is_told(&mut self) -> bool {
        let told = match &mut self.guest.bus {
            Bus::Pci(_) => self.guest.vectors.delivered().contains(&0),
            Bus::Mmio(driver) => driver.get(0x060) & 2 != 0,
        };
        told || self.deaf
    }
}
