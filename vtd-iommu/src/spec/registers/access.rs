// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What software may do with the bits of a register, and where a register is.

use core::fmt;
use core::marker::PhantomData;

/// Which bits of a register software can write, and what writing does. Bits in none of the masks are
/// reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Access {
    /// RO: hardware sets them, writes are ignored.
    pub read_only: u64,
    /// RW: they read as last written (or as hardware changed them since).
    pub read_write: u64,
    /// RW1C: writing 1 clears, writing 0 leaves.
    pub clear_by_one: u64,
    /// WO: a command; reads as 0.
    pub write_only: u64,
}

impl Access {
    /// Every bit that has a meaning.
    #[must_use]
    pub const fn defined(self) -> u64 {
        self.read_only | self.read_write | self.clear_by_one | self.write_only
    }

    /// What the register's stored bits become when software writes `written` to those of `lanes` over
    /// `stored`. Commands (WO) are not stored.
    #[inline]
    #[must_use]
    pub const fn after_write(self, stored: u64, written: u64, lanes: u64) -> u64 {
        let set = self.read_write & lanes;
        let cleared = self.clear_by_one & written & lanes;
        (stored & !set | written & set) & !cleared
    }
}

/// The content of a register: a newtype over its bits.
pub trait Word: Copy {
    /// 4 or 8.
    const BYTES: u8;
    /// What software may do with each bit.
    const ACCESS: Access;

    /// From the bits; a 4-byte word drops the upper half.
    fn from_raw(raw: u64) -> Self;

    /// The bits, zero-extended.
    fn raw(self) -> u64;
}

/// A register that software can only read.
#[derive(Clone, Copy, Debug)]
pub enum ReadOnly {}
/// A register that software can read and write (each bit as [`Word::ACCESS`] says).
#[derive(Clone, Copy, Debug)]
pub enum ReadWrite {}
/// A register that software can only write.
#[derive(Clone, Copy, Debug)]
pub enum WriteOnly {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::ReadOnly {}
    impl Sealed for super::ReadWrite {}
    impl Sealed for super::WriteOnly {}
}

/// Registers that can be read.
pub trait Readable: sealed::Sealed {}
/// Registers that can be written.
pub trait Writable: sealed::Sealed {}
impl Readable for ReadOnly {}
impl Readable for ReadWrite {}
impl Writable for ReadWrite {}
impl Writable for WriteOnly {}

/// Where a register is, what it holds (`T`), and whether it can be read and written (`A`).
pub struct Register<T, A> {
    offset: u32,
    is: PhantomData<fn() -> (T, A)>,
}

impl<T, A> Clone for Register<T, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T, A> Copy for Register<T, A> {}

impl<T: Word, A> Register<T, A> {
    /// The register at `offset` bytes from the unit's base.
    pub(crate) const fn at(offset: u32) -> Self {
        Self {
            offset,
            is: PhantomData,
        }
    }

    /// Bytes from the unit's base.
    #[inline]
    #[must_use]
    pub const fn offset(self) -> u32 {
        self.offset
    }
}

impl<T, A> fmt::Debug for Register<T, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Register({:#x})", self.offset)
    }
}

/// [`word!`](crate::spec::word::word) for a register: each field begins with `ro`, `rw`, `w1c` or `wo`.
macro_rules! register {
    (
        $(#[$doc:meta])*
        pub struct $name:ident($raw:ident) {
            $($(#[$field:meta])* $access:ident $kind:ident [$high:literal:$low:literal] $get:ident, $with:ident;)*
        }
    ) => {
        $crate::spec::word::word! {
            $(#[$doc])*
            pub struct $name($raw) {
                $($(#[$field])* $kind [$high:$low] $get, $with;)*
            }
        }

        impl $crate::spec::registers::Word for $name {
            const BYTES: u8 = (<$raw>::BITS / 8) as u8;
            const ACCESS: $crate::spec::registers::Access = {
                let mut access = $crate::spec::registers::Access {
                    read_only: 0,
                    read_write: 0,
                    clear_by_one: 0,
                    write_only: 0,
                };
                $($crate::spec::registers::access::register!(@ $access access, $high, $low);)*
                access
            };

            #[inline]
            fn from_raw(raw: u64) -> Self {
                Self(raw as $raw)
            }

            #[inline]
            fn raw(self) -> u64 {
                self.0.into()
            }
        }
    };
    (@ ro $to:ident, $high:literal, $low:literal) => {
        $to.read_only |= $crate::spec::word::mask($high, $low) as u64
    };
    (@ rw $to:ident, $high:literal, $low:literal) => {
        $to.read_write |= $crate::spec::word::mask($high, $low) as u64
    };
    (@ w1c $to:ident, $high:literal, $low:literal) => {
        $to.clear_by_one |= $crate::spec::word::mask($high, $low) as u64
    };
    (@ wo $to:ident, $high:literal, $low:literal) => {
        $to.write_only |= $crate::spec::word::mask($high, $low) as u64
    };
}
pub(crate) use register;
