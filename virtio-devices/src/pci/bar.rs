// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Base address registers of memory windows.
//!
//! ```text
//!   31                       n          3    2:1    0
//!   [ address, writable      | 0 ... 0 | pf | type | 0 ]    window of 2^n bytes; type 0: 32 bits, 2: 64
//! ```
//!
//! Software finds the size by writing all ones: the bits below the size stay 0.
//!
//! PCI Local Bus 3.0, "Base Addresses".

use super::{Window, config::register};

/// The shape of a memory window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BarKind {
    /// Anywhere below 4 GiB.
    Memory32,
    /// Anywhere; takes two registers.
    Memory64,
    /// As [`Memory64`](Self::Memory64), and reads have no side effects, so they may be merged or repeated.
    Memory64Prefetchable,
}

/// A window that a base address register cannot describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// Not a power of two, below 16 bytes, or above what the kind can address.
    #[error("a window of {length:#x} bytes")]
    Length {
        /// Bytes asked for.
        length: u64,
    },
    /// There is no such register, or no second one after it.
    #[error("there is no base address register {index} of that kind")]
    Index {
        /// Register asked for.
        index: u8,
    },
    /// The register, or the one after it, is in use.
    #[error("base address register {index} is taken")]
    Taken {
        /// Register asked for.
        index: u8,
    },
}

/// A memory window's base address register, or pair of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bar {
    index: u8,
    kind: BarKind,
    length: u64,
}

impl Bar {
    /// A window of `length` bytes behind register `index`.
    pub fn new(index: u8, kind: BarKind, length: u64) -> Result<Self, BarError> {
        let bar = Self {
            index,
            kind,
            length,
        };
        // Two small numbers.
        if usize::from(index).saturating_add(bar.registers()) > 6 {
            return Err(BarError::Index { index });
        }
        let largest = if kind == BarKind::Memory32 {
            1 << 31
        } else {
            1 << 63
        };
        if !length.is_power_of_two() || !(16..=largest).contains(&length) {
            return Err(BarError::Length { length });
        }
        Ok(bar)
    }

    /// Bytes of the window.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// How many registers it takes: 1 or 2.
    pub fn registers(&self) -> usize {
        if self.kind == BarKind::Memory32 { 1 } else { 2 }
    }

    /// Offset of the first one in configuration space.
    pub fn register(&self) -> u16 {
        // An index below 6.
        (u16::from(self.index) << 2).saturating_add(register::BARS)
    }

    /// The read-only low bits.
    pub fn type_bits(&self) -> u32 {
        match self.kind {
            BarKind::Memory32 => 0b0000,
            BarKind::Memory64 => 0b0100,
            BarKind::Memory64Prefetchable => 0b1100,
        }
    }

    /// The bits that software may set, over both registers.
    pub fn writable(&self) -> u64 {
        // A power of two.
        !self.length.wrapping_sub(1)
    }

    /// The window, when the registers hold `value`. None at 0, which means not assigned, nor at the very
    /// top of the address space, which is what the registers hold while software reads the size.
    pub fn window(&self, value: u64) -> Option<Window> {
        let address = value & self.writable();
        let last = match self.kind {
            BarKind::Memory32 => u64::from(u32::MAX),
            _ => u64::MAX,
        };
        (address != 0
            && self
                .length
                .checked_sub(1)
                .and_then(|more| last.checked_sub(more))
                .is_some_and(|last| address < last))
        .then_some(Window {
            bar: self.index,
            address,
            length: self.length,
        })
    }
}
