// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What memory holds, in four bytes.

/// A sum over all words of a piece of memory that are not zero, in any order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Digest(u64);

impl Digest {
    /// Counts the 8 bytes `word` at physical address `at`. Zero counts nothing.
    pub fn add(&mut self, at: u64, word: u64) {
        if word != 0 {
            let mixed = (word ^ at.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.0 = self.0.wrapping_add(mixed ^ mixed >> 32);
        }
    }

    /// The sum.
    #[must_use]
    pub fn sum(self) -> u32 {
        (self.0 ^ self.0 >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_sees_each_flag_and_each_place() {
        let of = |words: &[(u64, u64)]| {
            let mut digest = Digest::default();
            words.iter().for_each(|&(at, word)| digest.add(at, word));
            digest.sum()
        };
        let (a, b) = ((0x0110_0008, 0x0110_1007), (0x0110_1010, 0x0200_0007));
        assert_eq!(of(&[a, b]), of(&[b, a, (0x0110_2000, 0)]));
        assert_ne!(of(&[a, b]), of(&[(a.0, a.1 | 0x20), b]));
        assert_ne!(of(&[a, b]), of(&[a, (b.0, b.1 | 0x40)]));
        assert_ne!(of(&[a, b]), of(&[a, (b.0 + 8, b.1)]));
        assert_ne!(of(&[a, b]), of(&[(a.0, b.1), (b.0, a.1)]));
    }
}
