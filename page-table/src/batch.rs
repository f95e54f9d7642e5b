// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many walks at once, so that the reads that come from far overlap.
//!
//! ```text
//!   one by one   4 3 2 1 decode   4 3 2 1 decode   ...        each waits for its leaf
//!   a batch      4 3 2   4 3 2   ...   1 1 1 ...   decode decode ...
//! ```
//!
//! Upper tables are few, and near: 256 KiB of them translate 64 GiB. Leaf tables are 128 MiB then. A
//! processor goes on past a read it waits for, but only by some hundred instructions; so the leaf reads
//! of all walks are put next to each other, and what is made of them comes after.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use crate::format::{Entry, Format};
use crate::memory::ReadEntry;
use crate::walk::{Fault, Next, Outcome, Root, Translation, descend, no_leaf};

/// [`translate`](crate::translate), for `N` addresses of one table. 16 is a good `N`.
#[inline]
pub fn translate_batch<F: Format, M: ReadEntry, const N: usize>(
    format: &F,
    memory: &M,
    root: Root<'_, F::Attributes>,
    addresses: &[u64; N],
) -> [Outcome<F, M>; N] {
    let shape = format.shape();
    let cut = shape.cut();
    // Filled in place, part by part: to hand lanes on by value costs more than the walks.
    let mut outcomes = core::array::from_fn(|_| Err(Fault::Address { address: 0 }));
    let mut lanes = [Lane {
        bits: 0,
        word: OVER,
        above: None,
    }; N];
    for ((lane, outcome), &address) in lanes.iter_mut().zip(&mut outcomes).zip(addresses) {
        let Some(bits) = shape.strip(address) else {
            *outcome = Err(Fault::Address { address });
            continue;
        };
        match descend(format, memory, root, cut, bits, &mut |_| ()) {
            Next::Down { frame, attributes } => {
                *lane = Lane {
                    bits,
                    word: cut.entry_at(frame, bits, 1),
                    above: Some(attributes),
                };
            }
            Next::End(end) => *outcome = end,
        }
    }
    for (lane, outcome) in lanes.iter_mut().zip(&mut outcomes) {
        let at = lane.word;
        if at != OVER {
            match memory.read(at, cut.width()) {
                Ok(entry) => lane.word = entry,
                Err(error) => {
                    let level = 1;
                    *outcome = Err(Fault::Unreadable { level, at, error });
                    lane.above = None;
                }
            }
        }
    }
    for (lane, outcome) in lanes.iter().zip(&mut outcomes) {
        let Some(above) = lane.above else {
            continue;
        };
        if let Entry::Leaf { target, attributes } = format.decode(lane.word, 1) {
            let offset = lane.bits & cut.size(1).wrapping_sub(1);
            *outcome = Ok(Translation {
                target: target.wrapping_add(offset),
                level: 1,
                attributes: format.fold(above, attributes),
            });
        } else {
            *outcome = no_leaf(format, lane.word, lane.bits);
        }
    }
    outcomes
}

/// A walk that is over, in place of where its leaf is. No entry is there: it is not aligned.
const OVER: u64 = u64::MAX;

/// One walk of a batch.
#[derive(Clone, Copy)]
struct Lane<A> {
    /// The stripped address.
    bits: u64,
    /// Where its leaf is, then the leaf.
    word: u64,
    /// What the entries above fold to. `None` once it is over.
    above: Option<A>,
}
