// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench map`: what it costs a guest's driver to map a page for a device behind the unit and to take it back, ours
//! beside QEMU's emulated unit.
//!
//! The guest's kernel does nothing else (`lab/map-load`), so that no device and no file system is in the figures.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;

use super::FOLDER;
use super::lab::{Lab, Talk};
use super::machine::{self, Machine};
use super::report::Figures;
use crate::setup;
use crate::step::Step;
use lab_kit::models::Model;

const PAGE: &str = "map.md";
/// The module that does it.
const MODULE: &str = "lab/map-load";
/// Of QEMU's rate.
const WANTED: f64 = 2.0;

/// What `cargo xtask bench map` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Pairs of map and unmap of each job.
    #[arg(long, default_value_t = 10_000)]
    pairs: u32,
    /// Only the machine of this name; the page is printed and not written.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Show what the machines say while they run.
    #[arg(long)]
    show: bool,
    /// Write the page into this folder.
    #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
    folder: PathBuf,
}

/// Machines whose units are of one kind.
struct Kind {
    name: &'static str,
    ours: Machine,
    peers: [Machine; 2],
}

const KINDS: &[Kind] = &[
    Kind {
        name: "a map is free, an unmap is told",
        ours: machine::OURS_MAPS,
        peers: [machine::QEMU_MAPS, machine::NEWER_MAPS],
    },
    Kind {
        name: "caching mode: both are told",
        ours: machine::OURS_TELLS,
        peers: [machine::QEMU_TELLS, machine::NEWER_TELLS],
    },
];

/// A job, and its name for people.
const JOBS: &[(&str, &str)] = &[("map", "strict"), ("map-lazy", "lazy (flush queue)")];

/// The figures of a machine's job.
type Results = BTreeMap<(&'static str, &'static str), Figures>;

/// Runs the machines one by one, ours beside its peers, prints what came, and writes it down if none was left out.
pub(in crate::bench) fn map(options: &Options) -> Result<()> {
    setup::setup()?;
    let newer = Model::Qemu11.fetch()?;
    let version = newer.version().to_owned();
    let talk = match options.show {
        true => Talk::Shown,
        false => Talk::Kept,
    };
    let lab = Lab::with(talk, &[MODULE], Some(newer))?;
    let mut results = Results::new();
    let mut failed = Vec::new();
    let machines = KINDS
        .iter()
        .flat_map(|kind| [&kind.ours].into_iter().chain(&kind.peers));
    let wanted = |name| options.only.as_deref().is_none_or(|only| only == name);
    for machine in machines.filter(|machine| wanted(machine.name)) {
        let step = Step::start(machine.name);
        match lab.run(machine, options.pairs) {
            Ok(report) => {
                step.done(report.line());
                for (job, _) in JOBS {
                    let figures = report.jobs.get(*job).copied();
                    results.extend(figures.map(|figures| ((machine.name, *job), figures)));
                }
            }
            Err(error) => {
                step.failed(format!("{error:#}"));
                failed.push(machine.name);
            }
        }
    }
    let mut about = lab.about(&format!("map --pairs {}", options.pairs));
    about.push(format!("QEMU 11 is: {}.", version.trim()));
    let page = page(&about, &results);
    println!("{page}");
    if options.only.is_none() {
        super::write(&options.folder, &[(PAGE, page)])?;
    }
    ensure!(
        !results.is_empty() || !failed.is_empty(),
        "no machine has that name"
    );
    if !failed.is_empty() {
        bail!("no figures for {}", failed.join(", "));
    }
    Ok(())
}

/// The page.
fn page(about: &[String], results: &Results) -> String {
    let mut out = format!(
        "# What mapping costs a guest's driver\n\n{}\n\n\
         A pair is one page mapped for a disk behind the emulated unit, and taken back, by the guest's kernel; nothing else is \
         done. Strict: it is taken back before the call returns. Lazy: 256 or 10 ms of them at a time.\n\n\
         | unit | driver | VMM | pairs a second | us a pair | exits a pair | ours, of its rate | wanted |\n\
         |---|---|---|--:|--:|--:|--:|--:|\n",
        about.join("\n")
    );
    for kind in KINDS {
        for (job, mode) in JOBS {
            let of = |machine: &Machine| results.get(&(machine.name, *job)).copied();
            let ours = of(&kind.ours);
            for machine in [&kind.ours].into_iter().chain(&kind.peers) {
                let (what, name) = (kind.name, machine.name);
                let Some(figures) = of(machine) else {
                    let _ = writeln!(out, "| {what} | {mode} | {name} | not measured | | | | |");
                    continue;
                };
                let (rate, exits) = (figures.rate(), figures.exits());
                let verdict = match ours {
                    Some(ours) if machine.name != kind.ours.name => {
                        let ratio = ours.rate() / rate;
                        let met = if ratio >= WANTED { "met" } else { "**missed**" };
                        format!("{ratio:.2} | {WANTED:.1}, {met}")
                    }
                    _ => " | ".to_owned(),
                };
                let _ = writeln!(
                    out,
                    "| {what} | {mode} | {name} | {rate:.0} | {:.2} | {exits:.2} | {verdict} |",
                    1e6 / rate
                );
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_and_what_is_missing() {
        let figures = |ns| Figures {
            requests: 1000.0,
            ns,
            cpu_ns: ns,
            vcpu_ns: ns,
            exits: 1000.0,
        };
        let results = Results::from([
            (("ours", "map"), figures(20e6)),
            (("QEMU 7.2", "map"), figures(50e6)),
            (("QEMU 11", "map"), figures(30e6)),
            (("QEMU 11", "map-lazy"), figures(2e6)),
        ]);
        let page = page(&["About.".to_owned()], &results);
        let rows: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("| a map is free"))
            .collect();
        let end = |row: &str| row.split_once("told | ").unwrap().1.to_owned();
        assert_eq!(
            rows.into_iter().map(end).collect::<Vec<_>>(),
            [
                "strict | ours | 50000 | 20.00 | 1.00 |  |  |",
                "strict | QEMU 7.2 | 20000 | 50.00 | 1.00 | 2.50 | 2.0, met |",
                "strict | QEMU 11 | 33333 | 30.00 | 1.00 | 1.50 | 2.0, **missed** |",
                "lazy (flush queue) | ours | not measured | | | | |",
                "lazy (flush queue) | QEMU 7.2 | not measured | | | | |",
                "lazy (flush queue) | QEMU 11 | 500000 | 2.00 | 1.00 |  |  |",
            ]
        );
        assert_eq!(page.matches("caching mode: both are told").count(), 6);
    }
}
