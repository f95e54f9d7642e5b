// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a VM entry succeeds, and if not, every reason why.
//!
//! SDM Vol. 3C, chapter "VM Entries": "Basic VM-Entry Checks", "Checks on VMX Controls and Host-State Area", "Checking
//! and Loading Guest State", "Loading MSRs".
//!
//! A processor stops at the first broken rule and tells no more than a number. [`Checker::check`] goes on: it reports
//! each broken rule with the value it found and what would be allowed, and predicts the number.
//!
//! ```text
//!  basic checks --> controls, host state --> guest state --> MSR-load area --> the guest runs
//!       |                   |                    |                |
//!  VMfailInvalid       VMfailValid(7)       exit 33, qual.    exit 34, qual. =
//!  VMfailValid(26,4,5) VMfailValid(8)       0, 2, 3 or 4      number of the entry
//! ```
//!
//! Within one of the four steps the manual lets a processor check in any order; [`Verdict::may_report`] says which
//! numbers are possible, [`Verdict::outcome`] is the first in the chapter's order.
//!
//! Where the manual and a known processor or model differ, the manual is followed, and the rule's source says so.
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

mod context;
mod entry;
mod execution;
mod explain;
mod guest;
mod host;
mod memory;
mod msr_area;
mod report;
mod rule;
mod second_stage;
mod transition;
mod verdict;

#[cfg(test)]
mod tests;

pub use explain::Explanation;
pub use memory::{NoMemory, PhysicalMemory, Unreadable};
pub use msr_area::{MsrLoading, MsrVerdict};
pub use report::{Discard, Expected, List, Place, Sink, Violation};
pub use rule::{Area, Rule, find_rule, rules};
pub use verdict::{Outcome, Verdict};

use context::Run;

use crate::{capability::Processor, store::Fields};

/// The state of the logical processor at the moment of the VM-entry instruction, apart from the VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Moment {
    /// VMLAUNCH or VMRESUME.
    pub instruction: EntryInstruction,
    /// What VMPTRLD and VMCLEAR left.
    pub current_vmcs: CurrentVmcs,
    /// The launch state of that VMCS.
    pub launch_state: LaunchState,
    /// Whether the instruction follows MOV SS or POP SS.
    pub mov_ss_blocking: bool,
    /// Whether the processor is in IA-32e mode: `IA32_EFER.LMA`.
    pub ia32e_mode: bool,
    /// Whether the processor is in system-management mode.
    pub smm: bool,
    /// Whether Intel PT is tracing: `IA32_RTIT_CTL.TraceEn`.
    pub tracing: bool,
}

/// Which instruction enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum EntryInstruction {
    /// VMLAUNCH.
    Launch,
    /// VMRESUME.
    Resume,
}

/// Whether a VMCS was launched since it was cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum LaunchState {
    /// After VMCLEAR.
    Clear,
    /// After a VMLAUNCH that entered.
    Launched,
}

/// What the current-VMCS pointer refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum CurrentVmcs {
    /// Nothing.
    None,
    /// A shadow VMCS, which cannot be entered.
    Shadow,
    /// The VMCS that is checked, at an address nobody told.
    Somewhere,
    /// The VMCS that is checked, at this physical address.
    At(u64),
}

impl Default for Moment {
    /// The first launch of a VMCS by a 64-bit host.
    fn default() -> Self {
        Self {
            instruction: EntryInstruction::Launch,
            current_vmcs: CurrentVmcs::Somewhere,
            launch_state: LaunchState::Clear,
            mov_ss_blocking: false,
            ia32e_mode: true,
            smm: false,
            tracing: false,
        }
    }
}

/// Checks VMCSs for one processor.
///
/// ```
/// use hvkit_vmcs::{Vmcs, capability::{Processor, presets}, check::{Checker, Discard, Outcome, Violation}};
///
/// let processor = presets::bochs_skylake_x();
/// let vmcs = Vmcs::new(); // nothing set up yet
/// let mut broken = 0;
/// let verdict = Checker::new(&processor).check(&vmcs, &mut |violation: &Violation| {
///     broken += 1;
///     println!("{violation}");
/// });
/// assert_eq!(verdict.outcome().to_string(), "VMfailValid: error 7, VM entry with invalid control field(s)");
/// assert!(broken > 20);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Checker<'a, M = NoMemory, L = Processor> {
    processor: &'a Processor,
    moment: Moment,
    memory: M,
    loading: &'a L,
}

impl<'a> Checker<'a> {
    /// A checker for the first launch by a 64-bit host, which sees no memory.
    pub fn new(processor: &'a Processor) -> Self {
        Self {
            processor,
            moment: Moment::default(),
            memory: NoMemory,
            loading: processor,
        }
    }
}

impl<'a, M: PhysicalMemory, L: MsrLoading> Checker<'a, M, L> {
    /// The same for another moment.
    pub fn at(self, moment: Moment) -> Self {
        Self { moment, ..self }
    }

    /// The same with physical memory to look into: for the virtual-APIC page, the VMCS that the link pointer names,
    /// PDPTEs that are not in the VMCS, and MSR-load areas.
    pub fn with_memory<N: PhysicalMemory>(self, memory: N) -> Checker<'a, N, L> {
        let Self {
            processor,
            moment,
            loading,
            ..
        } = self;
        Checker {
            processor,
            moment,
            memory,
            loading,
        }
    }

    /// The same with other knowledge of which MSR values a load accepts.
    pub fn with_msr_loading<K: MsrLoading>(self, loading: &'a K) -> Checker<'a, M, K> {
        let Self {
            processor,
            moment,
            memory,
            ..
        } = self;
        Checker {
            processor,
            moment,
            memory,
            loading,
        }
    }

    /// Reports every broken rule to `sink`, and predicts what the processor will say.
    ///
    /// A field that `vmcs` does not have reads as zero and is named to the sink.
    pub fn check<S: Fields, K: Sink + ?Sized>(&self, vmcs: &S, sink: &mut K) -> Verdict {
        let mut run = Run::new(vmcs, self.processor, &self.moment, &self.memory, sink);
        entry::check(&mut run);
        let controls = run.load_controls();
        execution::check(&mut run, &controls);
        transition::check(&mut run, &controls);
        host::check(&mut run, &controls);
        guest::check(&mut run, &controls);
        msr_area::check(&mut run, &controls, self.loading);
        run.into_verdict()
    }
}
