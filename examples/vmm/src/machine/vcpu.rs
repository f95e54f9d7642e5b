// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One virtual processor: run the guest, answer its exit, run again.
//!
//! ```text
//!   KVM_RUN --> exit --> port or memory access? --> the bus --+
//!      ^                 an end?  --> Stop::ask               |
//!      +------- nobody asked to stop -------------------------+
//! ```

use super::exit;
use super::registers::Registers;
use super::stop::{RunError, Stop, StopReason};
use super::vm::Vm;
use crate::bus::Bus;
use crate::interrupts::IoApic;
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
    id: u8,
    fd: VcpuFd,
    vm: Arc<Vm>,
    buses: Buses,
    stop: Stop,
    io_apic: Option<Arc<IoApic>>,
    before_first_run: Option<Box<dyn FnOnce() + Send>>,
}

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
    pub fn new(id: u8, fd: VcpuFd, vm: Arc<Vm>, buses: Buses, stop: Stop) -> Self {
        Vcpu {
            id,
            fd,
            vm,
            buses,
            stop,
            io_apic: None,
            before_first_run: None,
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

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.id
    }

    /// KVM's descriptor of it.
    #[must_use]
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
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
            if let Some(reason) = self.run_once() {
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

    /// Enters the guest once and answers its exit; the reason if that exit ends the machine.
    fn run_once(&mut self) -> Option<StopReason> {
        let vcpu = self.id;
        let internal = |error| Some(StopReason::Internal { vcpu, error });
        match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => {
                if !self.buses.memory.read(address, data) {
                    log::debug!(
                        "read of {} bytes at {address:#x}: nothing there",
                        data.len()
                    );
                }
                None
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                if !self.buses.memory.write(address, data) {
                    log::debug!("write of {data:x?} at {address:#x}: nothing there");
                }
                None
            }
            // One byte is one access; more may be several.
            Ok(VcpuExit::IoIn(port, data)) if data.len() == 1 => {
                self.buses.ports.read(port.into(), data);
                None
            }
            Ok(VcpuExit::IoOut(port, data)) if data.len() == 1 => {
                self.buses.ports.write(port.into(), data);
                None
            }
            Ok(VcpuExit::IoIn(port, _)) => {
                let accesses = exit::port_accesses(&mut self.fd, self.vm.fd().run_size())?;
                for access in accesses.data.chunks_exact_mut(accesses.size) {
                    self.buses.ports.read(port.into(), access);
                }
                None
            }
            Ok(VcpuExit::IoOut(port, _)) => {
                let accesses = exit::port_accesses(&mut self.fd, self.vm.fd().run_size())?;
                for access in accesses.data.chunks_exact(accesses.size) {
                    self.buses.ports.write(port.into(), access);
                }
                None
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                if let Some(io_apic) = &self.io_apic {
                    io_apic.end_of_interrupt(vector);
                }
                None
            }
            Ok(VcpuExit::Intr) => None,
            Ok(VcpuExit::Hlt) => Some(StopReason::Halted { vcpu }),
            Ok(VcpuExit::Shutdown) => Some(StopReason::TripleFault { vcpu }),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Some(StopReason::PowerOff),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Some(StopReason::Reset),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => Some(StopReason::GuestPanic),
            Ok(VcpuExit::FailEntry(hardware_reason, _)) => {
                internal(RunError::FailEntry { hardware_reason })
            }
            Ok(VcpuExit::InternalError) => {
                let suberror = exit::internal_suberror(&mut self.fd).unwrap_or(0);
                internal(RunError::Internal { suberror })
            }
            Ok(other) => internal(RunError::UnknownExit(format!("{other:?}"))),
            // A signal, or a vCPU that was just made ready: both mean "again".
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => None,
            Err(error) => internal(RunError::Run(error.errno())),
        }
    }
}
