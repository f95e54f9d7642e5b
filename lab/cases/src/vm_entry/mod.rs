// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases of `cargo xtask oracle vm-entry`: a VMCS that enters, with one to three changes, and the moment of the entry.
//!
//! Physical memory as the cases know it; all that is not named here is zero, and is never written:
//!
//! ```text
//!  0x700_0000  VMXON region              0x700_8000  bitmaps, lists: a page of zeros each
//!  0x700_1000  the VMCS that is entered  0x700_9000  entry MSR-load area
//!  0x700_2000  a VMCS to link to         0x700_a000  page tables of the PAE guest
//!  0x700_3000  the same, shadow bit set  0x700_b000  MSR areas of exits
//!  0x700_4000  virtual-APIC page
//! ```
//!
//! The model stops at the first broken rule; the payload must survive every case. So a case that the checker lets
//! past the host state is [tamed](Case::new): what would make the model run on in a place where nothing is, or wait for
//! ever, is put back.

mod generate;
mod memory;
mod record;

pub use generate::exit_at_once;
pub use memory::Memory;
pub use record::{Cpu, HEADER_MAGIC, Record};

use hvkit_vmcs::{
    Vmcs,
    check::{Checker, CurrentVmcs, Discard, EntryInstruction, LaunchState, Moment, Sink, Verdict},
    seed::Seed,
};

/// The VMXON region.
pub const VMXON: u64 = 0x700_0000;
/// The VMCS.
pub const VMCS: u64 = 0x700_1000;
/// A VMCS region with the processor's revision.
pub const LINK: u64 = 0x700_2000;
/// The same, with the shadow bit.
pub const SHADOW: u64 = 0x700_3000;
/// The virtual-APIC page.
pub const VIRTUAL_APIC: u64 = 0x700_4000;
/// Pages of zeros.
pub const ZEROS: u64 = 0x700_8000;
/// The VM-entry MSR-load area.
pub const ENTRY_MSRS: u64 = 0x700_9000;
/// The PDPTEs of the guest with PAE paging.
pub const PDPT: u64 = 0x700_a000;
/// MSR areas of exits.
pub const EXIT_MSRS: u64 = 0x700_b000;
/// The value of host RIP that stands for the payload's own handler.
pub const HOST_RIP: u64 = 0x20_0000;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// The VMCS the case began with.
    pub seed: Seed,
    /// The VMCS to enter. Host RIP [`HOST_RIP`] and host RSP are the payload's own.
    pub vmcs: Vmcs,
    /// VMLAUNCH or VMRESUME, and after what.
    pub moment: Moment,
    /// What is in memory.
    pub memory: Memory,
    /// Whether the processor reports that error codes do not depend on the vector: `IA32_VMX_BASIC` bit 56.
    pub free_error_codes: bool,
}

impl Case {
    /// Case `index` of the run with `seed`, for this processor.
    #[must_use]
    pub fn new(seed: u64, index: u64, cpu: &Cpu) -> Self {
        generate::case(seed, index, cpu)
    }

    /// What the checker says. Not generic: one copy of the checker is much of the payload already.
    pub fn check(&self, cpu: &Cpu, sink: &mut dyn Sink) -> Verdict {
        let processor = cpu.processor();
        Checker::new(&processor)
            .at(self.moment)
            .with_memory(&self.memory)
            .check(&self.vmcs, sink)
    }

    /// The verdict alone.
    #[must_use]
    pub fn verdict(&self, cpu: &Cpu) -> Verdict {
        self.check(cpu, &mut Discard)
    }

    /// Whether the VMCS must have been launched once before.
    #[must_use]
    pub fn launched(&self) -> bool {
        self.moment.launch_state == LaunchState::Launched
    }

    /// Whether the instruction is VMRESUME.
    #[must_use]
    pub fn resumes(&self) -> bool {
        self.moment.instruction == EntryInstruction::Resume
    }

    /// Whether there is a current VMCS.
    #[must_use]
    pub fn has_vmcs(&self) -> bool {
        self.moment.current_vmcs != CurrentVmcs::None
    }
}
