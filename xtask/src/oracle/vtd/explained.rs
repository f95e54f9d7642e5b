// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether both sides saw the same; if not, by which rule of the ledger.

use hvkit_vtd_iommu::spec::fault::FaultReason;

use super::program::{Program, Seen};
use crate::oracle::tally::Verdict;

/// The rules, as the ledger names them.
pub(super) const RULES: &[&str] = &[];

/// What was seen.
pub(super) struct Sides {
    /// By our unit, keeping nothing.
    pub(super) fresh: Vec<Seen>,
    /// By our unit, keeping what it may.
    pub(super) kept: Vec<Seen>,
    /// By theirs.
    pub(super) theirs: Vec<Seen>,
}

/// What a case came to, in words.
pub(super) fn kind(program: &Program, sides: &Sides) -> String {
    let mut reasons: Vec<u8> = sides
        .fresh
        .iter()
        .filter_map(|seen| match seen {
            Seen::Faults { high, .. } if high >> 63 != 0 => Some((high >> 32) as u8),
            _ => None,
        })
        .collect();
    reasons.sort_unstable();
    reasons.dedup();
    match reasons.as_slice() {
        [] => format!("{}: no fault", program.kind),
        [one] => format!("{}: {}", program.kind, FaultReason(*one)),
        more => format!("{}: {} reasons", program.kind, more.len()),
    }
}

/// Compares a case.
pub(super) fn judge(program: &Program, sides: &Sides) -> Verdict {
    let count = sides.fresh.len();
    if sides.kept.len() != count || sides.theirs.len() != count {
        return Verdict::Differs("the sides saw different numbers of things".to_owned());
    }
    for i in 0..count {
        let (fresh, kept, theirs) = (
            meaning(sides.fresh[i]),
            meaning(sides.kept[i]),
            meaning(sides.theirs[i]),
        );
        if fresh != kept && !program.may_be_stale {
            return differs(program, sides, i, "our own two sides differ");
        }
        if theirs != fresh && theirs != kept {
            return differs(program, sides, i, "theirs differs");
        }
    }
    Verdict::Agrees
}

/// What was seen, without what has no meaning: a record that holds no fault; the PASID of a request that had none.
fn meaning(seen: Seen) -> Seen {
    match seen {
        Seen::Faults {
            status,
            control,
            high,
            ..
        } if high >> 63 == 0 => Seen::Faults {
            status,
            control,
            low: 0,
            high: 0,
        },
        Seen::Faults {
            status,
            control,
            low,
            high,
        } if high >> 31 & 1 == 0 => Seen::Faults {
            status,
            control,
            low,
            high: high & !(0xf_ffff << 40),
        },
        other => other,
    }
}

fn differs(program: &Program, sides: &Sides, at: usize, why: &str) -> Verdict {
    Verdict::Differs(format!(
        "{why}, at {at}:\n  fresh:  {:?}\n  kept:   {:?}\n  theirs: {:?}\n{:x?}",
        sides.fresh[at], sides.kept[at], sides.theirs[at], program
    ))
}
