// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The processor's side of `cargo xtask oracle vm-entry`: enters VMCSs, sends records.
//!
//! In reading order: [`main`], then [`run`]; `payload_rt::vmx` is where a case leaves for the guest and comes back.
#![no_std]
#![no_main]

use hvkit_vmcs::{fields as f, seed::Seed};
use lab_cases::{
    Order,
    vm_entry::{Case, HEADER_MAGIC, Record, VMCS, VMXON, exit_at_once},
};
use payload_rt::{
    input, serial,
    vmx::{self, Entry, Registers, Went},
};
use payload_vmcs::Root;

payload_rt::entry!(main);

fn main() {
    let order = Order::from_bytes(input(Order::BYTES));
    // SAFETY: the model has VMX; the regions are the cases' own.
    let root = unsafe { Root::enter(VMXON, VMCS) };
    serial::write(HEADER_MAGIC);
    serial::write(&root.cpu().to_bytes());
    for index in order.first..order.first.saturating_add(order.count) {
        let record = run(&Case::new(order.seed, index, root.cpu()), &root);
        serial::write(&record.to_bytes());
    }
}

/// Runs one case.
fn run(case: &Case, root: &Root) -> Record {
    for (at, word) in case.memory.words() {
        // SAFETY: an aligned address of the cases' memory, which is mapped one to one and used by nothing else.
        unsafe { (at as *mut u64).write_volatile(word) }
    }
    root.start();
    if case.launched() {
        // An entry that works, to be launched by.
        let mut good = Seed::LongMode.vmcs(&root.cpu().processor());
        exit_at_once(&mut good);
        root.store(&good);
        let _ = go(Entry::Launch);
    }
    root.store(&case.vmcs);
    if !case.has_vmcs() {
        root.clear();
    }
    let (kind, number, qualification) = match go(entry(case)) {
        Went::FailInvalid => (0, 0, 0),
        Went::FailValid => (1, root.read(f::INSTRUCTION_ERROR), 0),
        Went::Exit => (
            2,
            root.read(f::EXIT_REASON),
            root.read(f::EXIT_QUALIFICATION),
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

fn go(entry: Entry) -> Went {
    // SAFETY: in VMX operation. The VMCS that is current has our own way back, as `Root::store` sees to; a case that gets
    // further than the host state keeps our page tables, and its guest exits before its first instruction.
    unsafe { vmx::go(entry, &mut Registers::default()) }
}
