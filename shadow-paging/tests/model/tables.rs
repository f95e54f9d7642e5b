// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's tables: three of each level, two indices of each, so that everything meets everything.

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::FakeHost;
use hvkit_shadow_paging::guest::Layout;
use lab_cases::Random;

const TABLES: u64 = 0x1_0000;
const WINDOW: u64 = 0x3_0000;
/// Everything that is a table lies below.
pub(crate) const TABLES_END: u64 = 0x4_0000;
const DATA: u64 = 0x40_0000;

pub(crate) struct Tables {
    pub(crate) layout: Layout,
    pub(crate) levels: usize,
    pub(crate) width: Width,
    indices: [[u64; 2]; 5],
    /// What the guest has stored, by address: flags apart, as it is now.
    pub(crate) now: std::collections::BTreeMap<u64, (usize, u64)>,
}

impl Tables {
    pub(crate) fn new(layout: Layout, r: &mut Random) -> Self {
        let (levels, width) = match layout {
            Layout::ThirtyTwoBit => (2, Width::Four),
            Layout::Pae => (3, Width::Eight),
            Layout::FourLevel => (4, Width::Eight),
            Layout::FiveLevel => (5, Width::Eight),
        };
        let mut indices = [[0; 2]; 5];
        for level in 1..=levels {
            let first = 1 + r.below(20);
            indices[level - 1] = match (layout, level) {
                (Layout::Pae, 3) => [1, 2 + r.below(2)],
                (Layout::ThirtyTwoBit, _) => [first, first + 512 * r.below(2) + 1],
                // The highest half is another, canonical.
                (_, level) if level == levels => [first, 256 + first],
                _ => [first, first + 1 + r.below(60)],
            };
        }
        let now = std::collections::BTreeMap::new();
        let mut tables = Self {
            layout,
            levels,
            width,
            indices,
            now,
        };
        for level in 1..=levels {
            for table in 0..3 {
                for choice in 0..2 {
                    let at = tables.slot(level, table, choice);
                    let value = tables.entry(level, r);
                    tables.now.insert(at, (level, value));
                }
            }
        }
        tables
    }

    pub(crate) fn root(&self, number: u64) -> u64 {
        Self::frame(self.levels, number % 3)
    }

    fn frame(level: usize, table: u64) -> u64 {
        TABLES + ((level as u64 - 1) * 3 + table) * 0x1000
    }

    fn slot(&self, level: usize, table: u64, choice: usize) -> u64 {
        Self::frame(level, table) + self.indices[level - 1][choice] * self.width.bytes()
    }

    /// The window by which the guest writes its tables: the first 2 MiB onto themselves.
    pub(crate) fn window(&self) -> Vec<(u64, u64)> {
        let mut entries = vec![];
        for number in 0..3 {
            let root = self.root(number);
            match self.layout {
                Layout::ThirtyTwoBit => entries.push((root, 0xe3)),
                Layout::Pae => entries.push((root, WINDOW | 1)),
                _ => entries.push((root, WINDOW | 0x63)),
            }
        }
        let below = self.levels.saturating_sub(1);
        for level in (2..=below).rev() {
            let at = WINDOW + (below - level) as u64 * 0x1000;
            entries.push((
                at,
                if level == 2 {
                    0xe3
                } else {
                    (at + 0x1000) | 0x63
                },
            ));
        }
        entries
    }

    /// One of the addresses that the tables translate, page-aligned.
    pub(crate) fn linear(&self, r: &mut Random) -> u64 {
        let choices: Vec<usize> = (0..self.levels).map(|_| r.below(2) as usize).collect();
        self.address(|level| choices[level - 1])
    }

    fn address(&self, choice: impl Fn(usize) -> usize) -> u64 {
        let bits = if self.width == Width::Four { 10 } else { 9 };
        let sum = (1..=self.levels).fold(0, |sum, level| {
            sum | self.indices[level - 1][choice(level)] << (12 + bits * (level - 1))
        });
        match self.levels {
            4 => ((sum << 16) as i64 >> 16) as u64,
            5 => ((sum << 7) as i64 >> 7) as u64,
            _ => sum,
        }
    }

    /// Every address that a lowest entry at `at` may translate.
    pub(crate) fn addresses_of(&self, at: u64) -> Vec<u64> {
        let index = (at & 0xfff) / self.width.bytes();
        (0..1usize << self.levels)
            .filter(|number| self.indices[0][number & 1] == index)
            .map(|number| self.address(|level| number >> (level - 1) & 1))
            .collect()
    }

    /// A new value for the entry at `at`, which is of `level`.
    pub(crate) fn change(&self, at: u64, r: &mut Random) -> u64 {
        let (level, before) = self.now[&at];
        let value = if r.chance(1, 3) {
            before ^ r.pick(&[1, 2, 2, 4, 0x20, 0x40, 0x60])
        } else {
            self.entry(level, r)
        };
        self.tame(level, value)
    }

    fn entry(&self, level: usize, r: &mut Random) -> u64 {
        let table = Self::frame(level.max(2) - 1, r.below(3));
        let register = self.layout == Layout::Pae && level == 3;
        let large = match level {
            2 => r.chance(1, 4),
            3 if !register => r.chance(1, 8),
            _ => false,
        };
        let mut entry = r.bit(1, 10, 11) | r.bit(2, 3, 4) | r.bit(4, 3, 4);
        entry |= r.bit(0x20, 1, 3) | r.bit(0x40, 1, 3) | r.bit(8, 1, 8) | r.bit(1 << 9, 1, 4);
        if self.width == Width::Eight {
            entry |= r.bit(1 << 63, 1, 8) | r.bit(1 << 51, 1, 40);
        }
        entry |= match level {
            1 if r.chance(1, 20) => FakeHost::MMIO,
            1 => DATA + (r.below(12) << 12),
            2 if large && self.width == Width::Four => 0x80 | (0x40_0000 * (1 + r.below(4))),
            2 if large => 0x80 | (0x20_0000 * (2 + r.below(4))),
            3 if large => 0x80,
            _ => table,
        };
        self.tame(level, entry)
    }

    fn tame(&self, level: usize, entry: u64) -> u64 {
        if self.layout == Layout::Pae && level == 3 {
            entry & (0xf_f000 | 1)
        } else {
            entry
        }
    }

    /// A data page, by guest-physical address, or a table.
    pub(crate) fn some_page(r: &mut Random) -> u64 {
        if r.chance(1, 3) {
            TABLES + (r.below(15) << 12)
        } else {
            DATA + (r.below(12) << 12)
        }
    }
}
