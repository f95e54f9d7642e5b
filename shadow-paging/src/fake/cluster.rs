// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Several processors on one MMU, each with a TLB that forgets nothing, and tokens that are settled late.
//!
//! ```text
//!  processor 0   runs ... exit: step, token --------- waits ------------ flush on all, settled: runs
//!  processor 1   runs ............ runs on by what it has ... exit: step, token ... waits ...
//! ```
//!
//! Whatever the order, each access must come to what some processor of the manual's could come to.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::convert::Infallible;

use hvkit_page_table::{Root, Width, walk};

use super::board::{BoardMemory, BoardMmu, Doing, Instruction, exit};
use super::history::{History, Permitted, Recorder};
use super::memory::FakeHost;
use super::processor::{FakeProcessor, format};
use super::remembered::Memory;
use crate::guest::{Access, Features, GuestFault, Kind, Registers, probe};
use crate::mmu::{
    Audit, Failed, Flush, HostReason, HostRights, Machine, Mmu, Owed, Tuning, Verdict,
};
use crate::x86::{ControlError, InvalidateKind, Processor, Vcpu};

/// How often an access may fault before it must be done or wait.
const PATIENCE: u32 = 64;

/// What an access came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was done at this guest-physical address.
    Done(u64),
    /// The guest got an exception.
    Fault(GuestFault<Infallible>),
    /// A device was asked, or nothing is there.
    Elsewhere,
    /// The processor waits until its token is settled; then it tries again.
    Waits,
    /// The MMU gave up.
    Failed,
}

#[derive(Debug)]
struct One {
    caches: FakeProcessor,
    vcpu: Vcpu,
    /// What it must settle before it runs on.
    waits: Option<Owed>,
    memory: Memory,
}

/// Processors with one guest, all in the same mode at first.
#[derive(Debug)]
pub struct Cluster {
    host: Rc<FakeHost>,
    history: Rc<History>,
    mmu: BoardMmu,
    processors: Vec<One>,
    /// Tokens of the host's own.
    late: Vec<Owed>,
    /// Accesses that were done by what a processor remembered, wrong by the tables as they are.
    pub stale: u64,
    /// Accesses of which it was not found out whether the manual permits them: they were let pass.
    pub undecided: u64,
}

macro_rules! machine {
    ($self:ident) => {
        Machine {
            memory: &Recorder {
                host: &$self.host,
                view: $self.host.guest(),
                history: &$self.history,
            },
            map: &*$self.host,
        }
    };
}

impl Cluster {
    /// `count` processors that start with `registers`, on guest memory of 256 MiB in which `words` are.
    ///
    /// # Panics
    ///
    /// For registers or a budget that cannot be.
    #[must_use]
    pub fn new(
        count: usize,
        budget: u32,
        tuning: Tuning,
        registers: Registers,
        words: &[(u64, Width, u64)],
    ) -> Self {
        let host = Rc::new(FakeHost::new(0x1000_0000));
        for &(at, width, value) in words {
            if let Some(there) = host.host(at) {
                host.store(there, width, value);
            }
        }
        let shared = BoardMemory(Rc::clone(&host));
        #[expect(clippy::expect_used, reason = "a test's own mistake")]
        let mmu = Mmu::new(shared.clone(), shared, budget, tuning).expect("a budget of 16 or more");
        let mut cluster = Self {
            host,
            history: Rc::default(),
            mmu,
            processors: Vec::new(),
            late: Vec::new(),
            stale: 0,
            undecided: 0,
        };
        let features = Features::all(40);
        for _ in 0..count {
            let like = Processor::like(&features);
            let made = Vcpu::new(
                &mut cluster.mmu,
                machine!(cluster),
                registers,
                features,
                like,
            );
            #[expect(clippy::expect_used, reason = "a test's own mistake")]
            let (vcpu, owed) = made.expect("registers that can be");
            cluster.settle_now(owed);
            cluster.processors.push(One {
                caches: FakeProcessor::default(),
                vcpu,
                waits: None,
                memory: Memory::default(),
            });
        }
        cluster
    }

    /// The memory.
    #[must_use]
    pub fn host(&self) -> &FakeHost {
        &self.host
    }

    /// The registers of processor `p`.
    #[must_use]
    pub fn registers(&self, p: usize) -> Registers {
        *self.processors[p].vcpu.registers()
    }

    /// Whether processor `p` waits.
    #[must_use]
    pub fn waits(&self, p: usize) -> bool {
        self.processors[p].waits.is_some()
    }

    fn settle_now(&mut self, owed: Owed) {
        let processors = &mut self.processors;
        let settled = self.mmu.settle(owed, |flush| {
            for one in processors.iter_mut() {
                one.caches.flush(flush);
            }
            Ok::<(), Infallible>(())
        });
        assert!(settled.is_ok(), "the token is ours");
    }

    /// Processor `p` flushes all processors, and runs on.
    pub fn settle(&mut self, p: usize) {
        if let Some(owed) = self.processors[p].waits.take() {
            self.settle_now(owed);
        }
    }

    /// The host settles one of its tokens, the oldest.
    pub fn settle_late(&mut self) {
        if !self.late.is_empty() {
            let owed = self.late.remove(0);
            self.settle_now(owed);
        }
    }

    /// Keeps a token for later. Whether the processor runs on at once.
    fn owes(&mut self, p: usize, owed: Owed) -> bool {
        let free = owed.is_empty();
        if !free {
            self.processors[p].waits = Some(owed);
        }
        free
    }

    /// Processor `p` makes an access, until it is done, refused, or waits. One that waits does nothing.
    ///
    /// # Panics
    ///
    /// If it is done where the manual's processor could not have done it, or comes to a fault that the guest's
    /// tables do not say.
    pub fn access(&mut self, p: usize, linear: u64, access: Access, doing: Doing) -> Seen {
        for _ in 0..PATIENCE {
            let one = &mut self.processors[p];
            if one.waits.is_some() {
                return Seen::Waits;
            }
            let hardware = one.vcpu.hardware();
            let translated = one.caches.translate(&self.host, &hardware, linear, access);
            let code = match translated {
                Ok(at) => {
                    let Some(physical) = self.host.guest_of(at) else {
                        panic!("{linear:#x} leads to {at:#x}, which is not the guest's");
                    };
                    self.judge(p, linear, access, physical);
                    self.perform(physical, doing);
                    return Seen::Done(physical);
                }
                Err(code) => code,
            };
            let fault = exit(code, linear, access);
            let expected = probe(one.vcpu.mode(), &self.host.guest(), linear, access);
            let answer = one.vcpu.handle_fault(&mut self.mmu, machine!(self), fault);
            let mut answer = match answer {
                Ok(answer) => answer,
                Err(Failed { owed, .. }) => {
                    self.owes(p, owed);
                    return Seen::Failed;
                }
            };
            let seen = match answer.verdict {
                Verdict::Guest(fault) => {
                    let same = match (expected, fault) {
                        (
                            Err(GuestFault::Page { code, .. }),
                            GuestFault::Page { code: told, .. },
                        ) => code == told,
                        (Err(_), _) => true,
                        (Ok(_), _) => false,
                    };
                    assert!(same, "{fault:?}, where the tables say {expected:?}");
                    Some(Seen::Fault(fault))
                }
                Verdict::Mmio { .. } => Some(Seen::Elsewhere),
                Verdict::Guarded { physical } | Verdict::Emulate { physical } => {
                    self.judge(p, linear, access, physical);
                    let length = self.perform(physical, doing);
                    let more = self.mmu.guest_wrote(physical, length);
                    let merged = self.mmu.merge_owed(&mut answer.owed, more);
                    assert!(merged.is_ok(), "both are ours");
                    Some(Seen::Done(physical))
                }
                Verdict::Host { physical, reason } => match reason {
                    HostReason::Absent | HostReason::Beyond { .. } => Some(Seen::Elsewhere),
                    HostReason::Rights(_) => {
                        self.host.set_rights(physical, HostRights::ALL);
                        None
                    }
                },
                Verdict::Repaired(_) | Verdict::Retry => None,
            };
            let free = self.owes(p, answer.owed);
            match seen {
                Some(seen) => return seen,
                None if free => (),
                None => return Seen::Waits,
            }
        }
        panic!("{linear:#x} faults for ever: {access:?}");
    }

    fn perform(&self, physical: u64, doing: Doing) -> u64 {
        let Machine { memory, .. } = machine!(self);
        match doing {
            Doing::Load => 4,
            Doing::LoadEight => 8,
            Doing::Store(value) => {
                memory.store(physical, Width::Four, u64::from(value));
                4
            }
            Doing::StoreEight(value) => {
                memory.store(physical, Width::Eight, value);
                8
            }
        }
    }

    /// Panics unless a processor with the memory of `p` may come to `physical`.
    fn judge(&mut self, p: usize, linear: u64, access: Access, physical: u64) {
        let one = &self.processors[p];
        let mode = one.vcpu.mode();
        let now = probe(mode, &self.host.guest(), linear, access);
        let fresh = now.is_ok_and(|there| there.physical == physical);
        self.stale += u64::from(!fresh);
        let cr3 = one.vcpu.registers().cr3;
        let since = one.memory.since(cr3, linear & !0xfff);
        let permitted = if mode.format().is_some() {
            let since = (linear, since);
            self.history
                .permits(&self.host, mode, since, access, physical)
        } else if physical == linear {
            Permitted::Yes
        } else {
            Permitted::No
        };
        self.undecided += u64::from(permitted == Permitted::Undecided);
        assert!(
            permitted != Permitted::No,
            "processor {p}: {access:?} to {linear:#x} came to {physical:#x}, by nothing since {since}; now {now:x?}"
        );
    }

    /// Processor `p` reads ahead, if it runs.
    pub fn speculate(&mut self, p: usize, linear: u64) {
        let one = &mut self.processors[p];
        if one.waits.is_none() {
            let hardware = one.vcpu.hardware();
            one.caches.speculate(&self.host, &hardware, linear);
        }
    }

    /// Processor `p` executes an instruction that is intercepted, if it runs. Whether it did.
    pub fn intercept(&mut self, p: usize, instruction: Instruction) -> bool {
        let now = self.history.now();
        let one = &mut self.processors[p];
        if one.waits.is_some() {
            return false;
        }
        let (vcpu, mmu) = (&mut one.vcpu, &mut self.mmu);
        let before = *vcpu.registers();
        let control = |control: Result<crate::x86::Control, _>| control.map(|done| done.owed);
        let machine = machine!(self);
        let done = match instruction {
            Instruction::Cr0(value) => control(vcpu.write_cr0(mmu, machine, value)),
            Instruction::Cr3(value) => control(vcpu.write_cr3(mmu, machine, value)),
            Instruction::Cr4(value) => control(vcpu.write_cr4(mmu, machine, value)),
            Instruction::Efer(value) => control(vcpu.write_efer(mmu, machine, value)),
            Instruction::Invlpg(linear) => vcpu
                .invlpg(mmu, machine, linear)
                .map_err(ControlError::Failed),
            Instruction::Invpcid(kind) => vcpu
                .invpcid(mmu, machine, kind)
                .map_err(ControlError::Failed),
            Instruction::InvalidateAll => vcpu
                .invpcid(mmu, machine, InvalidateKind::All)
                .map_err(ControlError::Failed),
        };
        let owed = match done {
            Ok(owed) => owed,
            Err(ControlError::Failed(failed)) => {
                self.owes(p, failed.owed);
                return false;
            }
            Err(ControlError::General(_) | ControlError::Unsupported(_)) => return false,
        };
        one.memory.invalidated(&before, instruction, now);
        self.owes(p, owed);
        true
    }

    /// The host moves the guest's page at `guest` and makes sure that nobody uses the old one, whatever else is
    /// still to be settled.
    pub fn migrate(&mut self, guest: u64) {
        if let Some(gone) = self.host.migrate(guest) {
            let owed = self.mmu.host_unmap(gone);
            self.settle_now(owed);
            for one in &self.processors {
                one.caches.assert_forgot(gone.host, Kind::Read);
            }
        }
    }

    /// The host begins to log writes to the guest's page at `guest`.
    pub fn log_writes(&mut self, guest: u64) {
        if let Some(logged) = self.host.set_rights(guest, HostRights::READ_ONLY) {
            let owed = self.mmu.host_protect(logged);
            self.settle_now(owed);
            for one in &self.processors {
                one.caches.assert_forgot(logged.host, Kind::Write);
            }
        }
    }

    /// A device stores at guest-physical `at`, and tells the MMU.
    pub fn wrote(&mut self, at: u64, width: Width, value: u64) {
        let Machine { memory, .. } = machine!(self);
        if memory.store(at, width, value).is_some() {
            let owed = self.mmu.guest_wrote(at, width.bytes());
            self.late.push(owed);
        }
    }

    /// The host takes `count` tables back, and settles some time.
    pub fn shrink(&mut self, count: usize) {
        let owed = self.mmu.shrink(count);
        self.late.push(owed);
    }

    /// Looks at everything, and at every TLB: what is in one is in the tables, or will be flushed by a token.
    ///
    /// # Panics
    ///
    /// If anything is not as it must be.
    pub fn check(&self) -> Audit {
        let mut findings = Vec::new();
        let audit = self
            .mmu
            .audit(machine!(self), |finding| findings.push(finding));
        assert!(findings.is_empty(), "{findings:x?}");
        let waiting = self.processors.iter().filter_map(|one| one.waits.as_ref());
        let flushes: Vec<Flush> = waiting.chain(&self.late).map(Owed::flush).collect();
        for (p, one) in self.processors.iter().enumerate() {
            let format = format(&one.vcpu.hardware());
            for (root, span, target, attributes) in one.caches.caches.entries() {
                let to_go = flushes.iter().any(|flush| match flush {
                    Flush::Nothing => false,
                    Flush::Span(flush) => flush.start <= span.last() && flush.last() >= span.start,
                    Flush::Everything => true,
                });
                let there = self.host.in_use(root).then(|| {
                    let walk = walk(&format, &*self.host, Root::Table(root), span.start);
                    walk.outcome.ok()
                });
                let right = there.flatten().is_some_and(|there| {
                    there.target == target
                        && !hvkit_page_table::Encode::leaves_stale(
                            &format,
                            attributes,
                            there.attributes,
                        )
                });
                assert!(
                    to_go || right,
                    "processor {p} has {span:x?} to {target:#x}, no token for it, and the tables {there:x?}"
                );
            }
        }
        audit
    }

    /// Settles everything.
    pub fn settle_all(&mut self) {
        (0..self.processors.len()).for_each(|p| self.settle(p));
        while !self.late.is_empty() {
            self.settle_late();
        }
        assert_eq!(
            self.mmu.usage().frames,
            self.host.frames(),
            "no frame is lost"
        );
    }
}
