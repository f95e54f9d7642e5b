// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask oracle shadow`: guests on Bochs's own paging against the same on our shadow tables.
//!
//! ```text
//!   seed, numbers --> lab_cases::shadow --> Program --> Board: shadow MMU, stale TLB --> Record --.
//!        |                                                                                         |-- the same?
//!        '--> Bochs: lab/payloads/shadow --> Program --> its own paging ------------------> Record -'
//! ```

mod expect;
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::Result;
use lab_cases::paging::{Cpu, DONE};
use lab_cases::shadow::{HEADER_MAGIC, Program, Record};

use super::in_bochs::{InBochs, records};
use super::tally::Verdict;

/// The oracle.
pub(super) struct Shadow;

impl InBochs for Shadow {
    const NAME: &'static str = "shadow";
    const CPU: &'static str = "corei7_skylake_x";
    const NOTE: &'static str = "; 5-level paging is not in this model";
    const EACH: Duration = Duration::from_millis(50);
    type Cpu = Cpu;
    type Record = Record;

    /// Bochs and we follow the manual alike in all that programs do.
    fn rules(&self) -> Vec<&'static str> {
        vec![]
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
        judge(&Program::new(seed, number, cpu), cpu, theirs, number)
    }

    fn describe(&self, seed: u64, number: u64, cpu: &Cpu) -> String {
        format!("{:#x?}", Program::new(seed, number, cpu))
    }
}

/// Compares the record of one program.
fn judge(program: &Program, cpu: &Cpu, theirs: &Record, number: u64) -> Result<(String, Verdict)> {
    let ours = expect::expect(program, cpu, number)?;
    let allowed = ours.accesses.iter().filter(|access| access.vector == DONE);
    let kind = format!("{:?}: {:2} of 12 allowed", program.mode, allowed.count());
    let pairs = (0..).zip(ours.accesses.iter().zip(&theirs.accesses));
    let different = pairs.filter(|(_, (ours, theirs))| ours != theirs);
    let verdict = match different.map(|(at, pair): (usize, _)| (at, pair)).next() {
        None => Verdict::Agrees,
        Some((at, (ours, theirs))) => Verdict::Differs(format!(
            "access {at} of it:\nours:   {ours:x?}\ntheirs: {theirs:x?}\n{program:#x?}"
        )),
    };
    Ok((kind, verdict))
}
