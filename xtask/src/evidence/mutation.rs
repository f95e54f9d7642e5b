// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How many changes of the code the tests notice, from the records that `cargo xtask mutants` wrote.

use std::fmt::Write;

use anyhow::Result;

use crate::mutants::record::{Record, records};

pub(super) fn write(page: &mut String) -> Result<()> {
    writeln!(
        page,
        "## Mutation tests\n\nChanges of the code by cargo-mutants, and whether a test of the crate itself noticed. A score is of a sample: so many of all changes, drawn by lots from a seed; newer ones leave the fakes alone, with which tests are made. `without`: test binaries that were left out, such as those that start an emulator. The interval holds the share of all mutants that would be noticed with a probability of 95% (Wilson). `without reasons`: the same, had the survivors that have a reason below not been drawn; most of them mean the same as the code.\n\n\
         | crate | sample | at commit | tried | noticed | 95% interval | by time-out | survived | without reasons |\n|---|---|---|---|---|---|---|---|---|"
    )?;
    let records = records()?;
    for (name, record) in &records {
        writeln!(page, "{}", row(name, record))?;
    }
    writeln!(page, "\n| survivor | why it may live |\n|---|---|")?;
    for (_, record) in &records {
        for survivor in &record.run.missed {
            let reason = record.reasons.get(survivor);
            let reason = reason.map_or("no test looks yet", String::as_str);
            writeln!(page, "| `{}` | {reason} |", survivor.replace('|', "\\|"))?;
        }
    }
    writeln!(page)?;
    Ok(())
}

/// A crate's score.
fn row(name: &str, record: &Record) -> String {
    let Record {
        sample,
        commit,
        run,
        reasons,
    } = record;
    let (tried, noticed) = (run.tried(), run.caught + run.timeout);
    let percent = |of: u64| noticed * 100 / of.max(1);
    let (low, high) = interval(noticed, tried);
    let has_reason = |survivor: &&String| reasons.contains_key(*survivor);
    let rest = tried - run.missed.iter().filter(has_reason).count() as u64;
    format!(
        "| `{name}` | {} | {commit} | {tried} | {noticed} ({}%) | {:.0}–{:.0}% | {} | {} | {noticed} of {rest} ({}%) |",
        drawn(sample),
        percent(tried),
        low * 100.0,
        high * 100.0,
        run.timeout,
        run.missed.len(),
        percent(rest)
    )
}

/// A sample as it is read: `120of879,seed=1` is 120 of 879, seed=1.
fn drawn(sample: &str) -> String {
    let (count, how) = sample.split_once(',').unwrap_or((sample, ""));
    let count = count.replacen("of", " of ", 1);
    [&count, how].join(", ").trim_end_matches(", ").to_owned()
}

/// Between what shares the true one lies with a probability of 95%, after so many of so many were noticed: Wilson's score interval. That the
/// sample is without replacement makes it no wider.
fn interval(noticed: u64, tried: u64) -> (f64, f64) {
    /// The quantile of the normal distribution.
    const Z: f64 = 1.959_964;
    if tried == 0 {
        return (0.0, 1.0);
    }
    let n = tried as f64;
    let share = noticed as f64 / n;
    let scale = 1.0 + Z * Z / n;
    let middle = (share + Z * Z / (2.0 * n)) / scale;
    let half = Z / scale * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    (middle - half, middle + half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutants::record::Run;

    #[test]
    fn a_survivor_with_a_reason_is_in_the_first_score_and_not_in_the_second() {
        let missed = ["a", "a", "b"].map(str::to_owned).to_vec();
        let record = Record {
            sample: "20of900,seed=1".to_owned(),
            commit: "abc".to_owned(),
            run: Run {
                caught: 16,
                timeout: 1,
                unviable: 5,
                missed,
            },
            reasons: [("a", "it is 0"), ("z", "of another draw")]
                .map(|(survivor, reason)| (survivor.to_owned(), reason.to_owned()))
                .into(),
        };
        assert_eq!(
            row("ept", &record),
            "| `ept` | 20 of 900, seed=1 | abc | 20 | 17 (85%) | 64–95% | 1 | 3 | 17 of 18 (94%) |"
        );
    }

    #[test]
    fn an_interval_is_wilsons() {
        let near = |(low, high): (f64, f64), a: f64, b: f64| {
            assert!(
                (low - a).abs() < 5e-4 && (high - b).abs() < 5e-4,
                "{low} {high}"
            );
        };
        // By hand: n = 10, p = 0.5, z^2 = 3.8415: (0.5 + 0.19207) / 1.38415 = 0.5, 1.95996 / 1.38415 * sqrt(0.025 + 0.0096037) = 0.26341.
        near(interval(5, 10), 0.2366, 0.7634);
        // All of ten: 1 / (1 + z^2 / 10), and 1.
        near(interval(10, 10), 0.7225, 1.0);
        near(interval(0, 0), 0.0, 1.0);
    }

    #[test]
    fn a_sample_says_of_how_many() {
        assert_eq!(
            drawn("120of879,seed=1,without=qtest"),
            "120 of 879, seed=1,without=qtest"
        );
        assert_eq!(drawn("36of900"), "36 of 900");
    }
}
