// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that runs: enter, exit, answer, again.
#![expect(unsafe_code, reason = "the promise that makes entering a guest sound")]

use hvkit_vmcs::check::{
    Checker, CurrentVmcs, EntryInstruction, LaunchState, Moment, MsrLoading, PhysicalMemory, Sink,
    Verdict,
};
use hvkit_vmcs::exit::ExitReason;
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::Fields;

use crate::current::Current;
use crate::exit::Exit;
use crate::registers::{DebugRegisters, FxState, Registers};
use crate::switch;
use crate::{EntryError, HostState};

/// A virtual processor: the current VMCS, and the registers that no VMCS holds.
///
/// ```no_run
/// use hvkit_vmx::{EntryError, Exit, Vcpu};
///
/// fn serve(vcpu: &mut Vcpu<'_>) -> Result<(), EntryError> {
///     loop {
///         match vcpu.run()? {
///             Exit::Cpuid(exit) => exit.answer([0, 0, 0, 0]),
///             Exit::ReadMsr(exit) => exit.fault(),
///             Exit::Hlt(_) => return Ok(()),
///             other => panic!("{other:?}"),
///         }
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Vcpu<'a> {
    current: Current<'a>,
    registers: Registers,
    debug: Option<DebugRegisters>,
    fx: Option<FxState>,
}

impl<'a> Vcpu<'a> {
    /// A virtual processor that begins with these registers, and with the host's state in the VMCS.
    ///
    /// # Errors
    ///
    /// [`EntryError::Failed`], if a field of the host-state area cannot be written.
    ///
    /// # Safety
    ///
    /// Whenever [`run`](Self::run) is called:
    ///
    /// 1. `host` is the state of this processor: an exit loads it and goes on here.
    /// 2. What the VMCS names (page tables for the host, EPT, bitmaps, lists, pages) is what it should be, and stays as
    ///    long as the guest may use it.
    /// 3. The guest cannot reach memory of this program but what the program expects to change, nor a device, port or
    ///    MSR by which it could.
    /// 4. XCR0, what XSAVE keeps beyond x87 and SSE registers, MSRs that the VMCS does not switch, and without
    ///    [`switch_debug_registers`](Self::switch_debug_registers) DR0 to DR3 and DR6, may hold whatever the guest left
    ///    in them. Without [`switch_vector_registers`](Self::switch_vector_registers), so may x87 and SSE registers with
    ///    MXCSR, and the guest finds in them whatever the host left.
    pub unsafe fn new(
        mut current: Current<'a>,
        registers: Registers,
        host: &HostState,
    ) -> Result<Self, EntryError> {
        let vmx = current.root().processor().vmx;
        if host.write(&mut current, &vmx).is_err() {
            return Err(EntryError::Failed(crate::root::why()));
        }
        for field in [f::HOST_RSP, f::HOST_RIP] {
            // Every entry writes them; the checker sees something canonical before the first.
            let write = current.vmwrite(field.encoding(), 0);
            write.map_err(EntryError::Failed)?;
        }
        Ok(Self {
            current,
            registers,
            debug: None,
            fx: None,
        })
    }

    /// From now on, switches DR0 to DR3 and DR6 too; the guest begins with these. For guests that use breakpoints, where
    /// the "MOV-DR exiting" control does not delay it until they do.
    pub fn switch_debug_registers(&mut self, begin: DebugRegisters) {
        self.debug = Some(begin);
    }

    /// From now on, switches x87 and SSE registers too; the guest begins with these. Needed by any guest that uses them,
    /// unless the whole host is compiled without: the compiler may use them right after the exit.
    ///
    /// The upper halves of AVX registers, and what else XSAVE keeps, are left alone: a host that uses them saves them.
    /// Needs CR4.OSFXSR in the host.
    pub fn switch_vector_registers(&mut self, begin: FxState) {
        self.fx = Some(begin);
    }

    /// The guest's x87 and SSE registers, if they are switched.
    pub fn vector_registers(&mut self) -> Option<&mut FxState> {
        self.fx.as_mut()
    }

    /// The VMCS.
    pub fn vmcs(&mut self) -> &mut Current<'a> {
        &mut self.current
    }

    /// The registers that no VMCS holds.
    pub fn registers(&mut self) -> &mut Registers {
        &mut self.registers
    }

    /// The guest's debug registers, if they are switched.
    pub fn debug_registers(&mut self) -> Option<&mut DebugRegisters> {
        self.debug.as_mut()
    }

    fn instruction(&self) -> EntryInstruction {
        match self.current.launch_state() {
            LaunchState::Clear => EntryInstruction::Launch,
            LaunchState::Launched => EntryInstruction::Resume,
        }
    }

    /// What the checker must know of the next entry, apart from the VMCS.
    pub fn moment(&self) -> Moment {
        Moment {
            instruction: self.instruction(),
            current_vmcs: CurrentVmcs::At(self.current.physical()),
            launch_state: self.current.launch_state(),
            ..Moment::default()
        }
    }

    /// Checks the next entry by the manual. What is returned enters, or says what the processor would have said; it holds
    /// the virtual processor, so that nothing changes in between.
    ///
    /// # Errors
    ///
    /// The [`Verdict`], if a rule is broken; `sink` was told which.
    pub fn check<M: PhysicalMemory, L: MsrLoading, K: Sink + ?Sized>(
        &mut self,
        checker: Checker<'_, M, L>,
        sink: &mut K,
    ) -> Result<Checked<'_, 'a>, Verdict> {
        let verdict = checker.at(self.moment()).check(&self.current, sink);
        if verdict.enters() {
            Ok(Checked {
                vcpu: self,
                verdict,
            })
        } else {
            Err(verdict)
        }
    }

    /// Runs the guest until it exits.
    ///
    /// # Errors
    ///
    /// [`EntryError`], if it was not entered; its [`outcome`](EntryError::outcome) is what
    /// [`Checker::explain`](hvkit_vmcs::check::Checker::explain) asks for.
    pub fn run(&mut self) -> Result<Exit<'_, Current<'a>>, EntryError> {
        let instruction = self.instruction();
        if let Some(debug) = &mut self.debug {
            // SAFETY: CPL 0; an exit leaves 400H in DR7, and so does a host that lets this crate have them.
            *debug = unsafe { switch::exchange_debug(debug) };
        }
        // SAFETY: `current` is the proof of a current VMCS, and `new` was promised the rest.
        let entered = unsafe { switch::enter(&mut self.registers, instruction, self.fx.as_mut()) };
        if let Some(debug) = &mut self.debug {
            // SAFETY: as above.
            *debug = unsafe { switch::exchange_debug(debug) };
        }
        if let Err(flags) = entered {
            let failed = self.current.root().result(flags);
            return Err(EntryError::Failed(
                failed.err().unwrap_or(crate::VmFail::Invalid),
            ));
        }
        let reason = ExitReason(self.current.read(f::EXIT_REASON).unwrap_or(0));
        if reason.is_entry_failure() {
            // The launch state is as it was: only an entry that succeeds changes it.
            return Err(EntryError::Refused {
                reason,
                qualification: self.current.read(f::EXIT_QUALIFICATION).unwrap_or(0),
            });
        }
        self.current.launched();
        Ok(Exit::read(reason, &mut self.current, &mut self.registers))
    }
}

/// Proof that the next entry breaks no rule of the manual.
#[derive(Debug)]
pub struct Checked<'v, 'a> {
    vcpu: &'v mut Vcpu<'a>,
    verdict: Verdict,
}

impl<'v, 'a> Checked<'v, 'a> {
    /// What was found: how many rules could not be decided, for want of memory to look into.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Runs the guest until it exits.
    ///
    /// # Errors
    ///
    /// [`EntryError`]: the processor knows a rule that the manual does not, or one was undecided.
    pub fn run(self) -> Result<Exit<'v, Current<'a>>, EntryError> {
        self.vcpu.run()
    }
}
