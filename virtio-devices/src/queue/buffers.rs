// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One side of a chain as a run of bytes, wherever the driver cut it.
//!
//! A device must not care how a driver splits a request into buffers ("Message Framing", 2.7.4).

use vm_memory::{GuestMemory, GuestMemoryError};

use super::reach::Slice;
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

    /// The first `at` bytes; if there are fewer, all of them.
    #[inline(always)]
    #[must_use]
    pub fn first(self, at: u64) -> Self {
        let length = at.min(self.length);
        Self { length, ..self }
    }

    /// The first `at` bytes, and the rest. If there are fewer: all of them, and none.
    #[inline]
    #[must_use]
    pub fn split_at(self, at: u64) -> (Self, Self) {
        let at = at.min(self.length);
        // No difference here is below 0, as each line says; none is silently made 0.
        let mut rest = Self {
            length: self.length.wrapping_sub(at),
            ..self
        };
        let mut left = at;
        while let [first, later @ ..] = rest.segments {
            // What is skipped is inside the first segment.
            let here = first.length.wrapping_sub(rest.skip);
            // Lossless where it is used: `left` is below `here` then.
            if left < u64::from(here) {
                rest.skip = rest.skip.wrapping_add(left as u32);
                break;
            }
            left = left.wrapping_sub(here.into());
            rest.segments = later;
            rest.skip = 0;
        }
        (Self { length: at, ..self }, rest)
    }

    /// All of them, if they are in one piece of the host's memory that is known at once.
    #[inline(always)]
    pub(crate) fn known<'m, M: GuestMemory + ?Sized>(
        self,
        reach: &Reach<'m, M>,
    ) -> Option<Slice<'m, M>> {
        let length = usize::try_from(self.length).ok()?;
        reach.known(self.whole(length)?, length)
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

    /// Where the first `length` bytes are, if they are in one piece: a header, a status.
    #[inline(always)]
    fn whole(&self, length: usize) -> Option<u64> {
        let first = self.segments.first()?;
        // What is skipped is inside the first segment, which does not wrap.
        let here = u64::from(first.length.wrapping_sub(self.skip)).min(self.length);
        let fits = length > 0 && length as u64 <= here;
        fits.then_some(first.address.wrapping_add(self.skip.into()))
    }

    /// Copies bytes out of guest memory until `data` is full or there are no more; returns how many.
    #[inline(always)]
    pub fn read<M: GuestMemory + ?Sized>(
        self,
        reach: &Reach<'_, M>,
        data: &mut [u8],
    ) -> Result<usize, GuestMemoryError> {
        let whole = data.len();
        if let Some(address) = self.whole(whole) {
            reach.read(data, address)?;
            return Ok(whole);
        }
        self.gather(data, |now, address| reach.read(now, address))
    }

    /// Fills `data` piece by piece, each by `copy` from its address.
    #[inline(never)]
    fn gather(
        self,
        data: &mut [u8],
        copy: impl Fn(&mut [u8], u64) -> Result<(), GuestMemoryError>,
    ) -> Result<usize, GuestMemoryError> {
        let whole = data.len();
        let mut rest = data;
        for piece in self.pieces() {
            let length = rest.len().min(piece.length as usize);
            let Some(now) = rest.split_off_mut(..length).filter(|now| !now.is_empty()) else {
                break;
            };
            copy(now, piece.address)?;
        }
        Ok(whole.wrapping_sub(rest.len()))
    }

    /// Copies out of guest memory what the device itself has just written there, as [`read`](Self::read) does.
    pub(crate) fn read_back<M: GuestMemory + ?Sized>(
        self,
        reach: &Reach<'_, M>,
        data: &mut [u8],
    ) -> Result<usize, GuestMemoryError> {
        self.gather(data, |now, address| reach.read_back(now, address))
    }

    /// Copies `data` into guest memory until it is all there or there is no more room; returns how much.
    pub fn write<M: GuestMemory + ?Sized>(
        self,
        reach: &Reach<'_, M>,
        data: &[u8],
    ) -> Result<usize, GuestMemoryError> {
        if let Some(address) = self.whole(data.len()) {
            reach.write(data, address)?;
            return Ok(data.len());
        }
        let mut rest = data;
        for piece in self.pieces() {
            let length = rest.len().min(piece.length as usize);
            let Some(now) = rest.split_off(..length).filter(|now| !now.is_empty()) else {
                break;
            };
            reach.write(now, piece.address)?;
        }
        Ok(data.len().wrapping_sub(rest.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    /// The same run as a list of single addresses.
    fn bytes(buffers: Buffers<'_>) -> Vec<u64> {
        buffers
            .pieces()
            .flat_map(|s| s.address..s.address + u64::from(s.length))
            .collect()
    }

    /// A few, far apart, some of them empty.
    fn segments() -> impl Strategy<Value = Vec<Segment>> {
        let segments = |lengths: Vec<u32>| {
            let placed = lengths.into_iter().zip(1u64..);
            let segment = |(length, i)| Segment {
                address: i << 8,
                length,
            };
            placed.map(segment).collect()
        };
        prop::collection::vec(0u32..5, 0..6).prop_map(segments)
    }

    proptest! {
        #[test]
        fn a_split_loses_and_repeats_nothing(
            segments in segments(),
            first in 0u64..20,
            second in 0u64..20,
        ) {
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
            prop_assert_eq!(bytes(whole.first(first)), bytes(a));
            prop_assert_eq!(bytes(a), all[..cut].to_vec());
            let next = (cut + second as usize).min(all.len());
            prop_assert_eq!(bytes(b), all[cut..next].to_vec());
            prop_assert_eq!(bytes(c), all[next..].to_vec());
        }

        /// In one piece or over several, the bytes that are copied are those of the first addresses, and no others.
        #[test]
        fn a_copy_is_of_the_first_bytes(
            segments in segments(),
            first in 0u64..20,
            count in 0usize..24,
        ) {
            let all = segments.iter().map(|segment| u64::from(segment.length)).sum();
            let rest = Buffers::new(&segments, all).split_at(first).1;
            let places = bytes(rest);
            let copied = count.min(places.len());

            let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
            for &place in &places {
                memory.write_obj(place as u8 ^ 0x5a, GuestAddress(place)).unwrap();
            }
            let mut data = vec![0xee; count];
            prop_assert_eq!(rest.read(&Reach::new(&memory), &mut data).unwrap(), copied);
            let expected = places.iter().take(copied).map(|place| *place as u8 ^ 0x5a);
            prop_assert!(data[..copied].iter().copied().eq(expected));
            prop_assert!(data[copied..].iter().all(|byte| *byte == 0xee));

            let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
            let data: Vec<u8> = (1..).take(count).collect();
            prop_assert_eq!(rest.write(&Reach::new(&memory), &data).unwrap(), copied);
            for address in 0..0x1000 {
                let byte: u8 = memory.read_obj(GuestAddress(address)).unwrap();
                let at = places.iter().take(copied).position(|place| *place == address);
                prop_assert_eq!(byte, at.map_or(0, |at| at as u8 + 1));
            }
        }
    }
}
