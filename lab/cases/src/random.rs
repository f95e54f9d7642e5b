// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stream of numbers that depends on its seed alone.

/// SplitMix64: small, and good enough to choose cases by.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of case `index` in the run with `seed`.
    #[must_use]
    pub fn of_case(seed: u64, index: u64) -> Self {
        let mut seeds = Self(seed);
        let own = seeds.next() ^ index.wrapping_mul(0xd134_2543_de82_ef95);
        Self(Self(own).next())
    }

    /// The next number.
    #[expect(
        clippy::should_implement_trait,
        reason = "an endless stream needs no Option"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        // The bias of 2^-32 or so is nothing here; a multiplication is cheaper than a division.
        (self.next() >> 32).wrapping_mul(end) >> 32
    }

    /// True `times` times in `of`.
    pub fn chance(&mut self, times: u64, of: u64) -> bool {
        self.below(of) < times
    }

    /// `bit` so often, otherwise 0.
    pub fn bit(&mut self, bit: u64, times: u64, of: u64) -> u64 {
        if self.chance(times, of) { bit } else { 0 }
    }

    /// One of `choices`, which are not none.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}
