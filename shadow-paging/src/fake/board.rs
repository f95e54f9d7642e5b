// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory, a processor, a guest on it, and the exit handler that a hypervisor would have.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::convert::Infallible;

use hvkit_page_table::{Frames, OwnEntries, ReadEntry, UpdateEntry, Width};

use super::memory::{FakeHost, GuestView};
use super::processor::FakeProcessor;
use crate::guest::{
    Access, ErrorCode, Features, GuestFault, Kind, PagingMode, Privilege, Registers,
};
use crate::mmu::{
    Audit, Backed, Failed, HostReason, HostRights, Machine, Mmu, Owed, Tuning, Verdict,
};
use crate::x86::{
    Control, ControlError, Hardware, InvalidateKind, Linear, PageFault, Processor, Vcpu,
};

/// What an access does with the four bytes at its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Reads them.
    Load,
    /// Reads eight.
    LoadEight,
    /// Writes them.
    Store(u32),
    /// Writes eight.
    StoreEight(u64),
}

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The value that was there before.
    Done(u64),
    /// The guest gets an exception.
    Fault(GuestFault<Infallible>),
    /// A device is asked, at this guest-physical address.
    Mmio(u64),
    /// The MMU gave up: an allocation or a read was made to fail.
    Failed,
}

/// The shadow MMU of a board.
pub type BoardMmu = Mmu<Linear, BoardMemory, BoardMemory>;

/// Memory that the board and its MMU share.
#[derive(Clone, Debug)]
pub struct BoardMemory(pub(super) Rc<FakeHost>);

impl ReadEntry for BoardMemory {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        self.0.read(at, width)
    }
}

impl UpdateEntry for BoardMemory {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        self.0.compare_exchange(at, width, current, new)
    }
}

impl OwnEntries for BoardMemory {
    fn write(&self, at: u64, width: Width, entry: u64) {
        self.0.write(at, width, entry);
    }

    fn fill(&self, at: u64, width: Width, count: u64, entry: impl Fn(u64) -> u64) {
        self.0.fill(at, width, count, entry);
    }
}

impl Frames for BoardMemory {
    fn allocate(&self) -> Option<u64> {
        self.0.allocate()
    }

    fn free(&self, frame: u64) {
        self.0.free(frame);
    }
}

/// How often an access may fault before it must be done.
const PATIENCE: u32 = 64;

/// A machine with one guest processor.
#[derive(Debug)]
pub struct Board {
    host: Rc<FakeHost>,
    processor: FakeProcessor,
    mmu: BoardMmu,
    vcpu: Option<Vcpu>,
    features: Features,
    /// Faults that reached the exit handler.
    pub faults: u64,
    /// Writes that were emulated for it.
    pub emulated: u64,
}

impl Board {
    /// A board with 256 MiB of guest memory and shadows of `budget` tables.
    ///
    /// # Panics
    ///
    /// If the budget is impossible.
    #[must_use]
    pub fn new(budget: u32, features: Features) -> Self {
        let host = Rc::new(FakeHost::new(0x1000_0000));
        let shared = BoardMemory(Rc::clone(&host));
        #[expect(clippy::expect_used, reason = "a test's own mistake")]
        let mmu = Mmu::new(shared.clone(), shared, budget, Tuning::default())
            .expect("a budget of 16 tables or more");
        Self {
            host,
            processor: FakeProcessor::default(),
            mmu,
            vcpu: None,
            features,
            faults: 0,
            emulated: 0,
        }
    }

    /// Chooses how the MMU works.
    pub fn tune(&mut self, tuning: Tuning) {
        self.mmu.set_tuning(tuning);
    }

    /// The memory.
    #[must_use]
    pub fn host(&self) -> &FakeHost {
        &self.host
    }

    /// The MMU.
    #[must_use]
    pub fn mmu(&self) -> &BoardMmu {
        &self.mmu
    }

    /// The processor's caches.
    #[must_use]
    pub fn processor(&self) -> &FakeProcessor {
        &self.processor
    }

    /// What is at guest-physical `at`; 0 where there is no memory.
    #[must_use]
    pub fn get(&self, at: u64, width: Width) -> u64 {
        self.host
            .host(at)
            .map_or(0, |host| self.host.load(host, width))
    }

    /// Stores at guest-physical `at`, as a loader does before the guest runs.
    pub fn set(&self, at: u64, width: Width, value: u64) {
        if let Some(host) = self.host.host(at) {
            self.host.store(host, width, value);
        }
    }

    /// Starts the guest with `registers`.
    ///
    /// # Panics
    ///
    /// If they cannot be.
    pub fn start(&mut self, registers: Registers) {
        let host = Rc::clone(&self.host);
        let like = Processor::like(&self.features);
        let made = Vcpu::new(
            &mut self.mmu,
            machine(&host, &host.guest()),
            registers,
            self.features,
            like,
        );
        #[expect(clippy::expect_used, reason = "a test's own mistake")]
        let (vcpu, owed) = made.expect("registers that can be");
        self.settle(owed);
        if let Some(old) = self.vcpu.replace(vcpu) {
            old.retire(&mut self.mmu);
        }
    }

    /// The guest's registers.
    #[must_use]
    pub fn registers(&self) -> Registers {
        self.vcpu
            .as_ref()
            .map(|vcpu| *vcpu.registers())
            .unwrap_or_default()
    }

    /// How the real processor is set up; `None` before the guest is started.
    #[must_use]
    pub fn hardware(&self) -> Option<Hardware> {
        self.vcpu.as_ref().map(Vcpu::hardware)
    }

    /// How the guest's own tables are read now; `None` before it is started.
    #[must_use]
    pub fn mode(&self) -> Option<PagingMode> {
        self.vcpu.as_ref().map(|vcpu| *vcpu.mode())
    }

    /// Settles a token by the processor's flush.
    pub fn settle(&mut self, owed: Owed) {
        let processor = &mut self.processor;
        let settled = self.mmu.settle(owed, |flush| {
            processor.flush(flush);
            Ok::<(), Infallible>(())
        });
        assert!(settled.is_ok(), "the token is ours");
    }

    /// The guest's processor makes an access, until it is done or refused.
    ///
    /// # Panics
    ///
    /// If something is used that must not be, or the same fault comes again and again.
    pub fn access(&mut self, linear: u64, access: Access, doing: Doing) -> Outcome {
        for _ in 0..PATIENCE {
            let Some(vcpu) = &mut self.vcpu else {
                return Outcome::Failed;
            };
            let hardware = vcpu.hardware();
            let code = match self
                .processor
                .translate(&self.host, &hardware, linear, access)
            {
                Ok(at) => return Outcome::Done(self.perform(at, doing)),
                Err(code) => code,
            };
            self.faults += 1;
            let fault = exit(code, linear, access);
            let host = Rc::clone(&self.host);
            let view = host.guest();
            let answer = match vcpu.handle_fault(&mut self.mmu, machine(&host, &view), fault) {
                Ok(answer) => answer,
                Err(failed) => {
                    self.settle(failed.owed);
                    return Outcome::Failed;
                }
            };
            self.settle(answer.owed);
            match answer.verdict {
                Verdict::Guest(fault) => return Outcome::Fault(fault),
                Verdict::Mmio { physical } => return Outcome::Mmio(physical),
                Verdict::Guarded { physical } => {
                    return Outcome::Done(self.emulate(physical, doing));
                }
                // No table is there, and no access goes on into the next page: nobody is told.
                Verdict::Emulate { physical } => {
                    self.emulated += 1;
                    let at = self.host.host(physical);
                    return Outcome::Done(at.map_or(0, |at| self.perform(at, doing)));
                }
                Verdict::Host { physical, reason } => match reason {
                    HostReason::Absent | HostReason::Beyond { .. } => return Outcome::Failed,
                    // Logged: the page is dirty, and may be written.
                    HostReason::Rights(_) => {
                        self.host.set_rights(physical, HostRights::ALL);
                    }
                },
                Verdict::Repaired(_) | Verdict::Retry => (),
            }
        }
        panic!("{linear:#x} faults for ever: {access:?}");
    }

    /// Does what an instruction emulator would: the write, and word of it.
    fn emulate(&mut self, physical: u64, doing: Doing) -> u64 {
        self.emulated += 1;
        let Some(at) = self.host.host(physical) else {
            return 0;
        };
        let before = self.perform(at, doing);
        let length = match doing {
            Doing::StoreEight(_) | Doing::LoadEight => 8,
            Doing::Load | Doing::Store(_) => 4,
        };
        let owed = self.mmu.guest_wrote(physical, length);
        self.settle(owed);
        before
    }

    fn perform(&self, at: u64, doing: Doing) -> u64 {
        let (width, value) = match doing {
            Doing::Load => (Width::Four, None),
            Doing::LoadEight => (Width::Eight, None),
            Doing::Store(value) => (Width::Four, Some(u64::from(value))),
            Doing::StoreEight(value) => (Width::Eight, Some(value)),
        };
        let before = self.host.load(at, width);
        if let Some(value) = value {
            self.host.store(at, width, value);
        }
        before
    }

    /// The guest writes one of its tables, through its own mapping of it.
    pub fn edit(&mut self, linear: u64, width: Width, value: u64) -> Outcome {
        let doing = match width {
            Width::Four => Doing::Store(value as u32),
            Width::Eight => Doing::StoreEight(value),
        };
        self.access(
            linear,
            Access::new(Kind::Write, Privilege::Supervisor),
            doing,
        )
    }

    /// The processor reads ahead.
    pub fn speculate(&mut self, linear: u64) {
        if let Some(vcpu) = &self.vcpu {
            let hardware = vcpu.hardware();
            self.processor.speculate(&self.host, &hardware, linear);
        }
    }

    /// The guest's processor executes an instruction that is intercepted. Whether it succeeded; if not,
    /// it ended in #GP, or the MMU gave up.
    pub fn intercept(&mut self, instruction: Instruction) -> bool {
        let host = Rc::clone(&self.host);
        let view = host.guest();
        let machine = machine(&host, &view);
        let (Some(vcpu), mmu) = (&mut self.vcpu, &mut self.mmu) else {
            return false;
        };
        let done = match instruction {
            Instruction::Cr0(value) => vcpu.write_cr0(mmu, machine, value),
            Instruction::Cr3(value) => vcpu.write_cr3(mmu, machine, value),
            Instruction::Cr4(value) => vcpu.write_cr4(mmu, machine, value),
            Instruction::Efer(value) => vcpu.write_efer(mmu, machine, value),
            Instruction::Invlpg(linear) => {
                alone(vcpu.invpcid(mmu, machine, InvalidateKind::Address(linear)))
            }
            Instruction::Invpcid(kind) => alone(vcpu.invpcid(mmu, machine, kind)),
            Instruction::InvalidateAll => alone(vcpu.invpcid(mmu, machine, InvalidateKind::All)),
        };
        let (owed, succeeded) = match done {
            Ok(control) => (control.owed, true),
            Err(ControlError::Failed(failed)) => (failed.owed, false),
            Err(ControlError::General(_) | ControlError::Unsupported(_)) => return false,
        };
        self.settle(owed);
        succeeded
    }

    /// The host moves the guest's page at `guest` elsewhere, and sees to it that nobody uses the old
    /// one.
    pub fn migrate(&mut self, guest: u64) {
        if let Some(gone) = self.host.migrate(guest) {
            let owed = self.mmu.host_unmap(gone);
            self.settle(owed);
            self.processor.assert_forgot(gone.host, Kind::Read);
        }
    }

    /// The host begins to log writes to the guest's page at `guest`.
    pub fn log_writes(&mut self, guest: u64) {
        if let Some(logged) = self.host.set_rights(guest, HostRights::READ_ONLY) {
            self.protect(logged);
            self.processor.assert_forgot(logged.host, Kind::Write);
        }
    }

    /// The host tells the MMU that writes to `logged` are withheld.
    pub fn protect(&mut self, logged: Backed) {
        let owed = self.mmu.host_protect(logged);
        self.settle(owed);
    }

    /// The host wants `count` tables back.
    pub fn shrink(&mut self, count: usize) {
        let owed = self.mmu.shrink(count);
        self.settle(owed);
    }

    /// A device, or the host, stored at guest-physical `at`.
    pub fn wrote(&mut self, at: u64, width: Width, value: u64) {
        self.set(at, width, value);
        let owed = self.mmu.guest_wrote(at, width.bytes());
        self.settle(owed);
    }

    /// Looks at everything.
    ///
    /// # Panics
    ///
    /// If anything is not as it must be.
    pub fn audit(&self) -> Audit {
        let view = self.host.guest();
        let mut findings = Vec::new();
        let look = |finding| findings.push(finding);
        let audit = self
            .host
            .undisturbed(|| self.mmu.audit(machine(&self.host, &view), look));
        assert!(findings.is_empty(), "{findings:x?}");
        audit
    }
}

/// The exit for a fault of `access`.
pub(super) fn exit(code: ErrorCode, linear: u64, access: Access) -> PageFault {
    let (cpl, rflags) = match access.privilege {
        Privilege::User | Privilege::Implicit => (3, 2),
        Privilege::Supervisor => (0, 2),
        Privilege::SupervisorAc => (0, Privilege::EFLAGS_AC | 2),
    };
    PageFault {
        code,
        linear,
        cpl,
        rflags,
    }
}

/// An instruction that the hypervisor intercepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// MOV to CR0.
    Cr0(u64),
    /// MOV to CR3.
    Cr3(u64),
    /// MOV to CR4.
    Cr4(u64),
    /// WRMSR to `IA32_EFER`.
    Efer(u64),
    /// INVLPG.
    Invlpg(u64),
    /// INVPCID.
    Invpcid(InvalidateKind),
    /// INVPCID of everything.
    InvalidateAll,
}

fn machine<'a>(
    host: &'a FakeHost,
    view: &'a GuestView<'a>,
) -> Machine<'a, GuestView<'a>, FakeHost> {
    Machine {
        memory: view,
        map: host,
    }
}

/// An invalidation, as a control register's write.
fn alone<E>(result: Result<Owed, Failed<E>>) -> Result<Control, ControlError<E>> {
    let owed = result.map_err(ControlError::Failed)?;
    Ok(Control {
        owed,
        root_changed: false,
    })
}
