// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The built-in guest, byte by byte beside its listing: integer instructions only, so that it runs
//! on any KVM, also one that emulates each instruction.
//!
//! ```text
//!   0x01000  page tables: one 2 MiB page, mapped to itself; written by the guest
//!   0x08000  the program: real mode, protected mode, long mode, data
//!   0x10000  end of memory
//!  0x100000  no memory: the VMM answers here
//! ```
//!
//! A test disassembles the bytes and compares the listing.

/// Where the program is loaded, and its first instruction.
pub(super) const LOAD: u64 = 0x8000;
/// Bytes of memory the guest needs.
pub(super) const MEMORY: u64 = 0x1_0000;
/// The port of the question and of the answer's high half.
pub(super) const PORT: u16 = 0x510;
/// Where no memory is: the guest writes the product at +0, reads a number at +8 and writes the
/// rotated sum at +16.
pub(super) const MMIO: u64 = 0x10_0000;
/// Bytes there.
pub(super) const MMIO_LENGTH: u64 = 24;
/// What it prints, one word in each mode.
pub(super) const TEXT: &str = "real protected long\n";
/// The constant it multiplies with, and how far it rotates.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
const ROTATION: u32 = 13;

/// An instruction, and how it reads.
type Line = (&'static [u8], &'static str);

/// Prints "real ", then enters protected mode.
#[rustfmt::skip]
const REAL: &[Line] = &[
    (&[0xfa], "cli"),
    (&[0x31, 0xc0], "xor ax, ax"),
    (&[0x8e, 0xd8], "mov ds, ax"),
    (&[0xbe, 0xd9, 0x80], "mov si, 0x80d9"),
    (&[0xb9, 0x05, 0x00], "mov cx, 5"),
    (&[0xba, 0xf8, 0x03], "mov dx, 0x3f8"),
    (&[0xac], "lodsb [si]"),
    (&[0xee], "out dx, al"),
    (&[0xe2, 0xfc], "loop 0x800e"),
    (&[0x0f, 0x01, 0x16, 0x10, 0x81], "lgdt [0x8110]"),
    (&[0x0f, 0x20, 0xc0], "mov eax, cr0"),
    (&[0x0c, 0x01], "or al, 1"),
    (&[0x0f, 0x22, 0xc0], "mov cr0, eax"),
    (&[0xea, 0x24, 0x80, 0x08, 0x00], "jmp far 0x8024, 8"),
];

/// Prints "protected ", maps memory, then enters long mode.
#[rustfmt::skip]
const PROTECTED: &[Line] = &[
    (&[0x66, 0xb8, 0x10, 0x00], "mov ax, 0x10"),
    (&[0x8e, 0xd8], "mov ds, ax"),
    (&[0x8e, 0xc0], "mov es, ax"),
    (&[0x8e, 0xd0], "mov ss, ax"),
    (&[0xbe, 0xde, 0x80, 0x00, 0x00], "mov esi, 0x80de"),
    (&[0xb9, 0x0a, 0x00, 0x00, 0x00], "mov ecx, 0xa"),
    (&[0xac], "lodsb [esi]"),
    (&[0xee], "out dx, al"),
    (&[0xe2, 0xfc], "loop 0x8038"),
    (&[0xbf, 0x00, 0x10, 0x00, 0x00], "mov edi, 0x1000"),
    (&[0x31, 0xc0], "xor eax, eax"),
    (&[0xb9, 0x00, 0x0c, 0x00, 0x00], "mov ecx, 0xc00"),
    (&[0xf3, 0xab], "rep stosd [edi]"),
    (&[0xc7, 0x05, 0x00, 0x10, 0x00, 0x00, 0x03, 0x20, 0x00, 0x00], "mov dword ptr [0x1000], 0x2003"),
    (&[0xc7, 0x05, 0x00, 0x20, 0x00, 0x00, 0x03, 0x30, 0x00, 0x00], "mov dword ptr [0x2000], 0x3003"),
    (&[0xc7, 0x05, 0x00, 0x30, 0x00, 0x00, 0x83, 0x00, 0x00, 0x00], "mov dword ptr [0x3000], 0x83"),
    (&[0x0f, 0x20, 0xe0], "mov eax, cr4"),
    (&[0x0c, 0x20], "or al, 0x20"),
    (&[0x0f, 0x22, 0xe0], "mov cr4, eax"),
    (&[0xb8, 0x00, 0x10, 0x00, 0x00], "mov eax, 0x1000"),
    (&[0x0f, 0x22, 0xd8], "mov cr3, eax"),
    (&[0xb9, 0x80, 0x00, 0x00, 0xc0], "mov ecx, 0xc0000080"),
    (&[0x0f, 0x32], "rdmsr"),
    (&[0x0d, 0x00, 0x01, 0x00, 0x00], "or eax, 0x100"),
    (&[0x0f, 0x30], "wrmsr"),
    (&[0x0f, 0x20, 0xc0], "mov eax, cr0"),
    (&[0x0d, 0x00, 0x00, 0x00, 0x80], "or eax, 0x80000000"),
    (&[0x0f, 0x22, 0xc0], "mov cr0, eax"),
    (&[0xea, 0x98, 0x80, 0x00, 0x00, 0x18, 0x00], "jmp far 0x8098, 0x18"),
];

/// Prints "long\n", computes with 64 bits from what it reads, answers and halts.
#[rustfmt::skip]
const LONG: &[Line] = &[
    (&[0x66, 0xba, 0xf8, 0x03], "mov dx, 0x3f8"),
    (&[0x48, 0x8d, 0x35, 0x45, 0x00, 0x00, 0x00], "lea rsi, [0x80e8]"),
    (&[0xb9, 0x05, 0x00, 0x00, 0x00], "mov ecx, 5"),
    (&[0xac], "lodsb [rsi]"),
    (&[0xee], "out dx, al"),
    (&[0xe2, 0xfc], "loop 0x80a8"),
    (&[0x66, 0xba, 0x10, 0x05], "mov dx, 0x510"),
    (&[0xed], "in eax, dx"),
    (&[0x48, 0xbb, 0x15, 0x7c, 0x4a, 0x7f, 0xb9, 0x79, 0x37, 0x9e], "mov rbx, 0x9e3779b97f4a7c15"),
    (&[0x48, 0x0f, 0xaf, 0xc3], "imul rax, rbx"),
    (&[0xbf, 0x00, 0x00, 0x10, 0x00], "mov edi, 0x100000"),
    (&[0x48, 0x89, 0x07], "mov [rdi], rax"),
    (&[0x48, 0x03, 0x47, 0x08], "add rax, [rdi+8]"),
    (&[0x48, 0xc1, 0xc0, 0x0d], "rol rax, 0xd"),
    (&[0x48, 0x89, 0x47, 0x10], "mov [rdi+0x10], rax"),
    (&[0x48, 0xc1, 0xe8, 0x20], "shr rax, 0x20"),
    (&[0xef], "out dx, eax"),
    (&[0xf4], "hlt"),
];

/// The words it prints, then the descriptor table with its pointer.
const DATA: &[&[u8]] = &[
    b"real ",
    b"protected ",
    b"long\n",
    // So that the table starts at a multiple of 8.
    &[0; 3],
    &0u64.to_le_bytes(),
    // Selectors 0x08: 32-bit code, 0x10: data, 0x18: 64-bit code. SDM 3A, "Segment Descriptors".
    &0x00cf_9b00_0000_ffff_u64.to_le_bytes(),
    &0x00cf_9300_0000_ffff_u64.to_le_bytes(),
    &0x00af_9b00_0000_ffff_u64.to_le_bytes(),
    // Limit and address of the table.
    &[0x1f, 0x00, 0xf0, 0x80, 0x00, 0x00],
];

/// The program as it lies in memory.
pub(super) fn image() -> Vec<u8> {
    let code = [REAL, PROTECTED, LONG].into_iter().flatten();
    code.map(|&(bytes, _)| bytes)
        .chain(DATA.iter().copied())
        .flatten()
        .copied()
        .collect()
}

/// What the guest makes of the two numbers it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answers {
    /// Written at [`MMIO`] + 0.
    pub(super) product: u64,
    /// Written at [`MMIO`] + 16.
    pub(super) rotated: u64,
    /// Written to [`PORT`].
    pub(super) high: u32,
}

/// The answers to `question`, read from [`PORT`], and `number`, read at [`MMIO`] + 8.
pub(super) fn answers(question: u32, number: u64) -> Answers {
    let product = u64::from(question).wrapping_mul(FACTOR);
    let rotated = product.wrapping_add(number).rotate_left(ROTATION);
    Answers {
        product,
        rotated,
        high: (rotated >> 32) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    #[test]
    fn the_listing_is_what_the_bytes_say() {
        let mut format = IntelFormatter::new();
        let options = format.options_mut();
        options.set_hex_prefix("0x");
        options.set_hex_suffix("");
        options.set_uppercase_hex(false);
        options.set_space_after_operand_separator(true);
        options.set_branch_leading_zeros(false);
        let mut ip = LOAD;
        for (bits, lines) in [(16, REAL), (32, PROTECTED), (64, LONG)] {
            for (bytes, listing) in lines {
                let mut decoder = Decoder::with_ip(bits, bytes, ip, DecoderOptions::NONE);
                let instruction = decoder.decode();
                let mut text = String::new();
                format.format(&instruction, &mut text);
                assert_eq!((text.as_str(), instruction.len()), (*listing, bytes.len()));
                ip = instruction.next_ip();
            }
        }
        // The listing names the data by address: the words at 0x80d9, the table at 0x80f0 and its
        // pointer at 0x8110.
        let image = image();
        assert_eq!(ip, 0x80d9);
        assert_eq!(&image[0xd9..0xd9 + TEXT.len()], TEXT.as_bytes());
        assert_eq!(image[0xf0..0xf8], [0; 8]);
        assert_eq!(image[0x110..], [0x1f, 0, 0xf0, 0x80, 0, 0]);
    }

    #[test]
    fn the_answers_are_worked_out_by_hand() {
        // 2 * 0x9e3779b97f4a7c15 mod 2^64, plus 1, rotated by 13.
        let answers = answers(2, 1);
        assert_eq!(answers.product, 0x3c6e_f372_fe94_f82a);
        assert_eq!(answers.rotated, 0xde6e_5fd2_9f05_678d);
        assert_eq!(answers.high, 0xde6e_5fd2);
    }
}
