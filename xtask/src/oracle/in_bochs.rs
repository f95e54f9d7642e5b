// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Oracles whose model is Bochs: `lab/payloads/NAME` runs the cases and sends a record of each.
//!
//! On the serial line: eight letters, what of the processor cases depend on, then the records. Each case is judged as
//! its record is read; the case of which no record came ended the model, and is named.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::cases::{Cases, Part};
use super::tally::{Tally, Verdict};
use lab_kit::bochs::{Bochs, Exit};
use lab_kit::models::{Fetched, Model};
use lab_kit::paths;
use lab_kit::payload::build_payload;

/// Instructions in a second of the model's time: few, or the serial line is what takes the time.
const INSTRUCTIONS_PER_SECOND: u64 = 1_000_000;
/// Where payloads find their input.
const INPUT: u64 = 0x100_0000;
/// Time for the start.
const START: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Args, Clone, Debug)]
pub struct BochsRun {
    #[command(flatten)]
    pub(super) cases: Cases,
    /// Bochs's model of a processor, if not the oracle's own choice (`bochs -help cpu` lists them).
    #[arg(long)]
    pub(super) cpu: Option<String>,
    /// Another Bochs than this machine's: bochs-3.0.
    #[arg(long)]
    pub(super) model: Option<Model>,
}

/// An oracle whose cases run in Bochs.
pub(super) trait InBochs: Sync {
    /// Of the command, of the ledger `lab/ledgers/NAME.md` and of the payload `lab/payloads/NAME`.
    const NAME: &'static str;
    /// The model of a processor that has most of what the oracle asks.
    const CPU: &'static str;
    /// What the model cannot do, for the closing line.
    const NOTE: &'static str;
    /// Time for each case, at most.
    const EACH: Duration;
    /// What of the processor cases depend on.
    type Cpu;
    /// What the model says of one case.
    type Record;

    /// The rules that the ledger explains.
    fn rules(&self) -> Vec<&'static str>;

    /// What the payload sent, up to the last whole record; `None` if it did not get to the first: see [`records`].
    fn parse(serial: &[u8]) -> Option<(Self::Cpu, impl Iterator<Item = Self::Record>)>;

    /// What kind of case it was, worth counting, and whether both sides agree on it.
    fn judge(
        &self,
        seed: u64,
        number: u64,
        cpu: &Self::Cpu,
        theirs: &Self::Record,
    ) -> Result<(String, Verdict)>;

    /// The case, to be shown where it ended the model.
    fn describe(&self, seed: u64, number: u64, cpu: &Self::Cpu) -> String;

    /// Is shown the log of each run.
    fn log(&self, _log: &str) {}
}

/// Reads what a payload sent: `magic`, what of the processor cases depend on, and whole records.
pub(super) fn records<const C: usize, const R: usize, Cpu, Record>(
    serial: &[u8],
    magic: &[u8],
    cpu: impl Fn(&[u8; C]) -> Cpu,
    record: impl Fn(&[u8; R]) -> Record,
) -> Option<(Cpu, impl Iterator<Item = Record>)> {
    let (seen, rest) = serial.strip_prefix(magic)?.split_first_chunk()?;
    let (records, _) = rest.as_chunks();
    Some((cpu(seen), records.iter().map(record)))
}

/// Runs `oracle`. An error if any difference is not explained.
pub(super) fn run<O: InBochs>(oracle: &O, options: &BochsRun) -> Result<()> {
    let payload = build_payload(&paths::root().join("lab/payloads").join(O::NAME))?;
    let fetched = options.model.map(Model::fetch).transpose()?;
    let cpu = options.cpu.as_deref().unwrap_or(O::CPU);
    let note = format!("{cpu}{}", O::NOTE);
    let compare = |numbers| compare(oracle, options, fetched.as_ref(), &payload, numbers);
    let cases = &options.cases;
    cases.run(O::NAME, &oracle.rules(), &note, compare)
}

/// Runs the cases of `numbers` on both sides.
fn compare<O: InBochs>(
    oracle: &O,
    options: &BochsRun,
    fetched: Option<&Fetched>,
    payload: &Path,
    numbers: Range<u64>,
) -> Result<Part> {
    let (cases, seed) = (&options.cases, options.cases.seed);
    let order = cases.order(&numbers);
    let patience = START + O::EACH * u32::try_from(order.count).unwrap_or(u32::MAX);
    let mut bochs = Bochs::new()
        .cpu(options.cpu.as_deref().unwrap_or(O::CPU))
        .instructions_per_second(INSTRUCTIONS_PER_SECOND)
        .image(order.to_bytes(), INPUT)
        .time_out(patience);
    if let Some(model) = fetched {
        bochs = bochs.program(model.program(), model.bochs_share());
    }
    let report = bochs.run(payload)?;
    oracle.log(&report.log);
    let (cpu, records) = O::parse(&report.serial)
        .with_context(|| format!("the payload did not start: {:?}", report.exit))?;
    let mut tally = Tally::default();
    let mut sent = 0;
    for (number, theirs) in numbers.clone().zip(records) {
        let (kind, verdict) = oracle
            .judge(seed, number, &cpu, &theirs)
            .with_context(|| format!("case {number} of seed {seed}"))?;
        let verdict = match verdict {
            Verdict::Differs(text) => Verdict::Differs(format!(
                "case {number} differs; rerun it with {}\n{text}",
                rerun::<O>(options, number)
            )),
            other => other,
        };
        tally.add(number, kind, verdict);
        sent += 1;
    }
    let ended = numbers.start + sent;
    ensure!(
        sent == order.count && report.exit == Exit::Shutdown,
        "case {ended} ended the model: {:?}\n{}\nrerun it with {}\n{}",
        report.exit,
        report.log_end(),
        rerun::<O>(options, ended),
        oracle.describe(seed, ended, &cpu)
    );
    let version = report.version().unwrap_or("an unknown version").to_owned();
    Ok(Part { tally, version })
}

/// The command that runs one case again.
pub(super) fn rerun<O: InBochs>(options: &BochsRun, number: u64) -> String {
    let mut command = format!(
        "`cargo xtask oracle {} {}",
        O::NAME,
        options.cases.only(number)
    );
    if let Some(cpu) = &options.cpu {
        command += &format!(" --cpu {cpu}");
    }
    if let Some(model) = options
        .model
        .and_then(|model| clap::ValueEnum::to_possible_value(&model))
    {
        command += &format!(" --model {}", model.get_name());
    }
    command + "`"
}
