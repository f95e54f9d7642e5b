// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tries hvkit-vmx on a processor model, and says what came of it, a line each: `name: value`.
//!
//! `xtask/tests/vmx.rs` knows what each line must say. In reading order: [`main`], `operation.rs` (the instructions and
//! how they fail), `guests.rs` (guests that run in this program's own memory), `views.rs` (one that calls,
//! and changes its EPT), `setup.rs` (their VMCS).
#![no_std]
#![no_main]

mod guests;
mod operation;
mod setup;
mod views;

use hvkit_vmx::{HostState, Linear, Root, ThisProcessor, detect};
use payload_rt::println;

payload_rt::entry!(main);

fn main() {
    // SAFETY: bare metal: one processor, CPL 0, all memory mapped to itself, nobody else uses VMX.
    let (machine, memory) = unsafe { (ThisProcessor::get(), Linear::new(0)) };
    let Ok(mut machine) = machine else { return };
    let detected = match detect(&machine) {
        Ok(detected) => detected,
        Err(error) => return println!("detect: {error}"),
    };
    println!("feature control: {:?}", detected.feature_control);
    println!("revision: {:#x}", detected.processor.vmx.basic.revision());
    println!("addresses: {}", detected.processor.physical_address_bits);
    println!("no task: {:?}", HostState::capture(&machine).map(|_| ()));
    payload_rt::task::load();
    let enabled = match detected.enable(&mut machine) {
        Ok(enabled) => enabled,
        Err(error) => return println!("enable: {error}"),
    };
    println!(
        "enabled: {:?}",
        detect(&machine).map(|now| now.feature_control)
    );
    let Some(region) = operation::VMXON.take() else {
        return;
    };
    // SAFETY: as above, to the end of the program.
    let mut root = match unsafe { Root::enter(&enabled, region, &memory) } {
        Ok(root) => root,
        Err(error) => return println!("enter: {error}"),
    };
    operation::run(&mut root, &enabled, &memory);
    guests::run(&mut root, &machine, &memory);
    println!("leave: {:?}", root.leave().map(|_| ()));
    operation::again(&enabled, &memory);
    println!("done");
}
