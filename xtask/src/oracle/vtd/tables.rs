// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables of a case: made well, then spoilt.

use std::collections::BTreeMap;

use lab_cases::Random;

use super::program::{Step, layout};

/// Which stage's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// First stage: the processors' format.
    First,
    /// Second stage.
    Second,
}

impl Stage {
    /// The bits of an entry that leads to a table, apart from its address.
    fn table(self) -> u64 {
        match self {
            // P, R/W, U/S.
            Self::First => 7,
            // R, W.
            Self::Second => 3,
        }
    }

    /// The rights of a leaf.
    pub(super) fn leaf(self, random: &mut Random) -> u64 {
        match self {
            Self::First => random.pick(&[7, 7, 7, 5, 3, 0x67]),
            Self::Second => random.pick(&[3, 3, 3, 1, 2]),
        }
    }
}

/// Words of memory that a case is to have.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    words: BTreeMap<u64, u64>,
    frames: u64,
}

impl Words {
    pub(super) fn get(&self, at: u64) -> u64 {
        self.words.get(&at).copied().unwrap_or(0)
    }

    pub(super) fn set(&mut self, at: u64, word: u64) {
        self.words.insert(at, word);
    }

    /// A frame for a table; the last one again if there are no more.
    pub(super) fn frame(&mut self) -> u64 {
        let frame = layout::TABLES + 0x1000 * self.frames.min(layout::TABLE_FRAMES - 1);
        self.frames += 1;
        frame
    }

    /// Maps the page of `address` at `level` of the table at `root` to `leaf`, which has its rights. Where the
    /// entries are that it goes through, the leaf's last.
    pub(super) fn map(
        &mut self,
        stage: Stage,
        root: u64,
        levels: u8,
        address: u64,
        level: u8,
        leaf: u64,
    ) -> Vec<u64> {
        let mut path = Vec::new();
        let mut table = root;
        for at_level in (level..=levels).rev() {
            let index = address >> (3 + 9 * u32::from(at_level)) & 0x1ff;
            let at = table + 8 * index;
            path.push(at);
            if at_level == level {
                self.set(at, leaf | if level > 1 { 0x80 } else { 0 });
            } else {
                let entry = self.get(at);
                table = if entry & 3 != 0 && entry & 0x80 == 0 {
                    entry & 0xf_ffff_f000
                } else {
                    let frame = self.frame();
                    self.set(at, frame | stage.table());
                    frame
                };
            }
        }
        path
    }

    /// As stores.
    pub(super) fn stores(&self) -> impl Iterator<Item = Step> {
        self.words.iter().map(|(at, word)| Step::Store {
            at: *at,
            word: *word,
        })
    }
}

/// Spoils a paging entry, in one of the ways that units must tell apart.
pub(super) fn spoil(random: &mut Random, entry: u64) -> u64 {
    match random.below(10) {
        0 => entry & !1,
        1 => entry & !2,
        2 => entry & !3,
        3 => 0,
        4 | 5 => entry ^ 1 << random.below(12),
        6 => entry ^ 1 << (52 + random.below(12)),
        // An address that the machine has no memory at, or that is too wide.
        7 => entry & !0xf_ffff_ffff_f000 | 1 << random.pick(&[32, 39, 46, 47, 48, 51]),
        8 => entry ^ 0x80,
        _ => entry ^ 1 << random.below(52),
    }
}

/// A word that an entry without a meaning for most bits may be: `entry` with a bit or two changed.
pub(super) fn disturb(random: &mut Random, entry: u64) -> u64 {
    let once = entry ^ 1 << random.below(64);
    if random.chance(1, 3) {
        once ^ 1 << random.below(64)
    } else {
        once
    }
}
