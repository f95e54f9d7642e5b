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
use crate::walk::{Fault, Next, Outcome, Root, Translation, follow, translate};

/// [`translate`], for `N` addresses of one table. 16 is a good `N`.
#[inline]
pub fn translate_batch<F: Format, M: ReadEntry, const N: usize>(
    format: &F,
    memory: &M,
    root: Root<'_, F::Attributes>,
    addresses: &[u64; N],
) -> [Outcome<F, M>; N] {
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
    let mut lanes = addresses.map(|address| match shape.strip(address) {
        Some(bits) => Lane {
            bits,
            table,
            above,
            early: None,
        },
        None => Lane {
            bits: 0,
            table,
            above,
            early: Some(Err(Fault::Address { address })),
        },
    });
    macro_rules! levels {
        ($($at:literal)*) => { $(
            if top >= $at {
                for lane in &mut lanes {
                    lane.down(format, memory, $at);
                }
            }
        )* };
    }
    levels!(5 4 3 2);
    lanes.map(|lane| lane.end(format, memory))
}

/// One walk of a batch.
struct Lane<A, O> {
    /// The stripped address.
    bits: u64,
    /// The table it is at.
    table: u64,
    /// What the entries above fold to.
    above: Option<A>,
    /// How it ended above level 1, if it did.
    early: Option<O>,
}

impl<A: Copy, R, E> Lane<A, Result<Translation<A>, Fault<R, E>>> {
    /// Reads the entry at `level`, above 1, and goes where it leads.
    #[inline(always)]
    fn down<F, M>(&mut self, format: &F, memory: &M, level: u8)
    where
        F: Format<Attributes = A, Rule = R>,
        M: ReadEntry<Error = E>,
    {
        if self.early.is_some() {
            return;
        }
        match self.next(format, memory, level) {
            Next::Down { frame, attributes } => {
                self.table = frame;
                self.above = Some(attributes);
            }
            Next::End(end) => self.early = Some(end),
        }
    }

    /// Reads the entry at level 1, if it came so far.
    #[inline(always)]
    fn end<F, M>(self, format: &F, memory: &M) -> Result<Translation<A>, Fault<R, E>>
    where
        F: Format<Attributes = A, Rule = R>,
        M: ReadEntry<Error = E>,
    {
        if let Some(end) = self.early {
            return end;
        }
        match self.next(format, memory, 1) {
            Next::End(end) => end,
            Next::Down { .. } => Err(Fault::TooDeep {
                level: 1,
                entry: self.table,
            }),
        }
    }

    #[inline(always)]
    fn next<F, M>(&self, format: &F, memory: &M, level: u8) -> Next<A, R, E>
    where
        F: Format<Attributes = A, Rule = R>,
        M: ReadEntry<Error = E>,
    {
        let shape = format.shape();
        let at = shape.entry_at(self.table, self.bits, level);
        match memory.read(at, shape.width()) {
            Ok(entry) => follow(format, entry, level, self.above, self.bits),
            Err(error) => Next::End(Err(Fault::Unreadable { level, at, error })),
        }
    }
}
