// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver that makes the same chains available again and again, at the least cost to itself.

use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Descriptors in a queue.
pub const SIZE: u16 = 256;
/// Descriptor table, or the packed ring.
pub const TABLE: u64 = 0x1_0000;
/// Available ring, or the driver's event suppression.
pub const DRIVER: u64 = 0x2_0000;
/// Used ring, or the device's event suppression.
pub const DEVICE: u64 = 0x3_0000;
const BUFFERS: u64 = 0x10_0000;
const TABLES: u64 = 0x30_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What one case does.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Buffers in a chain.
    pub length: u16,
    /// Chains between two publications.
    pub batch: usize,
    /// Whether a chain is a table of its own.
    pub indirect: bool,
}

impl Shape {
    /// Descriptors of the queue that a chain takes.
    pub fn slots(self) -> u16 {
        if self.indirect { 1 } else { self.length }
    }

    fn buffer(self, chain: u16, k: u16) -> (u64, u32, u16) {
        let last = k + 1 == self.length;
        let address = BUFFERS + u64::from(chain * self.length + k) % 512 * 4096;
        let flags = if last { 0 } else { NEXT } | if last && k > 0 { WRITE } else { 0 };
        (address, 512, flags)
    }
}

/// Which layout a queue has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Three areas.
    Split,
    /// One ring.
    Packed,
}

/// Writes descriptors, then makes them available batch by batch.
pub struct Driver {
    memory: GuestMemoryMmap,
    /// Where address 0 is.
    host: *mut u8,
    shape: Shape,
    layout: Layout,
    index: u16,
    /// Packed: a batch's descriptors, with the marks of a wrap counter of 0 and of 1.
    packed: [Vec<[u64; 2]>; 2],
    /// Packed: where the next chain goes, and the wrap counter there.
    slot: usize,
    wrap: bool,
}

impl Driver {
    /// Lays everything out.
    pub fn new(memory: GuestMemoryMmap, shape: Shape, layout: Layout) -> Self {
        memory
            .write_slice(&[0; 0x3000], GuestAddress(DRIVER))
            .unwrap();
        memory
            .write_slice(&[0; 0x3000], GuestAddress(DEVICE))
            .unwrap();
        memory
            .write_slice(&[0; 0x3000], GuestAddress(TABLE))
            .unwrap();
        let host = memory.get_host_address(GuestAddress(0)).unwrap();
        let driver = Self {
            memory,
            host,
            shape,
            layout,
            index: 0,
            packed: [1 << 15, 1 << 7].map(|marks| packed_batch(shape, marks)),
            slot: 0,
            wrap: true,
        };
        let chains = SIZE / shape.slots();
        for chain in 0..chains {
            for k in 0..shape.length {
                let (address, length, flags) = shape.buffer(chain, k);
                let entry = chain * shape.length + k;
                let table = TABLES + 4096 * u64::from(chain);
                match (shape.indirect, layout) {
                    (true, Layout::Split) => {
                        driver.write(table, k, (address, length, flags, k + 1))
                    }
                    (true, Layout::Packed) => driver.write(table, k, (address, length, 0, flags)),
                    (false, Layout::Split) => {
                        driver.write(TABLE, entry, (address, length, flags, entry + 1))
                    }
                    (false, Layout::Packed) => {}
                }
            }
            if shape.indirect && layout == Layout::Split {
                let table = TABLES + 4096 * u64::from(chain);
                driver.write(
                    TABLE,
                    chain,
                    (table, 16 * u32::from(shape.length), INDIRECT, 0),
                );
            }
        }
        if layout == Layout::Split {
            for slot in 0..SIZE {
                let head = slot % chains * shape.slots();
                driver
                    .memory
                    .write_obj(head, GuestAddress(DRIVER + 4 + 2 * u64::from(slot)))
                    .unwrap();
            }
        }
        driver
    }

    fn write(&self, table: u64, index: u16, (address, length, a, b): (u64, u32, u16, u16)) {
        let at = table + 16 * u64::from(index);
        let words = words(address, length, a, b);
        // SAFETY: every table is in the first region, which is mapped while `memory` lives, and ends there.
        unsafe {
            self.host
                .add(at as usize)
                .cast::<[u64; 2]>()
                .write_volatile(words);
        }
    }

    /// Makes one batch available. In a packed queue every descriptor must be written anew: they are copied from where
    /// they were worked out once, so that a batch costs the driver as little as it can.
    pub fn post(&mut self) {
        match self.layout {
            Layout::Split => {
                self.index = self.index.wrapping_add(self.shape.batch as u16);
                self.memory
                    .store(self.index, GuestAddress(DRIVER + 2), Ordering::Release)
                    .unwrap();
            }
            Layout::Packed => {
                let mut done = 0;
                while let Some(rest) = self.packed[usize::from(self.wrap)].get(done..)
                    && !rest.is_empty()
                {
                    let here = rest.len().min(usize::from(SIZE) - self.slot);
                    // SAFETY: the ring has `SIZE` descriptors, in the first region, which is mapped while `memory` lives.
                    unsafe {
                        let ring = self.host.add(TABLE as usize).cast::<[u64; 2]>();
                        ring.add(self.slot)
                            .copy_from_nonoverlapping(rest.as_ptr(), here);
                    }
                    done += here;
                    self.slot += here;
                    if self.slot == usize::from(SIZE) {
                        self.slot = 0;
                        self.wrap = !self.wrap;
                    }
                }
                // Before whoever looks next, for the compiler as well.
                fence(Ordering::Release);
            }
        }
    }
}

fn words(address: u64, length: u32, a: u16, b: u16) -> [u64; 2] {
    let low = u64::from(length) | u64::from(a) << 32 | u64::from(b) << 48;
    [address, low]
}

/// A batch's descriptors in a packed ring, with those marks.
fn packed_batch(shape: Shape, marks: u16) -> Vec<[u64; 2]> {
    let mut batch = vec![];
    for chain in 0..shape.batch as u16 {
        for k in 0..shape.slots() {
            let (address, length, flags) = if shape.indirect {
                let table = TABLES + 4096 * u64::from(chain);
                (table, 16 * u32::from(shape.length), INDIRECT)
            } else {
                shape.buffer(chain, k)
            };
            batch.push(words(address, length, chain, flags | marks));
        }
    }
    batch
}
