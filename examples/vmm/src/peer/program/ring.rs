// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver's queue of a few buffers of fixed places, one descriptor each. virtio, "Split Virtqueues" (2.7).

use super::ProgramError;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Descriptors, and so buffers.
pub(super) const SIZE: u16 = 8;
/// Bytes of a buffer: of the longest message and some more.
pub(super) const BUFFER: u64 = 0x2000;
/// Bytes of a queue and its buffers.
pub(super) const LENGTH: u64 = 0x1000 + SIZE as u64 * BUFFER;

const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x200;
/// VIRTQ_DESC_F_WRITE.
const WRITE: u16 = 2;

/// Who writes the buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    Device,
    Driver,
}

/// A queue.
#[derive(Debug)]
pub(super) struct Ring {
    memory: GuestMemoryMmap,
    base: u64,
    writer: Writer,
    offered: u16,
    seen: u16,
}

impl Ring {
    /// A queue in `memory`, which is zero, from `base` on.
    pub(super) fn new(memory: GuestMemoryMmap, base: u64, writer: Writer) -> Self {
        Ring {
            memory,
            base,
            writer,
            offered: 0,
            seen: 0,
        }
    }

    /// Where descriptors, available ring and used ring are.
    pub(super) fn areas(&self) -> [u64; 3] {
        [self.base, self.place(AVAILABLE), self.place(USED)]
    }

    fn buffer(&self, index: u16) -> GuestAddress {
        GuestAddress(self.element(0x1000, BUFFER, index))
    }

    /// The address `offset` bytes behind the queue's.
    fn place(&self, offset: u64) -> u64 {
        self.base.saturating_add(offset)
    }

    /// Of elements of `bytes` bytes that begin at `first`, where that with this index is, of [`SIZE`].
    fn element(&self, first: u64, bytes: u64, index: u16) -> u64 {
        let behind = u64::from(index % SIZE).saturating_mul(bytes);
        self.place(first.saturating_add(behind))
    }

    /// Makes buffer `index` available: empty, or holding `data`, which fits.
    pub(super) fn offer(&mut self, index: u16, data: &[u8]) -> Result<(), ProgramError> {
        let index = index % SIZE;
        let buffer = self.buffer(index);
        let (length, flags) = match self.writer {
            Writer::Device => (BUFFER, WRITE),
            Writer::Driver => {
                let length = data.len() as u64;
                if length > BUFFER {
                    return Err(ProgramError::Wrong("is given an answer that is too long"));
                }
                self.memory.write_slice(data, buffer)?;
                (length, 0)
            }
        };
        let descriptor = u128::from(buffer.0) | u128::from(length) << 64 | u128::from(flags) << 96;
        let at = self.element(0, 16, index);
        self.memory
            .write_slice(&descriptor.to_le_bytes(), GuestAddress(at))?;
        let slot = self.element(AVAILABLE + 4, 2, self.offered);
        self.memory
            .write_slice(&index.to_le_bytes(), GuestAddress(slot))?;
        self.offered = self.offered.wrapping_add(1);
        let place = GuestAddress(self.place(AVAILABLE + 2));
        self.memory
            .store(self.offered.to_le(), place, Ordering::Release)?;
        Ok(())
    }

    /// The next buffer that the device has used, and what it wrote there.
    pub(super) fn take(&mut self) -> Result<Option<(u16, Vec<u8>)>, ProgramError> {
        let place = GuestAddress(self.place(USED + 2));
        let index = u16::from_le(self.memory.load(place, Ordering::Acquire)?);
        if index == self.seen {
            return Ok(None);
        }
        let slot = self.element(USED + 4, 8, self.seen);
        let mut element = [0; 8];
        self.memory.read_slice(&mut element, GuestAddress(slot))?;
        let element = u64::from_le_bytes(element);
        self.seen = self.seen.wrapping_add(1);
        let (head, length) = (element & 0xffff_ffff, element >> 32);
        let head = u16::try_from(head).ok().filter(|head| *head < SIZE);
        let (Some(head), true) = (head, length <= BUFFER) else {
            return Err(ProgramError::Wrong("used a buffer that there is not"));
        };
        // At most `BUFFER`.
        let mut data = vec![0; length as usize];
        self.memory.read_slice(&mut data, self.buffer(head))?;
        Ok(Some((head, data)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(writer: Writer) -> (GuestMemoryMmap, Ring) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1000), 0x2_0000)]).unwrap();
        (memory.clone(), Ring::new(memory, 0x1000, writer))
    }

    fn word(memory: &GuestMemoryMmap, at: u64) -> u64 {
        let mut raw = [0; 8];
        memory.read_slice(&mut raw, GuestAddress(at)).unwrap();
        u64::from_le_bytes(raw)
    }

    #[test]
    fn what_is_offered_is_in_the_words_of_the_specification() {
        let (memory, mut ring) = ring(Writer::Driver);
        assert_eq!(ring.areas(), [0x1000, 0x1100, 0x1200]);
        ring.offer(3, b"message").unwrap();
        // Address; length 7, no flags, no next.
        assert_eq!(word(&memory, 0x1030), 0x2000 + 3 * 0x2000);
        assert_eq!(word(&memory, 0x1038), 7);
        // Flags, index, the first slot.
        assert_eq!(word(&memory, 0x1100), 0x0003_0001_0000);
        assert_eq!(word(&memory, 0x8000) & 0xff_ffff, 0x73_656d);
        let (memory, mut ring) = self::ring(Writer::Device);
        ring.offer(0, &[]).unwrap();
        assert_eq!(word(&memory, 0x1008), 0x0002_0000_2000);
        assert!(ring.take().unwrap().is_none());
    }

    #[test]
    fn what_is_used_is_taken_once_and_nonsense_is_refused() {
        let (memory, mut ring) = ring(Writer::Device);
        let put = |at: u64, word: u64| {
            memory
                .write_slice(&word.to_le_bytes(), GuestAddress(at))
                .unwrap();
        };
        put(0x1204, 5 << 32 | 2);
        put(0x120c, 0x2001 << 32 | 2);
        put(0x1214, 8);
        put(0x6000, u64::from_le_bytes(*b"hello..."));
        let used = |index: u16| {
            memory
                .write_slice(&index.to_le_bytes(), GuestAddress(0x1202))
                .unwrap();
        };
        used(1);
        assert_eq!(ring.take().unwrap(), Some((2, b"hello".to_vec())));
        assert_eq!(ring.take().unwrap(), None);
        used(3);
        for _ in 0..2 {
            assert!(matches!(ring.take(), Err(ProgramError::Wrong(_))));
        }
        let (_, mut ring) = self::ring(Writer::Driver);
        assert!(ring.offer(0, &[0; 0x2001]).is_err());
    }
}
