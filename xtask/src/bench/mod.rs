// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench`: ours, peers and limits side by side in one run, with ratios.

mod boot;
mod figures;
mod tiny;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

/// The benchmarks.
#[derive(Clone, Debug, Subcommand)]
pub enum Bench {
    /// Boot of a VMM: to the first instruction, to init, memory; beside QEMU's microvm and q35.
    Boot(boot::Options),
}

/// Where figures go besides standard output.
#[derive(Args, Clone, Debug)]
pub struct Output {
    /// Write the figures to this file too, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Output {
    /// Prints the figures, and writes them where asked.
    fn give(&self, figures: &figures::Figures) -> Result<()> {
        print!("{}", figures.table());
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&figures.json())?;
            std::fs::write(path, text + "\n")
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Runs a benchmark.
pub fn bench(which: &Bench) -> Result<()> {
    match which {
        Bench::Boot(options) => boot::boot(options),
    }
}
