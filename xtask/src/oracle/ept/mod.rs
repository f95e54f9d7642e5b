// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask oracle ept`: Bochs's EPT against `hvkit-ept`, under guests that page and guests that do not.
//!
//! ```text
//!   seed, numbers --> lab_cases::ept --> Case --> expect: nested walks ---> Record --.
//!        |                                                                          |-- the same? explained?
//!        '--> Bochs: lab/payloads/ept --> Case --> VMLAUNCH, guest, exit --> Record -'
//! ```

mod expect;
mod explained;
mod kind;
mod quirks;
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::Result;
use lab_cases::ept::{Case, EptCpu, HEADER_MAGIC, Record};

use self::quirks::Quirks;
use super::in_bochs::{InBochs, records};
use super::tally::Verdict;

// Users copy it: here it is run against a processor model.
#[path = "../../../../ept/tests/adapter/mod.rs"]
mod adapter;

/// The oracle.
pub(super) struct EptOracle;

impl InBochs for EptOracle {
    const NAME: &'static str = "ept";
    const CPU: &'static str = "tigerlake";
    const NOTE: &'static str = "; 5-level EPT is not in this model";
    const EACH: Duration = Duration::from_millis(100);
    type Cpu = EptCpu;
    type Record = Record;

    fn rules(&self) -> Vec<&'static str> {
        explained::names()
    }

    fn parse(serial: &[u8]) -> Option<(EptCpu, impl Iterator<Item = Record>)> {
        records(serial, HEADER_MAGIC, EptCpu::from_bytes, Record::from_bytes)
    }

    fn judge(
        &self,
        seed: u64,
        number: u64,
        cpu: &EptCpu,
        theirs: &Record,
    ) -> Result<(String, Verdict)> {
        judge(&Case::new(seed, number, cpu), cpu, theirs)
    }

    fn describe(&self, seed: u64, number: u64, cpu: &EptCpu) -> String {
        format!("{:#x?}", Case::new(seed, number, cpu))
    }
}

/// Compares the record of one case.
fn judge(case: &Case, cpu: &EptCpu, theirs: &Record) -> Result<(String, Verdict)> {
    let ours = expect::expect(case, cpu, Quirks::NONE)?;
    let kind = kind::kind(case, &ours.record);
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
