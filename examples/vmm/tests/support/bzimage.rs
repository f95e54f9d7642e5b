// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A bzImage written byte by byte, at the offsets of the Linux/x86 boot protocol.

/// A bzImage with one setup sector and `paragraphs` of 16 bytes behind it, that says that it needs
/// `init_size` bytes at 16 MiB.
pub(crate) fn bzimage(paragraphs: u32, init_size: u32) -> Vec<u8> {
    let mut file = vec![0; 1024 + paragraphs as usize * 16];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &paragraphs.to_le_bytes());
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &init_size.to_le_bytes());
    file
}
