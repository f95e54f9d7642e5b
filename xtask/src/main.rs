// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask`: the project's own commands.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's commands. Each exits 0 only if what it checks holds.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Install what is missing on this machine (Debian as root), or say what to install.
    Setup,
    /// Format, clippy, documentation, house lints, minimal features, packages.
    Check,
    /// The main job: boot Debian's kernel in the reference VMM, verify what the guest was given.
    Demo(xtask::demo::Options),
    /// Everything that must pass; ends in the line "N passed, N failed, N skipped".
    Test,
    /// Side by side in one run: ours, peers, limits, with ratios.
    #[command(subcommand)]
    Bench(xtask::bench::Bench),
    /// Cases on a processor model and on ours, compared.
    #[command(subcommand)]
    Oracle(xtask::oracle::Oracle),
    /// Writes EVIDENCE.md: what the oracles compared, what can be counted.
    Evidence(xtask::evidence::Options),
    /// A fuzz target for a while, by cargo-fuzz, which is installed first where it is missing.
    Fuzz(xtask::fuzz::Options),
    /// Which lines of each published crate its own tests reach, by cargo-llvm-cov.
    Coverage(xtask::coverage::Options),
    /// Changes a crate in many small ways, and counts which its tests notice.
    Mutants(xtask::mutants::Options),
    /// Takes guards against known classes of bugs out, and sees that their tests fail.
    Guards(xtask::mutants::GuardsOptions),
    /// Sees whether each crate could be published now, and with --since what changed in its interface.
    Publish(xtask::publish::Options),
    /// The bare-metal hypervisor of examples/type1, in Bochs.
    Type1(xtask::type1::Options),
    /// The laboratory by hand: bochs, qtest, host.
    #[command(subcommand)]
    Lab(xtask::lab::LabCommand),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Cmd::Setup => xtask::setup::setup().map(|()| ExitCode::SUCCESS),
        Cmd::Lab(command) => xtask::lab::run(command),
        Cmd::Demo(options) => xtask::demo::demo(&options),
        Cmd::Test => xtask::test::test().map(|()| ExitCode::SUCCESS),
        Cmd::Bench(which) => xtask::bench::bench(&which).map(|()| ExitCode::SUCCESS),
        Cmd::Oracle(which) => xtask::oracle::oracle(&which).map(|()| ExitCode::SUCCESS),
        Cmd::Evidence(options) => xtask::evidence::evidence(&options).map(|()| ExitCode::SUCCESS),
        Cmd::Fuzz(options) => xtask::fuzz::fuzz(&options).map(|()| ExitCode::SUCCESS),
        Cmd::Coverage(options) => xtask::coverage::coverage(&options).map(|()| ExitCode::SUCCESS),
        Cmd::Mutants(options) => xtask::mutants::mutants(&options).map(|()| ExitCode::SUCCESS),
        Cmd::Guards(options) => xtask::mutants::guards(&options).map(|()| ExitCode::SUCCESS),
        Cmd::Publish(options) => xtask::publish::publish(&options).map(|()| ExitCode::SUCCESS),
        Cmd::Type1(options) => xtask::type1::run(&options).map(|()| ExitCode::SUCCESS),
        Cmd::Check => xtask::check::check().map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
