// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One side of a chain as a run of bytes, wherever the driver cut it.
//!
//! A device must not care how a driver splits a request into buffers ("Message Framing", 2.7.4).

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use super::Segment;

/// Consecutive bytes in guest memory, in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'c> {
    segments: &'c [Segment],
    /// Bytes of the first segment that are not ours. At most its length.
    skip: u32,
    length: u64,
}

impl<'c> Buffers<'c> {
    pub(super) fn new(segments: &'c [Segment]) -> Self {
        Self {
            segments,
            skip: 0,
            length: segments.iter().map(|s| u64::from(s.length)).sum(),
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
    pub fn pieces(self) -> impl Iterator<Item = Segment> + 'c {
        let (mut skip, mut left) = (self.skip, self.length);
        self.segments.iter().filter_map(move |segment| {
            let here = segment.length - std::mem::take(&mut skip);
            let length = u32::try_from(left).unwrap_or(u32::MAX).min(here);
            let address = segment.address + u64::from(segment.length - here);
            left -= u64::from(length);
            (length > 0).then_some(Segment { address, length })
        })
    }

    /// Copies bytes out of guest memory until `data` is full or there are no more; returns how many.
    pub fn read<M: GuestMemory + ?Sized>(
        self,
        memory: &M,
        data: &mut [u8],
    ) -> Result<usize, GuestMemoryError> {
        let mut done = 0;
        for piece in self.pieces() {
            let rest = &mut data[done..];
            let length = rest.len().min(piece.length as usize);
            if length == 0 {
                break;
            }
            memory.read_slice(&mut rest[..length], GuestAddress(piece.address))?;
            done += length;
        }
        Ok(done)
    }

    /// Copies `data` into guest memory until it is all there or there is no more room; returns how much.
    pub fn write<M: GuestMemory + ?Sized>(
        self,
        memory: &M,
        data: &[u8],
    ) -> Result<usize, GuestMemoryError> {
        let mut done = 0;
        for piece in self.pieces() {
            let rest = &data[done..];
            let length = rest.len().min(piece.length as usize);
            if length == 0 {
                break;
            }
            memory.write_slice(&rest[..length], GuestAddress(piece.address))?;
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
            let whole = Buffers::new(&segments);
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
