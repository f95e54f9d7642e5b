// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An entry that failed, explained: what the processor said, which rules are broken, and the VMCS.

use hvkit_vmcs::check::{Checker, PhysicalMemory, Unreadable, Violation};
use hvkit_vmcs::dump::Dump;
use hvkit_vmx::{EntryError, Vcpu};
use payload_rt::println;

/// The memory that is mapped to itself, for the rules that look there.
pub struct Mapped;

impl PhysicalMemory for Mapped {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let end = address.checked_add(into.len() as u64);
        // Below 4 GiB; page 0 is no place for a pointer.
        if address < 4096 || end.is_none_or(|end| end > 1 << 32) {
            return Err(Unreadable { address });
        }
        for (offset, byte) in into.iter_mut().enumerate() {
            // SAFETY: mapped, and reading bytes that the processor may write is what a dump does.
            *byte = unsafe { ((address as usize + offset) as *const u8).read_volatile() };
        }
        Ok(())
    }
}

/// Whether to print the VMCS.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// The broken rules.
    Rules,
    /// The broken rules and the VMCS.
    RulesAndVmcs,
}

/// Prints all that is known of a failed entry.
pub fn explain(vcpu: &mut Vcpu<'_>, error: EntryError, show: Show) {
    println!("failure: {error}");
    let processor = *vcpu.vmcs().root().processor();
    let moment = vcpu.moment();
    let mut print = |violation: &Violation| println!("  because {violation}");
    let checker = Checker::new(&processor).at(moment).with_memory(Mapped);
    let said = checker.explain(vcpu.vmcs(), error.outcome(), &mut print);
    println!("  {} rules explain it", said.causes);
    if show == Show::RulesAndVmcs {
        println!("--- VMCS\n{}--- end", Dump(vcpu.vmcs()));
    }
}
