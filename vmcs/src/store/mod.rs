// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the fields of a VMCS are kept.
//!
//! Everything in this crate that reads a VMCS reads it through [`Fields`]: the array [`Vmcs`], the
//! [`Snapshot`] that knows which fields it was given, KVM's [`Vmcs12`], any memory image with a known
//! [`Layout`], and in the crate `hvkit-vmx` the current VMCS of a processor. [`parse_listing`] and
//! [`logged`] make snapshots of text.
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

#[cfg(feature = "serde")]
mod json;
mod listing;
mod log;
mod memory;
mod raw;
mod vmcs12;

#[cfg(test)]
mod tests;

pub use listing::{ListingError, ListingProblem, parse_listing};
pub use log::{LogError, Logged, logged};
pub(crate) use memory::known;
pub use memory::{Snapshot, Vmcs};
pub use raw::{Layout, Raw, TooShort};
pub use vmcs12::{Vmcs12, Vmcs12Error, Vmcs12Layout};

use crate::{
    encoding::{Encoding, Width},
    field::{Access, Field, ReadWrite, WidthType},
};

/// A store that can be read.
pub trait Fields {
    /// The value of a field, zero-extended; of bits 63:32 for a high-half encoding. `None` where
    /// the store has no such field.
    fn get(&self, encoding: Encoding) -> Option<u64>;

    /// The value of a field, as wide as its type says.
    #[inline(always)]
    fn read<T: WidthType, A: Access>(&self, field: Field<T, A>) -> Option<T::Word> {
        self.get(field.encoding()).map(T::from_raw)
    }
}

/// The store has no such field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this VMCS has no {0}")]
pub struct NoSuchField(
    /// Which field.
    pub Encoding,
);

/// A store that can be written.
pub trait FieldsMut: Fields {
    /// Writes a field, read-only ones too: this is how a test or a tool sets up exit information.
    /// Bits beyond the field's width are dropped, as VMWRITE drops them.
    ///
    /// # Errors
    ///
    /// [`NoSuchField`]; nothing is changed then.
    fn set(&mut self, encoding: Encoding, value: u64) -> Result<(), NoSuchField>;

    /// Writes a field that software may write, with a value of the field's width.
    ///
    /// # Errors
    ///
    /// [`NoSuchField`]; nothing is changed then.
    #[inline(always)]
    fn write<T: WidthType>(
        &mut self,
        field: Field<T, ReadWrite>,
        value: T::Word,
    ) -> Result<(), NoSuchField> {
        self.set(field.encoding(), value.into())
    }
}

impl<S: Fields + ?Sized> Fields for &S {
    #[inline(always)]
    fn get(&self, encoding: Encoding) -> Option<u64> {
        (**self).get(encoding)
    }
}

impl<S: Fields + ?Sized> Fields for &mut S {
    #[inline(always)]
    fn get(&self, encoding: Encoding) -> Option<u64> {
        (**self).get(encoding)
    }
}

impl<S: FieldsMut + ?Sized> FieldsMut for &mut S {
    fn set(&mut self, encoding: Encoding, value: u64) -> Result<(), NoSuchField> {
        (**self).set(encoding, value)
    }
}

/// What VMREAD returns for an access of this encoding to a field that holds `whole`.
#[inline(always)]
const fn view(encoding: Encoding, whole: u64) -> u64 {
    if encoding.is_high() {
        whole >> 32
    } else {
        whole & encoding.width().mask()
    }
}

/// What a field that holds `whole` holds after VMWRITE of `value` with this encoding.
const fn merge(encoding: Encoding, whole: u64, value: u64) -> u64 {
    if encoding.is_high() {
        whole & 0xffff_ffff | value << 32
    } else {
        let mask = match encoding.width() {
            // A VMWRITE outside 64-bit mode would zero bits 63:32; this is the 64-bit one.
            Width::Bits64 | Width::Natural => u64::MAX,
            width => width.mask(),
        };
        value & mask
    }
}
