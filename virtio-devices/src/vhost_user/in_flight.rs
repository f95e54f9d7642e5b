// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which chains a back end had begun when it died: it notes that in memory which outlives it.
//!
//! ```text
//!   one area a queue   features:64  version:16  descriptors:16  last_batch_head:16  used_idx:16
//!                      then for each descriptor   in flight:8  .. next:16  counter:64
//! ```
//!
//! That is a split queue's; a packed one's is at [`packed`]. Read as a file, never mapped: a back end that shortens it does us no
//! harm. "Inflight I/O tracking".

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use vm_memory::GuestMemory;

use crate::queue::notes::split::{DESCRIPTOR, HEAD};
use crate::queue::notes::{self, packed};
use crate::queue::{Begun, Layout, Left, QueueConfig, Reach};

/// Bytes of the area of a queue of `size` descriptors: a mebibyte and some at most.
pub(crate) fn bytes(layout: Layout, size: u16) -> usize {
    let (head, entry) = notes::lengths(layout);
    entry.saturating_mul(size.into()).saturating_add(head)
}

/// The memory in which a back end notes what it has begun.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// The answer by which it was given, which is what another back end is told.
    about: Vec<u8>,
    file: File,
    offset: u64,
    /// Bytes from one queue's area to the next.
    stride: u64,
    layout: Layout,
}

impl InFlight {
    /// What a back end answered to GET_INFLIGHT_FD for `queues` queues of `size` descriptors of `layout`; nothing
    /// if it makes no sense.
    pub(crate) fn new(
        answer: &[u8],
        file: File,
        queues: u16,
        (layout, size): (Layout, u16),
    ) -> Option<Self> {
        let (length, rest) = answer.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (length, offset) = (u64::from_ne_bytes(*length), u64::from_ne_bytes(*offset));
        let told = rest.get(..4)?;
        let stride = length.checked_div(queues.into())?;
        offset.checked_add(length)?;
        let room = bytes(layout, size) as u64;
        let ours = [queues.to_ne_bytes(), size.to_ne_bytes()].concat();
        (stride >= room && told == ours).then(|| Self {
            about: answer.to_vec(),
            file,
            offset,
            stride,
            layout,
        })
    }

    /// As SET_INFLIGHT_FD has it.
    pub(crate) fn about(&self) -> &[u8] {
        &self.about
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// What is left of queue `index`, which is in `memory` by `config` and was started at `start`, by what is noted and what the
    /// driver was shown; nothing if that cannot be said.
    pub(crate) fn left<M: GuestMemory + ?Sized>(
        &self,
        index: u16,
        config: &QueueConfig,
        memory: &M,
        start: u16,
    ) -> Option<Left> {
        let size = config.size;
        match self.layout {
            Layout::Split => {
                let used = used_index(memory, config.device_area)?;
                let begun = self.begun(index, size, Some(used))?;
                let begun = begun.into_iter().map(Begun::Split).collect();
                Some(Left {
                    begun,
                    ..Left::nothing(used)
                })
            }
            Layout::Packed => {
                let reach = Reach::new(memory);
                let flags = |slot: u16| packed_flags(&reach, config.descriptor_area, slot);
                packed::left(&self.area(index, size)?, size, start, flags)
            }
        }
    }

    /// Whether anything is in flight in queue `index`, of `size` descriptors, by the notes alone.
    pub(crate) fn is_left(&self, index: u16, size: u16) -> Option<bool> {
        match self.layout {
            Layout::Split => Some(!self.begun(index, size, None)?.is_empty()),
            Layout::Packed => packed::is_left(&self.area(index, size)?, size),
        }
    }

    /// The area of a queue.
    fn area(&self, index: u16, size: u16) -> Option<Vec<u8>> {
        let mut area = vec![0; bytes(self.layout, size)];
        let at = self
            .offset
            .checked_add(self.stride.checked_mul(index.into())?)?;
        self.file.read_exact_at(&mut area, at).ok()?;
        Some(area)
    }

    /// The chains of split queue `index`, of `size` descriptors, that were begun and not finished when the used ring's index
    /// was `used`, or what is noted for that, in the order in which they were begun; nothing if that cannot be said.
    fn begun(&self, index: u16, size: u16, used: Option<u16>) -> Option<Vec<u16>> {
        let area = self.area(index, size)?;
        let (head, descriptors) = area.split_at(HEAD);
        let field = |at: usize| Some(u16::from_ne_bytes(*head.get(at..)?.first_chunk()?));
        let (version, count) = (field(8)?, field(10)?);
        let (mut last, noted) = (field(12)?, field(14)?);
        if (version, count) == (0, 0) {
            // Never written: nothing was begun.
            return Some(Vec::new());
        }
        if version != 1 || count != size {
            return None;
        }
        let descriptors: Vec<_> = descriptors.as_chunks::<DESCRIPTOR>().0.to_vec();
        let mut begun: Vec<_> = (0..size)
            .zip(&descriptors)
            .filter(|(_, descriptor)| descriptor[0] == 1)
            .map(|(head, descriptor)| {
                let [.., a, b, c, d, e, f, g, h] = *descriptor;
                (u64::from_ne_bytes([a, b, c, d, e, f, g, h]), head)
            })
            .collect();
        // It died between showing the driver a batch and noting that: the batch is finished.
        let batch = used.map_or(0, |used| used.wrapping_sub(noted));
        if batch > size {
            return None;
        }
        for _ in 0..batch {
            begun.retain(|(_, head)| *head != last);
            let descriptor = descriptors.get(usize::from(last))?;
            last = u16::from_ne_bytes([descriptor[6], descriptor[7]]);
        }
        begun.sort_unstable();
        Some(begun.into_iter().map(|(_, head)| head).collect())
    }
}

/// The index of a used ring at `address`, as the driver sees it.
pub(crate) fn used_index<M: GuestMemory + ?Sized>(memory: &M, address: u64) -> Option<u16> {
    // Behind the flags.
    read(&Reach::new(memory), address.checked_add(2)?)
}

/// The flags of the descriptor at `slot` of a packed ring at `ring`: behind its first 14 bytes.
fn packed_flags<M: GuestMemory + ?Sized>(
    reach: &Reach<'_, M>,
    ring: u64,
    slot: u16,
) -> Option<u16> {
    let place = u64::from(slot).saturating_mul(16).saturating_add(14);
    read(reach, ring.checked_add(place)?)
}

fn read<M: GuestMemory + ?Sized>(reach: &Reach<'_, M>, address: u64) -> Option<u16> {
    let mut word = [0; 2];
    reach.read(&mut word, address).ok()?;
    Some(u16::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn answer(length: u64, offset: u64, queues: u16, size: u16) -> Vec<u8> {
        let mut raw = length.to_ne_bytes().to_vec();
        raw.extend(offset.to_ne_bytes());
        raw.extend(queues.to_ne_bytes());
        raw.extend(size.to_ne_bytes());
        raw
    }

    /// A queue's area: words as the specification lays them out.
    fn area(head: [u16; 4], descriptors: &[(u8, u16, u64)]) -> Vec<u8> {
        let mut raw = vec![0; 8];
        raw.extend(head.map(u16::to_ne_bytes).concat());
        for (in_flight, next, counter) in descriptors {
            raw.extend([*in_flight, 0, 0, 0, 0, 0]);
            raw.extend(next.to_ne_bytes());
            raw.extend(counter.to_ne_bytes());
        }
        raw
    }

    fn region(areas: &[Vec<u8>], size: u16) -> InFlight {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&areas.concat()).unwrap();
        let length = areas.concat().len() as u64;
        let queues = areas.len() as u16;
        InFlight::new(
            &answer(length, 0, queues, size),
            file,
            queues,
            (Layout::Split, size),
        )
        .unwrap()
    }

    #[test]
    fn what_was_begun_is_told_in_order() {
        let first = area([1, 4, 0, 9], &[(1, 0, 12), (0, 0, 0), (1, 0, 3), (1, 0, 7)]);
        let second = area([0, 0, 0, 0], &[(0, 0, 0); 4]);
        let region = region(&[first, second], 4);
        assert_eq!(region.begun(0, 4, Some(9)), Some(vec![2, 3, 0]));
        assert_eq!(region.begun(1, 4, Some(0)), Some(vec![]));
        // Of another size, or beyond the file.
        assert_eq!(region.begun(0, 2, Some(9)), None);
        assert_eq!(region.begun(2, 4, Some(0)), None);
    }

    #[test]
    fn a_batch_that_the_driver_has_seen_is_finished() {
        // Two more were used than are noted: 3, and by its link 0.
        let all = [(1, 0, 1), (1, 0, 2), (0, 0, 0), (1, 0, 3)];
        let region = region(&[area([1, 4, 3, u16::MAX], &all)], 4);
        assert_eq!(region.begun(0, 4, Some(1)), Some(vec![1]));
        assert_eq!(region.begun(0, 4, Some(0)), Some(vec![0, 1]));
        // More than there are descriptors.
        assert_eq!(region.begun(0, 4, Some(4)), None);
    }

    #[test]
    fn a_link_that_leads_nowhere_and_another_version_are_not_believed() {
        let lost = region(&[area([1, 4, 900, 0], &[(1, 0, 1); 4])], 4);
        assert_eq!(lost.begun(0, 4, Some(1)), None);
        let newer = region(&[area([2, 4, 0, 0], &[(1, 0, 1); 4])], 4);
        assert_eq!(newer.begun(0, 4, Some(0)), None);
    }

    #[test]
    fn an_answer_that_makes_no_sense() {
        let new = |answer: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            InFlight::new(answer, file, 2, (Layout::Split, 4)).is_some()
        };
        assert!(new(&answer(160, 0, 2, 4)));
        // Too small; wraps; other queues; another size; cut off.
        assert!(!new(&answer(159, 0, 2, 4)));
        assert!(!new(&answer(160, u64::MAX, 2, 4)));
        assert!(!new(&answer(160, 0, 1, 4)));
        assert!(!new(&answer(160, 0, 2, 8)));
        assert!(!new(&answer(160, 0, 2, 4)[..18]));
    }
}
