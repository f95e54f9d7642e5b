// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine: memory, processors and devices, from the first page to the last thread's end.
//!
//! ```text
//!   Config --> Machine::new                         run
//!              memory, KVM's controllers            vCPU threads --+--> Stop
//!              devices on two buses                 main thread: console, signals
//!              kernel, boot data, first registers   every thread joined, terminal restored
//! ```
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

pub mod address_map;
pub mod balloon;
mod counters;
pub mod cpuid;
mod devices;
mod disk;
mod error;
mod exit;
pub mod history;
pub mod keyboard;
pub mod kvm;
pub mod line_socket;
pub mod memory;
pub mod panic_port;
mod pause;
mod platform;
pub mod pmem;
pub mod processors;
pub mod registers;
mod saving;
mod start_report;
pub mod stop;
pub mod threads;
mod user_devices;
pub mod user_network;
pub mod vcpu;
pub mod vm;
pub mod watchdog;

pub use devices::DeviceError;
pub(crate) use devices::disk;
pub use error::MachineError;

use crate::boot::{self, Payload};
use crate::config::{Config, VirtioConsole};
use crate::confine::{Confiner, Kind, alarm};
use crate::console::Console;
use crate::console::input::{Signals, Waited, wait};
use crate::console::tty::TtyPort;
use crate::passthrough;
use crate::snapshot::{self, Description, Source};
use crate::stderr;
use crate::vfio_user;
use crate::viommu;
use address_map::AddressMap;
use cpuid::Features;
use history::{History, TellOnPanic};
use memory::Sharing;
use platform::{Hosts, Platform, Threads};
use registers::Registers;
use saving::Saving;
use std::path::{Path, PathBuf};
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
    vm: Arc<Vm>,
    saving: Saving,
    /// Folders of files that end with the machine.
    made_in: Vec<PathBuf>,
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
            StopReason::PowerOff
                | StopReason::Reset
                | StopReason::Saved
                | StopReason::Quit
                | StopReason::Signal(_)
        )
    }
}

impl Machine {
    /// Builds the machine that `config` describes, with its kernel in memory.
    pub fn new(config: &Config) -> Result<Self, MachineError> {
        let began = Instant::now();
        stderr::open();
        memory::check_size(config.memory)?;
        viommu::check(config)?;
        snapshot::check(config)?;
        let source = config.restore.as_deref().map(Source::open).transpose()?;
        let devices = passthrough::select(&config.devices)?;
        vfio_user::check(&config.user_devices)?;
        let kvm = kvm::open(&config.kvm)?;
        let destinations = processors::Destinations::of(&config.vtds);
        let count = processors::count(config.cpus, &kvm, destinations)?;
        let features = Features::of(&kvm)?;
        let features = match config.snapshot.is_some() || config.restore.is_some() {
            true => features.without_nesting(),
            false => features,
        };
        let map = AddressMap::new(config.memory, features.address_bits())?;
        let mut map = map.with_segments(config.segments);
        let pmems = pmem::place(&config.pmems, &mut map)?;
        let other = pmems
            .iter()
            .map(|placed| Arc::clone(&placed.region))
            .collect();
        let vm = Arc::new(Vm::new(
            &kvm,
            memory::reserve_as(&map, Sharing::of(config))?,
            other,
        )?);
        match destinations {
            processors::Destinations::Wide => vm.add_local_apics()?,
            processors::Destinations::Bytes => vm.add_interrupt_controllers()?,
        }

        let stop = Stop::new().map_err(MachineError::Event)?;
        let confiner = Confiner::new(config.confinement)?;
        let console = Console::open(&config.serial, config.output, &stop)?;
        let tty = match config.console {
            VirtioConsole::Tty => Some(TtyPort::open(stop.clone()).map_err(MachineError::Event)?),
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
        let mut vcpus = Vec::with_capacity(count as usize);
        for id in 0..count {
            let fd = processors::create(&vm, id, count, &features)?;
            let buses = platform.buses().clone();
            let vcpu = Vcpu::new(id, fd, Arc::clone(&vm), buses, stop.clone());
            vcpus.push(vcpu.with_io_apic(platform.io_apic()));
        }
        let description = Description {
            memory: config.memory,
            processors: count,
            address_bits: map.address_bits(),
            features: snapshot::leaves(features.of_vcpu(0, count).as_slice()),
        };
        let saving = Saving::new(&kvm, &vm, description, config, stop.clone())?;
        match source {
            Some(source) => saving.restore(source, &vm, &vcpus, &platform, console.as_ref())?,
            None => boot(config, &vm, &map, &platform, vcpus.first())?,
        }
        if let Some(first) = vcpus.first_mut() {
            first.before_first_run(start_report::teller(began, config.report.clone())?);
        }
        log::info!("{count} vCPUs, {} MiB", config.memory >> 20);
        Ok(Machine {
            vcpus,
            platform,
            vm,
            saving,
            made_in: made_in(config),
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
            mut platform,
            vm,
            mut saving,
            made_in,
            console,
            tty,
            stop,
            confiner,
        } = self;
        let history = History::of(vcpus.iter().map(|vcpu| (vcpu.id(), vcpu.exits())));
        let tell = TellOnPanic(&history);
        alarm::tell_with(&history);
        let mut signals = Signals::catch(&stop).map_err(MachineError::Event)?;
        if saving.is_possible() {
            signals.catch_save().map_err(MachineError::Event)?;
        }
        platform.empty_files()?;
        let session = console.as_ref().map(Console::enter).transpose()?;
        let mut session = match &tty {
            Some(tty) => Some(tty.enter(session).map_err(DeviceError::Tty)?),
            None => session,
        };
        confiner.give_up_files(&made_in)?;
        let threads = VcpuThreads::start(vcpus, &confiner, &stop)?;
        platform.chipset().resume();
        let confined = confiner.enter(Kind::Main);
        let mut waited = Ok(Waited::Stop);
        while confined.is_ok() {
            waited = wait(&stop, &signals, platform.reclaim(), session.as_mut());
            match waited {
                Ok(Waited::Wanted) => platform.give_back(),
                Ok(Waited::Save) => match saving.save(&vm, &threads, &platform, console.as_ref()) {
                    Ok(()) => {
                        stop.ask(StopReason::Saved);
                        threads.go_on();
                    }
                    Err(error) if stop.is_asked() => {
                        log::error!("the machine was not saved: {error}");
                    }
                    Err(error) => {
                        log::error!("the machine was not saved, and goes on: {error}");
                    }
                },
                Ok(Waited::Stop) | Err(_) => break,
            }
        }
        drop(session);
        if confined.is_err() || waited.is_err() {
            // There is nobody left to say when to stop.
            stop.ask(StopReason::Quit);
        }
        let registers = threads.join();
        // A vCPU that is stuck in the host may have the line.
        if let (Ok(_), Some(console)) = (&registers, &console) {
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

/// Puts the kernel of `config` and what a BIOS would have left into memory, and has `first` begin there.
fn boot(
    config: &Config,
    vm: &Vm,
    map: &AddressMap,
    platform: &Platform,
    first: Option<&Vcpu>,
) -> Result<(), MachineError> {
    let payload = Payload {
        kernel: &config.kernel,
        initramfs: config.initramfs.as_deref(),
        command_line: &config.command_line,
        rsdp: Some(platform.write_tables(vm)?),
    };
    let entry = boot::load(&payload, map, vm.ram())?;
    entry
        .write_tables(vm.ram())
        .map_err(boot::BootError::from)?;
    if let Some(first) = first {
        entry.apply(first.fd())?;
    }
    log::info!("entered in {entry:x?}");
    Ok(())
}

/// The folders of what the VMM makes and removes again: sockets that it listens on, a snapshot that was not taken.
fn made_in(config: &Config) -> Vec<PathBuf> {
    let balloon = config.balloon.iter().filter_map(|b| b.socket.as_deref());
    let disks = config.disks.iter().filter_map(|d| d.control.as_deref());
    let vsock = config.vsock.iter().map(|vsock| vsock.socket.as_path());
    let back_ends = config.back_ends.iter().map(|asked| asked.socket.as_path());
    let log = config.dirty_log.iter().map(|log| log.socket.as_path());
    let parents = balloon
        .chain(disks)
        .chain(vsock)
        .chain(log)
        .chain(config.counters.as_deref())
        .chain(back_ends)
        .map(|socket| match socket.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        });
    let snapshot = config.snapshot.as_deref();
    parents.chain(snapshot).map(Path::to_path_buf).collect()
}
