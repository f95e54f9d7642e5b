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
mod prepared;
mod quirks;
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::Result;
use lab_cases::paging::{Case, Cpu, HEADER_MAGIC, Record};

use self::quirks::Quirks;
use super::in_bochs::{InBochs, records};
use super::tally::Verdict;

/// The oracle.
pub(super) struct Paging;

impl InBochs for Paging {
    const NAME: &'static str = "paging";
    /// It has protection keys and CET.
    const CPU: &'static str = "tigerlake";
    const NOTE: &'static str = "; 5-level paging is not in this model";
    const EACH: Duration = Duration::from_millis(10);
    type Cpu = Cpu;
    type Record = Record;

    fn rules(&self) -> Vec<&'static str> {
        explained::names()
    }

    fn parse(serial: &[u8]) -> Option<(Cpu, impl Iterator<Item = Record>)> {
        records(
            serial,
            HEADER_MAGIC,
            |cpu| Cpu::from_bytes(*cpu),
            Record::from_bytes,
        )
    }

    fn judge(
        &self,
        seed: u64,
        number: u64,
        cpu: &Cpu,
        theirs: &Record,
    ) -> Result<(String, Verdict)> {
        judge(&Case::new(seed, number, cpu), cpu, theirs)
    }

    fn describe(&self, seed: u64, number: u64, cpu: &Cpu) -> String {
        format!("{:#x?}", Case::new(seed, number, cpu))
    }
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
