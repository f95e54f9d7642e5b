// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Segments and gates that serve both 64-bit and 32-bit protected mode.

use core::arch::asm;

use crate::switch::{handlers32, handlers64, idtr32, idtr64};

/// Selectors: the assembly knows them too.
const CODE64: u64 = 0x08;
const DATA: u64 = 0x10;
const CODE32: u64 = 0x18;
const TSS: u16 = 0x38;
const LDT: u16 = 0x48;

/// Flat segments, then room for the TSS's and the LDT's descriptors of 16 bytes.
static mut GDT: [u64; 11] = [
    0,
    0x00af_9b00_0000_ffff, // 0x08 code, 64-bit, CPL 0
    0x00cf_9300_0000_ffff, // 0x10 data, CPL 0
    0x00cf_9b00_0000_ffff, // 0x18 code, 32-bit, CPL 0
    0x00cf_f300_0000_ffff, // 0x23 data, CPL 3
    0x00cf_fb00_0000_ffff, // 0x2b code, 32-bit, CPL 3
    0x00af_fb00_0000_ffff, // 0x33 code, 64-bit, CPL 3
    0,
    0,
    0,
    0,
];

/// One TSS for both modes. Bytes 4 to 11 are RSP0 in 64-bit mode; in 32-bit mode ESP0 and SS0. The task
/// register keeps its base when the mode changes, so that only SS0 must come and go.
static mut TASK: [u32; 26] = [0; 26];
static mut IDT64: [[u64; 2]; 0x82] = [[0; 2]; 0x82];
static mut IDT32: [u64; 0x82] = [0; 0x82];

/// A stack for what comes from CPL 3: 4 KiB, aligned to 16 bytes.
static mut STACK: [u128; 256] = [0; 256];

/// A system descriptor of `kind` for `limit + 1` bytes at `base`, as two words.
fn system(kind: u64, base: u64, limit: u64) -> [u64; 2] {
    let low = limit & 0xffff
        | (base & 0xff_ffff) << 16
        | kind << 40
        | 1 << 47
        | (limit >> 16) << 48
        | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

/// Loads the descriptor tables and the task register. Once, at start.
pub(crate) fn load() {
    // SAFETY: nothing else runs; the statics are used here and by the processor only. Each address is
    // below 4 GiB, mapped by the monitor's tables and by those of every case.
    unsafe {
        let stack = &raw const STACK as u64 + 4096;
        TASK[1] = stack as u32;
        let [low, high] = system(9, &raw const TASK as u64, 103);
        GDT[TSS as usize / 8] = low;
        GDT[TSS as usize / 8 + 1] = high;
        for vector in (0..32).chain([0x81]) {
            let number = if vector == 0x81 { 32 } else { vector as u64 };
            // Present interrupt gates; CPL 3 may use the software interrupt.
            let kind = if vector == 0x81 { 0xee00 } else { 0x8e00 } << 32;
            let gate = |handler: u64, code: u64| {
                handler & 0xffff | code << 16 | kind | (handler >> 16 & 0xffff) << 48
            };
            IDT64[vector] = [gate(&raw const handlers64 as u64 + number * 16, CODE64), 0];
            IDT32[vector] = gate(&raw const handlers32 as u64 + number * 16, CODE32);
        }
        idtr64 = pointer(&raw const IDT64 as u64, size_of::<[[u64; 2]; 0x82]>());
        idtr32 = pointer(&raw const IDT32 as u64, size_of::<[u64; 0x82]>());
        let gdtr = pointer(&raw const GDT as u64, size_of::<[u64; 11]>());
        asm!(
            "lgdt [{gdtr}]",
            "lidt [{idtr}]",
            "ltr {tss:x}",
            gdtr = in(reg) &gdtr,
            idtr = in(reg) &raw const idtr64,
            tss = in(reg) TSS,
            options(nostack),
        );
    }
}

/// What LGDT and LIDT read.
fn pointer(base: u64, bytes: usize) -> [u8; 10] {
    let mut pointer = [0; 10];
    pointer[..2].copy_from_slice(&(bytes as u16 - 1).to_le_bytes());
    pointer[2..].copy_from_slice(&base.to_le_bytes());
    pointer
}

/// Whose layout the TSS has.
#[derive(Clone, Copy)]
pub(crate) enum Layout {
    /// 64-bit mode's.
    Long,
    /// 32-bit protected mode's.
    Legacy,
}

/// Gives the TSS the layout for the next case.
pub(crate) fn task(layout: Layout) {
    // SAFETY: only the processor reads it, when it changes to CPL 0 in a case.
    unsafe {
        TASK[2] = match layout {
            Layout::Long => 0,
            Layout::Legacy => DATA as u32,
        };
    }
}

/// Makes the LDT one descriptor at linear address `base`.
pub(crate) fn local(base: u64) {
    let [low, high] = system(2, base, 7);
    // SAFETY: a well-formed LDT descriptor in our own GDT; nothing here uses segments of an LDT, and
    // loading the register does not read it.
    unsafe {
        GDT[LDT as usize / 8] = low;
        GDT[LDT as usize / 8 + 1] = high;
        asm!("lldt {0:x}", in(reg) LDT, options(nostack));
    }
}
