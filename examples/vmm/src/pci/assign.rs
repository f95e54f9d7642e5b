// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The addresses that BARs have before the guest runs.
//!
//! There is no firmware in this machine, so the VMM does what firmware does, through configuration
//! space alone: size each base address register, give it an address, leave decoding off. PCI,
//! "Base Addresses" and its implementation note on sizing.

use super::address::FunctionAddress;
use super::root::{Root, lock};
use hvkit_virtio_devices::pci::PciFunction;
use std::cmp::Reverse;
use std::ops::Range;
use vm_allocator::{AddressAllocator, AllocPolicy};

const HEADER_TYPE: u16 = 0x0e;
const HEADER_TYPE_MASK: u8 = 0x7f;
const BAR_0: u16 = 0x10;
const BARS: u8 = 6;

/// Bit 0: this is an I/O BAR.
const IO: u32 = 1;
/// Bits 2:1 of a memory BAR: 0 for a 32-bit address, 2 for a 64-bit one in two registers.
const TYPE: u32 = 6;
const TYPE_32: u32 = 0;
const TYPE_64: u32 = 4;
const MEMORY_FLAGS: u64 = 0xf;

/// A BAR that got no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    /// The windows are too small for all BARs.
    #[error("no room for the {length:#x} bytes of BAR {bar} of PCI function {at}")]
    NoRoom {
        /// The function.
        at: FunctionAddress,
        /// Which base address register.
        bar: u8,
        /// Bytes it asks for.
        length: u64,
    },
    /// A window is empty or does not end inside the address space.
    #[error("{start:#x}..{end:#x} is no window for BARs")]
    Window {
        /// Its first address.
        start: u64,
        /// The address behind it.
        end: u64,
    },
}

/// What a memory BAR asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    bar: u8,
    length: u64,
    wide: bool,
}

impl Root {
    /// Gives each memory BAR of each function of `segment` an address: 64-bit ones in `mmio64` as long as
    /// there is room, all others in `mmio32`. I/O BARs stay unassigned: nothing decodes them.
    pub fn assign(
        &mut self,
        segment: u16,
        mmio32: Range<u64>,
        mmio64: Range<u64>,
    ) -> Result<(), AssignError> {
        let mut low = allocator(&mmio32)?;
        let mut high = allocator(&mmio64)?;
        let mut requests = Vec::new();
        for (at, function) in self.functions().filter(|(at, _)| at.segment() == segment) {
            let found = requests_of(&mut *lock(function));
            requests.extend(found.into_iter().map(|r| (at, function, r)));
        }
        // Large ones first: then alignment wastes nothing.
        requests.sort_by_key(|(at, _, r)| (Reverse(r.length), *at, r.bar));
        for (at, function, Request { bar, length, wide }) in requests {
            let from = |a: &mut AddressAllocator| {
                a.allocate(length, length, AllocPolicy::FirstMatch)
                    .map(|range| range.start())
            };
            let address = match wide {
                true => from(&mut high).or_else(|_| from(&mut low)),
                false => from(&mut low),
            }
            .map_err(|_| AssignError::NoRoom { at, bar, length })?;
            let mut function = lock(function);
            let (half, _) = split(address);
            write(&mut *function, bar, half);
            if wide {
                let (_, half) = split(address);
                write(&mut *function, bar.saturating_add(1), half);
            }
        }
        Ok(())
    }
}

fn allocator(window: &Range<u64>) -> Result<AddressAllocator, AssignError> {
    let &Range { start, end } = window;
    let length = end.checked_sub(start);
    length
        .and_then(|length| AddressAllocator::new(start, length).ok())
        .ok_or(AssignError::Window { start, end })
}

/// Sizes the memory BARs of a function; each keeps the value it had.
fn requests_of(function: &mut dyn PciFunction) -> Vec<Request> {
    let mut header = [0];
    function.config_read(HEADER_TYPE, &mut header);
    let mut found = Vec::new();
    if header[0] & HEADER_TYPE_MASK != 0 {
        return found;
    }
    let mut bar = 0;
    while bar < BARS {
        let low = size(function, bar);
        let next = bar.saturating_add(1);
        let wide = low & (IO | TYPE) == TYPE_64 && next < BARS;
        let mask = match wide {
            true => u64::from(size(function, next)) << 32 | u64::from(low),
            false => 0xffff_ffff_0000_0000 | u64::from(low),
        };
        // The lowest address bit that can be set is the length.
        let address_bits = mask & !MEMORY_FLAGS;
        let memory = low != 0 && (wide || low & (IO | TYPE) == TYPE_32);
        if memory && (wide || low & !0xf != 0) && address_bits != 0 {
            let length = address_bits & address_bits.wrapping_neg();
            found.push(Request { bar, length, wide });
        }
        bar = next.saturating_add(wide.into());
    }
    found
}

/// What a register reads after all ones were written to it: its type, and ones where it can be set.
fn size(function: &mut dyn PciFunction, bar: u8) -> u32 {
    let before = read(function, bar);
    write(function, bar, u32::MAX);
    let mask = read(function, bar);
    write(function, bar, before);
    mask
}

fn read(function: &mut dyn PciFunction, bar: u8) -> u32 {
    let mut data = [0; 4];
    function.config_read(register(bar), &mut data);
    u32::from_le_bytes(data)
}

fn write(function: &mut dyn PciFunction, bar: u8, value: u32) {
    function.config_write(register(bar), &value.to_le_bytes());
}

/// Offset of a base address register.
fn register(bar: u8) -> u16 {
    BAR_0.saturating_add(u16::from(bar).saturating_mul(4))
}

/// Low and high half.
fn split(address: u64) -> (u32, u32) {
    ((address & 0xffff_ffff) as u32, (address >> 32) as u32)
}

#[cfg(test)]
mod tests;
