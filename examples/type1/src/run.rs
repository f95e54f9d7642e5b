// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Check, enter, count, ask the policy, again.

use hvkit_vmcs::check::{Checker, Violation};
use hvkit_vmcs::exit::ExitReason;
use hvkit_vmx::{Current, Exit, Vcpu};
use payload_rt::println;

use crate::failure::{self, Mapped, Show};
use crate::root_operation::Failed;

/// What the policy says after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter again.
    Go,
    /// The guest has ended as it should.
    Stop,
    /// The guest cannot go on.
    Give(&'static str),
}

/// What to do at each exit.
pub trait Policy {
    /// Answers the exit.
    fn answer(&mut self, exit: Exit<'_, Current<'_>>) -> Next;
}

/// Exits by basic reason, and the time-stamp counter's ticks on either side.
pub struct Counts {
    exits: [u64; 96],
    guest: u64,
    hypervisor: u64,
}

impl Counts {
    /// None yet.
    pub const fn new() -> Self {
        Self {
            exits: [0; 96],
            guest: 0,
            hypervisor: 0,
        }
    }

    fn add(&mut self, reason: ExitReason) {
        if let Some(count) = self.exits.get_mut(usize::from(reason.basic())) {
            *count += 1;
        }
    }

    /// Prints each reason that occurred, and the ticks. Those of entering and leaving themselves count as the guest's.
    pub fn print(&self) {
        for (number, count) in (0..).zip(self.exits) {
            if count != 0 {
                println!("exits: {count} {}", ExitReason(number));
            }
        }
        println!("exits: {} in all", self.exits.iter().sum::<u64>());
        println!(
            "ticks: {} in the guest, {} in the hypervisor",
            self.guest, self.hypervisor
        );
    }
}

/// The time-stamp counter. Bochs counts instructions in it.
fn now() -> u64 {
    // SAFETY: every processor with VMX has it, and CPL is 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Runs the guest until the policy ends it. The first entry is checked by the manual before the processor is asked.
pub fn run(
    vcpu: &mut Vcpu<'_>,
    policy: &mut impl Policy,
    counts: &mut Counts,
) -> Result<(), Failed> {
    check(vcpu)?;
    let mut left = now();
    loop {
        let entered = now();
        counts.hypervisor += entered.wrapping_sub(left);
        let ran = vcpu.run();
        left = now();
        counts.guest += left.wrapping_sub(entered);
        let mut exit = match ran {
            Ok(exit) => exit,
            Err(error) => {
                failure::explain(vcpu, error, Show::RulesAndVmcs);
                return Err(Failed::at("the guest was not entered"));
            }
        };
        counts.add(exit.guest().reason());
        match policy.answer(exit) {
            Next::Go => {}
            Next::Stop => return Ok(()),
            Next::Give(why) => {
                println!("--- VMCS\n{}--- end", hvkit_vmcs::dump::Dump(vcpu.vmcs()));
                return Err(Failed::at(why));
            }
        }
    }
}

/// Refuses an entry that breaks a rule, before the processor does, and says which.
fn check(vcpu: &mut Vcpu<'_>) -> Result<(), Failed> {
    let processor = *vcpu.vmcs().root().processor();
    let mut print = |violation: &Violation| println!("check: {violation}");
    let checker = Checker::new(&processor).with_memory(Mapped);
    match vcpu.check(checker, &mut print) {
        Ok(checked) => {
            println!(
                "check: no rule is broken, {} undecided",
                checked.verdict().undecided
            );
            Ok(())
        }
        Err(verdict) => {
            println!("check: {}", verdict.outcome());
            Err(Failed::at("the guest would not be entered"))
        }
    }
}
