// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Inputs near the seeds, the same ones in every run: what a fuzzer would try next, without one.

/// A small generator of numbers (xorshift).
struct Lots(u64);

impl Lots {
    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}

/// Words that sit at some boundary.
const WORDS: [u64; 8] = [
    0,
    1,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 63,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Input number `number`: a seed with one to four changes.
pub(crate) fn near(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    // Any start but 0 does; neighbours must not be alike.
    let mut lots = Lots((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut input = seeds[lots.below(seeds.len())].clone();
    for _ in 0..=lots.below(4) {
        let at = lots.below(input.len() + 1);
        match lots.below(5) {
            0 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << lots.below(8);
                }
            }
            1 => {
                let word = WORDS[lots.below(WORDS.len())].to_le_bytes();
                for (byte, new) in input[at..].iter_mut().zip(word) {
                    *byte = new;
                }
            }
            2 => input.truncate(at),
            3 => {
                let end = at + lots.below(input.len() - at + 1);
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            _ => {
                let other = &seeds[lots.below(seeds.len())];
                let from = lots.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
    input
}
