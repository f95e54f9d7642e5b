// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The boot sector: from real mode to flat 32-bit protected mode, then a jump to the payload.

/// Where the BIOS loads the sector.
const LOADED_AT: u16 = 0x7c00;
const SIZE: usize = 512;
/// Code: base 0, limit 4 GiB, 32-bit. Data: the same, writable.
const DESCRIPTORS: [u64; 3] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const GDT_AT: usize = 0x80;
const GDTR_AT: usize = GDT_AT + 8 * DESCRIPTORS.len();
const PROTECTED_AT: usize = 0x40;

/// The sector, with a jump to `entry` as its end.
pub(crate) fn boot_sector(entry: u32) -> [u8; SIZE] {
    let mut sector = [0; SIZE];
    let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
    // An offset in the sector as the 16-bit code sees it. The sector ends below 64 KiB.
    let address = |at: usize| (LOADED_AT + at as u16).to_le_bytes();

    let [gdtr_low, gdtr_high] = address(GDTR_AT);
    let [protected_low, protected_high] = address(PROTECTED_AT);
    put(
        0,
        &[
            0xfa, // cli
            0x31,
            0xc0, // xor ax, ax
            0x8e,
            0xd8, // mov ds, ax
            0xe4,
            0x92, // in al, 0x92: open the A20 gate
            0x0c,
            0x02, // or al, 2
            0xe6,
            0x92, // out 0x92, al
            0x66,
            0x0f,
            0x01,
            0x16,
            gdtr_low,
            gdtr_high, // lgdt [gdtr], 32-bit base
            0x0f,
            0x20,
            0xc0, // mov eax, cr0
            0x0c,
            0x01, // or al, 1: PE
            0x0f,
            0x22,
            0xc0, // mov cr0, eax
            0xea,
            protected_low,
            protected_high,
            0x08,
            0x00, // jmp 8:protected
        ],
    );
    let [a, b, c, d] = entry.to_le_bytes();
    put(
        PROTECTED_AT,
        &[
            0x66, 0xb8, 0x10, 0x00, // mov ax, 16
            0x8e, 0xd8, // mov ds, ax
            0x8e, 0xc0, // mov es, ax
            0x8e, 0xd0, // mov ss, ax
            0xbc, 0x00, 0x00, 0x09, 0x00, // mov esp, 0x90000
            0xb8, a, b, c, d, // mov eax, entry
            0xff, 0xe0, // jmp eax
        ],
    );
    for (index, descriptor) in DESCRIPTORS.iter().enumerate() {
        put(GDT_AT + 8 * index, &descriptor.to_le_bytes());
    }
    put(GDTR_AT, &(8 * DESCRIPTORS.len() as u16 - 1).to_le_bytes());
    put(GDTR_AT + 2, &address(GDT_AT));
    put(SIZE - 2, &[0x55, 0xaa]);
    sector
}
