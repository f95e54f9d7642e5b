// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask oracle vtd`, `vtd-interrupts`, `vtd-scalable`: QEMU's `intel-iommu` against our emulated unit.
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
mod scalable;
mod tables;
mod theirs;
mod walks;

use std::ops::Range;
use std::process::Command;
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
use self::tables::Stage;
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
    /// The model's units, which cases take in turn, and what is tried on each: a host address width of 48 bits.
    units: &'static [(&'static str, Generator)],
    model: Option<Fetched>,
    cases: Cases,
}

/// The case of a seed and a number.
type Generator = fn(u64, u64) -> Program;

/// DMA, tables, registers and invalidations in legacy mode, against this machine's QEMU.
pub fn run(options: &Options) -> Result<()> {
    Suite {
        name: "vtd",
        rules: quirks::LEGACY,
        units: &[("aw-bits=48,intremap=on", generate::case)],
        model: None,
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
        units: match model {
            Some(_) => &[("aw-bits=48,intremap=on,eim=on", interrupts::case)],
            None => &[("aw-bits=48,intremap=on", |seed, index| {
                without_records(interrupts::case(seed, index))
            })],
        },
        model,
        cases: options.cases,
    }
    .run()
}

/// Scalable mode, against QEMU 11: one unit with second stage, one with first.
pub fn run_scalable(options: &Options) -> Result<()> {
    Suite {
        name: "vtd-scalable",
        rules: quirks::SCALABLE,
        units: &[
            ("aw-bits=48,scalable-mode=on,fsts=on", |seed, index| {
                scalable::case(Stage::First, seed, index)
            }),
            ("aw-bits=48,scalable-mode=on", |seed, index| {
                scalable::case(Stage::Second, seed, index)
            }),
        ],
        model: Some(Model::Qemu11.fetch()?),
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
        let units: Vec<&str> = self.units.iter().map(|(unit, _)| *unit).collect();
        self.cases
            .run(self.name, &names, &units.join("; "), |numbers| {
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

    fn machine(&self, unit: &str) -> QtestOptions {
        let machine = QtestOptions::new().iommu(unit).instruction_shift(10);
        let machine = messages::heard(machine);
        match &self.model {
            Some(model) => machine.qemu(model.program()),
            None => machine,
        }
    }

    /// The cases of `numbers`, on a few machines side by side. Which machine runs which cases does not depend on time: what a model
    /// keeps of the cases before is the same in every run.
    fn part(&self, numbers: Range<u64>) -> Result<Tally> {
        let work = |machine: u64| -> Result<Tally> {
            let mut pairs = Vec::new();
            for (unit, case) in self.units {
                let mut theirs = Theirs::start(self.machine(unit))?;
                let ours = like(&mut theirs)?;
                pairs.push((ours, theirs, case));
            }
            let mut tally = Tally::default();
            for index in numbers.clone().skip(machine as usize).step_by(MACHINES) {
                let turn = index % pairs.len() as u64;
                let (ours, theirs, case) = &mut pairs[turn as usize];
                let program = case(self.cases.seed, index);
                let (kind, verdict) = self
                    .compare(&program, ours, theirs, index)
                    .with_context(|| format!("case {index}: {}", self.rerun(index)))?;
                tally.add(index, kind, verdict);
            }
            Ok(tally)
        };
        let mut all = Tally::default();
        thread::scope(|scope| -> Result<()> {
            let machines = (0..MACHINES as u64).map(|machine| scope.spawn(move || work(machine)));
            for machine in machines.collect::<Vec<_>>() {
                all.merge(machine.join().map_err(|_| anyhow!("a worker panicked"))??);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Runs one case on both sides.
    fn compare(
        &self,
        program: &Program,
        ours: &Ours,
        theirs: &mut Theirs,
        index: u64,
    ) -> Result<(String, Verdict)> {
        let sides = Sides {
            fresh: ours.run(program, Caching::Never, Quirks::NONE)?,
            kept: ours.run(program, Caching::UntilInvalidated, Quirks::NONE)?,
            theirs: theirs.run(program)?,
        };
        let judged = judge(ours, program, &sides, self.rules)?;
        theirs.restore(&ours.take_astray())?;
        let verdict = match judged {
            Verdict::Differs(text) => Verdict::Differs(format!(
                "case {index} differs; rerun it with {}\n{text}",
                self.rerun(index)
            )),
            other => other,
        };
        Ok((explained::kind(program, &sides), verdict))
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
        // No case has more than a few.
        iotlb_pages: 64,
    };
    Ok(Ours::new(options, device))
}
