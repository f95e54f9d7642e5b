// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A field whose width and access are part of its type.
//!
//! ```
//! use hvkit_vmcs::{Vmcs, fields, store::{Fields, FieldsMut}};
//!
//! let mut vmcs = Vmcs::new();
//! vmcs.write(fields::GUEST_CS_SELECTOR, 0x10)?;
//! assert_eq!(vmcs.read(fields::GUEST_CS_SELECTOR), Some(0x10_u16));
//! # Ok::<(), hvkit_vmcs::store::NoSuchField>(())
//! ```
//!
//! A value of the wrong width does not compile:
//!
//! ```compile_fail,E0308
//! use hvkit_vmcs::{Vmcs, fields, store::FieldsMut};
//! let mut vmcs = Vmcs::new();
//! let _ = vmcs.write(fields::GUEST_CS_SELECTOR, 0x10_u32);
//! ```
//!
//! Nor does a write to a field that only VM exits write:
//!
//! ```compile_fail,E0308
//! use hvkit_vmcs::{Vmcs, fields, store::FieldsMut};
//! let mut vmcs = Vmcs::new();
//! let _ = vmcs.write(fields::EXIT_REASON, 12_u32);
//! ```

use core::{fmt, marker::PhantomData};

use crate::encoding::{Class, Encoding, Width};

mod sealed {
    pub trait Sealed {}
}

/// A width as a type: [`W16`], [`W32`], [`W64`] or [`Natural`].
pub trait WidthType: sealed::Sealed {
    /// The integer such a field holds.
    type Word: Copy + Eq + fmt::Debug + fmt::LowerHex + Into<u64>;
    /// The width as a value.
    const WIDTH: Width;
    /// Takes the low bits of `raw`, as VMREAD does.
    fn from_raw(raw: u64) -> Self::Word;
}

macro_rules! widths {
    ($($(#[$doc:meta])* $name:ident, $word:ty, $width:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub enum $name {}
        impl sealed::Sealed for $name {}
        impl WidthType for $name {
            type Word = $word;
            const WIDTH: Width = Width::$width;
            #[inline(always)]
            fn from_raw(raw: u64) -> $word { raw as $word }
        }
    )*};
}

widths! {
    /// 16-bit fields.
    W16, u16, Bits16;
    /// 32-bit fields.
    W32, u32, Bits32;
    /// 64-bit fields.
    W64, u64, Bits64;
    /// Natural-width fields. This crate describes processors that support Intel 64 architecture,
    /// where they have 64 bits.
    Natural, u64, Natural;
}

/// Who writes a field, as a type: [`ReadWrite`] or [`ReadOnly`].
pub trait Access: sealed::Sealed {}
/// Software reads and writes the field.
#[derive(Clone, Copy, Debug)]
pub enum ReadWrite {}
/// VM exits write the field; software reads it.
#[derive(Clone, Copy, Debug)]
pub enum ReadOnly {}
impl sealed::Sealed for ReadWrite {}
impl sealed::Sealed for ReadOnly {}
impl Access for ReadWrite {}
impl Access for ReadOnly {}

/// A field of width `T` that software may access as `A` says. See [`crate::fields`] for them all.
pub struct Field<T, A> {
    encoding: Encoding,
    kind: PhantomData<fn() -> (T, A)>,
}

impl<T: WidthType, A: Access> Field<T, A> {
    /// Field `index` of `class`; the width comes from the type.
    pub(crate) const fn at(class: Class, index: u16) -> Self {
        Self {
            encoding: Encoding::new(T::WIDTH, class, index),
            kind: PhantomData,
        }
    }

    /// The number that VMREAD takes.
    #[inline(always)]
    pub const fn encoding(self) -> Encoding {
        self.encoding
    }
}

impl<T, A> Clone for Field<T, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T, A> Copy for Field<T, A> {}

impl<T, A> From<Field<T, A>> for Encoding {
    fn from(field: Field<T, A>) -> Self {
        field.encoding
    }
}

impl<T, A> fmt::Debug for Field<T, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.encoding.fmt(f)
    }
}
