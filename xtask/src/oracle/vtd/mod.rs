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
mod queue;
mod quirks;
mod tables;
mod theirs;

use std::ops::Range;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use hvkit_vtd_iommu::emulation::{Caching, Options as UnitOptions};
use hvkit_vtd_iommu::spec::RequesterId;

use self::explained::{Sides, judge};
use self::ours::Ours;
use self::quirks::Quirks;
use self::theirs::Theirs;
use super::cases::{Cases, Part};
use super::tally::{Tally, Verdict};
use lab_kit::qtest::QtestOptions;

/// The model's unit: a host address width of 48 bits.
const UNIT: &str = "aw-bits=48,intremap=on";
const HOST_BITS: u32 = 48;
/// Machines of a worker: each waits for timers most of the time.
const MACHINES: usize = 3;

/// What to run.
#[derive(Args, Clone, Copy, Debug)]
pub struct Options {
    #[command(flatten)]
    cases: Cases,
}

/// Runs cases on both sides. An error if any difference is not explained.
pub fn run(options: &Options) -> Result<()> {
    let rules: Vec<&str> = Quirks::ALL.iter().map(|(_, rule)| *rule).collect();
    let version = version()?;
    options.cases.run("vtd", &rules, UNIT, |numbers| {
        let tally = part(options, numbers)?;
        let version = version.clone();
        Ok(Part { tally, version })
    })
}

/// The model, as it names itself.
fn version() -> Result<String> {
    let output = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .context("cannot start qemu-system-x86_64")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or("QEMU").to_owned())
}

/// The cases of `numbers`, on a few machines side by side.
fn part(options: &Options, numbers: Range<u64>) -> Result<Tally> {
    let next = AtomicU64::new(numbers.start);
    let work = || -> Result<Tally> {
        let machine = QtestOptions::new().iommu(UNIT).instruction_shift(10);
        let mut theirs = Theirs::start(machine)?;
        let ours = like(&mut theirs)?;
        let mut tally = Tally::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= numbers.end {
                return Ok(tally);
            }
            let (kind, verdict) = compare(options, &ours, &mut theirs, index)
                .with_context(|| format!("case {index}: {}", rerun(options, index)))?;
            tally.add(index, kind, verdict);
        }
    };
    let mut all = Tally::default();
    thread::scope(|scope| -> Result<()> {
        let machines: Vec<_> = (0..MACHINES).map(|_| scope.spawn(work)).collect();
        for machine in machines {
            all.merge(machine.join().map_err(|_| anyhow!("a worker panicked"))??);
        }
        Ok(())
    })?;
    Ok(all)
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
    let program = generate::case(options.cases.seed, index);
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
    format!("cargo xtask oracle vtd {}", options.cases.only(index))
}
