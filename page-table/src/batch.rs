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

use crate::format::{Entry, Format};
use crate::memory::ReadEntry;
use crate::walk::{Fault, Next, Outcome, Root, Translation, descend, translate};

/// [`translate`](crate::translate), for `N` addresses of one table. 16 is a good `N`.
#[inline]
pub fn translate_batch<F: Format, M: ReadEntry, const N: usize>(
    format: &F,
    memory: &M,
    root: Root<'_, F::Attributes>,
    addresses: &[u64; N],
) -> [Outcome<F, M>; N] {
    let mut outcomes = addresses.map(|address| Err(Fault::Address { address }));
    let mut slots = outcomes.iter_mut();
    visit_batch(format, memory, root, addresses, |_, outcome| {
        if let Some(slot) = slots.next() {
            *slot = outcome;
        }
    });
    outcomes
}

/// Translates `addresses` and tells `seen` of each, in their order, where it leads.
///
/// For who needs of the outcomes less than [`translate_batch`] keeps: sixteen of them are some 700 bytes, and
/// to store and load those takes as long as the walks.
///
/// An address whose walk ends in no translation is walked for once more, by itself, and `seen` is told what
/// that walk found.
#[inline(always)]
pub fn visit_batch<F: Format, M: ReadEntry, const N: usize>(
    format: &F,
    memory: &M,
    root: Root<'_, F::Attributes>,
    addresses: &[u64; N],
    mut seen: impl FnMut(u64, Outcome<F, M>),
) {
    let (shape, cut) = (format.shape(), format.shape().cut());
    let mut lanes = [Lane {
        word: 0,
        level: OVER,
        above: None,
    }; N];
    for (lane, &address) in lanes.iter_mut().zip(addresses) {
        let Some(bits) = shape.strip(address) else {
            continue;
        };
        match descend(format, memory, root, cut, bits, &mut |_| ()) {
            Next::Down { frame, attributes } => {
                lane.word = cut.entry_at(frame, bits, 1);
                lane.level = 1;
                lane.above = Some(attributes);
            }
            Next::End(Ok(there)) => {
                lane.word = there.target;
                lane.level = there.level.into();
                lane.above = Some(there.attributes);
            }
            Next::End(Err(_)) => (),
        }
    }
    for lane in &mut lanes {
        if lane.level == 1 {
            match memory.read(lane.word, cut.width()) {
                Ok(entry) => lane.word = entry,
                Err(_) => lane.level = OVER,
            }
        }
    }
    for (lane, &address) in lanes.iter().zip(addresses) {
        let outcome = match (lane.level, lane.above) {
            (1, Some(above)) => match format.decode(lane.word, 1) {
                Entry::Leaf { target, attributes } => Ok(Translation {
                    target: target.wrapping_add(address & cut.size(1).wrapping_sub(1)),
                    level: 1,
                    attributes: format.fold(above, attributes),
                }),
                _ => again(format, memory, root, address),
            },
            (OVER, _) | (_, None) => again(format, memory, root, address),
            (level, Some(attributes)) => Ok(Translation {
                target: lane.word,
                level: level as u8,
                attributes,
            }),
        };
        seen(address, outcome);
    }
}

/// The level of a walk that ended in a fault.
const OVER: u64 = 0;

/// One walk of a batch.
#[derive(Clone, Copy)]
struct Lane<A> {
    /// Where its leaf is, then the leaf. For one above level 1 the target.
    word: u64,
    /// The leaf's level. As wide as the other parts: what is stored narrow and loaded wide has to reach the
    /// cache first.
    level: u64,
    /// What the entries above fold to, and the leaf too if that is above level 1.
    above: Option<A>,
}

/// Walks once more: so no fault need be kept, which is far larger than the other parts of a walk.
#[cold]
#[inline(never)]
fn again<F: Format, M: ReadEntry>(
    format: &F,
    memory: &M,
    root: Root<'_, F::Attributes>,
    address: u64,
) -> Outcome<F, M> {
    translate(format, memory, root, address)
}
