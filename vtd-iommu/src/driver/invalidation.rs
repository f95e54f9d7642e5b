// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One way to invalidate, whichever the unit has: the queue, or registers.

use hvkit_page_table::OwnEntries;

use super::{DriverError, InvalidationQueue, Mmio, by_register};
use crate::spec::invalidation::Descriptor;
use crate::spec::registers::ExtendedCapability;

/// How a unit is told to forget.
#[derive(Debug)]
pub(super) struct Invalidation<M> {
    /// `None`: registers.
    pub(super) queue: Option<InvalidationQueue<M>>,
    /// Whether something was asked for since the last wait.
    asked: bool,
}

impl<M: OwnEntries> Invalidation<M> {
    pub(super) const fn new(queue: Option<InvalidationQueue<M>>) -> Self {
        Self {
            queue,
            asked: false,
        }
    }

    /// Asks. Registers do it at once.
    #[inline]
    pub(super) fn ask<R: Mmio>(
        &mut self,
        unit: &R,
        ecap: ExtendedCapability,
        descriptor: Descriptor,
    ) -> Result<(), DriverError> {
        match &mut self.queue {
            Some(queue) => {
                self.asked = true;
                queue.push(unit, descriptor.encode())
            }
            None => by_register::invalidate(unit, ecap, descriptor),
        }
    }

    /// Returns when all that was asked is done.
    #[inline]
    pub(super) fn wait<R: Mmio>(&mut self, unit: &R) -> Result<(), DriverError> {
        match &mut self.queue {
            Some(queue) if self.asked => {
                self.asked = false;
                queue.wait(unit)
            }
            _ => Ok(()),
        }
    }

    /// The same, until page requests that the unit has received are in their queue, too.
    pub(super) fn wait_drained<R: Mmio>(&mut self, unit: &R) -> Result<(), DriverError> {
        self.asked = false;
        match &mut self.queue {
            Some(queue) => queue.wait_drained(unit),
            None => Ok(()),
        }
    }
}
