// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit`: looks inside a hypervisor from its files. Nothing here needs the hypervisor, or its machine.

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
mod stretches;
mod svg;
mod vmcs;
mod vtd;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Looks inside a hypervisor from its files.
#[derive(Parser)]
#[command(name = "hvkit", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What is inside, and what it means.
    #[command(subcommand)]
    Inspect(What),
}

#[derive(Subcommand)]
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

fn main() -> ExitCode {
    let Command::Inspect(what) = Cli::parse().command;
    let result = match &what {
        What::Vmcs(options) => vmcs::inspect(options),
        What::VmcsDiff(options) => vmcs::diff(options),
        What::KvmNested(options) => nested::inspect(options),
        What::Ept(options) => ept::inspect(options),
        What::Dmar(options) => dmar::inspect(options),
        What::Vtd(options) => vtd::inspect(options),
        What::VtdFaults(options) => faults::inspect(options),
    };
    match result {
        Ok(Found::Nothing) => ExitCode::SUCCESS,
        Ok(Found::Something) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether something is wrong with what was inspected: the exit status is 1 then, as with `grep` and `diff` a
/// value that scripts can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Nothing broken, nothing different.
    Nothing,
    /// A broken rule, a difference, a fault.
    Something,
}
