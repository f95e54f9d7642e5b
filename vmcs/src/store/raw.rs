// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMCS as bytes in a known layout.
//!
//! How a processor lays out the VMCS region is its own affair, but nested hypervisors and
//! processor models have layouts that can be written down.
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

use core::marker::PhantomData;

use super::{Fields, FieldsMut, NoSuchField, merge, view};
use crate::encoding::Encoding;

/// Where each field lies. Fields are little-endian, as wide as their encoding says.
pub trait Layout {
    /// Bytes that hold all fields.
    const SIZE: usize;
    /// The offset of a field (asked with full access), if the layout has it. A field that would not
    /// fit into [`Layout::SIZE`] counts as absent.
    fn offset(encoding: Encoding) -> Option<usize>;
}

/// Bytes `B` read and written as a VMCS in layout `L`.
#[derive(Clone, Copy, Debug)]
pub struct Raw<B, L> {
    bytes: B,
    layout: PhantomData<fn() -> L>,
}

/// Fewer bytes than the layout needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{have} bytes are too few for a layout of {need} bytes")]
pub struct TooShort {
    /// Bytes given.
    pub have: usize,
    /// Bytes needed.
    pub need: usize,
}

impl<B: AsRef<[u8]>, L: Layout> Raw<B, L> {
    /// Any bytes of sufficient length are a VMCS.
    ///
    /// # Errors
    ///
    /// [`TooShort`].
    pub fn new(bytes: B) -> Result<Self, TooShort> {
        match bytes.as_ref().len() {
            have if have < L::SIZE => Err(TooShort {
                have,
                need: L::SIZE,
            }),
            _ => Ok(Self {
                bytes,
                layout: PhantomData,
            }),
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// Gives the bytes back.
    pub fn into_inner(self) -> B {
        self.bytes
    }

    fn place(encoding: Encoding) -> Option<core::ops::Range<usize>> {
        crate::fields::slot(encoding)?;
        let offset = L::offset(encoding.full())?;
        let end = offset.checked_add(encoding.width().bytes())?;
        (end <= L::SIZE).then_some(offset..end)
    }

    fn whole(&self, encoding: Encoding) -> Option<u64> {
        let bytes = self.bytes.as_ref().get(Self::place(encoding)?)?;
        let mut word = [0; 8];
        word.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(u64::from_le_bytes(word))
    }
}

impl<B: AsRef<[u8]>, L: Layout> Fields for Raw<B, L> {
    fn get(&self, encoding: Encoding) -> Option<u64> {
        Some(view(encoding, self.whole(encoding)?))
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>, L: Layout> FieldsMut for Raw<B, L> {
    fn set(&mut self, encoding: Encoding, value: u64) -> Result<(), NoSuchField> {
        let missing = NoSuchField(encoding);
        let place = Self::place(encoding).ok_or(missing)?;
        let merged = merge(encoding, self.whole(encoding).ok_or(missing)?, value).to_le_bytes();
        let bytes = self.bytes.as_mut().get_mut(place).ok_or(missing)?;
        for (byte, new) in bytes.iter_mut().zip(merged) {
            *byte = new;
        }
        Ok(())
    }
}
