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

/// One walk of a batch.
enum Lane<A, O> {
    /// At this table, under these attributes.
    At {
        bits: u64,
        table: u64,
        above: Option<A>,
    },
    /// Over.
    Done(O),
}

/// [`translate`], for `N` addresses of one table. 16 is a good `N`.
pub fn translate_batch<F: Format, M: ReadEntry, const N: usize>(
    format: &F,
    memory: &M,
    root: Root<'_, F::Attributes>,
    addresses: &[u64; N],
) -> [Outcome<F, M>; N] {
    let shape = format.shape();
    let (table, mut level, above) = match root {
        Root::Table(table) => (table, shape.levels(), None),
        Root::Inner {
            table,
            level,
            attributes,
        } => (table, level.min(shape.levels()), Some(attributes)),
        Root::Registers(_) => {
            return addresses.map(|address| translate(format, memory, root, address));
        }
    };
    let mut lanes = addresses.map(|address| match shape.strip(address) {
        Some(bits) => Lane::At { bits, table, above },
        None => Lane::Done(Err(Fault::Address { address })),
    });
    // After level 1 every lane is done: nothing leads below it.
    loop {
        for lane in &mut lanes {
            if let Lane::At { bits, table, above } = *lane {
                *lane = step(format, memory, level, bits, table, above);
            }
        }
        if level <= 1 {
            break;
        }
        level = level.wrapping_sub(1);
    }
    lanes.map(|lane| match lane {
        Lane::Done(outcome) => outcome,
        Lane::At { .. } => Err(Fault::TooDeep { level, entry: 0 }),
    })
}

#[inline]
fn step<F: Format, M: ReadEntry>(
    format: &F,
    memory: &M,
    level: u8,
    bits: u64,
    table: u64,
    above: Option<F::Attributes>,
) -> Lane<F::Attributes, Outcome<F, M>> {
    let shape = format.shape();
    let at = shape.entry_at(table, bits, level);
    let entry = match memory.read(at, shape.width()) {
        Ok(entry) => entry,
        Err(error) => return Lane::Done(Err(Fault::Unreadable { level, at, error })),
    };
    match follow(format, entry, level, above, bits) {
        Next::Down { frame, attributes } => Lane::At {
            bits,
            table: frame,
            above: Some(attributes),
        },
        Next::End(end) => Lane::Done(end),
    }
}
