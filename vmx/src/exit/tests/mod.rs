// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Exits made of raw words, and what their answers leave in the VMCS and the registers.

use super::*;
use hvkit_vmcs::store::Fields;
use hvkit_vmcs::{Encoding, Vmcs};

mod events;
mod instructions;

const RIP: u32 = 0x681e;
const LENGTH: u32 = 0x440c;
const QUALIFICATION: u32 = 0x6400;
const EVENT: u32 = 0x4404;
const EVENT_ERROR: u32 = 0x4406;
const ORIGINAL: u32 = 0x4408;
const ORIGINAL_ERROR: u32 = 0x440a;
const INJECTED: u32 = 0x4016;
const INJECTED_ERROR: u32 = 0x4018;
const ENTRY_LENGTH: u32 = 0x401a;
const INTERRUPTIBILITY: u32 = 0x4824;
const CR0: u32 = 0x6800;
const GP: u64 = 0x8000_0b0d;
const UD: u64 = 0x8000_0306;

/// A guest in 64-bit mode at 1000H whose instruction has two bytes, and more fields.
fn stopped(fields: &[(u32, u64)]) -> Vmcs {
    let mut vmcs = Vmcs::new();
    let usual = [
        (RIP, 0x1000),
        (LENGTH, 2),
        (0x4012, 1 << 9),
        (0x4816, 0xa09b),
        (CR0, 1),
    ];
    for &(field, value) in usual.iter().chain(fields) {
        vmcs.set(Encoding(field), value).unwrap();
    }
    vmcs
}

fn field(vmcs: &Vmcs, field: u32) -> u64 {
    vmcs.get(Encoding(field)).unwrap()
}

/// Answers the exit with this reason.
fn answer(
    vmcs: &mut Vmcs,
    registers: &mut Registers,
    reason: u32,
    with: impl FnOnce(Exit<'_, Vmcs>),
) {
    with(Exit::read(ExitReason(reason), vmcs, registers));
}

/// Injects `with`, and whether the instruction was completed too.
fn injected(vmcs: &Vmcs) -> (u64, bool) {
    (field(vmcs, INJECTED), field(vmcs, RIP) != 0x1000)
}
