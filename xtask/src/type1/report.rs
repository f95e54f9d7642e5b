// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest and its hypervisor printed, as numbers.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lab_cases::type1::PARTS;

/// Exits of one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exits {
    pub(super) count: u64,
    /// Instructions of the hypervisor to answer them.
    pub(super) ticks: u64,
}

/// A part of a guest's life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    /// Instructions from its begin to its end, whoever's: the time-stamp counter as the guest read it.
    pub(super) ticks: u64,
    /// By reason; none without a hypervisor.
    pub(super) exits: BTreeMap<String, Exits>,
}

impl Part {
    /// How many exits there were.
    pub(super) fn count(&self) -> u64 {
        self.exits.values().map(|exits| exits.count).sum()
    }

    /// Instructions of the hypervisor.
    pub(super) fn hypervisor(&self) -> u64 {
        self.exits.values().map(|exits| exits.ticks).sum()
    }
}

/// What a run was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The boot to the first mark, then the work.
    pub(super) parts: Vec<Part>,
    /// All of the guest's life, without the time between.
    pub(super) whole: Part,
    /// Instructions of the guest in it.
    pub(super) guest: u64,
    /// The counts of the shadow MMU.
    pub(super) shadow: Vec<(u64, String)>,
    /// What the work came to: the same for the same work.
    pub(super) checksum: String,
}

impl Seen {
    /// The boot and the work together.
    pub(super) fn total(&self) -> u64 {
        self.parts.iter().map(|part| part.ticks).sum()
    }
}

/// Reads what was printed.
pub(super) fn read(text: &str) -> Result<Seen> {
    let mut seen = Seen::default();
    let after = |prefix: &str| {
        let line = text
            .lines()
            .find_map(|line| line.trim_end().split_once(prefix));
        line.map(|(_, rest)| rest.to_owned())
            .with_context(|| format!("no \"{prefix}\""))
    };
    seen.checksum = after("workload: checksum ")?;
    let mut marks = vec![after(", at tick ")?.parse::<u64>()?];
    for number in 0..=PARTS.len() {
        marks.push(after(&format!("workload: mark {number} at "))?.parse()?);
    }
    let names = ["boot"].into_iter().chain(PARTS);
    for (index, (name, pair)) in names.zip(marks.windows(2)).enumerate() {
        let &[begin, end] = pair else { continue };
        ensure!(begin < end, "the mark after {name} is before it");
        let of = match index.checked_sub(1) {
            None => " boot".to_owned(),
            Some(number) => format!(" {number}"),
        };
        seen.parts.push(Part {
            name: name.to_owned(),
            ticks: end - begin,
            exits: exits(text, &of),
        });
    }
    seen.whole.exits = exits(text, "");
    let ticks = text.lines().find_map(|line| line.strip_prefix("ticks: "));
    if let Some(ticks) = ticks {
        let guest = ticks.split_whitespace().next();
        seen.guest = guest.context("no ticks")?.parse()?;
        seen.whole.ticks = seen.guest + seen.whole.hypervisor();
    }
    for line in text.lines() {
        let Some(rest) = line.trim_end().strip_prefix("shadow: ") else {
            continue;
        };
        if let Some((count, what)) = rest.split_once(' ')
            && let Ok(count) = count.parse()
        {
            seen.shadow.push((count, what.to_owned()));
        }
    }
    Ok(seen)
}

/// The lines "exits OF: COUNT TICKS REASON".
fn exits(text: &str, of: &str) -> BTreeMap<String, Exits> {
    let prefix = format!("exits{of}: ");
    let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    lines
        .filter_map(|line| {
            let (count, rest) = line.trim_end().split_once(' ')?;
            let (ticks, reason) = rest.split_once(' ')?;
            let (count, ticks) = (count.parse().ok()?, ticks.parse().ok()?);
            Some((reason.to_owned(), Exits { count, ticks }))
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a run under a hypervisor prints of numbers.
    pub(crate) fn printed() -> String {
        let mut text = "type1: Linux, 256 MiB, paging Ept, at tick 1000\r\n".to_owned();
        for number in 0..=PARTS.len() {
            text += &format!("workload: mark {number} at {}\r\n", 5000 + 100 * number);
        }
        text += "workload: checksum 0x77\r\n\
            exits boot: 3 30 CPUID\nexits boot: 3 in all\nticks boot: 3900 in the guest, 30 in the hypervisor\n\
            exits 1: 2 7 XSETBV\nexits 1: 2 in all\n\
            exits: 3 30 CPUID\nexits: 2 7 XSETBV\nexits: 5 in all\nticks: 100000 in the guest, 37 in the hypervisor\n\
            shadow: 12 pages mapped\nshadow: audit: nothing\n";
        text
    }

    #[test]
    fn numbers_are_found_where_they_stand() {
        let seen = read(&printed()).unwrap();
        assert_eq!(seen.parts.len(), PARTS.len() + 1);
        assert_eq!((seen.parts[0].ticks, seen.parts[1].ticks), (4000, 100));
        assert_eq!((seen.parts[0].count(), seen.parts[2].count()), (3, 2));
        assert_eq!(seen.parts[2].exits["XSETBV"], Exits { count: 2, ticks: 7 });
        assert_eq!(seen.parts[1].exits.len(), 0);
        assert_eq!((seen.whole.count(), seen.whole.hypervisor()), (5, 37));
        assert_eq!((seen.guest, seen.whole.ticks), (100_000, 100_037));
        assert_eq!(seen.total(), 4000 + 100 * PARTS.len() as u64);
        assert_eq!(seen.shadow, [(12, "pages mapped".to_owned())]);
        assert_eq!(seen.checksum, "0x77");
    }

    #[test]
    fn without_a_hypervisor_there_are_no_exits() {
        let lines = printed();
        let alone: String = lines
            .lines()
            .filter(|line| {
                line.contains("tick") && !line.starts_with("ticks") || line.starts_with("workload")
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let seen = read(&alone).unwrap();
        assert_eq!(seen.total(), read(&lines).unwrap().total());
        assert_eq!((seen.whole.count(), seen.guest), (0, 0));
        assert!(read(&alone.replace("mark 2", "mark 9")).is_err());
        assert!(read(&alone.replace("at 5200", "at 1")).is_err());
    }
}
