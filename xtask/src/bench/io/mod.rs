// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench io`: devices of ours beside QEMU's, three ways to have a disk, and what a remapping unit costs; in the
//! laboratory's host, under the same KVM, by a clock that counts instructions.
//!
//! ```text
//!   machine.rs   what is compared      guest.sh   what the guest does (lab/io-load)      host.sh   what the host prepares
//!   lab.rs       one machine, one boot of the host, measured from outside by lab/meter
//!   report.rs    what came out         page.rs    tables and a chart
//!   map.rs       a guest's kernel that maps and unmaps, and nothing else         module.rs   builds what it does so by
//! ```

mod lab;
mod machine;
pub(super) mod map;
mod module;
mod page;
mod report;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::setup;
use crate::step::Step;
use lab::{Lab, Talk};
use machine::MACHINES;
use page::Results;

/// Where the page and the chart are kept.
const FOLDER: &str = "examples/vmm/docs";
const PAGE: &str = "io.md";

/// What `cargo xtask bench io` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Requests of each disk job; half as many chunks of 64 KiB are sent each way.
    #[arg(long, default_value_t = 4000)]
    requests: u32,
    /// Only machines whose name has this in it; the page is printed and not written.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Show what the machines say while they run.
    #[arg(long)]
    show: bool,
    /// Write the page and the chart into this folder.
    #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
    folder: PathBuf,
}

/// Runs the machines one by one, prints what came, and writes it down if none was left out; one that failed is said in its rows.
pub(super) fn io(options: &Options) -> Result<()> {
    setup::setup()?;
    let talk = match options.show {
        true => Talk::Shown,
        false => Talk::Kept,
    };
    let lab = Lab::prepare(talk)?;
    let mut results = Results::default();
    let mut failed = Vec::new();
    let wanted = |name: &str| match &options.only {
        Some(part) => name.contains(part.as_str()),
        None => true,
    };
    ensure!(
        MACHINES.iter().any(|machine| wanted(machine.name)),
        "no machine has that in its name"
    );
    for machine in MACHINES.iter().filter(|machine| wanted(machine.name)) {
        let step = Step::start(machine.name);
        let report = lab.run(machine, options.requests);
        match &report {
            Ok(report) => drop(step.done(report.line())),
            Err(error) => {
                step.failed(format!("{error:#}"));
                failed.push(machine.name);
            }
        }
        results.add(
            machine,
            report.map_err(|_| "it came to no end here".to_owned()),
        );
    }
    let about = lab.about(&format!("io --requests {}", options.requests));
    let page = page::page(&about, &results);
    println!("{page}");
    if options.only.is_none() {
        let files = [(PAGE, page), (page::CHART, page::chart(&results))];
        write(&options.folder, &files)?;
    }
    if !failed.is_empty() {
        bail!("no figures for {}", failed.join(", "));
    }
    Ok(())
}

/// Writes `files`, names and texts, into `folder`.
fn write(folder: &Path, files: &[(&str, String)]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
