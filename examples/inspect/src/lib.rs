// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Looks inside a hypervisor from its files. Nothing here needs the hypervisor, or its machine.
//!
//! The program `hvkit` in a function: arguments in, text or JSON or a picture out.

// What it reads was written by others: kernels' logs, firmware's tables, a guest's memory.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod dmar;
mod ept;
mod faults;
mod image;
mod input;
mod nested;
mod page;
mod stretches;
mod svg;
mod vmcs;
mod vtd;

use std::ffi::OsString;
use std::io::Write;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use page::Page;
pub use page::plain;

/// Looks inside a hypervisor from its files.
#[derive(Debug, Parser)]
#[command(name = "hvkit", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What is inside, and what it means.
    #[command(subcommand)]
    Inspect(What),
}

#[derive(Debug, Subcommand)]
enum What {
    /// A VMCS: its fields, every broken rule of VM entry, what the processor will say.
    Vmcs(vmcs::Options),
    /// What changed between two VMCSs.
    VmcsDiff(vmcs::DiffOptions),
    /// The nested state of a vCPU, as KVM_GET_NESTED_STATE returns it.
    KvmNested(nested::Options),
    /// Extended page tables in a memory image: what is mapped, or where one address leads.
    Ept(ept::Options),
    /// A DMAR table, as in /sys/firmware/acpi/tables/DMAR: remapping units, their devices, reserved memory.
    Dmar(dmar::Options),
    /// VT-d tables in a memory image: devices, domains, what is mapped, or where one address of one device leads.
    Vtd(vtd::Options),
    /// VT-d's faults in a kernel log, by device and in time.
    VtdFaults(faults::Options),
}

/// How to print what can be drawn.
#[derive(Args, Clone, Copy, Debug)]
struct Picture {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print a picture, as SVG.
    #[arg(long, conflicts_with = "json")]
    svg: bool,
}

/// How to print.
#[derive(Args, Clone, Copy, Debug)]
struct Form {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Cli {
    /// What `arguments` ask for, of which the first is the program's name.
    ///
    /// # Errors
    ///
    /// What clap says to it; also where help or the version is asked for.
    pub fn of(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(arguments)
    }
}

/// Writes what is asked for to `to`.
///
/// # Errors
///
/// A file cannot be read, or holds nothing of that kind; or `to` takes no more.
pub fn answer(cli: &Cli, to: &mut dyn Write) -> Result<Found> {
    let Command::Inspect(what) = &cli.command;
    let page = &mut Page::new(to);
    match what {
        What::Vmcs(options) => vmcs::inspect(options, page),
        What::VmcsDiff(options) => vmcs::diff(options, page),
        What::KvmNested(options) => nested::inspect(options, page),
        What::Ept(options) => ept::inspect(options, page),
        What::Dmar(options) => dmar::inspect(options, page),
        What::Vtd(options) => vtd::inspect(options, page),
        What::VtdFaults(options) => faults::inspect(options, page),
    }
}

/// Whether something is wrong with what was inspected: the exit status is 1 then, as with `grep` and `diff` a
/// value that scripts can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing broken, nothing different.
    Nothing,
    /// A broken rule, a difference, a fault.
    Something,
}
