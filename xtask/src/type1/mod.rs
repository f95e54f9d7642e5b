// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask type1`: the bare-metal hypervisor of `examples/type1` in Bochs.
//!
//! Without options it takes its tour: guests that exit in every way, and entries that fail on purpose. Then guests reach for the hypervisor, and
//! it faults itself. What it printed is held against what the manual says must come.

mod compare;
mod kvm;
mod linux;
mod reach;
mod report;
mod tour;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use lab_cases::type1::{self as order, FAULT, REACH, TOUR};

use crate::step::Step;
use lab_kit::bochs::{Bochs, BochsReport, Exit};
use lab_kit::paths;
use lab_kit::payload::build_payload;

/// Where the hypervisor looks for what it is asked.
const INPUT: u64 = 0x100_0000;
/// Pages of the hypervisor that the guest reaches for: of its own page tables, of its code, of its shadow tables.
const ITS_PAGES: [u64; 3] = [4, 512, 57_400];
/// The most bytes of a trace, before it is compressed.
const TRACE_BYTES: u64 = 4 << 20;
/// How much work the guest has, unless said otherwise: little, for tests.
const ROUNDS: u32 = 4;
/// For the tour, which takes some seconds on an idle machine.
const TOUR_PATIENCE: Duration = Duration::from_secs(400);
/// Few, or the serial line is what takes the time.
const TOUR_INSTRUCTIONS_PER_SECOND: u64 = 1_000_000;

/// How a guest's memory is virtualized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Paging {
    /// Not at all: the kernel without the hypervisor.
    None,
    /// Extended page tables.
    Ept,
    /// Shadow page tables, EPT off.
    Shadow,
}

impl From<Paging> for order::Paging {
    fn from(paging: Paging) -> Self {
        match paging {
            Paging::None => Self::None,
            Paging::Ept => Self::Ept,
            Paging::Shadow => Self::Shadow,
        }
    }
}

/// What to run.
#[derive(Args, Debug)]
pub struct Options {
    /// Boot Debian's kernel instead, its memory virtualized so.
    #[arg(long, conflicts_with = "record")]
    pub paging: Option<Paging>,
    /// Write the raw words of every exit of the tour to this file.
    #[arg(long)]
    pub record: Option<PathBuf>,
    /// Boot the kernel alone, under EPT and on shadow page tables, and write a table and a chart into this folder.
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = compare::FOLDER)]
    #[arg(conflicts_with_all = ["record", "paging"])]
    pub compare: Option<PathBuf>,
    /// Boot the kernel under KVM, with EPT and without, in a Linux host in Bochs; with `--compare`, beside the others.
    #[arg(long, conflicts_with_all = ["record", "paging"])]
    pub kvm: bool,
    /// Write what the shadow MMU is asked during the work to this file, compressed, for `cargo xtask bench shadow --trace`.
    #[arg(long, value_name = "FILE", requires = "paging")]
    pub trace: Option<PathBuf>,
    /// How much work the guest has.
    #[arg(long, default_value_t = ROUNDS)]
    pub rounds: u32,
    /// Show all that the hypervisor prints.
    #[arg(long)]
    pub verbose: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            paging: None,
            record: None,
            compare: None,
            kvm: false,
            trace: None,
            rounds: ROUNDS,
            verbose: false,
        }
    }
}

/// Runs the hypervisor, and verifies what it printed.
pub fn run(options: &Options) -> Result<()> {
    if let Some(folder) = &options.compare {
        return compare::compare(folder, options.rounds, options.verbose);
    }
    if options.kvm {
        return step("type1: Linux under KVM", || {
            kvm::boot(options.rounds, options.verbose).map(|seen| seen.line())
        });
    }
    let Some(paging) = options.paging else {
        step("type1: the tour", || take_tour(options))?;
        step("type1: out of reach", || reach_for_it(options))?;
        return step("type1: a fault of its own", || let_it_fault(options));
    };
    step(name(paging), || {
        let booted = linux::boot(linux::Run {
            paging: paging.into(),
            rounds: options.rounds,
            trace: options.trace.as_ref().map_or(0, |_| TRACE_BYTES),
            verbose: options.verbose,
        })?;
        keep(options, &booted)
    })
}

/// Does one step, and says what came of it.
fn step(name: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
    let step = Step::start(name);
    match work() {
        Ok(result) => {
            step.done(result);
            Ok(())
        }
        Err(error) => {
            step.failed("");
            Err(error)
        }
    }
}

/// Writes the trace, if there is to be one. Says what the boot was.
fn keep(options: &Options, booted: &linux::Booted) -> Result<String> {
    if let Some(path) = &options.trace {
        let trace = booted.trace.as_ref().context("nothing was recorded")?;
        let packed = lz4_flex::compress_prepend_size(trace);
        std::fs::write(path, packed).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(booted.line())
}

/// What a boot is called.
fn name(paging: Paging) -> &'static str {
    match paging {
        Paging::None => "type1: Linux alone",
        Paging::Ept => "type1: Linux under EPT",
        Paging::Shadow => "type1: Linux on shadow page tables",
    }
}

/// Runs the hypervisor with an order of one byte. What it printed.
fn ordered(order: u8, exit: &Exit, verbose: bool) -> Result<(String, String)> {
    let report = bochs(&[order], |bochs| {
        bochs.instructions_per_second(TOUR_INSTRUCTIONS_PER_SECOND)
    })?;
    let text = report.text();
    if verbose {
        print!("{text}");
    }
    ensure!(report.exit == *exit, "{report}");
    let version = report.version().unwrap_or("an unknown model");
    Ok((text, version.to_owned()))
}

fn reach_for_it(options: &Options) -> Result<String> {
    let (text, version) = ordered(REACH, &Exit::Shutdown, options.verbose)?;
    let attempts = reach::verify(&text).with_context(|| format!("it printed:\n{text}"))?;
    Ok(format!(
        "{attempts} attempts under EPT and on shadow page tables, {version}"
    ))
}

fn let_it_fault(options: &Options) -> Result<String> {
    let (text, version) = ordered(FAULT, &Exit::TripleFault, options.verbose)?;
    reach::verify_fault(&text).with_context(|| format!("it printed:\n{text}"))?;
    Ok(format!("told, with the VMCS explained, {version}"))
}

fn take_tour(options: &Options) -> Result<String> {
    let (text, version) = ordered(TOUR, &Exit::Shutdown, options.verbose)?;
    let seen = tour::verify(&text).with_context(|| format!("the hypervisor printed:\n{text}"))?;
    if let Some(path) = &options.record {
        std::fs::write(path, tour::record(&text, &version))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(format!(
        "{} exits of {} reasons, {} failures explained, {}",
        seen.exits, seen.reasons, seen.failures, version
    ))
}

/// Builds the hypervisor and runs it with this input.
fn bochs(input: &[u8], with: impl FnOnce(Bochs) -> Bochs) -> Result<BochsReport> {
    let payload = build_payload(&paths::root().join("examples/type1"))?;
    let bochs = Bochs::new().image(input, INPUT).time_out(TOUR_PATIENCE);
    with(bochs).run(&payload)
}
