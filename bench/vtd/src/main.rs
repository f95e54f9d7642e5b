// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench vtd`: the emulated VT-d unit, vm-memory's IOTLB, and what the machine can do at all.
//!
//! All cases of a group run in turn, so that they are comparable with each other and with nothing
//! else. Figures are nanoseconds an operation; ratios are to the group's limit.

mod board;
mod cases;
#[path = "../../page-table/src/harness.rs"]
mod harness;
mod machine;
mod qemu;

use std::path::PathBuf;

use clap::Parser;

/// Measures the emulated unit, side by side.
#[derive(Parser)]
struct Cli {
    /// Pages that are kept.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1024, 65536])]
    pages: Vec<u64>,
    /// Rounds that count.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Where to write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> std::io::Result<()> {
    let cli = Cli::parse();
    println!(
        "lto, one codegen unit, overflow checks in ours; compare within a group of this run only"
    );
    let mut reports = vec![];
    for &pages in &cli.pages {
        reports.push(cases::hit(pages, cli.rounds));
        reports.push(cases::refill(pages, cli.rounds));
    }
    for live in [0, 64, 1023, 65536] {
        reports.push(cases::queue(live, cli.rounds));
    }
    for pages in [1, 256] {
        reports.push(cases::driver(pages, cli.rounds));
    }
    if let Some(path) = cli.json {
        std::fs::write(path, serde_json::to_vec_pretty(&reports)?)?;
    }
    Ok(())
}
