// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is at the place of a function that was taken away: nothing, which reads all ones.
//!
//! PCI Express, "Completion Status Field".

use super::hardware::{PhysicalFunction, Region, Signals};
use super::pages::Pages;
use std::io;
use std::ops::Range;

/// No function.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone;

impl PhysicalFunction for Gone {
    fn config_read(&self, _offset: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn config_write(&self, _offset: u16, _data: &[u8]) {}

    fn region(&self, _bar: u8) -> Region {
        Region::default()
    }

    fn bar_read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn pages(&self, _bar: u8, _range: Range<u64>) -> io::Result<Pages> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn has_pin(&self) -> bool {
        false
    }

    fn signal(&self, _signals: Signals<'_>) -> io::Result<()> {
        Ok(())
    }

    fn is_gone(&self) -> bool {
        true
    }

    fn reset(&self) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
}
