// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a processor can do in VMX operation, as a value. SDM Vol. 3D, Appendix "VMX Capability Reporting
//! Facility".
//!
//! ```
//! use hvkit_vmcs::{Capabilities, capability::Msr};
//!
//! // From RDMSR, from KVM's feature MSRs, or from a table:
//! let table = [(Msr::BASIC, 0x00da_0400_0000_0010_u64), (Msr::PINBASED_CTLS, 0x7f_0000_0016)];
//! let read = |msr: Msr| table.iter().find(|(index, _)| *index == msr).map(|(_, value)| *value);
//! let capabilities = Capabilities::from_msrs(read);
//! assert_eq!(capabilities.basic.revision(), 0x10);
//! assert!(capabilities.basic.has_true_controls());
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

mod dump;
mod processor;
mod words;

#[cfg(test)]
mod tests;

pub mod presets;

pub use dump::{DumpError, DumpProblem, parse_dump};
pub(crate) use dump::{hex, words_of};
pub use processor::{Features, Processor, Writable};
pub use words::{Basic, EptVpid, Misc};

use core::fmt;

use crate::controls::Allowed;

/// The index of a VMX capability MSR.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct Msr(pub u32);

macro_rules! msrs {
    ($($name:ident = $index:literal, $text:literal;)*) => {
        impl Msr {
            $(
                #[doc = concat!("`", $text, "`.")]
                pub const $name: Self = Self($index);
            )*
            /// All VMX capability MSRs, in the order of their indices.
            pub const ALL: [Self; 20] = [$(Self::$name),*];

            /// The manual's name, if it is one of them.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($index => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

msrs! {
    BASIC = 0x480, "IA32_VMX_BASIC";
    PINBASED_CTLS = 0x481, "IA32_VMX_PINBASED_CTLS";
    PROCBASED_CTLS = 0x482, "IA32_VMX_PROCBASED_CTLS";
    EXIT_CTLS = 0x483, "IA32_VMX_EXIT_CTLS";
    ENTRY_CTLS = 0x484, "IA32_VMX_ENTRY_CTLS";
    MISC = 0x485, "IA32_VMX_MISC";
    CR0_FIXED0 = 0x486, "IA32_VMX_CR0_FIXED0";
    CR0_FIXED1 = 0x487, "IA32_VMX_CR0_FIXED1";
    CR4_FIXED0 = 0x488, "IA32_VMX_CR4_FIXED0";
    CR4_FIXED1 = 0x489, "IA32_VMX_CR4_FIXED1";
    VMCS_ENUM = 0x48a, "IA32_VMX_VMCS_ENUM";
    PROCBASED_CTLS2 = 0x48b, "IA32_VMX_PROCBASED_CTLS2";
    EPT_VPID_CAP = 0x48c, "IA32_VMX_EPT_VPID_CAP";
    TRUE_PINBASED_CTLS = 0x48d, "IA32_VMX_TRUE_PINBASED_CTLS";
    TRUE_PROCBASED_CTLS = 0x48e, "IA32_VMX_TRUE_PROCBASED_CTLS";
    TRUE_EXIT_CTLS = 0x48f, "IA32_VMX_TRUE_EXIT_CTLS";
    TRUE_ENTRY_CTLS = 0x490, "IA32_VMX_TRUE_ENTRY_CTLS";
    VMFUNC = 0x491, "IA32_VMX_VMFUNC";
    PROCBASED_CTLS3 = 0x492, "IA32_VMX_PROCBASED_CTLS3";
    EXIT_CTLS2 = 0x493, "IA32_VMX_EXIT_CTLS2";
}

impl fmt::Debug for Msr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "MSR {:#x}", self.0),
        }
    }
}

/// The whole set of VMX capability MSRs, read once.
///
/// Where the processor has the "TRUE" MSRs, the four 32-bit control fields are theirs; the plain
/// ones differ only in calling the default1 class fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Capabilities {
    /// `IA32_VMX_BASIC`.
    pub basic: Basic,
    /// `IA32_VMX_MISC`.
    pub misc: Misc,
    /// `IA32_VMX_EPT_VPID_CAP`.
    pub ept_vpid: EptVpid,
    /// Pin-based VM-execution controls.
    pub pin_based: Allowed,
    /// Primary processor-based VM-execution controls.
    pub primary: Allowed,
    /// Secondary processor-based VM-execution controls; nothing where they do not exist.
    pub secondary: Allowed,
    /// Tertiary processor-based VM-execution controls; nothing where they do not exist.
    pub tertiary: Allowed,
    /// Primary VM-exit controls.
    pub exit: Allowed,
    /// Secondary VM-exit controls; nothing where they do not exist.
    pub exit2: Allowed,
    /// VM-entry controls.
    pub entry: Allowed,
    /// VM functions; nothing where they do not exist.
    pub vm_functions: Allowed,
    /// CR0 bits that must be 1 in VMX operation.
    pub cr0_fixed0: u64,
    /// CR0 bits that may be 1 in VMX operation.
    pub cr0_fixed1: u64,
    /// CR4 bits that must be 1 in VMX operation.
    pub cr4_fixed0: u64,
    /// CR4 bits that may be 1 in VMX operation.
    pub cr4_fixed1: u64,
    /// `IA32_VMX_VMCS_ENUM`.
    pub vmcs_enum: u64,
}

impl Default for Capabilities {
    /// A processor on which every capability MSR is absent.
    fn default() -> Self {
        Self::from_msrs(|_| None)
    }
}

impl Capabilities {
    /// Reads the set through `rdmsr`, which answers `None` for an MSR that does not exist.
    ///
    /// An MSR is asked for only where another says that it exists, so `rdmsr` may be the
    /// instruction. SDM Vol. 3D, "VMX Capability Reporting Facility".
    pub fn from_msrs(mut rdmsr: impl FnMut(Msr) -> Option<u64>) -> Self {
        let basic = Basic(rdmsr(Msr::BASIC).unwrap_or(0));
        let mut controls = |plain, precise| {
            let precise = if basic.has_true_controls() {
                rdmsr(precise)
            } else {
                None
            };
            Allowed::from_msr(precise.or_else(|| rdmsr(plain)).unwrap_or(0))
        };
        let pin_based = controls(Msr::PINBASED_CTLS, Msr::TRUE_PINBASED_CTLS);
        let primary = controls(Msr::PROCBASED_CTLS, Msr::TRUE_PROCBASED_CTLS);
        let exit = controls(Msr::EXIT_CTLS, Msr::TRUE_EXIT_CTLS);
        let entry = controls(Msr::ENTRY_CTLS, Msr::TRUE_ENTRY_CTLS);

        let mut optional = |exists: bool, msr| if exists { rdmsr(msr).unwrap_or(0) } else { 0 };
        let has = |allowed: Allowed, bit: u32| allowed.may_be_one >> bit & 1 != 0;
        let secondary = Allowed::from_msr(optional(has(primary, 31), Msr::PROCBASED_CTLS2));
        let tertiary = Allowed::from_msr64(optional(has(primary, 17), Msr::PROCBASED_CTLS3));
        let exit2 = Allowed::from_msr64(optional(has(exit, 31), Msr::EXIT_CTLS2));
        let vm_functions = Allowed::from_msr64(optional(has(secondary, 13), Msr::VMFUNC));
        let ept_or_vpid = has(secondary, 1) || has(secondary, 5);
        Self {
            basic,
            misc: Misc(optional(true, Msr::MISC)),
            ept_vpid: EptVpid(optional(ept_or_vpid, Msr::EPT_VPID_CAP)),
            pin_based,
            primary,
            secondary,
            tertiary,
            exit,
            exit2,
            entry,
            vm_functions,
            cr0_fixed0: optional(true, Msr::CR0_FIXED0),
            cr0_fixed1: optional(true, Msr::CR0_FIXED1),
            cr4_fixed0: optional(true, Msr::CR4_FIXED0),
            cr4_fixed1: optional(true, Msr::CR4_FIXED1),
            vmcs_enum: optional(true, Msr::VMCS_ENUM),
        }
    }

    /// From `(index, value)` pairs, as KVM returns its feature MSRs. Indices outside the set are
    /// passed over; of an index that comes twice the first counts.
    pub fn from_list(list: &[(u32, u64)]) -> Self {
        Self::from_msrs(|msr| {
            list.iter()
                .find(|(index, _)| *index == msr.0)
                .map(|(_, v)| *v)
        })
    }
}
