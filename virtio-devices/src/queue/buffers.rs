// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One side of a chain as a run of bytes, wherever the driver cut it.
//!
//! A device must not care how a driver splits a request into buffers ("Message Framing", 2.7.4).

use vm_memory::{GuestMemory, GuestMemoryError};

use super::{Reach, Segment};

/// Consecutive bytes in guest memory, in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'c> {
    segments: &'c [Segment],
    /// Bytes of the first segment that are not ours. At most its length.
    skip: u32,
    length: u64,
}

impl<'c> Buffers<'c> {
    /// All of `segments`, which have `length` bytes together.
    #[inline(always)]
    pub(super) fn new(segments: &'c [Segment], length: u64) -> Self {
        Self {
            segments,
            skip: 0,
            length,
        }
    }

    /// Number of bytes, at most 2^32.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The first `at` bytes, and the rest. If there are fewer: all of them, and none.
    #[must_use]
    pub fn split_at(self, at: u64) -> (Self, Self) {
        let at = at.min(self.length);
        let mut rest = Self {
            length: self.length - at,
            ..self
        };
        let mut left = at;
        while let [first, later @ ..] = rest.segments {
            let here = first.length - rest.skip;
            // Lossless where it is used: `left` is below `here` then.
            if left < u64::from(here) {
                rest.skip += left as u32;
                break;
            }
            left -= u64::from(here);
            rest.segments = later;
            rest.skip = 0;
        }
        (Self { length: at, ..self }, rest)
    }

    /// The pieces, in order, none of them empty.
    #[inline(always)]
    pub fn pieces(self) -> impl Iterator<Item = Segment> + 'c {
        let (mut skip, mut left) = (u64::from(self.skip), self.length);
        self.segments.iter().filter_map(move |segment| {
            // No overflow: what is skipped is inside the first segment, which does not wrap.
            let address = segment.address.wrapping_add(skip);
            let length = left.min(u64::from(segment.length).wrapping_sub(skip));
            (skip, left) = (0, left.wrapping_sub(length));
            let length = length as u32;
            (length > 0).then_some(Segment { address, length })
        })
    }

    /// Copies bytes out of guest memory until `data` is full or there are no more; returns how many.
    pub fn read<M: GuestMemory + ?Sized>(
        self,
        reach: &Reach<'_, M>,
        data: &mut [u8],
    ) -> Result<usize, GuestMemoryError> {
        let mut done = 0;
        for piece in self.pieces() {
            let rest = &mut data[done..];
            let length = rest.len().min(piece.length as usize);
            if length == 0 {
                break;
            }
            reach.read(&mut rest[..length], piece.address)?;
            done += length;
        }
        Ok(done)
    }

    /// Copies `data` into guest memory until it is all there or there is no more room; returns how much.
    pub fn write<M: GuestMemory + ?Sized>(
        self,
        reach: &Reach<'_, M>,
        data: &[u8],
    ) -> Result<usize, GuestMemoryError> {
        let mut done = 0;
        for piece in self.pieces() {
            let rest = &data[done..];
            let length = rest.len().min(piece.length as usize);
            if length == 0 {
                break;
            }
            reach.write(&rest[..length], piece.address)?;
            done += length;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same run as a list of single addresses.
    fn bytes(buffers: Buffers<'_>) -> Vec<u64> {
        buffers
            .pieces()
            .flat_map(|s| s.address..s.address + u64::from(s.length))
            .collect()
    }

    proptest! {
        #[test]
        fn a_split_loses_and_repeats_nothing(
            lengths in prop::collection::vec(0u32..5, 0..6),
            first in 0u64..20,
            second in 0u64..20,
        ) {
            let segments: Vec<_> = lengths
                .iter()
                .zip(1u64..)
                .map(|(&length, i)| Segment { address: i << 8, length })
                .collect();
            let all: Vec<u64> = segments
                .iter()
                .flat_map(|s| (0..u64::from(s.length)).map(move |i| s.address + i))
                .collect();
            let whole = Buffers::new(&segments, all.len() as u64);
            prop_assert_eq!(bytes(whole), all.clone());
            let (a, rest) = whole.split_at(first);
            let (b, c) = rest.split_at(second);
            for part in [a, b, c] {
                prop_assert_eq!(part.len() as usize, bytes(part).len());
                prop_assert_eq!(part.is_empty(), bytes(part).is_empty());
            }
            let cut = (first as usize).min(all.len());
            prop_assert_eq!(bytes(a), all[..cut].to_vec());
            let next = (cut + second as usize).min(all.len());
            prop_assert_eq!(bytes(b), all[cut..next].to_vec());
            prop_assert_eq!(bytes(c), all[next..].to_vec());
        }
    }
}
