// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration space as memory.
//!
//! PCI Express, "PCI Express Enhanced Configuration Access Mechanism (ECAM)".

use super::address::ConfigAddress;
use super::root::Root;
use crate::bus::BusDevice;
use std::sync::{Arc, Mutex, PoisonError};

/// The window of memory behind which is all of configuration space, 1 MiB a bus.
#[derive(Debug)]
pub struct Ecam(Arc<Mutex<Root>>);

impl Ecam {
    /// The window to the functions of `root`, at its offset 0 bus 0.
    #[must_use]
    pub fn new(root: Arc<Mutex<Root>>) -> Self {
        Ecam(root)
    }
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match u32::try_from(offset) {
            Ok(offset) => {
                let mut root = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                root.read(ConfigAddress(offset), data);
            }
            Err(_) => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Ok(offset) = u32::try_from(offset) {
            let mut root = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            root.write(ConfigAddress(offset), data);
        }
    }
}
