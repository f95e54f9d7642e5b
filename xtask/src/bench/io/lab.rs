// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The laboratory's host with all that the machines need, and one machine run in it.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::machine::{self, Machine};
use super::module;
use super::report::{self, Report};
use crate::bench::FIRMWARE;
use crate::demo;
use lab_kit::host::{Clock, Host};
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;
use lab_kit::models::{Fetched, Model};

/// How long one host may take on this machine's clock, and how often it is tried. A machine that others use gives an emulated
/// host a fraction of what an idle one does.
/// One that hangs does so for ever, so it is better tried again than waited for.
const PATIENCE: Duration = Duration::from_secs(300);
const TRIES: u32 = 5;
/// How long a VMM may take on the host's clock, in seconds.
const LIMIT: u32 = 300;
/// The guest's modules.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_net"];

/// What becomes of a machine's output while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Talk {
    /// It is read at the end.
    Kept,
    /// It also goes to standard error as it comes.
    Shown,
}

/// Everything that goes into the host.
pub(super) struct Lab {
    talk: Talk,
    vmm: PathBuf,
    meter: PathBuf,
    load: PathBuf,
    vmlinux: PathBuf,
    initramfs: Vec<u8>,
    kernel: Kernel,
    /// Emulates the host: QEMU 7.2 errs now and then where guests are nested.
    emulator: Fetched,
    /// QEMU of a later Debian, for machines that are of it.
    newer: Option<Fetched>,
}

impl Lab {
    /// Builds and fetches.
    pub(super) fn prepare(talk: Talk) -> Result<Self> {
        Self::with(talk, &[], None)
    }

    /// The same, with `modules` built for the guest's kernel from folders of the tree, to be inserted by name when they are wanted, and `newer` for
    /// machines that are of it.
    pub(super) fn with(talk: Talk, modules: &[&str], newer: Option<Fetched>) -> Result<Self> {
        let load = demo::static_program("hvkit-lab-io-load", "io-load")?;
        let kernel = Kernel::fetch()?;
        let mut initramfs = Initramfs::with_busybox()?;
        initramfs
            .file("/init", 0o755, include_str!("guest.sh"))
            .copy(&load, "/bin/io-load", 0o755)?
            .modules(&kernel, MODULES)?;
        for folder in modules {
            let module = module::build(&kernel, folder)?;
            let name = module.file_name().context("a module without a name")?;
            let path = format!("/{}", name.to_string_lossy());
            initramfs.copy(&module, &path, 0o644)?;
        }
        Ok(Self {
            talk,
            vmm: demo::build_vmm()?,
            meter: demo::static_program("hvkit-lab-meter", "meter")?,
            load,
            vmlinux: kernel.vmlinux()?,
            initramfs: initramfs.build()?,
            kernel,
            emulator: Model::Qemu11.fetch()?,
            newer,
        })
    }

    /// What was measured with, in sentences.
    pub(super) fn about(&self, command: &str) -> Vec<String> {
        vec![
            format!("Written by `cargo xtask bench {command}`."),
            format!(
                "Debian's kernel {}, in guest and host; one processor for both, so that a rate is the inverse of all work for a \
                 request, the guest's included.",
                self.kernel.release()
            ),
            format!(
                "Time is virtual: the host that {} emulates counts its instructions, two nanoseconds each (icount shift=1).",
                self.emulator.version()
            ),
            "Each machine has a boot of the host of its own; an eighth of the work is done before the count begins.".to_owned(),
        ]
    }

    fn host(&self) -> Host {
        let mut host = Host::new()
            .memory_mib(3072)
            .qemu(self.emulator.program())
            .clock(Clock::Instructions)
            .time_out(PATIENCE)
            .module("tun")
            .qemu_args([
                "-blockdev",
                "driver=null-co,node-name=disk,size=67108864,read-zeroes=on",
                "-device",
                "nvme,serial=hvkit,drive=disk,addr=5",
            ])
            .file(&self.vmm, "/bin/vmm", 0o755)
            .file(&self.meter, "/bin/meter", 0o755)
            .file(&self.load, "/bin/io-load", 0o755)
            .program("/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-system-x86_64")
            .file(&self.vmlinux, "/guest/vmlinux", 0o644)
            .data(self.initramfs.clone(), "/guest/initramfs", 0o644)
            .data(include_str!("host.sh"), "/host.sh", 0o644);
        if self.talk == Talk::Shown {
            // Nobody may be there to read it, which is no reason to give up figures.
            host = host.watch(|piece| drop(std::io::stderr().write_all(piece)));
        }
        if let Some(newer) = &self.newer {
            host = host.tree(newer.folder(), machine::NEWER);
        }
        for file in FIRMWARE {
            let name = file.rsplit('/').next().unwrap_or(file);
            host = host.file(file, &format!("/usr/share/qemu/{name}"), 0o644);
        }
        host
    }

    /// Runs a machine in a host of its own, with as many requests or pairs of each job. What does not come to its end is given up, said, and tried again:
    /// hosts and guests under QEMU's nested virtualization hang and crash now and then, ours and QEMU's.
    pub(super) fn run(&self, machine: &Machine, requests: u32) -> Result<Report> {
        let chunks = requests / 2;
        let words = format!("requests={requests} pairs={requests} chunks={chunks}");
        let command = format!(
            ". /host.sh; {}; meter --marks {} --timeout {LIMIT} -- {}",
            machine.before,
            machine.meter,
            machine.command(&words)
        );
        let mut tries = TRIES;
        loop {
            tries -= 1;
            match self.once(machine, &command) {
                Err(error) if tries > 0 => {
                    // A host's last words are long: the first of them say what it was.
                    let error = format!("{error:#}");
                    let first = error.lines().take(3).collect::<Vec<_>>().join(" | ");
                    eprintln!("once more, because {first}");
                }
                result => return result,
            }
        }
    }

    fn once(&self, machine: &Machine, command: &str) -> Result<Report> {
        let said = self.host().run(&[command])?;
        let text = said
            .commands
            .first()
            .context("the host ran nothing")?
            .text();
        report::read(&text, &machine.jobs())
            .with_context(|| format!("{}:\n{}", machine.name, text.trim_end()))
    }
}
