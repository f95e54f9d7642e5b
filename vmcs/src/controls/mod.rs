// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMX controls: which bits there are, and how to choose settings a processor accepts.
//!
//! ```
//! use hvkit_vmcs::controls::{Allowed, PinBased, adjust};
//!
//! // IA32_VMX_TRUE_PINBASED_CTLS as one processor reports it.
//! let capability = Allowed::from_msr(0x0000_007f_0000_0016);
//! let chosen = adjust(PinBased::NMI_EXITING, capability).unwrap();
//! assert_eq!(chosen.value.bits(), 0x1e); // bits 1, 2 and 4 must be 1 here
//!
//! let refused = adjust(PinBased::POSTED_INTERRUPTS, capability).unwrap_err();
//! assert_eq!(refused.cannot_be_set, PinBased::POSTED_INTERRUPTS);
//! ```
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

mod execution;
mod names;
mod transition;

pub use execution::{PinBased, Primary, Secondary, Tertiary, VmFunctions};
pub use names::names_of;
pub use transition::{Entry, ExitPrimary, ExitSecondary};

use core::fmt;

/// Which settings of a control field a processor accepts.
///
/// SDM Vol. 3D, "VMX Capability Reporting Facility": "allowed 0-settings" and "allowed 1-settings".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Allowed {
    /// A bit set here must be 1 in the control.
    pub must_be_one: u64,
    /// A bit clear here must be 0 in the control.
    pub may_be_one: u64,
}

impl Allowed {
    /// Nothing may be set.
    pub const NONE: Self = Self {
        must_be_one: 0,
        may_be_one: 0,
    };

    /// From a capability MSR of 32-bit controls: bits 31:0 are the allowed 0-settings, bits 63:32
    /// the allowed 1-settings.
    pub const fn from_msr(value: u64) -> Self {
        Self {
            must_be_one: value & 0xffff_ffff,
            may_be_one: value >> 32,
        }
    }

    /// From a capability MSR of 64-bit controls (tertiary, secondary VM-exit, VM functions), which
    /// holds allowed 1-settings alone.
    pub const fn from_msr64(value: u64) -> Self {
        Self {
            must_be_one: 0,
            may_be_one: value,
        }
    }

    /// The capability MSR this came from, for 32-bit controls.
    pub const fn to_msr(self) -> u64 {
        self.may_be_one << 32 | self.must_be_one
    }

    /// Whether a control field may hold `value`.
    #[inline(always)]
    pub const fn accepts(self, value: u64) -> bool {
        self.must_be_one & !value == 0 && value & !self.may_be_one == 0
    }
}

/// A vector of controls: one of the bit sets of this module.
pub trait Controls: bitflags::Flags<Bits: Into<u64>> + Copy + Eq + fmt::Debug {
    /// The reserved bits that the first VMX processors fixed to 1 (the "default1" class).
    const DEFAULT1: u64;
    /// The bits of `value`; those the field has no room for are dropped.
    fn from_u64(value: u64) -> Self;
    /// The bits as a number.
    fn to_u64(self) -> u64 {
        self.bits().into()
    }
}

/// Settings a processor accepts, and what it insisted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adjusted<C> {
    /// The value for the control field.
    pub value: C,
    /// Named controls that were not asked for but that this processor requires to be 1. Reserved
    /// bits that must be 1 are set without being listed.
    pub forced: C,
}

/// The processor does not support controls that were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the processor does not support the 1-setting of {cannot_be_set:?}")]
pub struct Refused<C: Controls> {
    /// What was asked for and must be 0.
    pub cannot_be_set: C,
}

/// Chooses settings: every bit of `wanted`, every bit the processor requires, nothing else.
///
/// SDM Vol. 3C, "Algorithms for Determining VMX Capabilities": a bit with one allowed setting gets
/// that setting; a bit of known function gets the setting that is wanted; a reserved bit gets the
/// default, which is 1 exactly where the processor reports that it must be.
///
/// # Errors
///
/// [`Refused`] names each bit of `wanted` that `capability` requires to be 0.
pub fn adjust<C: Controls>(wanted: C, capability: Allowed) -> Result<Adjusted<C>, Refused<C>> {
    let asked = wanted.to_u64();
    let refused = asked & !capability.may_be_one;
    if refused != 0 {
        return Err(Refused {
            cannot_be_set: C::from_u64(refused),
        });
    }
    let forced = capability.must_be_one & !asked & C::all().to_u64();
    Ok(Adjusted {
        value: C::from_u64(asked | capability.must_be_one),
        forced: C::from_u64(forced),
    })
}

macro_rules! controls {
    ($(#[$doc:meta])* $vis:vis $name:ident: $bits:ty, default1 $default1:literal {
        $($flag:ident = $bit:literal, $sdm:literal;)*
    }) => {
        bitflags::bitflags! {
            $(#[$doc])*
            ///
            /// Bits without a name are kept: they may be reserved, or newer than this crate.
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
            #[cfg_attr(feature = "serde", derive(serde::Serialize))]
            $vis struct $name: $bits {
                $(
                    #[doc = concat!("\"", $sdm, "\" (bit ", stringify!($bit), ").")]
                    const $flag = 1 << $bit;
                )*
            }
        }
        impl $crate::controls::Controls for $name {
            const DEFAULT1: u64 = $default1;
            fn from_u64(value: u64) -> Self {
                Self::from_bits_retain(value as $bits)
            }
        }
        impl $name {
            /// Every control with the manual's name for it, in bit order.
            pub const NAMES: &[(Self, &str)] = &[$((Self::$flag, $sdm)),*];
        }
        #[cfg(feature = "arbitrary")]
        impl<'a> arbitrary::Arbitrary<'a> for $name {
            fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
                Ok(Self::from_bits_retain(u.arbitrary()?))
            }
        }
    };
}
use controls;

#[cfg(test)]
mod tests;
