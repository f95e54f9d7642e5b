// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine: memory, processors and devices, from the first page to the last thread's end.
//!
//! ```text
//!   Config --> Machine::new                         run
//!              memory, KVM's controllers            vCPU threads --+--> Stop
//!              devices on two buses                 main thread: console, signals
//!              kernel, boot data, first registers   every thread joined, terminal restored
//! ```

pub mod address_map;
pub mod balloon;
pub mod cpuid;
mod devices;
mod error;
mod exit;
pub mod history;
pub mod keyboard;
pub mod kvm;
pub mod memory;
pub mod panic_port;
mod platform;
pub mod pmem;
pub mod processors;
pub mod registers;
mod start_report;
pub mod stop;
pub mod threads;
pub mod vcpu;
pub mod vm;
pub mod watchdog;

pub use devices::DeviceError;
pub use error::MachineError;

use crate::boot::{self, Payload};
use crate::config::{Config, VirtioConsole};
use crate::confine::{Confiner, Kind, alarm};
use crate::console::input::{Signals, wait_for_stop};
use crate::console::tty::TtyPort;
use crate::console::{Console, ConsoleError};
use crate::passthrough;
use crate::viommu;
use address_map::AddressMap;
use cpuid::Features;
use history::{History, TellOnPanic};
use platform::{Hosts, Platform, Threads};
use registers::Registers;
use std::sync::Arc;
use std::time::Instant;
use stop::{Stop, StopReason};
use threads::VcpuThreads;
use vcpu::Vcpu;
use vm::Vm;

/// A machine that is ready to run.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vec<Vcpu>,
    // Devices answer the vCPUs, so they outlive them.
    platform: Platform,
    console: Option<Console>,
    tty: Option<TtyPort>,
    stop: Stop,
    confiner: Confiner,
}

/// How a machine ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the guest did last.
    pub history: History,
    /// Why.
    pub reason: StopReason,
    /// The registers of the vCPU that ended it, if they help to understand that.
    pub registers: Option<Box<Registers>>,
}

impl Outcome {
    /// Whether the guest or the machine came to harm; an end that somebody asked for is none.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        !matches!(
            self.reason,
            StopReason::PowerOff | StopReason::Reset | StopReason::Quit | StopReason::Signal(_)
        )
    }

    /// Whether what the guest did last helps to understand this end.
    #[must_use]
    pub fn is_crash(&self) -> bool {
        self.is_failure() && !matches!(self.reason, StopReason::Reclaimed { .. })
    }
}

impl Machine {
    /// Builds the machine that `config` describes, with its kernel in memory.
    pub fn new(config: &Config) -> Result<Self, MachineError> {
        let began = Instant::now();
        memory::check_size(config.memory)?;
        viommu::check(config)?;
        let devices = passthrough::select(&config.devices)?;
        let kvm = kvm::open(&config.kvm)?;
        let count = processors::count(config.cpus, &kvm)?;
        let features = Features::of(&kvm)?;
        let mut map = AddressMap::new(config.memory, features.address_bits())?;
        let pmems = pmem::place(&config.pmems, &mut map)?;
        let other = pmems
            .iter()
            .map(|placed| Arc::clone(&placed.region))
            .collect();
        let vm = Arc::new(Vm::new(&kvm, memory::reserve(&map)?, other)?);
        if config.vtd.is_some_and(|vtd| vtd.interrupts) {
            vm.add_local_apics()?;
        } else {
            vm.add_interrupt_controllers()?;
        }

        let stop = Stop::new().map_err(MachineError::Event)?;
        let confiner = Confiner::new(config.confinement)?;
        let console = Console::open(&config.serial)?;
        let tty = match config.console {
            VirtioConsole::Tty => Some(TtyPort::open().map_err(MachineError::Event)?),
            _ => None,
        };
        let threads = Threads {
            stop: &stop,
            confiner: &confiner,
        };
        let hosts = Hosts {
            console: console.as_ref(),
            tty: tty.as_ref(),
            pmems,
            assigned: &devices,
        };
        let platform = Platform::new(&vm, &map, count, config, hosts, threads)?;
        let payload = Payload {
            kernel: &config.kernel,
            initramfs: config.initramfs.as_deref(),
            command_line: &config.command_line,
            rsdp: Some(platform.rsdp()),
        };
        let entry = boot::load(&payload, &map, vm.ram())?;
        entry
            .write_tables(vm.ram())
            .map_err(boot::BootError::from)?;

        let mut vcpus = Vec::with_capacity(count.into());
        for id in 0..count {
            let fd = processors::create(&vm, id, count, &features)?;
            let buses = platform.buses().clone();
            let vcpu = Vcpu::new(id, fd, Arc::clone(&vm), buses, stop.clone());
            vcpus.push(vcpu.with_io_apic(platform.io_apic()));
        }
        if let Some(first) = vcpus.first_mut() {
            entry.apply(first.fd())?;
            first.before_first_run(start_report::teller(began, config.report.clone())?);
        }
        log::info!(
            "{count} vCPUs, {} MiB, entered in {entry:x?}",
            config.memory >> 20
        );
        Ok(Machine {
            vcpus,
            platform,
            console,
            tty,
            stop,
            confiner,
        })
    }

    /// By which another thread may stop the machine.
    #[must_use]
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Runs the machine to its end. Every thread has ended when this returns, and the terminal is as
    /// it was found. With [`Confinement::On`](crate::config::Confinement::On) the calling thread stays confined: it can
    /// print and end the process, and not much more.
    pub fn run(self) -> Result<Outcome, MachineError> {
        let Machine {
            vcpus,
            platform,
            console,
            tty,
            stop,
            confiner,
        } = self;
        let history = History::of(vcpus.iter().map(|vcpu| (vcpu.id(), vcpu.exits())));
        let tell = TellOnPanic(&history);
        alarm::tell_with(&history);
        let signals = Signals::catch().map_err(MachineError::Event)?;
        let session = console.as_ref().map(Console::enter).transpose()?;
        let session = match &tty {
            Some(tty) => Some(tty.enter(session).map_err(ConsoleError::Enter)?),
            None => session,
        };
        confiner.give_up_files()?;
        let threads = VcpuThreads::start(vcpus, &confiner, &stop)?;
        let confined = confiner.enter(Kind::Main);
        let waited = match &confined {
            Ok(()) => wait_for_stop(&stop, &signals, session),
            Err(_) => Ok(()),
        };
        if confined.is_err() || waited.is_err() {
            // There is nobody left to say when to stop.
            stop.ask(StopReason::Quit);
        }
        let registers = threads.join();
        if let Some(console) = &console {
            console.drain();
        }
        drop(platform);
        let registers = registers?;
        confined?;
        drop(tell);
        waited.map_err(MachineError::Wait)?;
        Ok(Outcome {
            reason: stop.reason().cloned().unwrap_or(StopReason::Quit),
            registers,
            history,
        })
    }
}
