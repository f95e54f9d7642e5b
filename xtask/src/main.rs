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
    /// The laboratory by hand: bochs, qtest, host.
    #[command(subcommand)]
    Lab(xtask::lab::cli::LabCommand),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Cmd::Setup => xtask::setup::setup().map(|()| ExitCode::SUCCESS),
        Cmd::Lab(command) => xtask::lab::cli::run(command),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
