// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel without a hypervisor, for comparison: entered as the guest is, from the same place in memory, and this program
//! is no more.

use core::arch::asm;

use super::boot;
use crate::root_operation::Failed;

/// Operand of LGDT.
#[repr(C, packed)]
struct Table {
    limit: u16,
    base: u64,
}

/// Enters the kernel.
pub fn enter() -> Result<(), Failed> {
    let (rip, zero_page, cr3, (base, limit)) = boot::entry();
    payload_rt::serial::drain();
    let table = Table { limit, base };
    // SAFETY: `boot::place` put the tables, the descriptors and the kernel there; they map this code to itself too. The
    // stack is used before the jump only. Interrupts are off.
    unsafe {
        asm!(
            "lgdt [{table}]",
            "mov cr3, {cr3}",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "mov ss, {data:e}",
            "push {code}",
            "push {rip}",
            "retfq",
            table = in(reg) &table,
            cr3 = in(reg) cr3,
            data = in(reg) 0x18_u64,
            code = in(reg) 0x10_u64,
            rip = in(reg) rip,
            in("rsi") zero_page,
            options(noreturn),
        )
    }
}
