// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two address spaces, ports and memory, each a map from ranges to devices.
//!
//! A device sees offsets into its own range, never an address, so it can be moved. Reads that
//! nothing answers are all ones, as on a PC; writes that nothing takes are dropped.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A device on a bus.
pub trait BusDevice: Send {
    /// Reads `data.len()` bytes at `offset` into the device's range.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset` into the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device that several ranges and threads share.
pub type Shared = Arc<Mutex<dyn BusDevice>>;

/// A range that cannot be given to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Empty, or past the end of the address space.
    #[error("range {base:#x}+{length:#x} is empty or wraps")]
    Range {
        /// First address.
        base: u64,
        /// Bytes.
        length: u64,
    },
    /// Another device answers there.
    #[error("range {base:#x}+{length:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address asked for.
        base: u64,
        /// Bytes asked for.
        length: u64,
        /// First address of the device in the way.
        other: u64,
    },
}

/// An address space of devices.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<BTreeMap<u64, (u64, Shared)>>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_map()
            .entries(ranges.iter().map(|(base, (length, _))| (base, length)))
            .finish()
    }
}

impl Bus {
    /// Gives `length` bytes from `base` to `device`.
    pub fn insert(&self, base: u64, length: u64, device: Shared) -> Result<(), BusError> {
        let last = length
            .checked_sub(1)
            .and_then(|l| base.checked_add(l))
            .ok_or(BusError::Range { base, length })?;
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        // The neighbour below or inside is the only one that can overlap.
        if let Some((&other, &(other_length, _))) = ranges.range(..=last).next_back()
            && other.saturating_add(other_length.saturating_sub(1)) >= base
        {
            return Err(BusError::Overlap {
                base,
                length,
                other,
            });
        }
        ranges.insert(base, (length, device));
        Ok(())
    }

    /// Takes the device that starts at `base` off the bus.
    pub fn remove(&self, base: u64) -> Option<Shared> {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.remove(&base).map(|(_, device)| device)
    }

    /// Reads; false if no device answered and `data` is all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                device
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes; false if no device took it.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                device
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .write(offset, data);
                true
            }
            None => false,
        }
    }

    /// The device that holds the whole access. The map's lock is released before it is called, so
    /// that a device may change the bus it is on.
    fn find(&self, address: u64, size: usize) -> Option<(u64, Shared)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (base, (length, device)) = ranges.range(..=address).next_back()?;
        let offset = address.checked_sub(*base)?;
        let left = length.checked_sub(offset).filter(|left| *left > 0)?;
        let size = u64::try_from(size).ok()?;
        (size <= left).then(|| (offset, Arc::clone(device)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(Vec<(u64, Vec<u8>)>);
    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset.to_le_bytes()[0]);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }
    fn echo() -> Shared {
        Arc::new(Mutex::new(Echo(Vec::new())))
    }

    #[test]
    fn a_device_sees_offsets_and_strays_read_ones() {
        let bus = Bus::default();
        bus.insert(0x100, 0x10, echo()).unwrap();
        let mut data = [0; 2];
        assert!(bus.read(0x104, &mut data));
        assert_eq!(data, [4, 4]);
        for stray in [0xff, 0x10f, 0x110, u64::MAX] {
            data = [0; 2];
            assert!(!bus.read(stray, &mut data), "{stray:#x}");
            assert_eq!(data, [0xff, 0xff]);
        }
        assert!(bus.remove(0x100).is_some());
        assert!(!bus.write(0x104, &[1]));
    }

    #[test]
    fn ranges_do_not_overlap_or_wrap() {
        let bus = Bus::default();
        bus.insert(0x100, 0x10, echo()).unwrap();
        for (base, length) in [(0xff, 2), (0x100, 0x10), (0x10f, 1), (0, 0x1000)] {
            let error = bus.insert(base, length, echo()).unwrap_err();
            assert_eq!(
                error,
                BusError::Overlap {
                    base,
                    length,
                    other: 0x100
                }
            );
        }
        for (base, length) in [(0, 0), (u64::MAX, 2), (2, u64::MAX)] {
            assert_eq!(
                bus.insert(base, length, echo()),
                Err(BusError::Range { base, length })
            );
        }
        bus.insert(0xff, 1, echo()).unwrap();
        bus.insert(0x110, 1, echo()).unwrap();
        bus.insert(u64::MAX, 1, echo()).unwrap();
    }
}
