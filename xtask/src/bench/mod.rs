// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench`: ours, peers and limits side by side in one run, with ratios.

mod boot;
mod figures;
mod io;
mod tiny;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::cargo::cargo;

/// Firmware that QEMU needs for what it boots here.
const FIRMWARE: &[&str] = &[
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/qboot.rom",
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/seabios/bios-microvm.bin",
];

/// The benchmarks.
#[derive(Clone, Debug, Subcommand)]
pub enum Bench {
    /// Boot of a VMM: to the first instruction, to init, memory; beside QEMU's microvm and q35.
    Boot(boot::Options),
    /// Devices beside QEMU's; three ways to have a disk; what a remapping unit costs.
    Io(io::Options),
    /// A guest's driver that maps and unmaps behind the emulated VT-d unit, ours and QEMU's.
    Map(io::map::Options),
    /// Page tables beside six published crates and what the machine can do at all.
    PageTable(Forwarded),
    /// The shadow MMU beside a two-dimensional walk, on synthetic guests.
    Shadow(Forwarded),
    /// The emulated VT-d unit: hits, refills, invalidations; beside vm-memory's IOTLB and limits.
    Vtd(Forwarded),
    /// The VM-entry check beside loading the fields that it reads.
    Vmcs(Forwarded),
    /// Virtqueues, split and packed, beside virtio-queue and a loop of raw pointers with the same checks.
    Virtio(Forwarded),
}

/// A benchmark that is a program of its own, in release mode, with options of its own.
#[derive(Args, Clone, Debug)]
pub struct Forwarded {
    /// Options of the benchmark; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

impl Forwarded {
    /// Runs the package in `bench/` of this name, which is outside the workspace: its peers would be everyone's
    /// dependencies.
    fn run_apart(&self, name: &str) -> Result<()> {
        let manifest = format!("bench/{name}/Cargo.toml");
        self.run(&["run", "--quiet", "--release", "--manifest-path", &manifest])
    }

    /// Runs the program on this terminal, `build` being cargo's arguments for it.
    fn run(&self, build: &[&str]) -> Result<()> {
        let status = cargo(build)
            .arg("--")
            .args(&self.options)
            .status()
            .context("cannot start cargo")?;
        if !status.success() {
            bail!("the benchmark ended with {status}");
        }
        Ok(())
    }
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
        Bench::Io(options) => io::io(options),
        Bench::Map(options) => io::map::map(options),
        Bench::PageTable(forwarded) => forwarded.run_apart("page-table"),
        Bench::Shadow(forwarded) => forwarded.run_apart("shadow"),
        Bench::Virtio(forwarded) => forwarded.run_apart("virtio"),
        Bench::Vtd(forwarded) => forwarded.run_apart("vtd"),
        Bench::Vmcs(forwarded) => forwarded.run(&[
            "bench",
            "--quiet",
            "--package",
            "hvkit-vmcs",
            "--bench",
            "check",
        ]),
    }
}
