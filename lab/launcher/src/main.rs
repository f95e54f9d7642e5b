// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `launcher KERNEL INITRAMFS COMMAND-LINE EVENT`: boots Linux under KVM with a serial console and nothing else, and tells what KVM
//! counted at the guest's marks.
//!
//! The guest has the memory that the hypervisor of `examples/type1` gives it, so that the two can be compared, and is not told
//! that there is a hypervisor. KVM's own interrupt controllers and timer are its only other devices. EVENT is the folder of
//! KVM's trace event `kvm_exit`.

mod boot;
mod counts;

use std::env;
use std::fs::read_dir;
use std::io::{Stdout, Write, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use lab_cases::type1::MARK_PORT;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vm_superio::{Serial, Trigger};

use boot::{MEMORY, Ram};
use counts::Counts;

const SERIAL: u16 = 0x3f8;
const SERIAL_LINE: u32 = 4;
/// The clock's ports: no update is in progress.
const CLOCK: [u16; 2] = [0x70, 0x71];
/// Above what the guest has, where KVM wants room of its own.
const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
const KVM_TASK: usize = 0xfffb_d000;
/// What KVM counts itself: one file for each count.
const STATISTICS: &str = "/sys/kernel/debug/kvm";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let [kernel, initramfs, command_line, event] = &words[..] else {
        eprintln!("launcher KERNEL INITRAMFS COMMAND-LINE EVENT");
        return ExitCode::from(2);
    };
    let [kernel, initramfs, event] = [kernel, initramfs, event].map(Path::new);
    match run(kernel, initramfs, command_line, event) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("launcher: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the guest until it shuts down.
fn run(kernel: &Path, initramfs: &Path, command_line: &str, event: &Path) -> Result<()> {
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let vm = kvm.create_vm().context("cannot create a machine")?;
    vm.set_identity_map_address(KVM_IDENTITY_MAP)?;
    vm.set_tss_address(KVM_TASK)?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config::default())?;
    let ram = Ram::from_ranges(&[(vm_memory::GuestAddress(0), MEMORY as usize)])?;
    give(&vm, &ram)?;
    boot::load(&ram, kernel, initramfs, command_line)?;

    let mut vcpu = vm.create_vcpu(0)?;
    let mut leaves = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    leaves.retain(|leaf| !boot::is_of_hypervisor(leaf.function));
    for leaf in leaves.as_mut_slice() {
        boot::without_hypervisor(leaf);
    }
    vcpu.set_cpuid2(&leaves)?;
    boot::enter(&vcpu)?;

    let vm = Arc::new(vm);
    let mut line = Serial::new(Line(Arc::clone(&vm)), stdout());
    let mut counts = Counts::begin(event)?;
    println!("launcher: Linux, {} MiB, at tick 0", MEMORY >> 20);
    loop {
        match vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(MARK_PORT, _) => counts.mark()?,
            VcpuExit::IoOut(port, data) => out(&mut line, port, data)?,
            VcpuExit::IoIn(port, data) => {
                data.fill(match port {
                    SERIAL..=0x3ff => line.read((port - SERIAL) as u8),
                    port if CLOCK.contains(&port) => 0,
                    _ => u8::MAX,
                });
            }
            VcpuExit::MmioRead(_, data) => data.fill(u8::MAX),
            VcpuExit::MmioWrite(..) | VcpuExit::Intr => {}
            VcpuExit::Shutdown => break,
            other => bail!("the guest cannot go on: {other:?}"),
        }
    }
    line.writer_mut().flush()?;
    counts.print();
    statistics()
}

/// Maps the guest's memory into the machine.
#[expect(unsafe_code, reason = "KVM is given a range of this process's memory")]
fn give(vm: &VmFd, ram: &Ram) -> Result<()> {
    for (slot, region) in (0..).zip(ram.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the mapping is `ram`'s, is as long, is used for nothing but the guest, and stays until the process ends: the
        // guest only runs in `run`, which owns it.
        unsafe { vm.set_user_memory_region(region) }?;
    }
    Ok(())
}

type Uart = Serial<Line, vm_superio::serial::NoEvents, Stdout>;

fn out(line: &mut Uart, port: u16, data: &[u8]) -> Result<()> {
    if let (SERIAL..=0x3ff, &[byte, ..]) = (port, data)
        && let Err(error) = line.write((port - SERIAL) as u8, byte)
    {
        bail!("the serial line: {error:?}");
    }
    Ok(())
}

/// The line's interrupt: an edge.
struct Line(Arc<VmFd>);

impl Trigger for Line {
    type E = kvm_ioctls::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.set_irq_line(SERIAL_LINE, true)?;
        self.0.set_irq_line(SERIAL_LINE, false)
    }
}

/// Prints KVM's own counts that are not zero, if there are any to read.
fn statistics() -> Result<()> {
    let Ok(folder) = read_dir(STATISTICS) else {
        return Ok(());
    };
    let mut counts = Vec::new();
    for entry in folder {
        let path = entry?.path();
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        if let (Ok(count @ 1..), Some(name)) = (text.trim().parse::<u64>(), path.file_name()) {
            counts.push((name.to_string_lossy().into_owned(), count));
        }
    }
    counts.sort();
    for (name, count) in counts {
        println!("shadow: {count} {name}");
    }
    Ok(())
}
