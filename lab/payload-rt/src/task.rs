// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A task-state segment, which VMX asks its host to have.

use core::arch::asm;

/// The selector of the free pair of descriptors in the entry's GDT.
const SELECTOR: u16 = 0x18;
const GDT_WORDS: usize = 5;
const LIMIT: u64 = 103;
/// Present, available 64-bit TSS.
const KIND: u64 = 0x89 << 40;

/// All zero: no stacks, as nothing changes privilege; the I/O map base past the limit says that there is none.
static mut SEGMENT: [u32; 26] = [0; 26];

unsafe extern "C" {
    /// The entry's descriptor table.
    static mut payload_gdt: [u64; GDT_WORDS];
}

/// Loads the task register. Once.
pub fn load() {
    let base = &raw mut SEGMENT as u64;
    let low = LIMIT | (base & 0xff_ffff) << 16 | KIND | (base >> 24 & 0xff) << 56;
    // SAFETY: one processor, and nobody else uses the table's last two words or the segment. The descriptor is well
    // formed.
    unsafe {
        SEGMENT[25] = 104 << 16;
        let gdt = &raw mut payload_gdt;
        (*gdt)[SELECTOR as usize / 8] = low;
        (*gdt)[SELECTOR as usize / 8 + 1] = base >> 32;
        asm!("ltr {0:x}", in(reg) SELECTOR, options(nostack, preserves_flags));
    }
}
