// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many walks at once: level by level, so that their memory reads overlap.
//!
//! ```text
//!   one by one   4 3 2 1   4 3 2 1   4 3 2 1        each read waits for the one before
//!   a batch      4 4 4   3 3 3   2 2 2   1 1 1      the reads of a level do not
//! ```
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use crate::format::Format;
use crate::memory::ReadEntry;
use crate::walk::{Fault, Next, Outcome, Root, follow, translate};

/// [`translate`], for `N` addresses of one table. 16 is a good `N`; 64 is the most.
#[inline]
pub fn translate_batch<F: Format, M: ReadEntry, const N: usize>(
    format: &F,
    memory: &M,
    root: Root<'_, F::Attributes>,
    addresses: &[u64; N],
) -> [Outcome<F, M>; N] {
    const { assert!(N > 0 && N <= 64, "a batch is of 1 to 64 addresses") };
    let shape = format.shape();
    let (table, top, above) = match root {
        Root::Table(table) => (table, shape.levels(), None),
        Root::Inner {
            table,
            level,
            attributes,
        } => (table, level.clamp(1, shape.levels()), Some(attributes)),
        Root::Registers(_) => {
            return addresses.map(|address| translate(format, memory, root, address));
        }
    };
    // What stays for a lane that does not start: an address that the table does not translate.
    let mut outcomes = addresses.map(|address| Err(Fault::Address { address }));
    let mut lanes = [(0u64, table, above); N];
    let mut walking = 0u64;
    for (i, (lane, &address)) in lanes.iter_mut().zip(addresses).enumerate() {
        if let Some(bits) = shape.strip(address) {
            lane.0 = bits;
            walking |= 1u64.wrapping_shl(i as u32);
        }
    }
    let mut one = |level: u8| {
        for (i, (lane, outcome)) in lanes.iter_mut().zip(&mut outcomes).enumerate() {
            let this = 1u64.wrapping_shl(i as u32);
            if walking & this == 0 {
                continue;
            }
            let (bits, table, above) = *lane;
            let at = shape.entry_at(table, bits, level);
            let next = match memory.read(at, shape.width()) {
                Ok(entry) => follow(format, entry, level, above, bits),
                Err(error) => Next::End(Err(Fault::Unreadable { level, at, error })),
            };
            match next {
                Next::Down { frame, attributes } => *lane = (bits, frame, Some(attributes)),
                Next::End(end) => {
                    *outcome = end;
                    walking &= !this;
                }
            }
        }
    };
    macro_rules! levels {
        ($($at:literal)*) => { $(
            if top >= $at {
                one($at);
            }
        )* };
    }
    levels!(5 4 3 2 1);
    outcomes
}
