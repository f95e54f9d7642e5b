// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What shall exit: the controls that are wanted, and what the processor insists on.

use hvkit_vmcs::controls::{
    Allowed, Controls, Entry, ExitPrimary, PinBased, Primary, Refused, Secondary, adjust,
};
use hvkit_vmcs::store::FieldsMut;
use hvkit_vmcs::{Processor, fields as f};
use payload_rt::println;

use crate::root_operation::Failed;

/// The controls of a guest.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// Pin-based.
    pub pin: PinBased,
    /// Primary processor-based.
    pub primary: Primary,
    /// Secondary processor-based.
    pub secondary: Secondary,
    /// VM exit.
    pub exit: ExitPrimary,
    /// VM entry.
    pub entry: Entry,
}

/// What every guest here has: a 64-bit host, EPT, and state that entries and exits switch.
pub const USUAL: Wanted = Wanted {
    pin: PinBased::empty(),
    primary: Primary::ACTIVATE_SECONDARY,
    secondary: Secondary::ENABLE_EPT.union(Secondary::UNRESTRICTED_GUEST),
    exit: ExitPrimary::HOST_ADDRESS_SPACE_SIZE
        .union(ExitPrimary::SAVE_DEBUG_CONTROLS)
        .union(ExitPrimary::SAVE_EFER)
        .union(ExitPrimary::LOAD_EFER)
        .union(ExitPrimary::SAVE_PAT)
        .union(ExitPrimary::LOAD_PAT),
    entry: Entry::LOAD_DEBUG_CONTROLS
        .union(Entry::LOAD_EFER)
        .union(Entry::LOAD_PAT),
};

impl Wanted {
    /// Writes the control fields, and zeros where a control needs a value that is not given elsewhere.
    pub fn write(&self, vmcs: &mut impl FieldsMut, processor: &Processor) -> Result<(), Failed> {
        let vmx = &processor.vmx;
        let pin = choose(self.pin, vmx.pin_based)?.bits();
        let primary = choose(self.primary, vmx.primary)?.bits();
        let secondary = choose(self.secondary, vmx.secondary)?.bits();
        let exit = choose(self.exit, vmx.exit)?.bits();
        let entry = choose(self.entry, vmx.entry)?.bits();
        for (field, value) in [
            (f::PIN_BASED_CONTROLS, pin),
            (f::PRIMARY_CONTROLS, primary),
            (f::SECONDARY_CONTROLS, secondary),
            (f::PRIMARY_EXIT_CONTROLS, exit),
            (f::ENTRY_CONTROLS, entry),
            (f::EXCEPTION_BITMAP, 0),
            (f::PAGE_FAULT_ERROR_MASK, 0),
            (f::PAGE_FAULT_ERROR_MATCH, 0),
            (f::CR3_TARGET_COUNT, 0),
            (f::EXIT_MSR_STORE_COUNT, 0),
            (f::EXIT_MSR_LOAD_COUNT, 0),
            (f::ENTRY_MSR_LOAD_COUNT, 0),
            (f::INJECTED_EVENT, 0),
        ] {
            vmcs.write(field, value)
                .map_err(|no| Failed::with("a control field is missing", [no.0.0.into(), 0]))?;
        }
        Ok(())
    }
}

/// Settings that the processor accepts; says what it refuses.
fn choose<C: Controls>(wanted: C, allowed: Allowed) -> Result<C, Failed> {
    match adjust(wanted, allowed) {
        Ok(adjusted) => Ok(adjusted.value),
        Err(Refused { cannot_be_set }) => {
            println!("type1: this processor has no {cannot_be_set:?}");
            Err(Failed::at("a control is missing"))
        }
    }
}
