// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench boot`: ours beside QEMU's `microvm` and `q35`, all in one run of the
//! laboratory's host, whose clock counts instructions.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::figures::Figures;
use super::tiny;
use super::{FIRMWARE, Output};
use crate::demo;
use crate::setup;
use crate::step::Step;
use lab_kit::host::{Clock, Host};
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;

/// Guest memory, in MiB.
const MEMORY_MIB: u64 = 256;
/// What the guest's init says first.
const WORD: &str = "@hvkit init";
/// The kernel's command line, the same for all.
const CMDLINE: &str = "console=ttyS0 reboot=t panic=-1 quiet";
/// How long one round may take on this machine's clock, and how often it is tried.
const PATIENCE: Duration = Duration::from_secs(400);
const TRIES: u32 = 3;
/// The contender that ratios are taken to.
const BASE: &str = "QEMU microvm";

/// What `cargo xtask bench boot` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Rounds: in each the host boots anew, and every case is counted once.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    #[command(flatten)]
    output: Output,
}

/// A VMM, and how it is told what to boot.
struct Contender {
    name: &'static str,
    command: fn(kernel: &str, initramfs: bool) -> String,
}

const CONTENDERS: &[Contender] = &[
    Contender {
        name: "ours",
        command: |kernel, initramfs| {
            let initramfs = if initramfs {
                "--initramfs /guest/initramfs"
            } else {
                ""
            };
            format!(
                "vmm --kernel {kernel} {initramfs} --cmdline '{CMDLINE}' --cpus boot=1 \
                 --memory size={MEMORY_MIB}M --serial tty"
            )
        },
    },
    Contender {
        name: BASE,
        command: |kernel, initramfs| qemu("microvm,isa-serial=on,rtc=on", kernel, initramfs),
    },
    Contender {
        name: "QEMU q35",
        command: |kernel, initramfs| qemu("q35", kernel, initramfs),
    },
];

fn qemu(machine: &str, kernel: &str, initramfs: bool) -> String {
    let initramfs = if initramfs {
        "-initrd /guest/initramfs"
    } else {
        ""
    };
    format!(
        "qemu-system-x86_64 -M {machine} -enable-kvm -cpu host -m {MEMORY_MIB} -smp 1 -nodefaults \
         -no-user-config -display none -serial stdio -kernel {kernel} {initramfs} \
         -append '{CMDLINE}'"
    )
}

/// What is booted, until which word.
struct Case {
    name: &'static str,
    kernel: &'static str,
    until: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "first instruction",
        kernel: "/guest/tiny",
        until: tiny::LETTER,
    },
    Case {
        name: "init, uncompressed kernel",
        kernel: "/guest/vmlinux",
        until: WORD,
    },
    Case {
        name: "init, bzImage",
        kernel: "/guest/bzImage",
        until: WORD,
    },
];

/// Boots every case in every VMM, interleaved, and prints times, memory and ratios.
pub(super) fn boot(options: &Options) -> Result<()> {
    setup::setup()?;
    let vmm = demo::build_vmm()?;
    let meter = demo::static_program("hvkit-lab-meter", "meter")?;
    let kernel = Kernel::fetch()?;
    let mut initramfs = Initramfs::with_busybox()?;
    let init = format!("#!/bin/sh\necho '{WORD}'\nwhile true; do sleep 1000; done\n");
    initramfs.file("/init", 0o755, init);

    let (bzimage, vmlinux) = (kernel.bzimage(), kernel.vmlinux()?);
    let initramfs = initramfs.build()?;
    let machine = || -> Result<Host> {
        let mut host = Host::new()
            .memory_mib(3072)
            .clock(Clock::Instructions)
            .time_out(PATIENCE)
            .file(&vmm, "/bin/vmm", 0o755)
            .file(&meter, "/bin/meter", 0o755)
            .program("/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-system-x86_64")
            .data(tiny::elf(), "/guest/tiny", 0o644)
            .file(&bzimage, "/guest/bzImage", 0o644)
            .file(&vmlinux, "/guest/vmlinux", 0o644)
            .data(initramfs.clone(), "/guest/initramfs", 0o644);
        for file in FIRMWARE {
            let name = file.rsplit('/').next().unwrap_or(file);
            host = host.file(file, &format!("/usr/share/qemu/{name}"), 0o644);
        }
        Ok(host)
    };

    let step = Step::start(format!("{} rounds in the laboratory's host", options.runs));
    let mut figures = Figures::default();
    figures.about("kernel", kernel.release());
    figures.about(
        "clock",
        "instructions of the emulated host (icount shift=1)",
    );
    for round in 0..options.runs {
        step.progress(format!("round {} of {}", round + 1, options.runs));
        if let Err(error) = self::round(&machine, &mut figures, round == 0) {
            step.failed("");
            return Err(error);
        }
    }
    step.done("");
    options.output.give(&figures)
}

/// One boot of the host, in which every case is booted in every VMM once and counted.
///
/// Before that each VMM runs once uncounted: the first start pays for what later ones find in
/// memory. A host that does not come to its end is given up, said, and tried again: nested
/// virtualization under QEMU's emulator hangs now and then.
fn round(machine: &dyn Fn() -> Result<Host>, figures: &mut Figures, first: bool) -> Result<()> {
    let warm = CASES.iter().take(1).map(|case| (case, false));
    let counted = CASES.iter().map(|case| (case, true));
    let mut plan = Vec::new();
    for (case, counts) in warm.chain(counted) {
        for contender in CONTENDERS {
            let command = (contender.command)(case.kernel, case.until == WORD);
            let line = format!(
                "meter --until '{}' --guest-kib {} --timeout 60 -- {command}",
                case.until,
                MEMORY_MIB * 1024
            );
            plan.push((counts, case, contender, line));
        }
    }
    let mut commands = vec!["qemu-system-x86_64 --version | head -1".to_owned()];
    commands.extend(plan.iter().map(|(.., line)| line.clone()));
    let mut tries = TRIES;
    let report = loop {
        tries -= 1;
        match machine()?.run(&commands) {
            Err(error) if tries > 0 => eprintln!("once more, because {error}"),
            result => break result?,
        }
    };
    report.check()?;
    let [version, reports @ ..] = report.commands.as_slice() else {
        bail!("the host ran nothing");
    };
    if first {
        figures.about("peer", version.text().trim());
    }
    for ((counts, case, contender, _), report) in plan.iter().zip(reports) {
        if *counts {
            take(figures, case, contender, &report.text())?;
        }
    }
    Ok(())
}

fn take(figures: &mut Figures, case: &Case, contender: &Contender, said: &str) -> Result<()> {
    let values = read(said).with_context(|| format!("{}: {}", contender.name, said.trim()))?;
    let mut add = |what: &str, unit, key: &str, scale: f64| -> Result<()> {
        let value = values
            .get(key)
            .with_context(|| format!("the meter did not say {key}"))?;
        let name = format!("{}: {what}", case.name);
        figures.add((&name, unit, BASE), contender.name, value / scale);
        Ok(())
    };
    add("from start", "ms", "wall_us", 1000.0)?;
    if case.until == WORD {
        add("memory besides the guest's", "MiB", "own_kib", 1024.0)
    } else {
        add("processor time", "ms", "cpu_us", 1000.0)
    }
}

/// Reads the meter's `key=value` line; whatever else was printed is passed over.
fn read(said: &str) -> Result<BTreeMap<&str, f64>> {
    let line = said.lines().rfind(|line| line.starts_with("wall_us="));
    line.context("the meter gave no figures")?
        .split_whitespace()
        .map(|word| {
            let (key, value) = word.split_once('=').context("not key=value")?;
            Ok((key, value.parse::<f64>()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meters_line_is_read() {
        let values = read("noise\nwall_us=1500 cpu_us=20 rss_kib=3 own_kib=2\n").unwrap();
        assert_eq!(values["wall_us"], 1500.0);
        assert_eq!(values["own_kib"], 2.0);
        assert!(read("meter: no\n").is_err());
        assert!(read("wall_us=x\n").is_err());
    }
}
