// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Global commands: one bit at a time, everything else repeated, and wait for the status.

use super::{DriverError, Mmio, Registers, Waiting};
use crate::spec::registers::{
    GCMD, GSTS, GlobalCommand, GlobalStatus, IRTA, InterruptTableAddress, RTADDR, RootTableAddress,
};

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

impl Switch {
    /// Whether it is on.
    #[must_use]
    pub const fn is_on(self) -> bool {
        matches!(self, Self::On)
    }
}

fn command(
    unit: &(impl Mmio + ?Sized),
    waiting: Waiting,
    change: impl FnOnce(GlobalCommand) -> GlobalCommand,
    done: impl Fn(GlobalStatus) -> bool,
) -> Result<(), DriverError> {
    let keep = unit.get(GSTS).unchanged();
    unit.put(GCMD, change(keep));
    unit.wait_for(GSTS, waiting, done).map(drop)
}

pub(super) fn translation(unit: &(impl Mmio + ?Sized), to: Switch) -> Result<(), DriverError> {
    command(
        unit,
        Waiting::Translation,
        |c| c.with_translation(to.is_on()),
        |s| s.translation() == to.is_on(),
    )
}

pub(super) fn queued_invalidation(
    unit: &(impl Mmio + ?Sized),
    to: Switch,
) -> Result<(), DriverError> {
    command(
        unit,
        Waiting::QueuedInvalidation,
        |c| c.with_queued_invalidation(to.is_on()),
        |s| s.queued_invalidation() == to.is_on(),
    )
}

pub(super) fn interrupt_remapping(
    unit: &(impl Mmio + ?Sized),
    to: Switch,
) -> Result<(), DriverError> {
    command(
        unit,
        Waiting::InterruptRemapping,
        |c| c.with_interrupt_remapping(to.is_on()),
        |s| s.interrupt_remapping() == to.is_on(),
    )
}

pub(super) fn compatibility_interrupts(
    unit: &(impl Mmio + ?Sized),
    to: Switch,
) -> Result<(), DriverError> {
    command(
        unit,
        Waiting::CompatibilityInterrupts,
        |c| c.with_compatibility_interrupts(to.is_on()),
        |s| s.compatibility_interrupts() == to.is_on(),
    )
}

pub(super) fn set_root_table(
    unit: &(impl Mmio + ?Sized),
    table: RootTableAddress,
) -> Result<(), DriverError> {
    unit.put(RTADDR, table);
    command(
        unit,
        Waiting::RootTable,
        |c| c.with_set_root_table(true),
        |s| s.root_table_set(),
    )
}

pub(super) fn set_interrupt_table(
    unit: &(impl Mmio + ?Sized),
    table: InterruptTableAddress,
) -> Result<(), DriverError> {
    unit.put(IRTA, table);
    command(
        unit,
        Waiting::InterruptTable,
        |c| c.with_set_interrupt_table(true),
        |s| s.interrupt_table_set(),
    )
}

pub(super) fn flush_write_buffer(unit: &(impl Mmio + ?Sized)) -> Result<(), DriverError> {
    command(
        unit,
        Waiting::WriteBuffer,
        |c| c.with_flush_write_buffer(true),
        |s| !s.flushing_write_buffer(),
    )
}
