// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask oracle vtd` and `vtd-interrupts`: QEMU's `intel-iommu` against our emulated unit.
//!
//! ```text
//!   seed, number --> Program --> emulated unit, a memory, a device ---> what was seen --.
//!                      |                                                               |-- the same? explained?
//!                      '-------> QEMU: intel-iommu, memory, edu ------> what was seen --'
//! ```

mod explained;
mod generate;
mod interrupts;
mod messages;
mod ours;
mod program;
mod queue;
mod quirks;
mod remap;
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
use lab_kit::models::{Fetched, Model};
use lab_kit::qtest::QtestOptions;

use self::explained::{Sides, judge};
use self::ours::Ours;
use self::program::{Program, Step};
use self::quirks::{Quirks, Rule};
use self::theirs::Theirs;
use super::cases::{Cases, Part};
use super::tally::{Tally, Verdict};

const HOST_BITS: u32 = 48;
/// Machines of a worker: each waits for timers most of the time.
const MACHINES: usize = 3;

/// What to run.
#[derive(Args, Clone, Copy, Debug)]
pub struct Options {
    #[command(flatten)]
    cases: Cases,
}

/// One oracle of the unit: what is tried on which model, and how that may differ.
struct Suite {
    name: &'static str,
    /// The rules of its ledger.
    rules: &'static [Rule],
    /// The model's unit: a host address width of 48 bits.
    unit: &'static str,
    model: Option<Fetched>,
    case: fn(u64, u64) -> Program,
    cases: Cases,
}

/// DMA, tables, registers and invalidations in legacy mode, against this machine's QEMU.
pub fn run(options: &Options) -> Result<()> {
    Suite {
        name: "vtd",
        rules: quirks::LEGACY,
        unit: "aw-bits=48,intremap=on",
        model: None,
        case: generate::case,
        cases: options.cases,
    }
    .run()
}

/// Interrupt remapping, against QEMU 11 if it was fetched. This machine's QEMU records no faults of interrupts, and has no
/// extended interrupt mode here: against it, only what arrives is compared.
pub fn run_interrupts(options: &Options) -> Result<()> {
    let model = Model::Qemu11.cached();
    Suite {
        name: "vtd-interrupts",
        rules: quirks::INTERRUPTS,
        unit: match model {
            Some(_) => "aw-bits=48,intremap=on,eim=on",
            None => "aw-bits=48,intremap=on",
        },
        case: match model {
            Some(_) => interrupts::case,
            None => |seed, index| without_records(interrupts::case(seed, index)),
        },
        model,
        cases: options.cases,
    }
    .run()
}

/// The same program, without a look at what was recorded.
fn without_records(mut program: Program) -> Program {
    program.steps.retain(|step| *step != Step::Faults);
    program
}

impl Suite {
    /// Runs cases on both sides. An error if any difference is not explained.
    fn run(&self) -> Result<()> {
        let names: Vec<&str> = self.rules.iter().map(|(_, rule)| *rule).collect();
        let version = self.version()?;
        self.cases.run(self.name, &names, self.unit, |numbers| {
            let tally = self.part(numbers)?;
            let version = version.clone();
            Ok(Part { tally, version })
        })
    }

    /// The model, as it names itself.
    fn version(&self) -> Result<String> {
        if let Some(model) = &self.model {
            return Ok(model.version().to_owned());
        }
        let output = Command::new("qemu-system-x86_64")
            .arg("--version")
            .output()
            .context("cannot start qemu-system-x86_64")?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or("QEMU").to_owned())
    }

    fn machine(&self) -> QtestOptions {
        let machine = QtestOptions::new().iommu(self.unit).instruction_shift(10);
        let machine = messages::heard(machine);
        match &self.model {
            Some(model) => machine.qemu(model.program()),
            None => machine,
        }
    }

    /// The cases of `numbers`, on a few machines side by side.
    fn part(&self, numbers: Range<u64>) -> Result<Tally> {
        let next = AtomicU64::new(numbers.start);
        let work = || -> Result<Tally> {
            let mut theirs = Theirs::start(self.machine())?;
            let ours = like(&mut theirs)?;
            let mut tally = Tally::default();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= numbers.end {
                    return Ok(tally);
                }
                let (kind, verdict) = self
                    .compare(&ours, &mut theirs, index)
                    .with_context(|| format!("case {index}: {}", self.rerun(index)))?;
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

    /// Runs one case on both sides.
    fn compare(&self, ours: &Ours, theirs: &mut Theirs, index: u64) -> Result<(String, Verdict)> {
        let program = (self.case)(self.cases.seed, index);
        let sides = Sides {
            fresh: ours.run(&program, Caching::Never, Quirks::NONE)?,
            kept: ours.run(&program, Caching::UntilInvalidated, Quirks::NONE)?,
            theirs: theirs.run(&program)?,
        };
        let judged = judge(ours, &program, &sides, self.rules)?;
        theirs.restore(&ours.take_astray())?;
        let verdict = match judged {
            Verdict::Differs(text) => Verdict::Differs(format!(
                "case {index} differs; rerun it with {}\n{text}",
                self.rerun(index)
            )),
            other => other,
        };
        Ok((explained::kind(&program, &sides), verdict))
    }

    fn rerun(&self, index: u64) -> String {
        format!(
            "cargo xtask oracle {} {}",
            self.name,
            self.cases.only(index)
        )
    }
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
