// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask oracle vm-entry`: Bochs's VM entries against the checker of `hvkit-vmcs`.
//!
//! ```text
//!   seed, numbers --> lab_cases::vm_entry --> VMCS --> Checker --> Verdict --.
//!        |                                                                   |-- may it say so? explained?
//!        '--> Bochs: lab/payloads/vm-entry --> VMCS --> VMLAUNCH --> Record -'
//! ```
//!
//! The manual lets a processor check in any order within a step; any number it may report agrees.

mod explained;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use hvkit_vmcs::check::Violation;
use lab_cases::paging::Order;
use lab_cases::vm_entry::{Case, Cpu, HEADER_MAGIC, Record};

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
const EACH: Duration = Duration::from_millis(20);
/// How Bochs's log begins the reason of a refused entry.
const REFUSALS: [&str; 2] = ["VMFAIL: ", "VMENTER FAIL: "];

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
    /// Bochs's model of a processor.
    #[arg(long, default_value = "corei7_skylake_x")]
    cpu: String,
    /// List the distinct reasons for which Bochs refused an entry.
    #[arg(long)]
    reasons: bool,
}

/// What several runs of the model add up to.
#[derive(Default)]
struct All {
    tally: Tally,
    reasons: BTreeSet<String>,
    version: String,
}

/// Runs cases on both sides. An error if any difference is not explained.
pub fn run(options: &Options) -> Result<()> {
    ledger::check("vm-entry", &explained::names())?;
    let payload = build_payload(&paths::root().join("lab/payloads/vm-entry"))?;
    let end = options.first.checked_add(options.cases);
    let end = end.context("the last case has no number")?;
    let step = Step::start(format!(
        "oracle vm-entry: {} cases from {}, seed {}, {}",
        options.cases, options.first, options.seed, options.cpu
    ));
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let size = options.cases.div_ceil(workers as u64).clamp(1, PART);
    let parts = options.cases.div_ceil(size);
    let next = AtomicU64::new(0);
    let all = Mutex::new(All::default());
    let work = || -> Result<()> {
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return Ok(());
            }
            let first = options.first + part * size;
            let part = first..end.min(first.saturating_add(size));
            let (tally, reasons, version) = compare(options, &payload, part)?;
            let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            all.tally.merge(tally);
            all.reasons.extend(reasons);
            all.version = version;
            step.progress(format!("{} done", all.tally.total()));
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
    let all = all
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    for (kind, count) in all.tally.kinds() {
        println!("{count:>8}  {kind}");
    }
    if options.reasons {
        all.reasons.iter().for_each(|reason| println!("{reason}"));
    }
    println!("{}", all.tally);
    println!("{} distinct reasons in the model's log", all.reasons.len());
    if let Some(failure) = failures.into_iter().next() {
        step.failed("");
        return Err(failure);
    }
    ensure!(
        all.tally.total() == options.cases,
        "only {} cases ran",
        all.tally.total()
    );
    if all.tally.differing() > 0 {
        step.failed("");
        bail!(
            "{} cases differ and are not explained",
            all.tally.differing()
        );
    }
    step.done(format!("against {}, {}", all.version, options.cpu));
    Ok(())
}

/// Runs the cases of `numbers` on both sides. Returns the model's reasons and version too.
fn compare(
    options: &Options,
    payload: &Path,
    numbers: Range<u64>,
) -> Result<(Tally, BTreeSet<String>, String)> {
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
    let (cpu, records) =
        parse(&report.serial).with_context(|| format!("the payload did not start: {report}"))?;
    let mut tally = Tally::default();
    let mut sent = 0;
    for (number, theirs) in numbers.clone().zip(records) {
        let case = Case::new(options.seed, number, &cpu);
        let (kind, verdict) = judge(options, number, &case, &cpu, &theirs);
        tally.add(number, kind, verdict);
        sent += 1;
    }
    ensure!(
        sent == count && report.exit == Exit::Shutdown,
        "case {} ended the model: {report}\nrerun it with {}\n{}",
        numbers.start + sent,
        rerun(options, numbers.start + sent),
        describe(&Case::new(options.seed, numbers.start + sent, &cpu), &cpu),
    );
    let version = report.version().unwrap_or("an unknown version").to_owned();
    Ok((tally, reasons(&report.log), version))
}

/// What the payload sent.
fn parse(serial: &[u8]) -> Option<(Cpu, impl Iterator<Item = Record>)> {
    let rest = serial.strip_prefix(HEADER_MAGIC)?;
    let (cpu, rest) = rest.split_first_chunk()?;
    let (records, _) = rest.as_chunks();
    Some((Cpu::from_bytes(cpu), records.iter().map(Record::from_bytes)))
}

/// The distinct reasons for refused entries in the model's log; registers and numbers in them do not count.
fn reasons(log: &str) -> BTreeSet<String> {
    let plain = |word: &str| {
        let register = ["ES", "CS", "SS", "DS", "FS", "GS"]
            .iter()
            .find(|r| word.starts_with(**r));
        let name = word.trim_matches(|c: char| c.is_ascii_digit() || "()[]!.:>-".contains(c));
        match register {
            _ if word.contains("0x") || word.contains("vector=") || name.is_empty() => {
                "#".to_owned()
            }
            Some(register) if word.len() == 2 || word.contains('.') => {
                word.replacen(register, "%s", 1)
            }
            _ => word.to_owned(),
        }
    };
    let reason = |line: &str| {
        let at = REFUSALS.iter().find_map(|mark| line.find(mark))?;
        Some(
            line[at..]
                .split_whitespace()
                .map(plain)
                .collect::<Vec<_>>()
                .join(" "),
        )
    };
    log.lines().filter_map(reason).collect()
}

/// Compares the record of one case. The kind is what the model said.
fn judge(
    options: &Options,
    number: u64,
    case: &Case,
    cpu: &Cpu,
    theirs: &Record,
) -> (String, Verdict) {
    let ours = case.verdict(cpu);
    let said = theirs.outcome();
    let verdict = if ours.may_report(said) {
        Verdict::Agrees
    } else if let Some(rule) = explained::explain(case, cpu, theirs) {
        Verdict::Explained(rule)
    } else {
        Verdict::Differs(format!(
            "case {number} differs; rerun it with {}\nours:   {}\ntheirs: {said}\n{}",
            rerun(options, number),
            ours.outcome(),
            describe(case, cpu)
        ))
    };
    (said.to_string(), verdict)
}

fn rerun(options: &Options, number: u64) -> String {
    let Options { seed, cpu, .. } = options;
    format!(
        "`cargo xtask oracle vm-entry --seed {seed} --first {number} --cases 1 --cpu {cpu} --reasons`"
    )
}

/// The broken rules, and how the VMCS differs from the one it began as.
fn describe(case: &Case, cpu: &Cpu) -> String {
    let mut text = String::new();
    case.check(cpu, &mut |violation: &Violation| {
        text += &format!("  {violation}\n");
    });
    let mut begun = case.seed.vmcs(&cpu.processor());
    lab_cases::vm_entry::exit_at_once(&mut begun);
    for difference in hvkit_vmcs::diff::differences(&begun, &case.vmcs) {
        text += &format!("  {difference}\n");
    }
    format!(
        "{:?} at {:?}\n{text}  {:x?}",
        case.seed, case.moment, case.memory
    )
}
