// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MSI-X: the capability, the vector table, the pending bits.
//!
//! ```text
//!   table entry, 16 bytes:  address:64   data:32   control:32 (bit 0: masked)
//!   pending bits:           one a vector, read-only
//!
//!   a vector is live if MSI-X is enabled, the function is not masked, and the vector is not masked
//!   trigger:   live -> delivered        else -> its pending bit
//!   goes live: routed, then delivered if its pending bit was set
//! ```
//!
//! PCI Local Bus 3.0, "MSI-X Capability and Table Structures".

use std::sync::Arc;

use super::{MsiMessage, MsiVectors};

/// The capability's identifier.
pub const CAPABILITY: u8 = 0x11;
/// The largest number of vectors.
pub const MAX_VECTORS: u16 = 2048;
/// Bytes of a table entry.
pub const ENTRY: u64 = 16;

/// Message Control: the function's vectors are all masked.
pub(crate) const FUNCTION_MASK: u16 = 1 << 14;
/// Message Control: MSI-X is in use, and the interrupt pin is not.
const ENABLE: u16 = 1 << 15;

/// More vectors than MSI-X can have, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} MSI-X vectors")]
pub struct CountError {
    /// Vectors asked for.
    pub count: u16,
}

/// Where a structure is: in the window of a base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Base address register, 0 to 5.
    pub bar: u8,
    /// Offset in its window; a multiple of 8.
    pub offset: u32,
}

/// A vector as it was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct VectorState {
    /// Where it leads.
    pub message: MsiMessage,
    /// The driver has masked it.
    pub masked: bool,
    /// It was raised while it could not be delivered.
    pub pending: bool,
}

#[derive(Clone, Copy, Debug)]
struct Vector {
    message: MsiMessage,
    masked: bool,
    pending: bool,
    /// The other side delivers `message` when it is told to.
    routed: bool,
}

/// A function's MSI-X state.
///
/// Where the VMM fails to route or to deliver, the interrupt stays pending, and is tried again when the
/// driver next touches the vector. The VMM saw its own error first; there is no one here to tell.
pub struct Msix {
    to: Arc<dyn MsiVectors>,
    vectors: Vec<Vector>,
    control: u16,
}

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msix")
            .field("control", &self.control)
            .field("vectors", &self.vectors)
            .finish_non_exhaustive()
    }
}

impl Msix {
    /// `count` vectors, all masked, that lead to `to`.
    pub fn new(count: u16, to: Arc<dyn MsiVectors>) -> Result<Self, CountError> {
        if !(1..=MAX_VECTORS).contains(&count) {
            return Err(CountError { count });
        }
        let vector = Vector {
            message: MsiMessage::default(),
            masked: true,
            pending: false,
            routed: false,
        };
        Ok(Self {
            to,
            vectors: vec![vector; count.into()],
            // Not 0.
            control: count.wrapping_sub(1),
        })
    }

    /// Number of vectors.
    pub fn count(&self) -> u16 {
        // At most 2048.
        (self.control & (MAX_VECTORS - 1)).wrapping_add(1)
    }

    /// Bytes of the table.
    pub fn table_length(&self) -> u64 {
        // Of 11 bits and 5.
        u64::from(self.count()).saturating_mul(ENTRY)
    }

    /// Bytes of the pending bits.
    pub fn pending_length(&self) -> u64 {
        u64::from(self.count()).div_ceil(64) << 3
    }

    /// The capability after its header, and the mask of those bits that software may set.
    pub fn capability(&self, table: Place, pending: Place) -> ([u8; 10], [u8; 10]) {
        let word = |place: Place| ((place.offset & !7) | u32::from(place.bar & 7)).to_le_bytes();
        let mut body = [0; 10];
        let fields = self.control.to_le_bytes().into_iter();
        let fields = fields.chain(word(table)).chain(word(pending));
        for (byte, field) in body.iter_mut().zip(fields) {
            *byte = field;
        }
        let mut writable = [0; 10];
        let settable = (ENABLE | FUNCTION_MASK).to_le_bytes();
        for (byte, field) in writable.iter_mut().zip(settable) {
            *byte = field;
        }
        (body, writable)
    }

    /// The table and the pending bits. Message Control is configuration space's.
    pub fn save(&self) -> Vec<VectorState> {
        let save = |vector: &Vector| VectorState {
            message: vector.message,
            masked: vector.masked,
            pending: vector.pending,
        };
        self.vectors.iter().map(save).collect()
    }

    /// Takes what was saved, of as many vectors as there are. Before MSI-X is enabled.
    pub fn restore(&mut self, state: &[VectorState]) {
        for (vector, saved) in self.vectors.iter_mut().zip(state) {
            vector.message = saved.message;
            vector.message.address &= !3;
            vector.masked = saved.masked;
            vector.pending = saved.pending;
        }
    }

    /// Whether the driver has enabled MSI-X. If not, the interrupt pin is in use.
    pub fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// Software has written the capability's Message Control, which now reads `control`.
    pub fn set_control(&mut self, control: u16) {
        let settable = ENABLE | FUNCTION_MASK;
        let old = self.control;
        self.control = (self.control & !settable) | (control & settable);
        if old == self.control {
            return;
        }
        let enabled = self.is_enabled();
        for index in 0..self.vectors.len() {
            if let Some(vector) = self.vectors.get_mut(index).filter(|_| !enabled) {
                // What happened before MSI-X was last switched off is not news after it is on again.
                vector.pending = false;
            }
            self.settle(index, Change::Control);
        }
    }

    /// The function was reset: MSI-X is disabled, every vector masked and without a message.
    pub fn reset(&mut self) {
        self.set_control(0);
        for vector in &mut self.vectors {
            vector.message = MsiMessage::default();
            vector.masked = true;
        }
    }

    /// Raises `vector`. Without effect if there is no such vector or MSI-X is disabled.
    pub fn trigger(&mut self, vector: u16) {
        if !self.is_enabled() {
            return;
        }
        if let Some(state) = self.vectors.get_mut(usize::from(vector)) {
            state.pending = true;
            self.deliver(vector.into());
        }
    }

    /// Reads the table: any offset, any length. Beyond the end: zero.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        for (byte, i) in data.iter_mut().zip(0..) {
            let at = offset.saturating_add(i);
            let entry = usize::try_from(at / ENTRY)
                .ok()
                .and_then(|i| self.vectors.get(i));
            // Inside an entry.
            let inside = (at % ENTRY) as usize;
            let image = entry.map(Vector::image).unwrap_or_default();
            *byte = image.get(inside).copied().unwrap_or_default();
        }
    }

    /// Writes the table: any offset, any length. Each field takes what of the write falls on it; a vector
    /// is routed once for a write that covers several of its fields. Beyond the end: no effect.
    pub fn table_write(&mut self, offset: u64, data: &[u8]) {
        let mut data = data;
        let mut at = offset;
        while !data.is_empty() {
            let start = (at % ENTRY) as usize;
            // Inside an entry.
            let room = (ENTRY as usize).wrapping_sub(start);
            let (now, later) = data.split_at(data.len().min(room));
            let index = usize::try_from(at / ENTRY).unwrap_or(usize::MAX);
            let Some(vector) = self.vectors.get_mut(index) else {
                return;
            };
            let old = vector.message;
            let mut image = vector.image();
            for (byte, new) in image.iter_mut().skip(start).zip(now) {
                *byte = *new;
            }
            vector.take(u128::from_le_bytes(image));
            let change = if vector.message == old {
                Change::Control
            } else {
                Change::Message
            };
            self.settle(index, change);
            // `at` is below the table's end here: no overflow.
            at = at.wrapping_add(now.len() as u64);
            data = later;
        }
    }

    /// Reads the pending bits: any offset, any length. Beyond the end: zero. They are read-only.
    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
        for (byte, i) in data.iter_mut().zip(0..) {
            let first = offset.saturating_add(i).saturating_mul(8);
            *byte = (0..8u8).fold(0, |bits, bit| {
                let index = usize::try_from(first.saturating_add(bit.into())).ok();
                let pending = index
                    .and_then(|i| self.vectors.get(i))
                    .is_some_and(|v| v.pending);
                bits | (u8::from(pending) << bit)
            });
        }
    }

    /// Brings the other side in step with what the registers say of one vector.
    fn settle(&mut self, index: usize, change: Change) {
        let live = self.control & (ENABLE | FUNCTION_MASK) == ENABLE;
        let Some(vector) = self.vectors.get_mut(index) else {
            return;
        };
        let live = live && !vector.masked;
        // There are at most 2048.
        let number = index as u16;
        match (vector.routed, live) {
            (true, true) if change == Change::Control => {}
            (_, true) => vector.routed = self.to.route(number, vector.message).is_ok(),
            (true, false) => {
                vector.routed = false;
                // If that fails, nothing is lost: we deliver nothing while it is not routed.
                let _ = self.to.mask(number);
            }
            (false, false) => {}
        }
        self.deliver(index);
    }

    fn deliver(&mut self, index: usize) {
        let vector = self.vectors.get_mut(index);
        if let Some(vector) = vector.filter(|vector| vector.pending && vector.routed) {
            vector.pending = self.to.deliver(index as u16).is_err();
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Control,
    Message,
}

impl Vector {
    /// The entry as the table shows it.
    fn image(&self) -> [u8; ENTRY as usize] {
        (u128::from(self.message.address)
            | u128::from(self.message.data) << 64
            | u128::from(self.masked) << 96)
            .to_le_bytes()
    }

    /// Takes the entry's settable bits: the two low bits of the address are always 0, and of the control
    /// word there is only the mask. Truncations on purpose: one field each.
    fn take(&mut self, image: u128) {
        self.message = MsiMessage {
            address: image as u64 & !3,
            data: (image >> 64) as u32,
        };
        self.masked = (image >> 96) & 1 != 0;
    }
}
