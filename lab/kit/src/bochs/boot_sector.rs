// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The boot sector: from real mode to flat 32-bit protected mode, images from the disk into memory, then a jump to the
//! payload.
//!
//! Images come from the disk, not from Bochs's own `optramimage` or `romimage`: Bochs 2.7 reads such a file into one
//! 128-KiB block of its memory, and what is longer lands wherever the next block of its own is, lost.

/// Where the BIOS loads the sector.
const LOADED_AT: u16 = 0x7c00;
/// Of a sector, in bytes.
pub(crate) const SIZE: usize = 512;
/// Code: base 0, limit 4 GiB, 32-bit. Data: the same, writable.
const DESCRIPTORS: [u64; 3] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const PROTECTED_AT: usize = 0x28;
const GDT_AT: usize = 0xb0;
const GDTR_AT: usize = GDT_AT + 8 * DESCRIPTORS.len();
/// Six bytes of zeros: an empty IDT.
const NO_IDT_AT: usize = GDTR_AT + 6;
/// Twelve bytes for each image, then four of zeros.
const LOADS_AT: usize = NO_IDT_AT + 6;
/// How many images the sector has room for.
pub(crate) const MOST_LOADS: usize = (SIZE - 2 - 4 - LOADS_AT) / 12;

/// Sectors to load before the payload runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// The first of them, on the disk.
    pub(crate) sector: u32,
    /// How many, at least one.
    pub(crate) count: u32,
    /// Their physical address.
    pub(crate) address: u32,
}

/// The sector, with a jump to `entry` as its end. Of `loads`, the first [`MOST_LOADS`] are made, in order.
pub(crate) fn boot_sector(entry: u32, loads: &[Load]) -> [u8; SIZE] {
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
    let [loads_low, loads_high] = address(LOADS_AT);
    let [no_idt_low, no_idt_high] = address(NO_IDT_AT);
    let [a, b, c, d] = entry.to_le_bytes();
    // One sector a command (ATA, READ SECTORS, 28-bit addresses), by programmed input.
    #[rustfmt::skip]
    let protected = [
        0x66, 0xb8, 0x10, 0x00,             //        mov ax, 16
        0x8e, 0xd8,                         //        mov ds, ax
        0x8e, 0xc0,                         //        mov es, ax
        0x8e, 0xd0,                         //        mov ss, ax
        0xbc, 0x00, 0x00, 0x09, 0x00,       //        mov esp, 0x90000
        0xfc,                               //        cld
        0x66, 0xba, 0xf6, 0x03,             //        mov dx, 0x3f6
        0xb0, 0x02, 0xee,                   //        mov al, 2; out dx, al: no interrupts
        0xbe, loads_low, loads_high, 0, 0,  //        mov esi, loads
        0xad,                               // load:  lodsd
        0x85, 0xc0,                         //        test eax, eax
        0x74, 0x46,                         //        jz done
        0x89, 0xc3,                         //        mov ebx, eax: sectors
        0xad, 0x89, 0xc5,                   //        lodsd; mov ebp, eax: the first
        0xad, 0x89, 0xc7,                   //        lodsd; mov edi, eax: where to
        0x66, 0xba, 0xf2, 0x01,             // next:  mov dx, 0x1f2
        0xb0, 0x01, 0xee,                   //        mov al, 1; out dx, al
        0x89, 0xe8,                         //        mov eax, ebp
        0x42, 0xee,                         //        inc edx; out dx, al
        0xc1, 0xe8, 0x08, 0x42, 0xee,       //        shr eax, 8; inc edx; out dx, al
        0xc1, 0xe8, 0x08, 0x42, 0xee,       //        shr eax, 8; inc edx; out dx, al
        0xc1, 0xe8, 0x08, 0x0c, 0xe0,       //        shr eax, 8; or al, 0xe0
        0x42, 0xee,                         //        inc edx; out dx, al
        0xb0, 0x20, 0x42, 0xee,             //        mov al, 0x20; inc edx; out dx, al
        0xec,                               // wait:  in al, dx
        0xa8, 0x80, 0x75, 0xfb,             //        test al, 0x80; jnz wait: busy
        0xa8, 0x21, 0x75, 0x23,             //        test al, 0x21; jnz wrong
        0xa8, 0x08, 0x74, 0xf3,             //        test al, 8; jz wait: no data yet
        0x66, 0xba, 0xf0, 0x01,             //        mov dx, 0x1f0
        0xb9, 0x80, 0x00, 0x00, 0x00,       //        mov ecx, 128
        0xf3, 0x6d,                         //        rep insd
        0x45,                               //        inc ebp
        0x4b, 0x75, 0xc4,                   //        dec ebx; jnz next
        0xeb, 0xb5,                         //        jmp load
        0x66, 0xba, 0xf6, 0x03,             // done:  mov dx, 0x3f6
        0x31, 0xc0, 0xee,                   //        xor eax, eax; out dx, al: interrupts again
        0xb8, a, b, c, d,                   //        mov eax, entry
        0xff, 0xe0,                         //        jmp eax
        0x0f, 0x01, 0x1d,
        no_idt_low, no_idt_high, 0, 0,      // wrong: lidt [no_idt]
        0x0f, 0x0b,                         //        ud2: a triple fault
    ];
    put(PROTECTED_AT, &protected);
    for (index, descriptor) in DESCRIPTORS.iter().enumerate() {
        put(GDT_AT + 8 * index, &descriptor.to_le_bytes());
    }
    put(GDTR_AT, &(8 * DESCRIPTORS.len() as u16 - 1).to_le_bytes());
    put(GDTR_AT + 2, &address(GDT_AT));
    for (index, load) in loads.iter().take(MOST_LOADS).enumerate() {
        let words = [load.count, load.sector, load.address];
        for (word, at) in words.iter().zip((LOADS_AT + 12 * index..).step_by(4)) {
            put(at, &word.to_le_bytes());
        }
    }
    put(SIZE - 2, &[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_a_list_that_ends_in_zero() {
        let load = Load {
            sector: 1,
            count: 0x0403_0201,
            address: 0x20_0000,
        };
        let sector = boot_sector(0x1234_5678, &[load; 30]);
        assert_eq!(sector[SIZE - 2..], [0x55, 0xaa]);
        let table = &sector[0xd4..];
        assert_eq!(table[..12], [1, 2, 3, 4, 1, 0, 0, 0, 0, 0, 0x20, 0]);
        assert_eq!(MOST_LOADS, 24);
        assert_eq!(table[12 * 24..][..4], [0; 4], "after the last that fits");
        // Without any, the list is its end.
        assert_eq!(boot_sector(0, &[])[0xd4..SIZE - 2], [0; 0x12a]);
        // mov eax, entry
        assert!(
            sector
                .windows(5)
                .any(|w| w == [0xb8, 0x78, 0x56, 0x34, 0x12])
        );
    }
}
