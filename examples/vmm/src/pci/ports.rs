// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration space through two ports: select, then read or write.
//!
//! ```text
//!   0xcf8         0xcf9          0xcfc .. 0xcff
//!   latch, 32 bit reset control, the dword that the latch selects,
//!   only          8 bit only     by byte, word or dword
//! ```
//!
//! PCI, "Software Generation of Configuration Transactions".

use super::address::ConfigAddress;
use super::root::Root;
use crate::bus::{BusDevice, Shared};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// How many ports this device takes from 0xcf8 up.
pub const PORTS: u8 = 8;

/// The latch keeps what it has a meaning for: enable, bus, device, function, register.
const LATCH_BITS: u32 = 0x80ff_fffc;
const LATCH: u64 = 0;
const RESET_CONTROL: u64 = 1;
const DATA: u64 = 4;

/// The ports from 0xcf8 to 0xcff.
pub struct ConfigPorts {
    root: Arc<Mutex<Root>>,
    latch: u32,
    reset_control: Shared,
}

impl fmt::Debug for ConfigPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigPorts")
            .field("latch", &format_args!("{:#010x}", self.latch))
            .finish_non_exhaustive()
    }
}

impl ConfigPorts {
    /// The ports to the functions of `root`. Byte accesses to 0xcf9, in the middle of the latch,
    /// are not the latch's: they go to `reset_control`, at its offset 0.
    #[must_use]
    pub fn new(root: Arc<Mutex<Root>>, reset_control: Shared) -> Self {
        ConfigPorts {
            root,
            latch: 0,
            reset_control,
        }
    }

    /// What was last selected.
    #[must_use]
    pub fn latch(&self) -> u32 {
        self.latch
    }

    /// Selects as a write does.
    pub fn set_latch(&mut self, value: u32) {
        self.latch = value & LATCH_BITS;
    }

    /// The configuration address of an access that stays inside the data port.
    fn selected(&self, offset: u64, length: usize) -> Option<ConfigAddress> {
        let byte = u32::try_from(offset.checked_sub(DATA)?).ok()?;
        let end = usize::try_from(byte).ok()?.checked_add(length)?;
        let base = ConfigAddress::from_mechanism_1(self.latch)?;
        (end <= 4).then_some(ConfigAddress(base.0 | byte))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (LATCH, 4) => data.copy_from_slice(&self.latch.to_le_bytes()),
            (RESET_CONTROL, 1) => self
                .reset_control
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .read(0, data),
            (_, length) => match self.selected(offset, length) {
                Some(address) => self
                    .root
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .read(address, data),
                None => data.fill(0xff),
            },
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (LATCH, &[a, b, c, d]) => self.set_latch(u32::from_le_bytes([a, b, c, d])),
            (RESET_CONTROL, [_]) => self
                .reset_control
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(0, data),
            (_, data) => {
                if let Some(address) = self.selected(offset, data.len()) {
                    self.root
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .write(address, data);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
