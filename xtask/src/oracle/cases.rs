// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which cases an oracle runs, and how they are spread over this machine's processors.
//!
//! ```text
//!   first .. first + cases --> parts --> a worker each --> compare --> Tally --.
//!                                '-----> a worker each --> compare --> Tally --+--> printed; an error
//!                                                                                   if any differs
//! ```
//!
//! What compares is the oracle's: by a payload in Bochs ([`in_bochs`](super::in_bochs)), or by any other model.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use lab_cases::Order;

use super::ledger;
use super::summary::Summary;
use super::tally::Tally;
use crate::checkout::Stamp;
use crate::step::Step;

/// Cases that one run of a model takes, at most; several runs go side by side.
const PART: u64 = 20_000;

/// How many cases of an oracle there is time for in CI. A run of fewer is of a part.
fn for_ci(name: &str) -> u64 {
    match name {
        "vtd" => 20_000,
        "vtd-interrupts" => 15_000,
        "vtd-scalable" => 3_000,
        _ => 10_000,
    }
}

/// Which cases to run.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Cases {
    /// How many cases; as many as in CI if not given.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    cases: Option<u64>,
    /// Which cases: equal seeds give equal cases.
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// The first case's number.
    #[arg(long, default_value_t = 0)]
    pub(super) first: u64,
    /// Keep the result for EVIDENCE.md although it is of fewer cases than CI runs, or not of the first ones.
    #[arg(long)]
    keep: bool,
}

/// What one part of the cases came to.
pub(super) struct Part {
    /// One verdict for each case.
    pub(super) tally: Tally,
    /// The model and its version, as it names itself.
    pub(super) version: String,
}

impl Cases {
    /// The cases of one part, as a payload takes them.
    pub(super) fn order(&self, numbers: &Range<u64>) -> Order {
        Order {
            seed: self.seed,
            first: numbers.start,
            count: numbers.end - numbers.start,
        }
    }

    /// The options that run one case again.
    pub(super) fn only(&self, number: u64) -> String {
        format!("--seed {} --first {number} --cases 1", self.seed)
    }

    /// Runs them on both sides: `compare` judges the cases of a range of numbers. Prints the kinds, the
    /// differences and the counts.
    ///
    /// An error if a difference is not explained, a case did not run, or the ledger of oracle `name` does not have a
    /// section for each of its `rules`.
    pub(super) fn run(
        &self,
        name: &str,
        rules: &[&str],
        note: &str,
        compare: impl Fn(Range<u64>) -> Result<Part> + Sync,
    ) -> Result<()> {
        self.compare(name, rules, note, compare, |summary| summary.save(name))
    }

    /// Whether the result is kept: that of all leaves no room for that of a few, which somebody looks at by themselves.
    fn is_kept(&self, name: &str) -> bool {
        self.keep || self.first == 0 && self.count(name) >= for_ci(name)
    }

    /// How many.
    fn count(&self, name: &str) -> u64 {
        self.cases.unwrap_or_else(|| for_ci(name))
    }

    /// The same, the result being kept by `keep`, if all cases ran and it is one to be kept.
    fn compare(
        &self,
        name: &str,
        rules: &[&str],
        note: &str,
        compare: impl Fn(Range<u64>) -> Result<Part> + Sync,
        keep: impl Fn(&Summary) -> Result<()>,
    ) -> Result<()> {
        ledger::check(name, rules)?;
        let count = self.count(name);
        let end = self.first.checked_add(count);
        let end = end.context("the last case has no number")?;
        let step = Step::start(format!(
            "oracle {name}: {count} cases from {}, seed {}",
            self.first, self.seed
        ));
        let stamp = self.is_kept(name).then(Stamp::now).transpose()?;
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let size = count.div_ceil(workers as u64).clamp(1, PART);
        let parts = count.div_ceil(size);
        let next = AtomicU64::new(0);
        let all = Mutex::new((Tally::default(), String::new()));
        let work = || -> Result<()> {
            loop {
                let part = next.fetch_add(1, Ordering::Relaxed);
                if part >= parts {
                    return Ok(());
                }
                let first = self.first + part * size;
                let part = compare(first..end.min(first.saturating_add(size)))?;
                let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                all.0.merge(part.tally);
                all.1 = part.version;
                step.progress(format!("{} done", all.0.total()));
            }
        };
        let failures: Vec<anyhow::Error> = thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .filter_map(|worker| match worker.join() {
                    Ok(result) => result.err(),
                    Err(_) => Some(anyhow!("a worker panicked")),
                })
                .collect()
        });
        let (mut tally, version) = all
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        // A model with clocks and threads of its own may err once. What we do wrong is wrong again.
        for number in tally.few_differing() {
            let again = compare(number..number + 1)?;
            if again.tally.differing() == 0 {
                tally.did_not_repeat(number);
            }
        }
        for (kind, count) in tally.kinds() {
            println!("{count:>8}  {kind}");
        }
        println!("{tally}");
        if let Some(failure) = failures.into_iter().next() {
            step.failed("");
            return Err(failure);
        }
        ensure!(tally.total() == count, "only {} cases ran", tally.total());
        if let Some(Stamp { commit, .. }) = stamp {
            keep(&Summary {
                commit,
                model: version.clone(),
                seed: self.seed,
                first: self.first,
                cases: count,
                agreeing: tally.agreeing(),
                explained: tally
                    .explained()
                    .map(|(rule, count)| (rule.to_owned(), count))
                    .collect(),
                differing: tally.differing(),
                unstable: tally.once(),
            })?;
        }
        if tally.differing() > 0 {
            step.failed("");
            bail!(
                "oracle {name}: {} cases differ and are not explained; the first: {}",
                tally.differing(),
                tally.first_difference().unwrap_or_default()
            );
        }
        let once = match tally.once() {
            0 => String::new(),
            once => format!(", {once} UNSTABLE (differed once, and not again)"),
        };
        step.done(format!("against {version}, {note}{once}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::oracle::tally::Verdict;

    /// The ledger of `paging` has these.
    const RULES: [&str; 2] = ["smap-implicit-ac", "pkru-by-access"];

    /// The result of a real run is not a test's to overwrite.
    fn forget(_: &Summary) -> Result<()> {
        Ok(())
    }

    /// Runs cases from 7 on. How often each ran.
    fn run(
        cases: u64,
        verdict: impl Fn(u64) -> Result<Verdict> + Sync,
    ) -> Result<BTreeMap<u64, u32>> {
        let seen = Mutex::new(BTreeMap::new());
        let which = Cases {
            cases: Some(cases),
            seed: 1,
            first: 7,
            keep: false,
        };
        let compare = |numbers| {
            let mut tally = Tally::default();
            for number in numbers {
                tally.add(number, "kind".to_owned(), verdict(number)?);
                seen.lock()
                    .unwrap()
                    .entry(number)
                    .and_modify(|n| *n += 1)
                    .or_insert(1);
            }
            let version = "none".to_owned();
            Ok(Part { tally, version })
        };
        which.compare("paging", &RULES, "no model", compare, forget)?;
        Ok(seen.into_inner().unwrap())
    }

    #[test]
    fn every_case_runs_once() {
        for cases in [0, 1, 2, 3, 10, 40_001] {
            let seen = run(cases, |_| Ok(Verdict::Agrees)).unwrap();
            assert!(
                seen.into_iter()
                    .eq((7..7 + cases).map(|number| (number, 1)))
            );
        }
    }

    #[test]
    fn one_difference_or_one_failure_fails_the_run() {
        let differs = |number| match number {
            9 => Verdict::Differs("it differs".to_owned()),
            8 => Verdict::Explained("rule"),
            _ => Verdict::Agrees,
        };
        run(2, |number| Ok(differs(number))).unwrap();
        let error = run(3, |number| Ok(differs(number))).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("oracle paging: 1 cases differ"), "{text}");
        assert!(text.ends_with("the first: it differs"), "{text}");
        let error = run(3, |_| Err(anyhow!("no model here"))).unwrap_err();
        assert_eq!(error.to_string(), "no model here");
    }

    #[test]
    fn a_difference_counts_only_if_it_repeats() {
        let first = AtomicBool::new(true);
        let seen = run(4, |number| {
            Ok(match number == 8 && first.swap(false, Ordering::Relaxed) {
                true => Verdict::Differs("a whim".to_owned()),
                false => Verdict::Agrees,
            })
        })
        .unwrap();
        assert_eq!(
            seen.into_iter().collect::<Vec<_>>(),
            [(7, 1), (8, 2), (9, 1), (10, 1)]
        );
    }

    #[test]
    fn a_part_of_the_cases_leaves_what_was_kept_of_all() {
        let kept = |first, cases, keep| {
            let which = Cases {
                cases,
                seed: 5,
                first,
                keep,
            };
            let agree = |numbers: Range<u64>| {
                let mut tally = Tally::default();
                numbers.for_each(|number| tally.add(number, "kind".to_owned(), Verdict::Agrees));
                let version = "none".to_owned();
                Ok(Part { tally, version })
            };
            let kept = Mutex::new(Vec::new());
            let keep = |summary: &Summary| {
                kept.lock().unwrap().push(summary.clone());
                Ok(())
            };
            which
                .compare("paging", &RULES, "no model", agree, keep)
                .unwrap();
            kept.into_inner().unwrap()
        };
        // The first case alone, as it is run again if it differed; then others alone, and some.
        for (first, cases) in [(0, 1), (7, 1), (0, 9_999), (1, 10_000)] {
            assert_eq!(kept(first, Some(cases), false), [], "{cases} from {first}");
        }
        let whole = kept(0, None, false);
        let [summary] = &whole[..] else {
            panic!("{whole:?}");
        };
        let numbers = (summary.seed, summary.first, summary.cases, summary.agreeing);
        assert_eq!(numbers, (5, 0, 10_000, 10_000));
        assert_eq!(summary.commit, Stamp::now().unwrap().commit);
        assert_eq!(kept(0, Some(10_001), false).len(), 1);
        // As the page asks.
        assert_eq!(kept(0, Some(1), true)[0].cases, 1);
    }

    #[test]
    fn what_did_not_run_to_its_end_is_not_kept() {
        let which = Cases {
            cases: None,
            seed: 1,
            first: 0,
            keep: true,
        };
        let fails = |_| Err(anyhow!("no model here"));
        let keep = |summary: &Summary| panic!("{summary:?}");
        let error = which.compare("paging", &RULES, "", fails, keep);
        assert_eq!(error.unwrap_err().to_string(), "no model here");
    }

    #[test]
    fn a_part_that_leaves_cases_out_and_a_ledger_that_does_not_fit_are_errors() {
        let cases = Cases {
            cases: Some(2),
            seed: 1,
            first: u64::MAX - 2,
            keep: false,
        };
        let nothing = |_| {
            let (tally, version) = (Tally::default(), String::new());
            Ok(Part { tally, version })
        };
        let error = cases
            .compare("paging", &RULES, "", nothing, forget)
            .unwrap_err();
        assert_eq!(error.to_string(), "only 0 cases ran");
        let error = cases
            .compare("paging", &[], "", nothing, forget)
            .unwrap_err();
        assert!(error.to_string().contains("ledger"), "{error:#}");
        let last = Cases {
            cases: Some(3),
            ..cases
        };
        let error = last
            .compare("paging", &RULES, "", nothing, forget)
            .unwrap_err();
        assert_eq!(error.to_string(), "the last case has no number");
    }
}
