// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The processor's side of `cargo xtask oracle vm-entry`: enters VMCSs, sends records.
//!
//! In reading order: [`main`], then [`run`], then `vmx.rs`, where a case leaves for the guest and comes back.
#![no_std]
#![no_main]

mod vmx;

use core::arch::x86_64::__cpuid;

use hvkit_vmcs::{
    Capabilities, Vmcs, capability::Msr, encoding::Class, fields as f, seed::Seed, store::Fields,
};
use lab_cases::{
    Order,
    vm_entry::{Case, Cpu, HEADER_MAGIC, HOST_RIP, Record, VMCS, VMXON},
};
use payload_rt::{input, serial};

payload_rt::entry!(main);

/// IA32_FEATURE_CONTROL, with its lock and "VMX outside SMX" bits.
const FEATURE_CONTROL: u32 = 0x3a;
const ENABLED: u64 = 5;

fn main() {
    let order = Order::from_bytes(input(Order::BYTES));
    if vmx::rdmsr(FEATURE_CONTROL) & ENABLED != ENABLED {
        vmx::wrmsr(FEATURE_CONTROL, ENABLED);
    }
    let cpu = cpu();
    serial::write(HEADER_MAGIC);
    serial::write(&cpu.to_bytes());
    let revision = cpu.msrs[0] as u32 & 0x7fff_ffff;
    write(VMXON, u64::from(revision));
    write(VMCS, u64::from(revision));
    vmx::enter_operation(VMXON);
    for index in order.first..order.first.saturating_add(order.count) {
        let record = run(&Case::new(order.seed, index, &cpu), &cpu);
        serial::write(&record.to_bytes());
    }
}

fn cpu() -> Cpu {
    let mut msrs = [0; Msr::ALL.len()];
    for (value, msr) in msrs.iter_mut().zip(Msr::ALL) {
        // PROCBASED_CTLS3 and EXIT_CTLS2 do not exist where nothing activates them.
        let exists = match msr {
            Msr::PROCBASED_CTLS3 => vmx::rdmsr(Msr::PROCBASED_CTLS.0) >> (32 + 17) & 1 != 0,
            Msr::EXIT_CTLS2 => vmx::rdmsr(Msr::EXIT_CTLS.0) >> 63 != 0,
            _ => true,
        };
        if exists {
            *value = vmx::rdmsr(msr.0);
        }
    }
    Cpu {
        msrs,
        physical_address_bits: __cpuid(0x8000_0008).eax as u8,
    }
}

fn write(at: u64, value: u64) {
    // SAFETY: callers give aligned addresses of the cases' memory, which is mapped one to one and used by nothing else.
    unsafe { (at as *mut u64).write_volatile(value) }
}

/// Runs one case.
fn run(case: &Case, cpu: &Cpu) -> Record {
    let vmx = cpu.processor().vmx;
    for (at, word) in case.memory.words() {
        write(at, word);
    }
    vmx::clear(VMCS);
    vmx::load(VMCS);
    if case.launched() {
        // An entry that works, to be launched by.
        let mut good = Seed::LongMode.vmcs(&cpu.processor());
        lab_cases::vm_entry::exit_at_once(&mut good);
        store(&good, &vmx);
        let _ = vmx::go(false, false);
    }
    store(&case.vmcs, &vmx);
    if !case.has_vmcs() {
        vmx::clear(VMCS);
    }
    let flags = vmx::go(case.resumes(), case.moment.mov_ss_blocking);
    match flags {
        vmx::Went::FailInvalid => Record {
            kind: 0,
            number: 0,
            qualification: 0,
        },
        vmx::Went::FailValid => {
            let number = vmx::read(f::INSTRUCTION_ERROR.encoding()) as u32;
            Record {
                kind: 1,
                number,
                qualification: 0,
            }
        }
        vmx::Went::Exit => Record {
            kind: 2,
            number: vmx::read(f::EXIT_REASON.encoding()) as u32,
            qualification: vmx::read(f::EXIT_QUALIFICATION.encoding()),
        },
    }
}

/// Writes every field that the processor has; the way back is our own.
fn store(vmcs: &Vmcs, vmx: &Capabilities) {
    for info in &f::ALL {
        let (field, Some(mut value)) = (info.encoding, vmcs.get(info.encoding)) else {
            continue;
        };
        if field.class() == Class::ExitInformation || !info.exists.on(vmx) {
            continue;
        }
        if field == f::HOST_RIP.encoding() && value == HOST_RIP {
            value = vmx::way_back();
        }
        vmx::write(field, value);
    }
}
