// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask oracle paging`: Bochs's paging against our walker.
//!
//! ```text
//!   seed, numbers --> lab_cases::paging --> Case --> expect --> Record --.
//!        |                                                               |-- the same? explained?
//!        '--> Bochs: lab/payloads/paging --> Case --> access --> Record -'
//! ```

mod expect;
mod explained;
mod memory;
mod quirks;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use lab_cases::paging::{Case, Cpu, HEADER_MAGIC, Order, Record};

use self::quirks::Quirks;
use super::ledger;
use super::tally::{Tally, Verdict};
use crate::lab::bochs::{Bochs, Exit};
use crate::lab::payload::build_payload;
use crate::paths;
use crate::step::Step;

/// Cases that one run of Bochs takes, at most; several runs go side by side.
const PART: u64 = 20_000;
/// Instructions in a second of the model's time: few, or the serial line is what takes the time.
const INSTRUCTIONS_PER_SECOND: u64 = 1_000_000;
/// Where payloads find their input.
const INPUT: u64 = 0x100_0000;
/// Time for the start, and for each case, at most.
const START: Duration = Duration::from_secs(60);
const EACH: Duration = Duration::from_millis(10);

/// What to run.
#[derive(Args, Debug)]
pub struct Options {
    /// How many cases.
    #[arg(long, default_value_t = 10_000)]
    cases: u64,
    /// Which cases: equal seeds give equal cases.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The first case's number.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Bochs's model of a processor. The default has protection keys and CET.
    #[arg(long, default_value = "tigerlake")]
    cpu: String,
}

/// Runs cases on both sides. An error if any difference is not explained.
pub fn run(options: &Options) -> Result<()> {
    ledger::check("paging", &explained::names())?;
    let payload = build_payload(&paths::root().join("lab/payloads/paging"))?;
    let end = options.first.checked_add(options.cases);
    let end = end.context("the last case has no number")?;
    let step = Step::start(format!(
        "oracle paging: {} cases from {}, seed {}, {}",
        options.cases, options.first, options.seed, options.cpu
    ));
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let size = options.cases.div_ceil(workers as u64).clamp(1, PART);
    let parts = options.cases.div_ceil(size);
    let next = AtomicU64::new(0);
    let all = Mutex::new((Tally::default(), String::new()));
    let work = || -> Result<()> {
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return Ok(());
            }
            let first = options.first + part * size;
            let part = first..end.min(first.saturating_add(size));
            let (tally, version) = compare(options, &payload, part)?;
            let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            all.0.merge(tally);
            all.1 = version;
            step.progress(format!("{} done", all.0.total()));
        }
    };
    let failures: Vec<anyhow::Error> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .filter_map(|worker| match worker.join() {
                Ok(result) => result.err(),
                Err(_) => Some(anyhow::anyhow!("a worker panicked")),
            })
            .collect()
    });
    let (tally, version) = all
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    for (kind, count) in tally.kinds() {
        println!("{count:>8}  {kind}");
    }
    println!("{tally}");
    if let Some(failure) = failures.into_iter().next() {
        step.failed("");
        return Err(failure);
    }
    ensure!(
        tally.total() == options.cases,
        "only {} cases ran",
        tally.total()
    );
    if tally.differing() > 0 {
        step.failed("");
        bail!("{} cases differ and are not explained", tally.differing());
    }
    step.done(format!(
        "against {version}; 5-level paging is not in this model"
    ));
    Ok(())
}

/// Runs the cases of `numbers` on both sides. Returns Bochs's version too.
fn compare(options: &Options, payload: &Path, numbers: Range<u64>) -> Result<(Tally, String)> {
    let count = numbers.end - numbers.start;
    let order = Order {
        seed: options.seed,
        first: numbers.start,
        count,
    };
    let patience = START + EACH * u32::try_from(count).unwrap_or(u32::MAX);
    let report = Bochs::new()
        .cpu(&options.cpu)
        .instructions_per_second(INSTRUCTIONS_PER_SECOND)
        .image(order.to_bytes(), INPUT)
        .time_out(patience)
        .run(payload)?;
    let (cpu, records) = parse(&report.serial)
        .with_context(|| format!("the payload did not start: {:?}", report.exit))?;
    let mut tally = Tally::default();
    let mut sent = 0;
    for (number, theirs) in numbers.clone().zip(records) {
        let case = Case::new(options.seed, number, &cpu);
        let (kind, verdict) = judge(&case, &cpu, &theirs)
            .map(|(kind, verdict)| (kind, verdict.with(options, number)))
            .with_context(|| format!("case {number} of seed {}", options.seed))?;
        tally.add(number, kind, verdict);
        sent += 1;
    }
    ensure!(
        sent == count && report.exit == Exit::Shutdown,
        "case {} ended the model: {:?}; rerun it with {}",
        numbers.start + sent,
        report.exit,
        rerun(options, numbers.start + sent)
    );
    let version = report.version().unwrap_or("an unknown version").to_owned();
    Ok((tally, version))
}

/// What the payload sent.
fn parse(serial: &[u8]) -> Option<(Cpu, impl Iterator<Item = Record>)> {
    let rest = serial.strip_prefix(HEADER_MAGIC)?;
    let (cpu, rest) = rest.split_first_chunk()?;
    let (records, _) = rest.as_chunks();
    Some((
        Cpu::from_bytes(*cpu),
        records.iter().map(Record::from_bytes),
    ))
}

/// Compares the record of one case.
fn judge(case: &Case, cpu: &Cpu, theirs: &Record) -> Result<(String, Verdict)> {
    let ours = expect::expect(case, cpu, Quirks::NONE)?;
    let kind = expect::kind(case, &ours.record);
    let verdict = if ours.record == *theirs {
        Verdict::Agrees
    } else if let Some(rule) = explained::explain(case, cpu, theirs)? {
        Verdict::Explained(rule)
    } else {
        Verdict::Differs(format!(
            "ours:   {:x?} ({})\ntheirs: {theirs:x?}\n{case:#x?}",
            ours.record, ours.why
        ))
    };
    Ok((kind, verdict))
}

impl Verdict {
    /// With the case's number and the command that runs it again.
    fn with(self, options: &Options, number: u64) -> Self {
        match self {
            Self::Differs(text) => Self::Differs(format!(
                "case {number} differs; rerun it with {}\n{text}",
                rerun(options, number)
            )),
            other => other,
        }
    }
}

fn rerun(options: &Options, number: u64) -> String {
    format!(
        "cargo xtask oracle paging --seed {} --first {number} --cases 1 --cpu {}",
        options.seed, options.cpu
    )
}
