// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask demo`: boots Debian's kernel in the reference VMM, and verifies from both sides
//! what the guest was given.

mod guest;
mod verdict;
mod vmm;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::setup;
use crate::step::Step;
use guest::Guest;
use verdict::{After, Given, Said};

pub use vmm::build as build_vmm;
pub(crate) use vmm::static_program;

/// What `cargo xtask demo` takes.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Show the guest's console while it runs.
    #[arg(long)]
    watch: bool,
    /// Give the guest's console to this terminal, with a shell at its end, and verify nothing.
    #[arg(long, conflicts_with = "watch")]
    shell: bool,
    /// Run in the laboratory's host even where this machine's own KVM would do.
    #[arg(long)]
    lab: bool,
}

/// Where the VMM runs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// On this machine's own KVM.
    Here,
    /// In the laboratory's host, and why.
    Lab(String),
}

/// Prepares, builds, chooses the place, boots, verifies. Succeeds only if all held.
pub fn demo(options: &Options) -> Result<ExitCode> {
    let start = Instant::now();
    setup::setup()?;
    let vmm = vmm::build()?;

    let step = Step::start("guest: kernel, initramfs, disk");
    let guest = Guest::make()?;
    step.done(format!("Debian's {}", guest.kernel_release()));

    let place = vmm::place(options.lab);
    match &place {
        Place::Here => eprintln!("the VMM runs on this machine's own /dev/kvm"),
        Place::Lab(why) => eprintln!("the VMM runs in the laboratory's host: {why}"),
    }
    if options.shell {
        return vmm::interactive(&vmm, &guest, &place);
    }

    let step = Step::start("boot the guest and let it check");
    let run = vmm::run(&vmm, &guest, &place, options.watch);
    let run = match run {
        Ok(run) => run,
        Err(error) => {
            step.failed("");
            return Err(error);
        }
    };
    let said = Said::read(&run.console);
    let given = Given {
        cpus: guest::CPUS,
        memory_mib: guest::MEMORY_MIB,
        disk_sectors: guest::DISK_BYTES / 512,
        disk_digest: guest.read_digest().to_owned(),
    };
    let after = After {
        exit_code: run.exit_code,
        disk_digest: run.disk_digest,
        console_file: run.console_file,
    };
    let rows = verdict::judge(&given, &said, &after);
    let all_hold = rows.iter().all(|row| row.holds);
    if all_hold {
        step.done("");
    } else {
        step.failed("");
        eprintln!("the end of the guest's console and the VMM's messages:");
        for line in last_lines(&run.console, 40) {
            eprintln!("    | {line}");
        }
    }
    println!("{}", verdict::table(&rows));
    let clock = |key| said.one(key).unwrap_or("?");
    println!(
        "guest's own clock: init after {} s, power-off after {} s; everything took {:.1} s",
        clock("init"),
        clock("end"),
        start.elapsed().as_secs_f64()
    );
    if !all_hold {
        bail!("the guest was not given what it should have been");
    }
    Ok(ExitCode::SUCCESS)
}

fn last_lines(text: &str, count: usize) -> impl Iterator<Item = &str> {
    let all = text.lines().count();
    text.lines().skip(all.saturating_sub(count))
}
