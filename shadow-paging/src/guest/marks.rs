// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accessed and dirty flags, set as a processor does. SDM 3A, "Accessed and Dirty Flags".

use hvkit_page_table::{Marks, Step, UpdateEntry, Width};

/// Why not all flags were set. Those that were are right: their entries said what the walk saw.
pub(crate) enum Unmarked<E> {
    /// An entry is no longer what the walk read: walk again.
    Changed,
    /// An entry could not be updated.
    Memory { level: u8, at: u64, error: E },
}

/// What the translated access does to the page, as far as flags go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Sets A in every entry.
    Read,
    /// Sets D in the last one too.
    Write,
}

/// Sets what is not yet set in the entries of a path, the root's first, each by one compare-exchange
/// against the entry as the walk read it. Entries in registers have no flags.
pub(crate) fn mark<A: Copy, M: UpdateEntry>(
    memory: &M,
    steps: &[Step<A>],
    marks: Marks,
    width: Width,
    access: Use,
) -> Result<(), Unmarked<M::Error>> {
    let Some((last, tables)) = steps.split_last() else {
        return Ok(());
    };
    let of_last = match access {
        Use::Read => marks.accessed,
        Use::Write => marks.all(),
    };
    let tables = tables.iter().map(|step| (step, marks.accessed));
    for (step, bits) in tables.chain([(last, of_last)]) {
        let (Some(at), entry) = (step.at, step.entry) else {
            continue;
        };
        if entry & bits == bits {
            continue;
        }
        match memory.compare_exchange(at, width, entry, entry | bits) {
            Ok(found) if found == entry => {}
            Ok(_) => return Err(Unmarked::Changed),
            Err(error) => {
                return Err(Unmarked::Memory {
                    level: step.level,
                    at,
                    error,
                });
            }
        }
    }
    Ok(())
}
