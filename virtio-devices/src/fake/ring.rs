// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver's side of a split virtqueue, in raw words.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A buffer that a driver makes available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// For the device to read: address, bytes.
    Readable(u64, u32),
    /// For the device to write: address, bytes.
    Writable(u64, u32),
}

/// An element of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u32,
    /// Bytes that the device says it wrote.
    pub length: u32,
}

/// A split virtqueue as its driver has it. Descriptors are handed out in turn and never checked for
/// reuse: a test that has more in flight than the queue holds does so on purpose.
#[derive(Clone, Debug)]
pub struct Ring {
    memory: Arc<GuestMemoryMmap>,
    /// Number of descriptors.
    pub size: u16,
    /// Address of the descriptor table.
    pub table: u64,
    /// Address of the available ring.
    pub available: u64,
    /// Address of the used ring.
    pub used: u64,
    free: u16,
    offered: u16,
    seen: u16,
}

impl Ring {
    /// A queue of `size` at `base`, which must be a multiple of 4096. Zeroes its memory.
    pub fn new(memory: Arc<GuestMemoryMmap>, base: u64, size: u16) -> Self {
        let entries = u64::from(size);
        let available = base + 16 * entries;
        // Each ring starts in a page of its own, far from any other word.
        let used = (available + 6 + 2 * entries).next_multiple_of(4096);
        let end = used + 6 + 8 * entries;
        let zeros = vec![0; usize::try_from(end - base).unwrap()];
        memory.write_slice(&zeros, GuestAddress(base)).unwrap();
        Self {
            memory,
            size,
            table: base,
            available,
            used,
            free: 0,
            offered: 0,
            seen: 0,
        }
    }

    /// Writes 16 bits.
    pub fn put16(&self, address: u64, value: u16) {
        self.memory
            .write_slice(&value.to_le_bytes(), GuestAddress(address))
            .unwrap();
    }

    /// Reads 16 bits.
    pub fn get16(&self, address: u64) -> u16 {
        let mut raw = [0; 2];
        self.memory
            .read_slice(&mut raw, GuestAddress(address))
            .unwrap();
        u16::from_le_bytes(raw)
    }

    /// Writes a descriptor's words to slot `index` of the table at `table`, which may be an indirect one.
    pub fn descriptor(&self, table: u64, index: u16, words: (u64, u32, u16, u16)) {
        let (address, length, flags, next) = words;
        let mut raw = [0; 16];
        raw[0..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&length.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..16].copy_from_slice(&next.to_le_bytes());
        let at = table + 16 * u64::from(index);
        self.memory.write_slice(&raw, GuestAddress(at)).unwrap();
    }

    /// Puts `head` in the available ring and shows it to the device.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.size);
        self.put16(self.available + 4 + 2 * slot, head);
        self.offered = self.offered.wrapping_add(1);
        self.put16(self.available + 2, self.offered);
    }

    /// Makes a chain of `buffers` available; returns its head.
    pub fn submit(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.free;
        for (buffer, last) in buffers.iter().zip((0..buffers.len()).rev()) {
            let index = self.free;
            self.free = (self.free + 1) % self.size;
            let (address, length, write) = match *buffer {
                Buffer::Readable(address, length) => (address, length, 0),
                Buffer::Writable(address, length) => (address, length, 2),
            };
            let next = u16::from(last > 0);
            self.descriptor(
                self.table,
                index,
                (address, length, write | next, self.free),
            );
        }
        self.offer(head);
        head
    }

    /// The next chain that the device has used. Asks for an interrupt at the one after it, if the device
    /// goes by event indices.
    pub fn take(&mut self) -> Option<Used> {
        if self.get16(self.used + 2) == self.seen {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        self.put16(self.available + 4 + 2 * u64::from(self.size), self.seen);
        let mut raw = [0; 8];
        self.memory.read_slice(&mut raw, GuestAddress(at)).unwrap();
        let word = u64::from_le_bytes(raw);
        Some(Used {
            head: word as u32,
            length: (word >> 32) as u32,
        })
    }
}
