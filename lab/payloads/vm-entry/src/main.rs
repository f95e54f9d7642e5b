// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The processor's side of `cargo xtask oracle vm-entry`: enters VMCSs, sends records.
//!
//! In reading order: [`main`], then [`run`]; `payload_rt::vmx` is where a case leaves for the guest and comes back.
#![no_std]
#![no_main]

use core::arch::x86_64::__cpuid;

use hvkit_vmcs::{
    Capabilities, Encoding, Vmcs, capability::Msr, encoding::Class, fields as f, seed::Seed,
    store::Fields,
};
use lab_cases::{
    Order,
    vm_entry::{Case, Cpu, HEADER_MAGIC, HOST_RIP, Record, VMCS, VMXON},
};
use payload_rt::{
    input, serial,
    vmx::{self, Entry, Registers, Went},
};

payload_rt::entry!(main);

fn main() {
    let order = Order::from_bytes(input(Order::BYTES));
    let cpu = cpu();
    serial::write(HEADER_MAGIC);
    serial::write(&cpu.to_bytes());
    let revision = cpu.msrs[0] as u32 & 0x7fff_ffff;
    write(VMXON, u64::from(revision));
    write(VMCS, u64::from(revision));
    // SAFETY: the model has VMX, and the region its revision.
    unsafe { vmx::enter_operation(VMXON) };
    for index in order.first..order.first.saturating_add(order.count) {
        let record = run(&Case::new(order.seed, index, &cpu), &cpu);
        serial::write(&record.to_bytes());
    }
}

/// An MSR of a processor with VMX.
fn rdmsr(msr: Msr) -> u64 {
    // SAFETY: only asked for those that exist.
    unsafe { vmx::rdmsr(msr.0) }
}

fn cpu() -> Cpu {
    let mut msrs = [0; Msr::ALL.len()];
    for (value, msr) in msrs.iter_mut().zip(Msr::ALL) {
        // PROCBASED_CTLS3 and EXIT_CTLS2 do not exist where nothing activates them.
        let exists = match msr {
            Msr::PROCBASED_CTLS3 => rdmsr(Msr::PROCBASED_CTLS) >> (32 + 17) & 1 != 0,
            Msr::EXIT_CTLS2 => rdmsr(Msr::EXIT_CTLS) >> 63 != 0,
            _ => true,
        };
        if exists {
            *value = rdmsr(msr);
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
    let capabilities = cpu.processor().vmx;
    for (at, word) in case.memory.words() {
        write(at, word);
    }
    clear(VMCS);
    // SAFETY: in VMX operation; the region is the cases' and was cleared.
    unsafe { vmx::load(VMCS) };
    if case.launched() {
        // An entry that works, to be launched by.
        let mut good = Seed::LongMode.vmcs(&cpu.processor());
        lab_cases::vm_entry::exit_at_once(&mut good);
        store(&good, &capabilities);
        let _ = go(Entry::Launch);
    }
    store(&case.vmcs, &capabilities);
    if !case.has_vmcs() {
        clear(VMCS);
    }
    let (kind, number, qualification) = match go(entry(case)) {
        Went::FailInvalid => (0, 0, 0),
        Went::FailValid => (1, read(f::INSTRUCTION_ERROR.encoding()), 0),
        Went::Exit => (
            2,
            read(f::EXIT_REASON.encoding()),
            read(f::EXIT_QUALIFICATION.encoding()),
        ),
    };
    Record {
        kind,
        number: number as u32,
        qualification,
    }
}

fn entry(case: &Case) -> Entry {
    match (case.resumes(), case.moment.mov_ss_blocking) {
        (true, _) => Entry::Resume,
        (false, true) => Entry::LaunchAfterMovSs,
        (false, false) => Entry::Launch,
    }
}

fn clear(region: u64) {
    // SAFETY: in VMX operation; callers name the cases' region.
    unsafe { vmx::clear(region) };
}

fn go(entry: Entry) -> Went {
    // SAFETY: in VMX operation. The VMCS that is current has our own way back, as `store` sees to; a case that gets further
    // than the host state keeps our page tables, and its guest exits before its first instruction.
    unsafe { vmx::go(entry, &mut Registers::default()) }
}

fn read(field: Encoding) -> u64 {
    // SAFETY: only after an entry that needed a current VMCS.
    unsafe { vmx::read(field.0) }
}

/// Writes every field that the processor has; the way back is our own.
fn store(vmcs: &Vmcs, capabilities: &Capabilities) {
    for info in &f::ALL {
        let (field, Some(mut value)) = (info.encoding, vmcs.get(info.encoding)) else {
            continue;
        };
        if field.class() == Class::ExitInformation || !info.exists.on(capabilities) {
            continue;
        }
        if field == f::HOST_RIP.encoding() && value == HOST_RIP {
            value = vmx::way_back();
        }
        // SAFETY: in VMX operation, with the case's VMCS current.
        unsafe { vmx::write(field.0, value) };
    }
}
