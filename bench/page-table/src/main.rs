// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench page-table`: hvkit-page-table, its peers, and what the machine can do at all.
//!
//! All cases of a group run in turn, so that they are comparable with each other and with nothing
//! else. Figures are nanoseconds an operation; ratios are to the group's limit.

#![cfg_attr(
    not(feature = "peers"),
    expect(dead_code, unused_macros, reason = "parts that only the peers use")
)]

mod arena;
mod cases;
mod ept;
mod harness;
mod tables;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measures page tables, side by side.
#[derive(Parser)]
struct Cli {
    /// Sizes of the mapped range, in GiB.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64])]
    gib: Vec<u64>,
    /// Rounds that count.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Groups to run; all if none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    group: Vec<Group>,
    /// Where to write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    /// 4 KiB pages over a range, into resident tables.
    Map4k,
    /// The same into tables that were never touched.
    Fresh,
    /// 2 MiB pages over a range.
    Map2m,
    /// One page mapped and unmapped.
    Single,
    /// A whole range unmapped.
    Unmap,
    /// Addresses translated, in order and at random.
    Translate,
    /// Guest tables walked through an EPT.
    Walk2d,
    /// A long-mode guest's tables walked through hvkit-ept.
    Nested,
    /// Pages faulted in by one thread and by two.
    Fault,
}

fn main() -> std::io::Result<()> {
    let cli = Cli::parse();
    let wanted = |group| cli.group.is_empty() || cli.group.contains(&group);
    println!(
        "lto, one codegen unit, overflow checks in ours; compare within a group of this run only"
    );
    let mut reports = vec![];
    for &gib in &cli.gib {
        if wanted(Group::Map4k) {
            reports.push(cases::map::small(gib, arena::Pages::Resident, cli.rounds));
        }
        if wanted(Group::Fresh) {
            reports.push(cases::map::small(gib, arena::Pages::FreshHuge, cli.rounds));
        }
        if wanted(Group::Map2m) {
            reports.push(cases::map::large(gib, cli.rounds));
        }
        if wanted(Group::Unmap) {
            reports.push(cases::unmap::range(gib, cli.rounds));
        }
        if wanted(Group::Translate) {
            reports.extend(cases::translate::all(gib, cli.rounds));
        }
    }
    if wanted(Group::Single) {
        reports.push(cases::unmap::single(cli.rounds));
    }
    if wanted(Group::Walk2d) {
        reports.extend(cases::walk2d::all(cli.rounds));
    }
    if wanted(Group::Nested) {
        reports.push(cases::nested::all(cli.rounds));
    }
    if wanted(Group::Fault) {
        reports.push(cases::fault::threads(cli.rounds));
    }
    if let Some(path) = cli.json {
        std::fs::write(path, serde_json::to_vec_pretty(&reports)?)?;
    }
    Ok(())
}
