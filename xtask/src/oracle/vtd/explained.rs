// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether both sides saw the same; if not, by which rule of the ledger.

use std::fmt::Write as _;

use anyhow::Result;
use hvkit_vtd_iommu::emulation::Caching;
use hvkit_vtd_iommu::spec::fault::FaultReason;

use super::ours::Ours;
use super::program::{Program, Seen};
use super::quirks::{Quirks, Rule};
use crate::oracle::tally::Verdict;

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
pub(super) fn judge(
    ours: &Ours,
    program: &Program,
    sides: &Sides,
    rules: &[Rule],
) -> Result<Verdict> {
    // A queue that stopped leaves what it was to invalidate.
    let stopped = |seen: &Seen| matches!(seen, Seen::Faults { status, .. } if status & 0x10 != 0);
    let may_be_stale = program.may_be_stale || sides.fresh.iter().any(stopped);
    if sides.fresh != sides.kept && !may_be_stale {
        return Ok(differs(program, sides, "our own two sides differ"));
    }
    if either(&sides.fresh, &sides.kept, &sides.theirs) {
        return Ok(Verdict::Agrees);
    }
    let by_rules = |quirks| -> Result<Sides> {
        Ok(Sides {
            fresh: ours.run(program, Caching::Never, quirks)?,
            kept: ours.run(program, Caching::UntilInvalidated, quirks)?,
            theirs: sides.theirs.clone(),
        })
    };
    let explains = |quirks| -> Result<bool> {
        let sides = by_rules(quirks)?;
        Ok(either(&sides.fresh, &sides.kept, &sides.theirs))
    };
    let mut needed = Quirks::all(rules);
    if !explains(needed)? {
        let sides = by_rules(needed)?;
        return Ok(differs(
            program,
            &sides,
            "theirs differs from ours by all rules",
        ));
    }
    // Of the rules, only those without which it is not explained.
    for (quirk, _) in rules {
        if explains(needed.without(*quirk))? {
            needed = needed.without(*quirk);
        }
    }
    let rule = rules.iter().find(|(quirk, _)| needed.has(*quirk));
    Ok(match rule {
        Some((_, rule)) => Verdict::Explained(rule),
        None => differs(program, sides, "explained by nothing"),
    })
}

/// Whether each thing that they saw is what one of our two sides saw.
fn either(fresh: &[Seen], kept: &[Seen], theirs: &[Seen]) -> bool {
    let same = |(theirs, (fresh, kept)): (&Seen, (&Seen, &Seen))| {
        let theirs = meaning(*theirs);
        theirs == meaning(*fresh) || theirs == meaning(*kept)
    };
    fresh.len() == theirs.len()
        && kept.len() == theirs.len()
        && theirs.iter().zip(fresh.iter().zip(kept)).all(same)
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

fn differs(program: &Program, sides: &Sides, why: &str) -> Verdict {
    let all = sides.theirs.iter().zip(sides.fresh.iter().zip(&sides.kept));
    let mut text = format!("{why}:");
    for (at, (theirs, (fresh, kept))) in all.enumerate() {
        if meaning(*theirs) != meaning(*fresh) || meaning(*theirs) != meaning(*kept) {
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "\n at {at}, fresh:  {fresh:?}\n        kept:   {kept:?}\n        theirs: {theirs:?}"
            );
        }
    }
    for step in &program.steps {
        let _ = write!(text, "\n  {step:x?}");
    }
    Verdict::Differs(text)
}
