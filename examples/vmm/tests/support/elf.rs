// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An ELF64 kernel written byte by byte.

/// Where test kernels are loaded and entered.
pub(crate) const ENTRY: u64 = 0x10_0000;

/// One program header of an ELF64 file: type, offset, physical address, bytes in file and memory.
fn program_header(kind: u32, offset: u64, address: u64, length: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(kind.to_le_bytes());
    header.extend(7u32.to_le_bytes());
    for word in [offset, address, address, length, length, 4] {
        header.extend(word.to_le_bytes());
    }
    header
}

/// An ELF file whose one segment, `code`, is loaded at [`ENTRY`]; with `note`, its PVH note says so.
pub(crate) fn elf(code: &[u8], note: Option<u64>) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    const LOAD: u32 = 1;
    const NOTE: u32 = 4;
    // Name of 4 bytes, descriptor of 8, type 18 (XEN_ELFNOTE_PHYS32_ENTRY).
    let mut note_bytes = Vec::new();
    for word in [4u32, 8, if note.is_some() { 18 } else { 1 }] {
        note_bytes.extend(word.to_le_bytes());
    }
    note_bytes.extend(b"Xen\0");
    note_bytes.extend(note.unwrap_or(0).to_le_bytes());

    let mut file = Vec::new();
    // 64-bit, little-endian, version 1; executable, x86-64, version 1.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [ENTRY, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    assert_eq!(file.len(), 64);
    let note_length = note_bytes.len() as u64;
    file.extend(program_header(NOTE, HEADERS, 0, note_length));
    let code_at = HEADERS + note_length;
    file.extend(program_header(LOAD, code_at, ENTRY, code.len() as u64));
    file.extend(note_bytes);
    file.extend(code);
    file
}

/// A kernel that executes `code` in protected mode.
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    elf(code, Some(ENTRY))
}
