// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases run in turn, round after round, so that what else the machine does hits all alike.

use std::hint::black_box;

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// What the machine can do at all.
    Limit,
    Ours,
    Peer,
}

pub struct Case<'a> {
    pub name: String,
    pub role: Role,
    /// Prepares, then returns the nanoseconds that the measured part took.
    pub run: Box<dyn FnMut() -> f64 + 'a>,
}

/// What we want: `case` at most `factor` times `limit`, or `factor` nanoseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Aim {
    pub case: &'static str,
    pub limit: Option<&'static str>,
    pub at_most: f64,
}

#[derive(Debug, Serialize)]
pub struct Measured {
    pub name: String,
    pub role: Role,
    /// Nanoseconds an operation.
    pub min: f64,
    pub median: f64,
    /// Of the minima, to the limit's.
    pub ratio: f64,
    /// Median of the ratios within a round.
    pub ratio_median: f64,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub title: String,
    pub unit: String,
    pub operations: f64,
    pub rounds: usize,
    pub limit: String,
    pub cases: Vec<Measured>,
    pub aims: Vec<Reached>,
}

#[derive(Debug, Serialize)]
pub struct Reached {
    #[serde(flatten)]
    pub aim: Aim,
    pub measured: f64,
    pub met: bool,
}

/// Nanoseconds of this thread's time that `f` takes: what else runs on the machine costs cache, but
/// does not count as time.
pub fn time<R>(f: impl FnOnce() -> R) -> f64 {
    let now = || {
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the pointer is to a timespec of ours.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
        assert_eq!(failed, 0, "this thread's clock");
        now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
    };
    let start = now();
    black_box(f());
    now() - start
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs all cases `rounds` times in turn, after one round that does not count. The first case is the
/// limit that ratios are to.
pub fn compare(
    title: &str,
    unit: &str,
    operations: f64,
    rounds: usize,
    mut cases: Vec<Case<'_>>,
    aims: &[Aim],
) -> Report {
    let mut times = vec![Vec::with_capacity(rounds); cases.len()];
    for round in 0..=rounds {
        for (case, times) in cases.iter_mut().zip(&mut times) {
            let nanoseconds = (case.run)() / operations;
            if round > 0 {
                times.push(nanoseconds);
            }
        }
    }
    let least = |times: &[f64]| times.iter().copied().fold(f64::MAX, f64::min);
    let limit = least(&times[0]);
    let measured: Vec<Measured> = cases
        .iter()
        .zip(&times)
        .map(|(case, of)| Measured {
            name: case.name.clone(),
            role: case.role,
            min: least(of),
            median: median(of.iter().copied()),
            ratio: least(of) / limit,
            ratio_median: median(of.iter().zip(&times[0]).map(|(one, limit)| one / limit)),
        })
        .collect();
    let min_of = |name: &str| {
        let found = measured.iter().find(|case| case.name == name);
        found.unwrap_or_else(|| panic!("no case {name}")).min
    };
    let aims = aims
        .iter()
        .map(|aim| {
            let measured = min_of(aim.case) / aim.limit.map_or(1.0, min_of);
            Reached {
                aim: aim.clone(),
                measured,
                met: measured <= aim.at_most,
            }
        })
        .collect();
    let (title, unit) = (title.to_owned(), unit.to_owned());
    let limit = measured[0].name.clone();
    let report = Report {
        title,
        unit,
        operations,
        rounds,
        limit,
        cases: measured,
        aims,
    };
    print(&report);
    report
}

fn print(report: &Report) {
    println!(
        "\n{} ({} times, {} rounds)",
        report.title, report.operations, report.rounds
    );
    let width = report
        .cases
        .iter()
        .map(|case| case.name.len())
        .max()
        .unwrap_or(0);
    println!(
        "  {:width$}  {:5}  {:>9}  {:>9}  {:>6}  {:>6}",
        format!("ns a {}", report.unit),
        "",
        "min",
        "median",
        "x min",
        "x med"
    );
    for case in &report.cases {
        let role = match case.role {
            Role::Limit => "limit",
            Role::Ours => "ours",
            Role::Peer => "peer",
        };
        println!(
            "  {:width$}  {role:5}  {:9.3}  {:9.3}  {:6.2}  {:6.2}",
            case.name, case.min, case.median, case.ratio, case.ratio_median
        );
    }
    for Reached { aim, measured, met } in &report.aims {
        let verdict = if *met { "met" } else { "missed" };
        match aim.limit {
            Some(limit) => println!(
                "  aim {verdict}: {} within {:.2} of {limit}: {measured:.2}",
                aim.case, aim.at_most
            ),
            None => println!(
                "  aim {verdict}: {} in {} ns: {measured:.2}",
                aim.case, aim.at_most
            ),
        }
    }
}
