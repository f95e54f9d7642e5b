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
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use hvkit_vmcs::check::Violation;
use lab_cases::vm_entry::{Case, Cpu, HEADER_MAGIC, Record};

use super::in_bochs::{self, BochsRun, InBochs, records};
use super::tally::Verdict;

/// How Bochs's log begins the reason of a refused entry.
const REFUSALS: [&str; 2] = ["VMFAIL: ", "VMENTER FAIL: "];

/// What to run.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    run: BochsRun,
    /// List the distinct reasons for which Bochs refused an entry.
    #[arg(long)]
    reasons: bool,
}

/// The oracle.
#[derive(Default)]
struct VmEntry {
    /// The distinct reasons in the model's logs.
    reasons: Mutex<BTreeSet<String>>,
}

/// Runs cases on both sides. An error if any difference is not explained.
pub fn run(options: &Options) -> Result<()> {
    let oracle = VmEntry::default();
    let result = in_bochs::run(&oracle, &options.run);
    let reasons = oracle.reasons.into_inner();
    let reasons = reasons.unwrap_or_else(PoisonError::into_inner);
    if options.reasons {
        reasons.iter().for_each(|reason| println!("{reason}"));
    }
    println!("{} distinct reasons in the model's log", reasons.len());
    result
}

impl InBochs for VmEntry {
    const NAME: &'static str = "vm-entry";
    const CPU: &'static str = "corei7_skylake_x";
    const NOTE: &'static str = "";
    const EACH: Duration = Duration::from_millis(100);
    type Cpu = Cpu;
    type Record = Record;

    fn rules(&self) -> Vec<&'static str> {
        explained::names()
    }

    fn parse(serial: &[u8]) -> Option<(Cpu, impl Iterator<Item = Record>)> {
        records(serial, HEADER_MAGIC, Cpu::from_bytes, Record::from_bytes)
    }

    fn judge(
        &self,
        seed: u64,
        number: u64,
        cpu: &Cpu,
        theirs: &Record,
    ) -> Result<(String, Verdict)> {
        Ok(judge(&Case::new(seed, number, cpu), cpu, theirs))
    }

    fn describe(&self, seed: u64, number: u64, cpu: &Cpu) -> String {
        describe(&Case::new(seed, number, cpu), cpu)
    }

    fn log(&self, log: &str) {
        let mut all = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(reasons(log));
    }
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
fn judge(case: &Case, cpu: &Cpu, theirs: &Record) -> (String, Verdict) {
    let ours = case.verdict(cpu);
    let said = theirs.outcome();
    let verdict = if ours.may_report(said) {
        Verdict::Agrees
    } else if let Some(rule) = explained::explain(case, cpu, theirs) {
        Verdict::Explained(rule)
    } else {
        Verdict::Differs(format!(
            "ours:   {}\ntheirs: {said}\n{}",
            ours.outcome(),
            describe(case, cpu)
        ))
    };
    (said.to_string(), verdict)
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
