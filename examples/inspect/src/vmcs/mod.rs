// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit inspect vmcs` and `vmcs-diff`.

mod load;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use hvkit_vmcs::capability::{Processor, parse_dump, presets};
use hvkit_vmcs::check::Outcome;
use hvkit_vmcs::diff::differences;
use hvkit_vmcs::exit::{ExitReason, InstructionError};
use hvkit_vmcs::store::Snapshot;

use crate::page::Page;
use crate::{Form, Found, input};
pub(crate) use report::Report;

/// What to look at.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// A log of KVM (kvm_intel.dump_invalid_vmcs=1) or Xen, a listing of `name = value` lines, or a VMCS12. `-` is the
    /// standard input.
    file: PathBuf,
    #[command(flatten)]
    on: On,
    /// What the processor said: "invalid", "error 7", "exit 33" or "exit 33 3" (with the qualification). Only its causes
    /// are listed then.
    #[arg(long, value_parser = failure)]
    failure: Option<Outcome>,
    /// Which VMCS of a log with several, from 1. The last if not given.
    #[arg(long)]
    number: Option<usize>,
    #[command(flatten)]
    form: Form,
}

/// The processor to check for.
#[derive(Args, Debug)]
pub(crate) struct On {
    /// Its IA32_VMX_* MSRs, `name = value` a line. Without: a processor that can do everything, which breaks no rule
    /// about a control's being there.
    #[arg(long)]
    capabilities: Option<PathBuf>,
    /// Its physical-address width in bits (MAXPHYADDR).
    #[arg(long, value_parser = clap::value_parser!(u8).range(32..=52))]
    physical_bits: Option<u8>,
}

impl On {
    pub(crate) fn processor(&self) -> Result<Processor> {
        let mut processor = match &self.capabilities {
            Some(path) => {
                let vmx = parse_dump(&input::read(path)?);
                Processor::new(vmx.with_context(|| path.display().to_string())?)
            }
            None => presets::everything(),
        };
        if let Some(bits) = self.physical_bits {
            processor.physical_address_bits = bits;
        }
        Ok(processor)
    }
}

/// Prints a VMCS and what is wrong with it.
pub(crate) fn inspect(options: &Options, page: &mut Page<'_>) -> Result<Found> {
    let (vmcs, source) = one(&options.file, options.number)?;
    let report = Report::new(&vmcs, &options.on.processor()?, options.failure);
    report.print(&source, options.form, page)
}

/// Which two.
#[derive(Args, Debug)]
pub(crate) struct DiffOptions {
    /// As `vmcs` takes it.
    before: PathBuf,
    /// As `vmcs` takes it.
    after: PathBuf,
    #[command(flatten)]
    form: Form,
}

/// Prints in which fields two VMCSs differ.
pub(crate) fn diff(options: &DiffOptions, page: &mut Page<'_>) -> Result<Found> {
    let (before, _) = one(&options.before, None)?;
    let (after, _) = one(&options.after, None)?;
    let changes: Vec<_> = differences(&before, &after).collect();
    if options.form.json {
        page.json(&changes)?;
    } else {
        for change in &changes {
            page.line(change)?;
        }
    }
    Ok(if changes.is_empty() {
        Found::Nothing
    } else {
        Found::Something
    })
}

/// One VMCS of a file, and where it was found.
fn one(file: &std::path::Path, number: Option<usize>) -> Result<(Snapshot, String)> {
    let bytes = input::read(file)?;
    let mut found = load::vmcss(&bytes).with_context(|| file.display().to_string())?;
    let count = found.len();
    let number = number.unwrap_or(count);
    let index = number.checked_sub(1).filter(|&index| index < count);
    let Some(index) = index else {
        bail!(
            "{} holds {count} VMCSs; there is no number {number}",
            file.display()
        );
    };
    let (vmcs, what) = found.swap_remove(index);
    let which = if count > 1 {
        format!(", number {number} of {count}")
    } else {
        String::new()
    };
    Ok((vmcs, format!("{}: {what}{which}", file.display())))
}

/// Reads what the processor said.
fn failure(text: &str) -> Result<Outcome, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let narrow = |word: &str| {
        let number = input::number(word)?;
        u32::try_from(number).map_err(|_| format!("{word} has more than 32 bits"))
    };
    match words[..] {
        ["invalid"] => Ok(Outcome::FailInvalid),
        ["error", error] => Ok(Outcome::from_error(InstructionError(narrow(error)?))),
        ["exit", reason] => Ok(Outcome::from_exit(entry_failure(narrow(reason)?), 0)),
        ["exit", reason, qualification] => {
            let qualification = input::number(qualification)?;
            Ok(Outcome::from_exit(
                entry_failure(narrow(reason)?),
                qualification,
            ))
        }
        _ => Err(String::from(
            "give \"invalid\", \"error N\", \"exit N\" or \"exit N QUALIFICATION\"",
        )),
    }
}

/// An exit reason with bit 31 set, which people leave out.
fn entry_failure(reason: u32) -> ExitReason {
    ExitReason(reason | 1 << 31)
}
