// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Arithmetic over pseudo-random operands, each kind folded into one number.
//!
//! The same source runs on this machine's processor and on the model: where they differ, the model
//! is wrong. Only results and flags that the SDM defines are folded in.

use core::arch::asm;
use core::arch::x86_64::{_mm_cvtsd_f64, _mm_set_sd, _mm_sqrt_sd};
use core::hint::black_box;

/// What each kind folds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Multiplication, division, shifts, bit counts.
    pub integer: u64,
    /// The arithmetic flags, in four operand sizes.
    pub flags: u64,
    /// SSE2 double precision.
    pub sse: u64,
    /// The 80-bit unit.
    pub x87: u64,
}

/// Runs `rounds` rounds from `seed`.
pub fn digest(seed: u64, rounds: u32) -> Digest {
    let mut random = Random(seed | 1);
    let mut sum = Digest {
        integer: 0,
        flags: 0,
        sse: 0,
        x87: 0,
    };
    for _ in 0..rounds {
        let (a, b) = (black_box(random.next()), black_box(random.next()));
        sum.integer = fold(sum.integer, integer(a, b));
        sum.flags = fold(sum.flags, flags(a, b));
        sum.sse = fold(sum.sse, sse(a, b));
        sum.x87 = fold(sum.x87, x87(a, b));
    }
    sum
}

fn fold(sum: u64, value: u64) -> u64 {
    sum.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ value
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn integer(a: u64, b: u64) -> u64 {
    // A small divisor now and then: quotients of every length.
    let divisor = (b >> (a & 63)) | 1;
    let wide = u128::from(a) * u128::from(b);
    let mut sum = (wide >> 64) as u64 ^ wide as u64;
    sum = fold(sum, a / divisor);
    sum = fold(sum, a % divisor);
    sum = fold(sum, (a as i64).wrapping_div(divisor as i64 | 1) as u64);
    sum = fold(sum, u64::from(a as u32 / (divisor as u32 | 1)));
    sum = fold(sum, u64::from(a as u16 % (divisor as u16 | 1)));
    sum = fold(sum, a.rotate_left(b as u32 & 63) ^ (a >> (b & 63)));
    sum = fold(sum, ((a as i64) >> (b & 63)) as u64 ^ (a << (b & 63)));
    sum = fold(sum, a.swap_bytes() ^ i64::from(b as i32) as u64);
    sum = fold(sum, u64::from(a.trailing_zeros() << 8 | b.leading_zeros()));
    fold(
        sum,
        u64::from((a & b).count_ones()) ^ i64::from(a as i8) as u64,
    )
}

/// CF, PF, AF, ZF, SF, OF.
const ALL: u64 = 0x8d5;
/// A shift leaves AF undefined.
const NO_AF: u64 = 0x8c5;
/// A multiplication defines CF and OF alone.
const CF_OF: u64 = 0x801;

/// Result and flags of one two-operand instruction in one operand size, after setting CF to the
/// low bit of `$c`.
macro_rules! one {
    ($op:literal, $size:literal, $a:expr, $b:expr, $c:expr, $mask:expr) => {{
        let mut a: u64 = $a;
        let flags: u64;
        let carry: u64 = $c & 1;
        // SAFETY: registers and flags alone, and a balanced push and pop.
        unsafe {
            asm!("neg {c}", concat!($op, " {a:", $size, "}, {b:", $size, "}"), "pushfq", "pop {f}",
                a = inout(reg) a, b = in(reg) $b, c = inout(reg) carry => _, f = lateout(reg) flags);
        }
        fold(a, flags & $mask)
    }};
}

fn flags(a: u64, b: u64) -> u64 {
    let mut sum = 0;
    macro_rules! sizes {
        ($op:literal, $mask:expr) => {
            // 8, 16, 32 and 64 bits.
            sum = fold(sum, one!($op, "l", a, b, a >> 9, $mask));
            sum = fold(sum, one!($op, "x", a, b, a >> 17, $mask));
            sum = fold(sum, one!($op, "e", a, b, a >> 33, $mask));
            sum = fold(sum, one!($op, "r", a, b, a >> 41, $mask));
        };
    }
    sizes!("add", ALL);
    sizes!("sub", ALL);
    sizes!("adc", ALL);
    sizes!("sbb", ALL);
    sizes!("cmp", ALL);
    sizes!("xor", NO_AF);
    sizes!("and", NO_AF);
    sum = fold(sum, one!("imul", "e", a, b, 0, CF_OF));
    fold(sum, one!("imul", "r", a, b, 0, CF_OF))
}

/// A finite number of moderate size.
fn double(bits: u64) -> f64 {
    (bits >> 12) as f64 / 1e9 - (bits & 0xfff) as f64
}

fn sse(a: u64, b: u64) -> u64 {
    let (x, y) = (double(a), double(b));
    let root = {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_cvtsd_f64(_mm_sqrt_sd(_mm_set_sd(0.0), _mm_set_sd(x * x + 1.0))) }
    };
    let mut sum = (x + y).to_bits();
    sum = fold(sum, (x * y).to_bits());
    sum = fold(sum, (x / (y * y + 1.0)).to_bits());
    sum = fold(sum, root.to_bits());
    sum = fold(sum, ((x * 0.5) as i64) as u64);
    fold(
        sum,
        u64::from((x as f32 * y as f32).to_bits()) ^ u64::from(x < y),
    )
}

fn x87(a: u64, b: u64) -> u64 {
    let (x, y) = (double(a), double(b) * double(b) + 1.0);
    let mut result = 0.0f64;
    // SAFETY: reads two and writes one of our own variables; the stack of the unit is left empty.
    unsafe {
        asm!("fninit", "fld qword ptr [{x}]", "fld qword ptr [{y}]", "fsqrt", "fdivp st(1), st",
            "fld1", "faddp st(1), st", "fld st(0)", "fmulp st(1), st", "fstp qword ptr [{r}]",
            x = in(reg) &x, y = in(reg) &y, r = in(reg) &mut result,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _);
    }
    result.to_bits()
}
