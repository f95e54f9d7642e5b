// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entries that fail on purpose: what the processor says, and what the checker says to that.

use hvkit_vmcs::Encoding;
use hvkit_vmcs::fields as f;
use hvkit_vmx::Exit;
use payload_rt::println;

use super::vcpu;
use crate::failure::{Show, explain};
use crate::guest_state::GuestState;
use crate::paging_ept::Tables;
use crate::root_operation::{Failed, Host};

/// What is wrong, in which field, with which value.
const WRONG: &[(&str, Encoding, u64)] = &[
    (
        "more CR3 targets than there are",
        f::CR3_TARGET_COUNT.encoding(),
        5,
    ),
    (
        "an EPT of three levels",
        f::EPT_POINTER.encoding(),
        0x20_0016,
    ),
    (
        "an APIC page between pages",
        f::APIC_ACCESS_ADDRESS.encoding(),
        0x123,
    ),
    ("a host without a task", f::HOST_TR_SELECTOR.encoding(), 0),
    (
        "a host in no canonical place",
        f::HOST_GS_BASE.encoding(),
        0x8000_0000_0000,
    ),
    ("flags without bit 1", f::GUEST_RFLAGS.encoding(), 0),
    (
        "64-bit code that is 32-bit too",
        f::GUEST_CS_ACCESS_RIGHTS.encoding(),
        0xe09b,
    ),
    (
        "an interrupt for a guest that takes none",
        f::INJECTED_EVENT.encoding(),
        0x8000_0030,
    ),
    (
        "a guest asleep in an unknown way",
        f::GUEST_ACTIVITY.encoding(),
        9,
    ),
    ("a link to nowhere", f::VMCS_LINK_POINTER.encoding(), 0x123),
];

/// Tries each, explains it, and puts the field back; then enters.
pub fn run(host: &mut Host, tables: &Tables<'_>, state: &GuestState) -> Result<(), Failed> {
    let mut vcpu = vcpu(host, tables, state)?;
    for (index, &(what, field, value)) in WRONG.iter().enumerate() {
        println!("provoked: {what}");
        let missing = |_| Failed::with("a field is missing", [field.0.into(), 0]);
        let before = vcpu.vmcs().vmread(field).map_err(missing)?;
        vcpu.vmcs().vmwrite(field, value).map_err(missing)?;
        match vcpu.run() {
            Err(error) => {
                let is_last = index + 1 == WRONG.len();
                let show = if is_last {
                    Show::RulesAndVmcs
                } else {
                    Show::Rules
                };
                explain(&mut vcpu, error, show);
            }
            Ok(_) => return Err(Failed::at("an entry that should fail did not")),
        }
        vcpu.vmcs().vmwrite(field, before).map_err(missing)?;
    }
    match vcpu.run() {
        Ok(Exit::Cpuid(_)) => println!("provoked: nothing, and the guest runs"),
        Ok(_) => return Err(Failed::at("the guest exits elsewhere")),
        Err(error) => {
            explain(&mut vcpu, error, Show::RulesAndVmcs);
            return Err(Failed::at("the VMCS is not as it was"));
        }
    }
    Ok(())
}
