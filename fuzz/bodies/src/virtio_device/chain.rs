// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a driver puts into a queue: mostly nonsense, and where that would never get far, nearly right.

use hvkit_virtio_devices::fake::Buffer::{self, Readable, Writable};
use vm_memory::{Bytes, GuestAddress};

use super::{MEMORY, Memory};

/// Buffers, and what is in one of them.
#[derive(Default)]
pub(super) struct Chain {
    at: u64,
    content: Vec<u8>,
    pub(super) buffers: Vec<Buffer>,
}

/// `at`, or what is near it and leaves room for `length` bytes.
fn room(at: u16, length: usize) -> u64 {
    u64::from(at).min((MEMORY - length) as u64)
}

impl Chain {
    /// Of buffers anywhere.
    pub(super) fn anywhere([read, read_length, write, write_length]: [u16; 4]) -> Self {
        Self::of(vec![
            Readable(read.into(), read_length.into()),
            Writable(write.into(), write_length.into()),
        ])
    }

    pub(super) fn of(buffers: Vec<Buffer>) -> Self {
        Self {
            buffers,
            ..Self::default()
        }
    }

    /// That begins with `content`, which lies at about `at`.
    pub(super) fn with(at: u16, content: &[u8], rest: &[Buffer]) -> Self {
        let at = room(at, content.len());
        let first = Readable(at, content.len() as u32);
        Self {
            at,
            content: content.to_vec(),
            buffers: [&[first], rest].concat(),
        }
    }

    /// Puts what is in the chain where it lies.
    pub(super) fn put(&self, memory: &Memory) {
        memory
            .write_slice(&self.content, GuestAddress(self.at))
            .expect("inside");
    }
}

/// A packet of a socket device, as near to a good one as the words let it be ("Device Operation", 5.10.6).
pub(super) fn packet([at, length, ports, operation]: [u16; 4]) -> Chain {
    // The first port that the device takes for the host's end, or the one where somebody listens.
    let host = if ports & 1 == 0 {
        1
    } else {
        1 << 30 | u32::from(ports >> 2)
    };
    let guest = u32::from(ports >> 1 & 1) + 1;
    let mut raw = [0; 44];
    let mut put = |at: usize, field: &[u8]| raw[at..at + field.len()].copy_from_slice(field);
    put(0, &3u64.to_le_bytes());
    put(8, &2u64.to_le_bytes());
    put(16, &guest.to_le_bytes());
    put(20, &host.to_le_bytes());
    put(24, &u32::from(length).to_le_bytes());
    put(28, &1u16.to_le_bytes());
    put(30, &(operation & 0xf).to_le_bytes());
    put(32, &u32::from(operation >> 4 & 3).to_le_bytes());
    put(36, &u32::from(operation).to_le_bytes());
    Chain::with(at, &raw, &[Readable(0x8000, length.into())])
}

/// What is said to a card ("Control Virtqueue", 5.1.6.5): how many pairs of queues are used, and which frames are wanted.
pub(super) fn control([at, kind, status, value]: [u16; 4]) -> Chain {
    let [low, high] = value.to_le_bytes();
    let address = |first: u8, last: u8| [first, 0x5a, 0x5a, 0x5a, 0x5a, last];
    let command = match kind % 8 {
        0 => vec![4, 0, low % 4, 0],
        // A mode that is on or off, or neither.
        1 | 2 => vec![0, low % 7, high % 3],
        3 => [&[1, 1][..], &address(low, high)].concat(),
        // VLANs, most of which there are.
        4 => vec![2, low >> 7, low, high >> 3],
        5 => vec![3, 0],
        // Two tables, about as long as they may be; a length that is not, and an address of the other kind.
        _ => {
            let mut tables = vec![1, 0];
            for (count, first) in [(low % 70, 0x5a), (high % 70, 0x5b)] {
                let lie = u32::from(kind >> 3 == 1);
                tables.extend((u32::from(count) + lie).to_le_bytes());
                let first = if kind >> 3 == 2 { 0x5b } else { first };
                tables.extend((0..count).flat_map(|last| address(first, last)));
            }
            tables
        }
    };
    Chain::with(at, &command, &[Writable(status.into(), 1)])
}

/// A request to a disk of 128 sectors ("Device Operation", 5.2.6).
pub(super) fn request([at, kind, data, length]: [u16; 4]) -> Chain {
    // Reads, writes, flushes, the serial number, discards and zeroes; and what is none of them.
    let number = [0, 1, 4, 8, 11, 13, kind][usize::from(kind % 7)];
    let sector = u64::from(kind >> 8);
    let mut raw = u32::from(number).to_le_bytes().to_vec();
    raw.extend([0; 4]);
    raw.extend(sector.to_le_bytes());
    let length = u32::from(length);
    let data = u64::from(data);
    let status = Writable(0x9000, 1);
    match number {
        1 => Chain::with(at, &raw, &[Readable(data, length & !511), status]),
        11 | 13 => {
            // One segment: sector, sectors, flags.
            raw.extend((data % 130).to_le_bytes());
            raw.extend((length % 40).to_le_bytes());
            raw.extend((length >> 15).to_le_bytes());
            Chain::with(at, &raw, &[status])
        }
        _ => Chain::with(at, &raw, &[Writable(data, length & !3), status]),
    }
}

/// A request to an IOMMU ("Device operations", 5.13.6).
pub(super) fn command([at, kind, first, last]: [u16; 4]) -> Chain {
    let number = (kind % 7) as u8;
    let (domain, endpoint) = (u32::from(kind >> 8 & 3), 8 + u32::from(kind >> 15));
    let [first, last] = [first, last].map(|page| u64::from(page) << 8);
    let mut raw = vec![number, 0, 0, 0];
    raw.extend(domain.to_le_bytes());
    match number {
        // MAP and UNMAP: of whole pages, most often.
        3 | 4 => {
            raw.extend((first & !0xfff).to_le_bytes());
            raw.extend((last | 0xfff).to_le_bytes());
            if number == 3 {
                raw.extend((first & 0xf000).to_le_bytes());
                raw.extend(u32::from(kind >> 10 & 7).to_le_bytes());
            }
        }
        // PROBE has no domain: the endpoint is where that would be.
        5 => {
            raw[4..].copy_from_slice(&endpoint.to_le_bytes());
            raw.extend([0; 64]);
            return Chain::with(at, &raw, &[Writable(0x9000, 512 + 4)]);
        }
        // ATTACH and DETACH, and what is no request.
        _ => {
            raw.extend(endpoint.to_le_bytes());
            raw.extend([0; 8]);
        }
    }
    Chain::with(at, &raw, &[Writable(0x9000, 4)])
}
