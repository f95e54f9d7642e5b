// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The function in the host, as much as is needed of it.

use super::pages::Pages;
use std::io;
use std::ops::Range;
use vmm_sys_util::eventfd::EventFd;

/// The registers behind a base address register.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Bytes; 0 if there are none.
    pub length: u64,
    /// Which of them can be mapped for reading and writing. Not all pages of a region can: where
    /// there is an MSI-X table, some kernels allow it and some do not.
    pub mappable: Vec<Range<u64>>,
}

/// By which events the function's interrupts come. One way at a time.
#[derive(Clone, Copy, Debug)]
pub enum Signals<'a> {
    /// They do not.
    Off,
    /// Its pin: asserted, `trigger` is written and the pin masked, until `resample` is.
    Pin {
        /// Written by the host.
        trigger: &'a EventFd,
        /// Written when the interrupt was served.
        resample: &'a EventFd,
    },
    /// MSI, an event a vector.
    Msi(&'a [EventFd]),
    /// MSI-X, an event a vector.
    Msix(&'a [EventFd]),
}

/// One PCI function of the host.
pub trait PhysicalFunction: Send {
    /// Reads configuration space at any `offset` below 256; what cannot be read is all ones.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space.
    fn config_write(&self, offset: u16, data: &[u8]);

    /// The region behind base address register `bar`, 0 to 5.
    fn region(&self, bar: u8) -> Region;

    /// Reads registers inside a region; what cannot be read is all ones.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes registers inside a region.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);

    /// Maps a mappable range of a region into this process.
    fn pages(&self, bar: u8, range: Range<u64>) -> io::Result<Pages>;

    /// Whether it has an interrupt pin that can be used.
    fn has_pin(&self) -> bool;

    /// From now on interrupts come so, and no other way.
    fn signal(&self, signals: Signals<'_>) -> io::Result<()>;

    /// Whether it has been lost for ever: then the guest finds nothing at its place.
    fn is_gone(&self) -> bool {
        false
    }

    /// Brings the function into the state after power-on.
    fn reset(&self) -> io::Result<()>;

    /// Gives it back to whom it is from. When this returns, it reaches none of the guest's memory.
    fn close(self: Box<Self>) {}
}
