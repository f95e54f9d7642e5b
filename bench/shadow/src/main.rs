// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench shadow`: the shadow MMU beside what the machine can do at all, on synthetic guests.
//!
//! All cases of a group run in turn, so that they are comparable with each other and with nothing
//! else. Exits of a processor are not in the figures: only what the MMU does in one.

mod cases;
mod guest;
#[path = "../../page-table/src/harness.rs"]
#[expect(dead_code, reason = "not every benchmark has peers, or threads")]
mod harness;
mod memory;
mod nested;
mod replay;
mod second;

use std::path::PathBuf;

use clap::Parser;

/// Measures the shadow MMU.
#[derive(Parser)]
struct Cli {
    /// Rounds that count.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Where to write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Replay this recorded guest instead (`cargo xtask type1 --paging shadow --trace FILE` makes one).
    #[arg(long)]
    trace: Option<PathBuf>,
}

fn main() -> std::io::Result<()> {
    let cli = Cli::parse();
    if let Some(trace) = &cli.trace {
        return replay::run(trace, cli.rounds).map_err(std::io::Error::other);
    }
    println!("lto, one codegen unit, overflow checks; compare within a group of this run only");
    let reports = vec![
        cases::repair(cli.rounds),
        cases::switch(cli.rounds),
        cases::storm(cli.rounds),
        nested::ept(cli.rounds),
        nested::vtd(cli.rounds),
    ];
    let shadow_per_guest_table = cases::memory();
    if let Some(path) = cli.json {
        let all = serde_json::json!({
            "reports": reports,
            "shadow_per_guest_table": shadow_per_guest_table,
        });
        std::fs::write(path, serde_json::to_vec_pretty(&all)?)?;
    }
    Ok(())
}
