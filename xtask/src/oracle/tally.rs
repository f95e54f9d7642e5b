// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The count of cases by how they ended.

use std::collections::BTreeMap;
use std::fmt;

/// How many differences are shown in full.
const SHOWN: usize = 10;
/// How many cases that differ are worth running again.
const FEW: u64 = 3;

/// What one case came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same on both sides.
    Agrees,
    /// Different, by a rule of the ledger.
    Explained(&'static str),
    /// Different. What to show: both sides, the case, how to run it again.
    Differs(String),
}

/// Verdicts, counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    agreeing: u64,
    /// By rule: how many, and the first case.
    explained: BTreeMap<&'static str, (u64, u64)>,
    differing: u64,
    shown: BTreeMap<u64, String>,
    /// Cases that differed once, and not when they were run again: what was shown of them.
    once: BTreeMap<u64, String>,
    /// What cases exercised: agreement on nothing would be no result.
    kinds: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts case `index`, which was of a `kind` worth counting.
    pub(super) fn add(&mut self, index: u64, kind: String, verdict: Verdict) {
        *self.kinds.entry(kind).or_default() += 1;
        match verdict {
            Verdict::Agrees => self.agreeing += 1,
            Verdict::Explained(rule) => {
                let (count, first) = self.explained.entry(rule).or_insert((0, index));
                *count += 1;
                *first = index.min(*first);
            }
            Verdict::Differs(text) => {
                self.differing += 1;
                self.show(index, text);
            }
        }
    }

    /// Adds the counts of another part of the run.
    pub(super) fn merge(&mut self, other: Tally) {
        self.agreeing += other.agreeing;
        self.differing += other.differing;
        for (rule, (count, first)) in other.explained {
            let mine = self.explained.entry(rule).or_insert((0, first));
            mine.0 += count;
            mine.1 = mine.1.min(first);
        }
        for (kind, count) in other.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
        for (index, text) in other.shown {
            self.show(index, text);
        }
        self.once.extend(other.once);
    }

    /// The cases that differ, if they are so few that a model's whim may be the cause of them all.
    pub(super) fn few_differing(&self) -> Vec<u64> {
        match self.differing <= FEW {
            true => self.shown.keys().copied().collect(),
            false => Vec::new(),
        }
    }

    /// Case `index` was run again, and did not differ: it is told apart, and no longer counts as differing.
    pub(super) fn did_not_repeat(&mut self, index: u64) {
        if let Some(text) = self.shown.remove(&index) {
            self.differing -= 1;
            self.once.insert(index, text);
        }
    }

    /// Cases that differed once, and not when they were run again.
    pub(super) fn once(&self) -> u64 {
        self.once.len() as u64
    }

    /// What is shown of the first case that differs.
    pub(super) fn first_difference(&self) -> Option<&str> {
        self.shown.values().next().map(String::as_str)
    }

    /// Keeps the first few.
    fn show(&mut self, index: u64, text: String) {
        self.shown.insert(index, text);
        if self.shown.len() > SHOWN {
            self.shown.pop_last();
        }
    }

    /// How many cases differ without an explanation.
    pub(super) fn differing(&self) -> u64 {
        self.differing
    }

    /// How many cases there were.
    pub(super) fn total(&self) -> u64 {
        let explained: u64 = self.explained.values().map(|(count, _)| count).sum();
        self.agreeing + self.differing + self.once() + explained
    }

    /// How many cases agree.
    pub(super) fn agreeing(&self) -> u64 {
        self.agreeing
    }

    /// The rules of the ledger that explain cases, and how many each.
    pub(super) fn explained(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.explained
            .iter()
            .map(|(rule, (count, _))| (*rule, *count))
    }

    /// The kinds of cases, and how many of each.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (&str, u64)> {
        self.kinds
            .iter()
            .map(|(kind, count)| (kind.as_str(), *count))
    }
}

/// The differences, then the counts.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for text in self.shown.values() {
            writeln!(f, "{text}\n")?;
        }
        for (index, text) in &self.once {
            writeln!(
                f,
                "UNSTABLE: case {index} differed once, and not when run again:\n{text}\n"
            )?;
        }
        let explained: u64 = self.explained.values().map(|(count, _)| count).sum();
        writeln!(
            f,
            "{} agree, {explained} explained, {} unexplained",
            self.agreeing, self.differing
        )?;
        for (rule, (count, first)) in &self.explained {
            writeln!(
                f,
                "  {count} by the ledger's {rule:?}, the first of them case {first}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_that_does_not_repeat_is_told_apart() {
        let mut tally = Tally::default();
        tally.add(3, "a".to_owned(), Verdict::Differs("<3>".to_owned()));
        tally.add(5, "a".to_owned(), Verdict::Differs("<5>".to_owned()));
        assert_eq!(tally.few_differing(), [3, 5]);
        tally.did_not_repeat(3);
        tally.did_not_repeat(4);
        assert_eq!((tally.total(), tally.differing(), tally.once()), (2, 1, 1));
        assert_eq!(tally.first_difference(), Some("<5>"));
        let text = tally.to_string();
        assert!(text.contains("UNSTABLE: case 3"), "{text}");
        assert!(text.contains("1 unexplained"), "{text}");
        for index in 6..9 {
            tally.add(index, "a".to_owned(), Verdict::Differs(String::new()));
        }
        assert!(tally.few_differing().is_empty(), "four are no whim");
    }

    #[test]
    fn parts_add_up_and_the_first_differences_are_shown() {
        let mut all = Tally::default();
        for part in 0..4 {
            let mut tally = Tally::default();
            for index in (0..40u64).filter(|i| i % 4 == part) {
                tally.add(
                    index,
                    "a".to_owned(),
                    match index % 3 {
                        0 => Verdict::Agrees,
                        1 => Verdict::Explained("rule"),
                        _ => Verdict::Differs(format!("<{index}>")),
                    },
                );
            }
            all.merge(tally);
        }
        assert_eq!((all.total(), all.differing()), (40, 13));
        assert_eq!(all.kinds().collect::<Vec<_>>(), [("a", 40)]);
        let text = all.to_string();
        assert!(
            text.contains("14 agree, 13 explained, 13 unexplained"),
            "{text}"
        );
        assert!(
            text.contains("13 by the ledger's \"rule\", the first of them case 1"),
            "{text}"
        );
        assert!(
            text.starts_with("<2>\n\n<5>\n") && !text.contains("<32>"),
            "{text}"
        );
    }
}
