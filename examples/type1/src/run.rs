// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Check, enter, count, ask the policy, again.

use hvkit_vmcs::check::{Checker, Violation};
use hvkit_vmcs::exit::ExitReason;
use hvkit_vmx::{Current, Exit, Vcpu};
use lab_cases::type1::MARKS;
use payload_rt::println;

use crate::failure::{self, Mapped, Show};
use crate::host_faults;
use crate::isolation::Isolation;
use crate::root_operation::Failed;

/// What the policy says after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter again.
    Go,
    /// Enter again; the guest has come to this point of its work.
    Mark(u32),
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

/// The exits of one kind of paging, and what its processor must not offer.
pub trait Paging {
    /// Answers an exit that is not the same for all kinds.
    fn answer(&mut self, exit: Exit<'_, Current<'_>>, isolation: &mut Isolation) -> Next;
    /// Bits of EAX, EBX, ECX and EDX that CPUID does not show.
    fn hides(&self, leaf: u32, subleaf: u32) -> [u32; 4];
    /// The guest has come to this point of its work. What to do next.
    fn marked(&mut self, number: u32, vmcs: &mut Current<'_>) -> Next {
        let _ = vmcs;
        Next::Mark(number)
    }
    /// Prints what was seen.
    fn print(&self);
}

const REASONS: usize = 96;

/// What was counted up to a moment.
#[derive(Clone, Copy)]
struct Tally {
    /// By basic reason: exits, and ticks to answer them.
    exits: [(u64, u64); REASONS],
    /// Ticks of the guest. Those of entering and leaving themselves count as the guest's.
    guest: u64,
}

impl Tally {
    const NONE: Self = Self {
        exits: [(0, 0); REASONS],
        guest: 0,
    };

    /// What came since `before`.
    fn since(&self, before: &Self) -> Self {
        let mut more = *self;
        for (more, before) in more.exits.iter_mut().zip(before.exits) {
            more.0 -= before.0;
            more.1 -= before.1;
        }
        more.guest -= before.guest;
        more
    }

    /// Prints each reason that occurred, and the ticks.
    fn print(&self, of: &str) {
        let exits = || (0..).zip(self.exits).filter(|(_, (count, _))| *count != 0);
        for (number, (count, ticks)) in exits() {
            println!("exits{of}: {count} {ticks} {}", ExitReason(number));
        }
        let all: u64 = exits().map(|(_, (count, _))| count).sum();
        let hypervisor: u64 = exits().map(|(_, (_, ticks))| ticks).sum();
        println!("exits{of}: {all} in all");
        println!(
            "ticks{of}: {} in the guest, {hypervisor} in the hypervisor",
            self.guest
        );
    }
}

/// Exits by basic reason, and the time-stamp counter's ticks on either side.
pub struct Counts {
    now: Tally,
    marks: [Option<(u32, Tally)>; MARKS],
}

impl Counts {
    /// None yet.
    pub const fn new() -> Self {
        Self {
            now: Tally::NONE,
            marks: [None; MARKS],
        }
    }

    fn add(&mut self, reason: ExitReason, ticks: u64) {
        if let Some(count) = self.now.exits.get_mut(usize::from(reason.basic())) {
            count.0 += 1;
            count.1 += ticks;
        }
    }

    /// The guest is at a point of its work; points beyond those there is room for are not kept.
    fn mark(&mut self, number: u32) {
        if let Some(free) = self.marks.iter_mut().find(|mark| mark.is_none()) {
            *free = Some((number, self.now));
        }
    }

    /// Prints what came before the first mark, between one and the next, then all.
    pub fn print(&self) {
        let marks = || self.marks.iter().flatten();
        if let Some((_, booted)) = marks().next() {
            booted.print(" boot");
        }
        for ((number, before), (_, after)) in marks().zip(marks().skip(1)) {
            let of = [b' ', b'0' + (number % 10) as u8];
            let of = core::str::from_utf8(&of).unwrap_or("");
            after.since(before).print(of);
        }
        self.now.print("");
    }
}

/// The time-stamp counter. Bochs counts instructions in it.
pub fn now() -> u64 {
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
    let mut entered = now();
    loop {
        host_faults::pass_on(vcpu);
        let ran = vcpu.run();
        let left = now();
        counts.now.guest += left.wrapping_sub(entered);
        let mut exit = match ran {
            Ok(exit) => exit,
            Err(error) => {
                failure::explain(vcpu, error, Show::RulesAndVmcs);
                return Err(Failed::at("the guest was not entered"));
            }
        };
        let reason = exit.guest().reason();
        let next = policy.answer(exit);
        entered = now();
        counts.add(reason, entered.wrapping_sub(left));
        match next {
            Next::Go => {}
            Next::Mark(number) => counts.mark(number),
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
