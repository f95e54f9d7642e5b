// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration space as memory.
//!
//! PCI Express, "PCI Express Enhanced Configuration Access Mechanism (ECAM)".

use super::address::ConfigAddress;
use super::root::Root;
use crate::bus::BusDevice;
use std::sync::{Arc, Mutex, PoisonError};

/// The window of memory behind which is all of a segment's configuration space, 1 MiB a bus.
#[derive(Debug)]
pub struct Ecam {
    root: Arc<Mutex<Root>>,
    segment: u16,
}

impl Ecam {
    /// The window to the functions of `segment` in `root`, at its offset 0 bus 0.
    #[must_use]
    pub fn new(root: Arc<Mutex<Root>>, segment: u16) -> Self {
        Ecam { root, segment }
    }
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match u32::try_from(offset) {
            Ok(offset) => {
                let mut root = self.root.lock().unwrap_or_else(PoisonError::into_inner);
                root.read_in(self.segment, ConfigAddress(offset), data);
            }
            Err(_) => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Ok(offset) = u32::try_from(offset) {
            let mut root = self.root.lock().unwrap_or_else(PoisonError::into_inner);
            root.write_in(self.segment, ConfigAddress(offset), data);
        }
    }
}
