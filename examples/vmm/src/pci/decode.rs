// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which windows of which function are on the memory bus now.
//!
//! A guest may move a window anywhere, also onto another one or onto memory. A window is given only
//! what lies inside the host bridge's apertures and is not taken; one that is refused waits until
//! room is made.

use super::address::FunctionAddress;
use super::doorbells::Doorbells;
use super::root::{Function, lock};
use crate::bus::{Bus, BusDevice};
use hvkit_virtio_devices::pci::Window;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Puts windows on the bus and takes them off.
pub struct Decoder {
    bus: Arc<Bus>,
    apertures: Vec<Range<u64>>,
    doorbells: Arc<dyn Doorbells>,
}

/// What one function has on the bus, and what it would have if there were room.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    mapped: Vec<Mapped>,
    refused: Vec<Window>,
    /// One bit a BAR: a refusal was said once.
    said: u8,
}

#[derive(Debug)]
struct Mapped {
    window: Window,
    /// Offsets of the doorbells that the kernel took.
    doorbells: Vec<u64>,
}

impl Decoded {
    /// The windows that are on the bus.
    pub(super) fn windows(&self) -> impl Iterator<Item = Window> {
        self.mapped.iter().map(|mapped| mapped.window)
    }
}

/// One window of a function as the bus sees it.
struct BarWindow {
    function: Function,
    bar: u8,
}

impl BusDevice for BarWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.function).bar_read(self.bar, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        lock(&self.function).bar_write(self.bar, offset, data);
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field("apertures", &self.apertures)
            .finish_non_exhaustive()
    }
}

impl Decoder {
    /// Windows appear on `bus` where they lie inside one of `apertures`.
    #[must_use]
    pub fn new(
        bus: Arc<Bus>,
        apertures: impl IntoIterator<Item = Range<u64>>,
        doorbells: Arc<dyn Doorbells>,
    ) -> Self {
        Decoder {
            bus,
            apertures: apertures.into_iter().collect(),
            doorbells,
        }
    }

    /// Compares what `function` decodes now with what is on the bus. True if it gave up room.
    pub(super) fn update(
        &self,
        at: FunctionAddress,
        function: &Function,
        decoded: &mut Decoded,
    ) -> bool {
        let wanted = lock(function).windows();
        let before = decoded.mapped.len();
        // Old windows leave before new ones come: a move may overlap its own origin.
        decoded.mapped.retain(|mapped| {
            let stays = wanted.contains(&mapped.window);
            if !stays {
                self.unmap(function, mapped);
            }
            stays
        });
        let freed = decoded.mapped.len() < before;
        decoded.refused = wanted
            .into_iter()
            .filter(|window| !decoded.mapped.iter().any(|m| m.window == *window))
            .collect();
        self.retry(at, function, decoded);
        freed
    }

    /// Maps what was refused before and fits now.
    pub(super) fn retry(&self, at: FunctionAddress, function: &Function, decoded: &mut Decoded) {
        let Decoded {
            mapped,
            refused,
            said,
        } = decoded;
        refused.retain(|&window| match self.map(function, window) {
            Ok(doorbells) => {
                log::debug!("{at} {window:x?} decodes");
                mapped.push(Mapped { window, doorbells });
                false
            }
            Err(why) => {
                let bit = 1u8.checked_shl(window.bar.into()).unwrap_or(0);
                if *said & bit == 0 {
                    *said |= bit;
                    log::warn!("{at} {window:x?} does not decode: {why}");
                }
                true
            }
        });
    }

    fn map(&self, function: &Function, window: Window) -> Result<Vec<u64>, Refused> {
        let end = window
            .address
            .checked_add(window.length)
            .ok_or(Refused::Outside)?;
        if !self
            .apertures
            .iter()
            .any(|a| a.start <= window.address && end <= a.end)
        {
            return Err(Refused::Outside);
        }
        let bar = window.bar;
        let device = BarWindow {
            function: Arc::clone(function),
            bar,
        };
        self.bus
            .insert(window.address, window.length, Arc::new(Mutex::new(device)))?;
        let mut taken = Vec::new();
        for doorbell in lock(function).doorbells() {
            if doorbell.bar != bar || doorbell.offset >= window.length {
                continue;
            }
            match self.doorbells.attach(
                window.address.saturating_add(doorbell.offset),
                doorbell.event,
            ) {
                Ok(()) => taken.push(doorbell.offset),
                // Slower, not wrong: the write exits to us and reaches `bar_write`.
                Err(error) => log::warn!("doorbell at {:#x}: {error}", doorbell.offset),
            }
        }
        lock(function).window_added(window);
        Ok(taken)
    }

    /// Takes all windows of `function` off the bus.
    pub(super) fn remove(&self, function: &Function, decoded: &mut Decoded) {
        for mapped in std::mem::take(decoded).mapped {
            self.unmap(function, &mapped);
        }
    }

    fn unmap(&self, function: &Function, mapped: &Mapped) {
        let window = mapped.window;
        lock(function).window_removed(window);
        for doorbell in lock(function).doorbells() {
            if doorbell.bar == window.bar && mapped.doorbells.contains(&doorbell.offset) {
                let address = window.address.saturating_add(doorbell.offset);
                if let Err(error) = self.doorbells.detach(address, doorbell.event) {
                    log::error!("the kernel keeps the doorbell at {address:#x}: {error}");
                }
            }
        }
        self.bus.remove(window.address);
    }
}

/// Why a window is not on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("it is not inside one of the host bridge's windows")]
    Outside,
    #[error(transparent)]
    Bus(#[from] crate::bus::BusError),
}

#[cfg(test)]
mod tests;
