// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What came of the steps of a test run.

use anyhow::Result;

/// What ran, over some steps.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
    /// Of those that passed: at the second try only.
    pub(super) unstable: u64,
}

impl Count {
    const ONE: Self = Self {
        passed: 1,
        failed: 0,
        skipped: 0,
        unstable: 0,
    };

    /// A step that does not run here.
    pub(super) fn skip(&mut self) {
        self.skipped += 1;
    }

    /// One of those that passed was skipped.
    pub(super) fn skip_passed(&mut self) {
        self.skipped += 1;
        self.passed = self.passed.saturating_sub(1);
    }
}

/// What ran, and what is to be said of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) count: Count,
    failures: Vec<String>,
    unsettled: Vec<String>,
}

impl Outcome {
    /// Counts a step.
    pub(super) fn note(&mut self, step: Result<()>) {
        self.count(step.map(|()| Count::ONE));
    }

    /// Counts what one step ran.
    pub(super) fn count(&mut self, step: Result<Count>) {
        match step {
            Ok(count) => {
                self.count.passed += count.passed;
                self.count.failed += count.failed;
                self.count.skipped += count.skipped;
                self.count.unstable += count.unstable;
            }
            Err(error) => {
                self.count.failed += 1;
                self.failures.push(format!("{error:#}"));
            }
        }
    }

    /// Runs a step on an emulator, and once more if it fails: those have clocks and threads of their own, and may err
    /// once.
    pub(super) fn twice(&mut self, step: impl Fn() -> Result<()>) {
        let Err(first) = step() else {
            return self.note(Ok(()));
        };
        eprintln!(" FAILED {first:#}; once more");
        let second = step();
        if second.is_ok() {
            self.unsettled(format!("UNSTABLE {first:#}"));
        }
        self.count(second.map(|()| Count {
            unstable: 1,
            ..Count::ONE
        }));
    }

    /// Something is to be said of a test that is counted.
    pub(super) fn unsettled(&mut self, text: String) {
        self.unsettled.push(text);
    }

    /// What ran elsewhere.
    pub(super) fn add(&mut self, other: Self) {
        self.count(Ok(other.count));
        self.failures.extend(other.failures);
        self.unsettled.extend(other.unsettled);
    }

    /// Says what is to be said: what matters most last, so that the end of a long log says why.
    pub(super) fn tell(&self) {
        for failure in &self.failures {
            eprintln!(" FAILED {failure}");
        }
        for test in &self.unsettled {
            eprintln!("{test}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use anyhow::anyhow;

    use super::*;

    #[test]
    fn what_fails_twice_has_failed_and_what_fails_once_is_told() {
        let fails = |times: u32| {
            let left = Cell::new(times);
            move || match left.get() {
                0 => Ok(()),
                n => {
                    left.set(n - 1);
                    Err(anyhow!("it hung"))
                }
            }
        };
        let mut outcome = Outcome::default();
        outcome.twice(fails(0));
        assert_eq!(outcome.count, Count::ONE);
        outcome.twice(fails(1));
        assert_eq!((outcome.count.passed, outcome.count.unstable), (2, 1));
        assert_eq!(outcome.unsettled, ["UNSTABLE it hung"]);
        outcome.twice(fails(2));
        assert_eq!((outcome.count.passed, outcome.count.failed), (2, 1));
        assert_eq!(outcome.unsettled.len(), 1);
        assert_eq!(outcome.failures, ["it hung"]);
    }

    #[test]
    fn what_ran_elsewhere_counts() {
        let (mut all, mut other) = (Outcome::default(), Outcome::default());
        all.note(Ok(()));
        other.note(Err(anyhow!("no disk")));
        other.unsettled("UNSTABLE a".into());
        all.add(other);
        all.count.skip_passed();
        let expected = Count {
            passed: 0,
            failed: 1,
            skipped: 1,
            unstable: 0,
        };
        assert_eq!(all.count, expected);
        assert_eq!(all.failures, ["no disk"]);
        assert_eq!(all.unsettled, ["UNSTABLE a"]);
    }
}
