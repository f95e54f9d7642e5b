// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A set of pages of the guest's memory.

use crate::machine::memory::PAGE;
use std::ops::Range;

/// One stretch of the guest's memory, a bit for each of its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Region {
    range: Range<u64>,
    words: Vec<u64>,
}

/// Pages of the guest's memory: a bit for each page that there is, set or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages(Vec<Region>);

impl Pages {
    /// None, of memory in these `ranges` of addresses, which begin and end at pages and do not overlap.
    #[must_use]
    pub fn none(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let region = |range: Range<u64>| {
            let pages = range.end.saturating_sub(range.start) / PAGE;
            Region {
                range,
                // As many as fit in memory, where they lie.
                words: vec![0; usize::try_from(pages.div_ceil(64)).unwrap_or(0)],
            }
        };
        Pages(ranges.into_iter().map(region).collect())
    }

    /// None, of the same memory.
    #[must_use]
    pub fn none_of_these(&self) -> Self {
        Pages::none(self.regions())
    }

    /// The stretches of memory.
    pub fn regions(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|region| region.range.clone())
    }

    /// Adds the pages of the bytes `first` to `last`; where there is no memory, nothing.
    pub fn add(&mut self, first: u64, last: u64) {
        for Region { range, words } in &mut self.0 {
            let Some(end) = range.end.checked_sub(1) else {
                continue;
            };
            let (first, last) = (first.max(range.start), last.min(end));
            if first > last {
                continue;
            }
            let page = |address: u64| address.saturating_sub(range.start) / PAGE;
            for page in page(first)..=page(last) {
                let place = usize::try_from(page / 64).unwrap_or(usize::MAX);
                if let Some(word) = words.get_mut(place) {
                    *word |= 1 << (page % 64);
                }
            }
        }
    }

    /// Adds all.
    pub fn add_all(&mut self) {
        self.add(0, u64::MAX);
    }

    /// Adds those of the region that begins at `start` whose bits are set: bit 0 of the first word is its first page.
    pub fn add_bits(&mut self, start: u64, bits: &[u64]) {
        let region = self.0.iter_mut().find(|region| region.range.start == start);
        for (word, bits) in region.into_iter().flat_map(|r| &mut r.words).zip(bits) {
            *word |= bits;
        }
    }

    /// Adds those of `other`.
    pub fn join(&mut self, other: &Pages) {
        for Region { range, words } in &other.0 {
            self.add_bits(range.start, words);
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        let words = self.0.iter().flat_map(|region| &region.words);
        words.fold(0, |sum: u64, word| {
            sum.saturating_add(word.count_ones().into())
        })
    }

    /// The bits in bytes, each region's with the number of the byte at which they begin where bit 0 of byte 0 is the page at
    /// address 0.
    pub fn bytes(&self) -> impl Iterator<Item = (u64, Vec<u8>)> + '_ {
        self.0.iter().map(|Region { range, words }| {
            let bytes = words.iter().flat_map(|word| word.to_le_bytes());
            (range.start / PAGE / 8, bytes.collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 130 pages from 0, 3 from 4 GiB on.
    fn some() -> Pages {
        Pages::none([0..0x8_2000, 0x1_0000_0000..0x1_0000_3000])
    }

    #[test]
    fn a_page_is_a_bit() {
        let mut pages = some();
        pages.add(0x1fff, 0x2000);
        pages.add(0x1_0000_2fff, u64::MAX);
        let bytes: Vec<_> = pages.bytes().collect();
        let mut low = vec![0; 24];
        low[0] = 0b110;
        let high = vec![0b100, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(bytes, [(0, low), (0x1_0000_0000 >> 15, high)]);
        assert_eq!(pages.count(), 3);
        pages.add_bits(0x1_0000_0000, &[0b101]);
        assert_eq!(pages.count(), 4);
    }

    #[test]
    fn pages_are_only_where_there_is_memory() {
        let mut pages = some();
        pages.add(0x8_2000, 0xffff_ffff);
        pages.add(0x3000, 0x2000);
        pages.add_bits(0x1000, &[u64::MAX]);
        assert_eq!(pages, some());
        pages.add_all();
        assert_eq!(pages.count(), 133);
        let mut joined = pages.none_of_these();
        assert_eq!(joined, some());
        joined.join(&pages);
        assert_eq!(joined, pages);
    }
}
