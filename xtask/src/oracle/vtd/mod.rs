// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask oracle vtd`: QEMU's `intel-iommu` against our emulated unit.
//!
//! ```text
//!   seed, number --> Program --> emulated unit, a memory, a device ---> what was seen --.
//!                      |                                                               |-- the same? explained?
//!                      '-------> QEMU: intel-iommu, memory, edu ------> what was seen --'
//! ```

mod explained;
mod generate;
mod ours;
mod program;
mod quirks;
mod tables;
mod theirs;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use hvkit_vtd_iommu::emulation::{Caching, Options as UnitOptions};
use hvkit_vtd_iommu::spec::RequesterId;

use self::explained::{Sides, judge};
use self::ours::Ours;
use self::quirks::Quirks;
use self::theirs::Theirs;
use super::ledger;
use super::tally::{Tally, Verdict};
use crate::lab::qtest::QtestOptions;
use crate::step::Step as Progress;

/// The model's unit: a host address width of 48 bits.
const UNIT: &str = "aw-bits=48,intremap=on";
const HOST_BITS: u32 = 48;

/// What to run.
#[derive(Args, Debug)]
pub struct Options {
    /// How many cases.
    #[arg(long, default_value_t = 20_000)]
    cases: u64,
    /// Which cases: equal seeds give equal cases.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The first case's number.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many machines run side by side. They wait for timers most of the time.
    #[arg(long, default_value_t = 6)]
    machines: u64,
}

/// Runs cases on both sides. An error if any difference is not explained.
pub fn run(options: &Options) -> Result<()> {
    let rules: Vec<&str> = Quirks::ALL.iter().map(|(_, rule)| *rule).collect();
    ledger::check("vtd", &rules)?;
    let end = options.first.checked_add(options.cases);
    let end = end.context("the last case has no number")?;
    let progress = Progress::start(format!(
        "oracle vtd: {} cases from {}, seed {}",
        options.cases, options.first, options.seed
    ));
    let next = AtomicU64::new(options.first);
    let all = Mutex::new((Tally::default(), 0u64));
    let work = || -> Result<()> {
        let mut theirs = Theirs::start(QtestOptions::new().iommu(UNIT).instruction_shift(10))?;
        let ours = like(&mut theirs)?;
        let mut tally = Tally::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= end {
                break;
            }
            let (kind, verdict) = compare(options, &ours, &mut theirs, index)
                .with_context(|| format!("case {index}: {}", rerun(options, index)))?;
            tally.add(index, kind, verdict);
            if index % 512 == 0 {
                progress.progress(format!("{} done", index - options.first));
            }
        }
        let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        all.0.merge(tally);
        all.1 += theirs.restarts;
        Ok(())
    };
    let failures: Vec<anyhow::Error> = thread::scope(|scope| {
        let workers: Vec<_> = (0..options.machines.max(1))
            .map(|_| scope.spawn(work))
            .collect();
        workers
            .into_iter()
            .filter_map(|worker| match worker.join() {
                Ok(result) => result.err(),
                Err(_) => Some(anyhow::anyhow!("a worker panicked")),
            })
            .collect()
    });
    let (tally, restarts) = all
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    for (kind, count) in tally.kinds() {
        println!("{count:>8}  {kind}");
    }
    println!("{tally}");
    if let Some(failure) = failures.into_iter().next() {
        progress.failed("");
        return Err(failure);
    }
    ensure!(
        tally.total() == options.cases,
        "only {} cases ran",
        tally.total()
    );
    if tally.differing() > 0 {
        progress.failed("");
        bail!("{} cases differ and are not explained", tally.differing());
    }
    progress.done(format!(
        "against QEMU's intel-iommu,{UNIT}; {restarts} machines were started anew"
    ));
    Ok(())
}

/// A machine of ours with a unit like theirs.
fn like(theirs: &mut Theirs) -> Result<Ours> {
    let (version, capability, extended) = theirs.capabilities()?;
    let (bus, device, function) = theirs.device();
    let device = RequesterId::new(bus, device, function).context("no such requester")?;
    let options = UnitOptions {
        version,
        capability,
        extended,
        host_bits: HOST_BITS,
        caching: Caching::Never,
        iotlb_pages: 4096,
    };
    Ok(Ours::new(options, device))
}

/// Runs one case on both sides.
fn compare(
    options: &Options,
    ours: &Ours,
    theirs: &mut Theirs,
    index: u64,
) -> Result<(String, Verdict)> {
    let program = generate::case(options.seed, index);
    let sides = Sides {
        fresh: ours.run(&program, Caching::Never, Quirks::NONE)?,
        kept: ours.run(&program, Caching::UntilInvalidated, Quirks::NONE)?,
        theirs: theirs.run(&program)?,
    };
    let judged = judge(ours, &program, &sides)?;
    theirs.restore(&ours.take_astray())?;
    let verdict = match judged {
        Verdict::Differs(text) => Verdict::Differs(format!(
            "case {index} differs; rerun it with {}\n{text}",
            rerun(options, index)
        )),
        other => other,
    };
    Ok((explained::kind(&program, &sides), verdict))
}

fn rerun(options: &Options, index: u64) -> String {
    format!(
        "cargo xtask oracle vtd --seed {} --first {index} --cases 1 --machines 1",
        options.seed
    )
}
