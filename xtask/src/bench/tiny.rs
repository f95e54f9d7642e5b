// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A kernel of four instructions: its first ones say a letter on the serial line.
//!
//! An ELF file with a PVH note, which every contender boots; so "start to the first guest
//! instruction" means the same for all.

/// Where it is loaded, and entered in 32-bit protected mode.
const BASE: u32 = 0x10_0000;
/// Where the code stands in the file; the note follows it.
const CODE_AT: u32 = 0x1000;
/// The letter.
pub(super) const LETTER: &str = "!";

/// `mov dx, 0x3f8; mov al, '!'; out dx, al; hlt; jmp` back to the `hlt`.
const CODE: [u8; 10] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xf4, 0xeb, 0xfd];

/// The file.
pub(super) fn elf() -> Vec<u8> {
    let note = note();
    let note_at = CODE_AT + 0x100;
    let note_length = note.len() as u32;
    let segments = [
        // type, offset, address, size, flags
        (1, CODE_AT, BASE, 0x100 + note_length, 5),
        (4, note_at, BASE + 0x100, note_length, 4),
    ];
    let mut file = Vec::new();
    // ELF header, 64-bit, little endian, executable, x86-64.
    file.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(u64::from(BASE).to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, segments.len() as u16, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for (kind, offset, address, size, flags) in segments {
        file.extend(u32::to_le_bytes(kind));
        file.extend(u32::to_le_bytes(flags));
        let words = [offset, address, address, size, size, 4];
        for word in words {
            file.extend(u64::from(word).to_le_bytes());
        }
    }
    file.resize(CODE_AT as usize, 0);
    file.extend(CODE);
    file.resize(note_at as usize, 0);
    file.extend(note);
    file
}

/// The note XEN_ELFNOTE_PHYS32_ENTRY (18), owner "Xen": the entry point.
fn note() -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4u32, 8, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(*b"Xen\0");
    note.extend(u64::from(BASE).to_le_bytes());
    note
}
