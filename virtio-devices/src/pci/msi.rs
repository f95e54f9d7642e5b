// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MSI: up to 32 vectors with one address between them, all in the capability.
//!
//! ```text
//!   0  control:16     bit 0 enable, 3:1 vectors the function has, 6:4 vectors in use (both log2), 7 wide
//!   2  address:32     bits 1:0 are 0
//!   6  address:32     if wide
//!   .  data:16        the low bits, as many as count the vectors in use, are the vector's number
//! ```
//!
//! Without the optional mask and pending bits: a driver masks by disabling.
//!
//! PCI Local Bus 3.0, "MSI Capability Structure".

use std::sync::Arc;

use super::{MsiMessage, MsiVectors};

/// The capability's identifier.
pub const CAPABILITY: u8 = 0x05;
/// The largest number of vectors.
pub const MAX_VECTORS: u16 = 32;

/// Message Control: MSI is in use, and the interrupt pin is not.
const ENABLE: u16 = 1 << 0;
/// Message Control: log2 of the vectors in use, bits 6:4.
const IN_USE_SHIFT: u32 = 4;
const IN_USE: u16 = 7 << IN_USE_SHIFT;
/// Message Control: log2 of the vectors the function has, bits 3:1.
const HAS_SHIFT: u32 = 1;
/// Message Control: the address has 64 bits.
const WIDE: u16 = 1 << 7;

/// Not a power of two from 1 to 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} MSI vectors")]
pub struct CountError {
    /// Vectors asked for.
    pub count: u16,
}

/// Bits of the message address that the capability has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressWidth {
    /// The low 32.
    Bits32,
    /// All 64.
    Bits64,
}

/// A function's MSI state.
///
/// Where the VMM fails to route a vector, it stays silent until the driver next writes the capability. The
/// VMM saw its own error first; there is no one here to tell.
pub struct Msi {
    to: Arc<dyn MsiVectors>,
    count: u16,
    width: AddressWidth,
    /// What each vector delivers now; none where it is masked.
    routed: Vec<Option<MsiMessage>>,
}

impl std::fmt::Debug for Msi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msi")
            .field("count", &self.count)
            .field("width", &self.width)
            .field("routed", &self.routed)
            .finish_non_exhaustive()
    }
}

impl Msi {
    /// `count` vectors that lead to `to`, none in use.
    pub fn new(
        count: u16,
        width: AddressWidth,
        to: Arc<dyn MsiVectors>,
    ) -> Result<Self, CountError> {
        if !count.is_power_of_two() || count > MAX_VECTORS {
            return Err(CountError { count });
        }
        Ok(Self {
            to,
            count,
            width,
            routed: vec![None; count.into()],
        })
    }

    /// Number of vectors the function has.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// How many are in use: none while MSI is disabled.
    pub fn in_use(&self) -> u16 {
        // There are at most 32.
        self.routed.iter().flatten().count() as u16
    }

    /// The capability after its header, and the mask of those bits that software may set.
    pub fn capability(&self) -> (Vec<u8>, Vec<u8>) {
        let wide = self.width == AddressWidth::Bits64;
        let control =
            (self.count.trailing_zeros() as u16) << HAS_SHIFT | if wide { WIDE } else { 0 };
        let mut body = control.to_le_bytes().to_vec();
        let mut writable = (ENABLE | IN_USE).to_le_bytes().to_vec();
        let address = if wide { !3u64 } else { 0xffff_fffc }.to_le_bytes();
        writable.extend(address.iter().take(if wide { 8 } else { 4 }));
        writable.extend_from_slice(&u16::MAX.to_le_bytes());
        body.resize(writable.len(), 0);
        (body, writable)
    }

    /// Software may have written the capability, which after its header now reads `body`. What is missing
    /// of it reads 0.
    pub fn set(&mut self, body: &[u8]) {
        let mut bytes = body.iter().copied().chain(std::iter::repeat(0));
        let mut next = |count: u32| {
            (0..count).fold(0u64, |word, byte| {
                word | u64::from(bytes.next().unwrap_or(0)) << (byte << 3)
            })
        };
        // Truncations on purpose: two bytes each.
        let control = next(2) as u16;
        let address = match self.width {
            AddressWidth::Bits32 => next(4),
            AddressWidth::Bits64 => next(8),
        } & !3;
        let data = next(2) as u16;
        let in_use = match control & ENABLE {
            0 => 0,
            // Asking for more than there are is undefined: it gets what there is.
            _ => (1 << ((control & IN_USE) >> IN_USE_SHIFT)).min(self.count),
        };
        for vector in 0..self.count {
            let wanted = (vector < in_use).then_some(MsiMessage {
                address,
                data: u32::from(data & !(in_use.wrapping_sub(1)) | vector),
            });
            self.settle(vector, wanted);
        }
    }

    fn settle(&mut self, vector: u16, wanted: Option<MsiMessage>) {
        let Some(routed) = self.routed.get_mut(usize::from(vector)) else {
            return;
        };
        match wanted {
            _ if *routed == wanted => {}
            Some(message) if self.to.route(vector, message).is_ok() => *routed = Some(message),
            // Refused, or not in use: not the old message either.
            _ => {
                *routed = None;
                // If that fails too, it is the VMM's to tell: the function uses it no more.
                let _ = self.to.mask(vector);
            }
        }
    }
}
