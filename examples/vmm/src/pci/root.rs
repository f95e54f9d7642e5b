// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The functions of bus 0 of each segment, found by configuration address.

use super::address::{ConfigAddress, FunctionAddress};
use super::decode::{Decoded, Decoder};
use hvkit_virtio_devices::pci::{PciFunction, Window};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A function that the bus shares with whoever else drives it.
pub type Function = Arc<Mutex<dyn PciFunction>>;

/// Header type: bit 7 of function 0 says that the device has more. PCI, "Configuration Space
/// Organization".
const HEADER_TYPE: u16 = 0x0e;
const MULTI_FUNCTION: u8 = 0x80;

/// A function that cannot be on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Another function is there.
    #[error("two functions at {at}")]
    Taken {
        /// Where.
        at: FunctionAddress,
    },
    /// No function 0: the guest would not look for the others.
    #[error("{at} needs a function 0 in its device first")]
    NoFunctionZero {
        /// The function that came too early.
        at: FunctionAddress,
    },
    /// All 32 devices are there.
    #[error("all 32 devices of PCI segment {segment} are taken")]
    Full {
        /// The segment.
        segment: u16,
    },
}

/// Bus 0 of each segment and what is on it.
pub struct Root {
    slots: BTreeMap<FunctionAddress, Slot>,
    decoder: Decoder,
}

struct Slot {
    function: Function,
    decoded: Decoded,
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.slots.iter().map(|(at, slot)| (at, &slot.decoded)))
            .finish()
    }
}

impl Root {
    /// Empty buses whose functions' registers appear by `decoder`.
    #[must_use]
    pub fn new(decoder: Decoder) -> Self {
        Root {
            slots: BTreeMap::new(),
            decoder,
        }
    }

    /// Puts `function` at an address of the caller's choice.
    pub fn insert(&mut self, at: FunctionAddress, function: Function) -> Result<(), RootError> {
        if self.slots.contains_key(&at) {
            return Err(RootError::Taken { at });
        }
        let zero = FunctionAddress::from_byte(at.to_byte() & !7).in_segment(at.segment());
        if at != zero && !self.slots.contains_key(&zero) {
            return Err(RootError::NoFunctionZero { at });
        }
        let decoded = Decoded::default();
        self.slots.insert(at, Slot { function, decoded });
        self.decode(at);
        Ok(())
    }

    /// The first device of `segment` that nothing is at.
    pub fn free(&self, segment: u16) -> Result<FunctionAddress, RootError> {
        (0..32)
            .filter_map(FunctionAddress::of_device)
            .map(|at| at.in_segment(segment))
            .find(|at| !self.slots.contains_key(at))
            .ok_or(RootError::Full { segment })
    }

    /// Puts `function` in the first free device of segment 0 and says where that is.
    pub fn append(&mut self, function: Function) -> Result<FunctionAddress, RootError> {
        let at = self.free(0)?;
        self.insert(at, function)?;
        Ok(at)
    }

    /// Takes the function at `at` off the bus, where there is then nothing.
    pub fn remove(&mut self, at: FunctionAddress) {
        if let Some(mut slot) = self.slots.remove(&at) {
            self.decoder.remove(&slot.function, &mut slot.decoded);
            self.retry();
        }
    }

    /// Takes all functions off the bus. The bus's ranges lead back here, so that functions would
    /// otherwise keep themselves alive.
    pub fn clear(&mut self) {
        for mut slot in std::mem::take(&mut self.slots).into_values() {
            self.decoder.remove(&slot.function, &mut slot.decoded);
        }
    }

    /// The functions, in the order of their addresses.
    pub fn functions(&self) -> impl Iterator<Item = (FunctionAddress, &Function)> {
        self.slots.iter().map(|(&at, slot)| (at, &slot.function))
    }

    /// The windows of all functions that are on the memory bus now.
    pub fn windows(&self) -> impl Iterator<Item = (FunctionAddress, Window)> {
        let slots = self.slots.iter();
        slots.flat_map(|(&at, slot)| slot.decoded.windows().map(move |window| (at, window)))
    }

    /// Reads configuration space of segment 0, any length and alignment. What is absent reads all ones.
    pub fn read(&mut self, address: ConfigAddress, data: &mut [u8]) {
        self.read_in(0, address, data);
    }

    /// The same of any segment.
    pub fn read_in(&mut self, segment: u16, address: ConfigAddress, data: &mut [u8]) {
        for (piece, data) in pieces_mut(address, data) {
            let at = piece.function().in_segment(segment);
            match self.slots.get_mut(&at) {
                Some(slot) if piece.bus() == 0 => {
                    let mut function = lock(&slot.function);
                    function.config_read(piece.register(), data);
                    drop(function);
                    self.mark_multi_function(at, piece, data);
                }
                _ => data.fill(0xff),
            }
        }
    }

    /// Writes configuration space of segment 0, any length and alignment, and moves windows that the writes
    /// moved. What is absent takes nothing.
    pub fn write(&mut self, address: ConfigAddress, data: &[u8]) {
        self.write_in(0, address, data);
    }

    /// The same of any segment.
    pub fn write_in(&mut self, segment: u16, address: ConfigAddress, data: &[u8]) {
        let mut rest = data;
        for (piece, length) in pieces(address, data.len()) {
            let (data, after) = rest.split_at(length);
            rest = after;
            let at = piece.function().in_segment(segment);
            if piece.bus() == 0
                && let Some(slot) = self.slots.get_mut(&at)
            {
                lock(&slot.function).config_write(piece.register(), data);
                self.decode(at);
            }
        }
    }

    /// Brings the windows of the function in line with what it says now: it was not written to through the bus.
    pub fn moved(&mut self, at: FunctionAddress) {
        self.decode(at);
    }

    fn mark_multi_function(&self, at: FunctionAddress, piece: ConfigAddress, data: &mut [u8]) {
        let device = |at: FunctionAddress| (at.segment(), at.device());
        if let Some(offset) = HEADER_TYPE.checked_sub(piece.register())
            && at.function() == 0
            && let Some(header) = data.get_mut(usize::from(offset))
            && self.slots.range(at..).nth(1).map(|(&next, _)| device(next)) == Some(device(at))
        {
            *header |= MULTI_FUNCTION;
        }
    }

    /// Brings the windows of the function in line; where it left room, others may move in.
    fn decode(&mut self, at: FunctionAddress) {
        let Some(slot) = self.slots.get_mut(&at) else {
            return;
        };
        if self.decoder.update(at, &slot.function, &mut slot.decoded) {
            self.retry();
        }
    }

    /// Lets others move in where there is room now.
    fn retry(&mut self) {
        for (&other, slot) in &mut self.slots {
            self.decoder.retry(other, &slot.function, &mut slot.decoded);
        }
    }
}

/// Cuts an access into naturally aligned ones of 1, 2 or 4 bytes, in ascending order.
fn pieces(from: ConfigAddress, length: usize) -> impl Iterator<Item = (ConfigAddress, usize)> {
    let (mut address, mut left) = (from.0, length);
    std::iter::from_fn(move || {
        let aligned = 1 << address.trailing_zeros().min(2);
        let size = [4, 2, 1].into_iter().find(|&s| s <= aligned && s <= left)?;
        let piece = ConfigAddress(address);
        // Behind the last address is nothing: it stays on a bus that is not there.
        address = address.saturating_add(u32::try_from(size).ok()?);
        left = left.saturating_sub(size);
        Some((piece, size))
    })
}

fn pieces_mut(
    from: ConfigAddress,
    data: &mut [u8],
) -> impl Iterator<Item = (ConfigAddress, &mut [u8])> {
    let lengths = pieces(from, data.len());
    let mut rest = data;
    lengths.map(move |(piece, length)| {
        let (data, after) = std::mem::take(&mut rest).split_at_mut(length);
        rest = after;
        (piece, data)
    })
}

/// A function whose driver panicked is still there for the others.
pub(super) fn lock(function: &Function) -> std::sync::MutexGuard<'_, dyn PciFunction + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
