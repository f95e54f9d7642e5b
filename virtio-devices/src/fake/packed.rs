// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver's side of a packed virtqueue, in raw words.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::ring::{Buffer, Used};

/// A packed virtqueue as its driver has it. Places are handed out in turn and never checked for reuse: a test
/// that has more in flight than the queue holds does so on purpose.
#[derive(Clone, Debug)]
pub struct PackedRing {
    memory: Arc<GuestMemoryMmap>,
    /// Number of descriptors.
    pub size: u16,
    /// Address of the descriptor ring.
    pub ring: u64,
    /// Address of the driver's event suppression structure.
    pub driver: u64,
    /// Address of the device's event suppression structure.
    pub device: u64,
    /// Where the next chain goes, and the driver's wrap counter there.
    pub free: (u16, bool),
    /// Where the next used descriptor is looked for, and the wrap counter there.
    pub seen: (u16, bool),
    /// How many places each identifier stands for.
    taken: Vec<u16>,
    next_id: u16,
}

impl PackedRing {
    /// A queue of `size` at `base`, which must be a multiple of 4096. Zeroes its memory.
    pub fn new(memory: Arc<GuestMemoryMmap>, base: u64, size: u16) -> Self {
        // Each part starts in a page of its own, far from any other word.
        let driver = (base + 16 * u64::from(size)).next_multiple_of(4096);
        let device = driver + 4096;
        let zeros = vec![0; usize::try_from(device + 4 - base).unwrap()];
        memory.write_slice(&zeros, GuestAddress(base)).unwrap();
        Self {
            memory,
            size,
            ring: base,
            driver,
            device,
            free: (0, true),
            seen: (0, true),
            taken: vec![0; size.into()],
            next_id: 0,
        }
    }

    /// Writes 16 bits.
    pub fn put16(&self, address: u64, value: u16) {
        let raw = value.to_le_bytes();
        self.memory
            .write_slice(&raw, GuestAddress(address))
            .unwrap();
    }

    /// Reads the words of the descriptor at `index` of a table: address, length, identifier, flags.
    pub fn words(&self, table: u64, index: u16) -> (u64, u32, u16, u16) {
        let mut raw = [0; 16];
        let at = GuestAddress(table + 16 * u64::from(index));
        self.memory.read_slice(&mut raw, at).unwrap();
        let word = u128::from_le_bytes(raw);
        (
            word as u64,
            (word >> 64) as u32,
            (word >> 96) as u16,
            (word >> 112) as u16,
        )
    }

    /// Writes a descriptor's words: address, length, identifier, flags.
    pub fn descriptor(&self, table: u64, index: u16, words: (u64, u32, u16, u16)) {
        let (address, length, id, flags) = words;
        let word = u128::from(address)
            | u128::from(length) << 64
            | u128::from(id) << 96
            | u128::from(flags) << 112;
        let at = GuestAddress(table + 16 * u64::from(index));
        self.memory.write_slice(&word.to_le_bytes(), at).unwrap();
    }

    /// Makes descriptors of those words available as one chain; marks are added to their flags, to those of the
    /// first one last.
    pub fn offer(&mut self, descriptors: &[(u64, u32, u16, u16)]) {
        let mut places = Vec::new();
        for words in descriptors {
            let (slot, wrap) = self.free;
            let marks = if wrap { 0x80 } else { 0x8000 };
            places.push((slot, (words.0, words.1, words.2, words.3 | marks)));
            self.free = if slot + 1 == self.size {
                (0, !wrap)
            } else {
                (slot + 1, wrap)
            };
        }
        for (slot, words) in places.iter().skip(1).chain(places.first()) {
            self.descriptor(self.ring, *slot, *words);
        }
    }

    /// Makes a chain of `buffers` available; returns its identifier.
    pub fn submit(&mut self, buffers: &[Buffer]) -> u16 {
        let id = self.next_id;
        self.next_id = (self.next_id + 1) % self.size;
        let last = buffers.len() - 1;
        let descriptors: Vec<_> = buffers
            .iter()
            .enumerate()
            .map(|(k, buffer)| {
                let next = u16::from(k < last);
                match *buffer {
                    Buffer::Readable(address, length) => (address, length, id, next),
                    Buffer::Writable(address, length) => (address, length, id, next | 2),
                }
            })
            .collect();
        self.offer(&descriptors);
        self.taken[usize::from(id)] = buffers.len() as u16;
        id
    }

    /// The next chain that the device has used.
    pub fn take(&mut self) -> Option<Used> {
        let (slot, wrap) = self.seen;
        let (_, length, id, flags) = self.words(self.ring, slot);
        let marks = if wrap { 0x8080 } else { 0 };
        if flags & 0x8080 != marks {
            return None;
        }
        let count = self.taken.get(usize::from(id)).copied().unwrap_or(1);
        let next = slot + count;
        self.seen = if next >= self.size {
            (next - self.size, !wrap)
        } else {
            (next, wrap)
        };
        Some(Used {
            head: id.into(),
            length,
        })
    }
}
