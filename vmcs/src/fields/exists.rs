// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! On which processors a field exists, and which control makes it matter.

use crate::{
    capability::Capabilities,
    controls::{
        Entry, ExitPrimary, ExitSecondary, PinBased, Primary, Secondary, Tertiary, VmFunctions,
    },
};

/// The condition in the manual's "This field exists only on processors that support ...".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Exists {
    /// On every processor with VMX.
    Always,
    /// Support for the 1-setting of a pin-based control.
    Pin(PinBased),
    /// Support for the 1-setting of a primary processor-based control.
    Primary(Primary),
    /// Support for the 1-setting of any one of these secondary processor-based controls.
    Secondary(Secondary),
    /// Support for the 1-setting of a tertiary processor-based control.
    Tertiary(Tertiary),
    /// Support for the 1-setting of a VM-function control.
    VmFunction(VmFunctions),
    /// Support for the 1-setting of a primary VM-exit control.
    Exit(ExitPrimary),
    /// Support for the 1-setting of a secondary VM-exit control.
    Exit2(ExitSecondary),
    /// Support for the 1-setting of a VM-entry control.
    Entry(Entry),
    /// Support for the 1-setting of either a VM-entry or a VM-exit control.
    EntryOrExit(Entry, ExitPrimary),
    /// More than this many CR3-target values. `IA32_VMX_MISC` bits 24:16.
    Cr3Targets(u8),
    /// FRED transitions, known from the "load FRED" VM-entry control.
    Fred,
    /// APX: no VMX capability reports it.
    Apx,
}

impl Exists {
    /// Whether the field exists on a processor with these capabilities.
    ///
    /// [`Exists::Apx`] is reported by CPUID alone; it counts as absent.
    pub fn on(self, capabilities: &Capabilities) -> bool {
        let may = |allowed: crate::controls::Allowed, bits: u64| allowed.may_be_one & bits != 0;
        match self {
            Self::Always => true,
            Self::Pin(control) => may(capabilities.pin_based, control.bits().into()),
            Self::Primary(control) => may(capabilities.primary, control.bits().into()),
            Self::Secondary(controls) => may(capabilities.secondary, controls.bits().into()),
            Self::Tertiary(control) => may(capabilities.tertiary, control.bits()),
            Self::VmFunction(control) => may(capabilities.vm_functions, control.bits()),
            Self::Exit(control) => may(capabilities.exit, control.bits().into()),
            Self::Exit2(control) => may(capabilities.exit2, control.bits()),
            Self::Entry(control) => may(capabilities.entry, control.bits().into()),
            Self::EntryOrExit(entry, exit) => {
                may(capabilities.entry, entry.bits().into())
                    || may(capabilities.exit, exit.bits().into())
            }
            Self::Cr3Targets(index) => capabilities.misc.cr3_targets() > u32::from(index),
            Self::Fred => may(capabilities.entry, Entry::LOAD_FRED.bits().into()),
            Self::Apx => false,
        }
    }
}
