// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One virtual processor: run the guest, answer its exit, run again.
//!
//! ```text
//!   KVM_RUN --> exit --> port or memory access? --> the bus --+
//!      ^                 an end?  --> Stop::ask               |
//!      +------- nobody asked to stop -------------------------+
//! ```

use super::exit;
use super::history::Exits;
use super::pause::{Answer, Gate, Order};
use super::registers::Registers;
use super::stop::{RunError, Stop, StopReason};
use super::vm::Vm;
use crate::bus::Bus;
use crate::interrupts::IoApic;
use crate::snapshot::Processor;
use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::fmt;
use std::sync::Arc;

/// What a vCPU's exits are answered by.
#[derive(Clone, Debug)]
pub struct Buses {
    /// Port space.
    pub ports: Arc<Bus>,
    /// Memory space, where there is no RAM.
    pub memory: Arc<Bus>,
}

/// A virtual processor, ready to run.
pub struct Vcpu {
    id: u32,
    fd: VcpuFd,
    vm: Arc<Vm>,
    buses: Buses,
    stop: Stop,
    exits: Arc<Exits>,
    io_apic: Option<Arc<IoApic>>,
    before_first_run: Option<Box<dyn FnOnce() + Send>>,
    gate: Option<Gate>,
}

/// What became of one entry to the guest.
enum Entered {
    /// An exit was answered.
    Answered,
    /// Nothing happened: a signal, or a vCPU that was just made ready.
    Interrupted,
    /// The exit ends the machine.
    Ended(StopReason),
}

/// Exits that what one exit began can lead to before it is finished: an instruction that repeats itself over registers
/// in memory space leaves the guest again each time.
const UNFINISHED: usize = 4096;

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Vcpu {
    /// A processor of `vm` whose exits `buses` answer.
    #[must_use]
    pub fn new(id: u32, fd: VcpuFd, vm: Arc<Vm>, buses: Buses, stop: Stop) -> Self {
        Vcpu {
            id,
            fd,
            vm,
            buses,
            stop,
            exits: Arc::default(),
            io_apic: None,
            before_first_run: None,
            gate: None,
        }
    }

    /// The same in a machine whose I/O APIC is ours: it is told which interrupts end here.
    #[must_use]
    pub fn with_io_apic(mut self, io_apic: Option<Arc<IoApic>>) -> Self {
        self.io_apic = io_apic;
        self
    }

    /// Calls `hook` in the vCPU's thread when everything is ready for the first instruction.
    pub fn before_first_run(&mut self, hook: impl FnOnce() + Send + 'static) {
        self.before_first_run = Some(Box::new(hook));
    }

    /// Has it stand still whenever `gate` is shut.
    pub(super) fn stand_still_at(&mut self, gate: Gate) {
        self.gate = Some(gate);
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// KVM's descriptor of it.
    #[must_use]
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Its last exits, which may be read at any time.
    #[must_use]
    pub fn exits(&self) -> Arc<Exits> {
        Arc::clone(&self.exits)
    }

    /// Runs the guest until somebody asks the machine to stop, which may be this vCPU; then the
    /// result is its registers, if they tell why.
    ///
    /// Whoever asks must make the vCPU leave the guest: a signal to this thread does.
    pub fn run(&mut self) -> Option<Box<Registers>> {
        if let Some(hook) = self.before_first_run.take() {
            hook();
        }
        loop {
            let entered = match self.run_once() {
                Entered::Ended(reason) => Entered::Ended(reason),
                _ => self.stand_still(),
            };
            if let Entered::Ended(reason) = entered {
                let telling = matches!(
                    reason,
                    StopReason::TripleFault { .. }
                        | StopReason::Internal { .. }
                        | StopReason::Halted { .. }
                );
                self.stop.ask(reason);
                return telling.then(|| Registers::of(&self.fd)).flatten();
            }
            if self.stop.is_asked() {
                // Where a guest is that had to be ended is the first thing to know about it.
                if log::log_enabled!(log::Level::Debug)
                    && let Some(registers) = Registers::of(&self.fd)
                {
                    log::debug!("vCPU {} stops at\n{registers}", self.id);
                }
                return None;
            }
        }
    }

    /// Waits as long as its gate is shut, and tells its state to whoever asks.
    fn stand_still(&mut self) -> Entered {
        let Some(attempt) = self.gate.as_ref().and_then(Gate::shut) else {
            return Entered::Answered;
        };
        match self.finish() {
            Entered::Interrupted => {}
            // Not finished yet: the guest runs a little, and then once more.
            other => return other,
        }
        if let Some(gate) = &self.gate {
            gate.say(attempt, Answer::Still);
            while let Order::Save(registers) = gate.next(attempt) {
                let state = Processor::of(self.id, &self.fd, &registers);
                gate.say(attempt, Answer::State(state.map(Box::new)));
            }
        }
        Entered::Answered
    }

    /// Has KVM finish the instruction of the last exit, whose answer it takes at the next entry only, without running the
    /// guest. KVM API, "KVM_RUN", `immediate_exit`.
    fn finish(&mut self) -> Entered {
        self.fd.set_kvm_immediate_exit(1);
        let unfinished = |entered: &Entered| !matches!(entered, Entered::Answered);
        let entered = (0..UNFINISHED).map(|_| self.run_once()).find(unfinished);
        self.fd.set_kvm_immediate_exit(0);
        entered.unwrap_or(Entered::Answered)
    }

    /// Enters the guest once and answers its exit.
    fn run_once(&mut self) -> Entered {
        let vcpu = self.id;
        let internal = |error| Entered::Ended(StopReason::Internal { vcpu, error });
        let exit = self.fd.run();
        if let Ok(exit) = &exit {
            self.exits.note(exit);
        }
        match exit {
            Ok(VcpuExit::MmioRead(address, data)) => {
                if !self.buses.memory.read(address, data) {
                    log::debug!(
                        "read of {} bytes at {address:#x}: nothing there",
                        data.len()
                    );
                }
                Entered::Answered
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                if !self.buses.memory.write(address, data) {
                    log::debug!("write of {data:x?} at {address:#x}: nothing there");
                }
                Entered::Answered
            }
            // One byte is one access; more may be several.
            Ok(VcpuExit::IoIn(port, data)) if data.len() == 1 => {
                self.buses.ports.read(port.into(), data);
                Entered::Answered
            }
            Ok(VcpuExit::IoOut(port, data)) if data.len() == 1 => {
                self.buses.ports.write(port.into(), data);
                Entered::Answered
            }
            Ok(VcpuExit::IoIn(port, _)) => {
                let length = self.vm.fd().run_size();
                let Some(accesses) = exit::port_accesses(&mut self.fd, length) else {
                    return Entered::Answered;
                };
                for access in accesses.data.chunks_exact_mut(accesses.size) {
                    self.buses.ports.read(port.into(), access);
                }
                Entered::Answered
            }
            Ok(VcpuExit::IoOut(port, _)) => {
                let length = self.vm.fd().run_size();
                let Some(accesses) = exit::port_accesses(&mut self.fd, length) else {
                    return Entered::Answered;
                };
                for access in accesses.data.chunks_exact(accesses.size) {
                    self.buses.ports.write(port.into(), access);
                }
                Entered::Answered
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                if let Some(io_apic) = &self.io_apic {
                    io_apic.end_of_interrupt(vector);
                }
                Entered::Answered
            }
            Ok(VcpuExit::Intr) => Entered::Interrupted,
            Ok(VcpuExit::Hlt) => Entered::Ended(StopReason::Halted { vcpu }),
            Ok(VcpuExit::Shutdown) => Entered::Ended(StopReason::TripleFault { vcpu }),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                Entered::Ended(StopReason::PowerOff)
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => {
                Entered::Ended(StopReason::Reset)
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
                Entered::Ended(StopReason::GuestPanic)
            }
            Ok(VcpuExit::FailEntry(hardware_reason, _)) => {
                internal(RunError::FailEntry { hardware_reason })
            }
            Ok(VcpuExit::InternalError) => {
                let suberror = exit::internal_suberror(&mut self.fd).unwrap_or(0);
                internal(RunError::Internal { suberror })
            }
            Ok(other) => internal(RunError::UnknownExit(format!("{other:?}"))),
            // A signal, or a vCPU that was just made ready: both mean "again".
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                Entered::Interrupted
            }
            Err(error) => internal(RunError::Run(error.errno())),
        }
    }
}
