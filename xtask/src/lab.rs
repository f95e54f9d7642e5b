// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask lab`: the laboratory by hand.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use lab_kit::bochs::{Bochs, Exit, UnknownMsrs};
use lab_kit::host::{Clock, Host};
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;
use lab_kit::models::{Model, with_iommufd};
use lab_kit::payload::build_payload;
use lab_kit::probe::probe;
use lab_kit::qtest::QtestOptions;

/// The laboratory's machines.
#[derive(Clone, Debug, Subcommand)]
pub enum LabCommand {
    /// A Linux host with KVM, VT-d and VFIO: run a command in it, or a shell.
    Host(HostArgs),
    /// Bochs, a processor with VMX: build a payload crate, or take a flat binary, and run it.
    Bochs(BochsArgs),
    /// QEMU's VT-d unit and memory without a guest: send requests, print the answers.
    Qtest {
        /// The VT-d unit's properties, as QEMU spells them.
        #[arg(long, default_value = "aw-bits=48,intremap=on")]
        iommu: String,
        /// A newer model, fetched if need be, instead of the machine's QEMU.
        #[arg(long)]
        model: Option<Model>,
        /// Requests of the qtest protocol, such as "readl 0xfed90000".
        #[arg(required = true)]
        requests: Vec<String>,
    },
    /// Fetch a newer model into the cache and test whether it can be believed.
    Fetch {
        /// Which.
        model: Model,
    },
    /// Say where Linux guests can run: "direct", or "lab:" and why not on this machine's own KVM.
    Probe,
    /// Print the path of Debian's cloud kernel, fetched if need be.
    Kernel {
        /// The decompressed ELF file instead of the bzImage.
        #[arg(long)]
        vmlinux: bool,
    },
    /// Write an initramfs with busybox for a guest.
    Initramfs(InitramfsArgs),
}

/// What `cargo xtask lab host` takes.
#[derive(Args, Clone, Debug)]
pub struct HostArgs {
    /// A file to put into the host, made executable: FROM:PATH. Repeat for more.
    #[arg(long = "file", value_name = "FROM:PATH", value_parser = pair)]
    files: Vec<(PathBuf, String)>,
    /// A program to put into the host with its shared libraries: FROM:PATH.
    #[arg(long = "program", value_name = "FROM:PATH", value_parser = pair)]
    programs: Vec<(PathBuf, String)>,
    /// Debian's kernel as /boot/bzImage and /boot/vmlinux, and a guest's initramfs that says
    /// hello and powers off as /boot/initramfs.
    #[arg(long)]
    guest: bool,
    /// A module to insert besides those for KVM and VFIO.
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// One more argument for QEMU, such as --qemu=-device --qemu=edu.
    #[arg(long = "qemu", value_name = "ARG", allow_hyphen_values = true)]
    qemu: Vec<String>,
    /// Memory in MiB.
    #[arg(long, default_value_t = 2048)]
    memory: u64,
    /// Number of CPUs.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Let time pass by instructions executed, for figures that repeat.
    #[arg(long)]
    icount: bool,
    /// Seconds the whole run may take.
    #[arg(long, default_value_t = 120)]
    time_out: u64,
    /// Where to put the files that the command leaves in /out.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Show the host kernel's console at the end.
    #[arg(long)]
    console: bool,
    /// A newer kernel, with iommufd and VFIO's character devices, on QEMU 11: both fetched if need be.
    #[arg(long)]
    iommufd: bool,
    /// A shell on this terminal instead of a command.
    #[arg(long, conflicts_with = "command")]
    shell: bool,
    /// A folder to put into the host with all that is in it: FROM:PATH.
    #[arg(long = "tree", value_name = "FROM:PATH", value_parser = pair)]
    trees: Vec<(PathBuf, String)>,
    /// The command and its arguments.
    #[arg(last = true, required_unless_present = "shell")]
    command: Vec<String>,
}

/// What `cargo xtask lab bochs` takes.
#[derive(Args, Clone, Debug)]
pub struct BochsArgs {
    /// A payload crate's folder, such as lab/payloads/hello, or a flat binary.
    payload: PathBuf,
    /// A newer model, fetched if need be, instead of the machine's Bochs.
    #[arg(long)]
    model: Option<Model>,
    /// The processor model, by Bochs's name.
    #[arg(long)]
    cpu: Option<String>,
    /// A file to place into memory before the start: FILE@ADDRESS, such as input@0x1000000.
    #[arg(long = "image", value_name = "FILE@ADDRESS", value_parser = placed)]
    images: Vec<(PathBuf, u64)>,
    /// Memory in MiB.
    #[arg(long, default_value_t = 256)]
    memory: u64,
    /// Seconds the run may take.
    #[arg(long, default_value_t = 60)]
    time_out: u64,
    /// Unknown MSRs read as 0, as Linux needs it, instead of raising #GP.
    #[arg(long)]
    ignore_unknown_msrs: bool,
    /// Show Bochs's log at the end.
    #[arg(long)]
    log: bool,
}

/// What `cargo xtask lab initramfs` takes.
#[derive(Args, Clone, Debug)]
pub struct InitramfsArgs {
    /// The file to write.
    #[arg(long, short)]
    output: PathBuf,
    /// The init script; without it, one that says hello and powers off.
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// A module for it, listed with what it needs in /lab/modules/order. Repeat for more.
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// A file to put into it, made executable: FROM:PATH.
    #[arg(long = "file", value_name = "FROM:PATH", value_parser = pair)]
    files: Vec<(PathBuf, String)>,
}

/// The init of a guest that only shows that it was reached.
const HELLO_INIT: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
echo \"hello from the guest: $(nproc) CPUs, $(grep MemTotal /proc/meminfo)\" > /dev/console
poweroff -f
";

fn pair(text: &str) -> Result<(PathBuf, String), String> {
    match text.rsplit_once(':') {
        Some((from, path)) if path.starts_with('/') => Ok((from.into(), path.to_owned())),
        _ => Err(format!(
            "{text}: give FROM:PATH, PATH starting with a slash"
        )),
    }
}

fn placed(text: &str) -> Result<(PathBuf, u64), String> {
    text.rsplit_once('@')
        .and_then(|(file, address)| {
            let digits = address.strip_prefix("0x")?;
            Some((file.into(), u64::from_str_radix(digits, 16).ok()?))
        })
        .ok_or_else(|| format!("{text}: give FILE@0xADDRESS"))
}

/// Runs one command of the laboratory.
pub fn run(command: LabCommand) -> Result<ExitCode> {
    match command {
        LabCommand::Host(args) => host(args),
        LabCommand::Bochs(args) => bochs(args),
        LabCommand::Qtest {
            iommu,
            model,
            requests,
        } => {
            let mut options = QtestOptions::new().iommu(&iommu);
            if let Some(model) = model {
                options = options.qemu(model.fetch()?.program());
            }
            let mut machine = options.start()?;
            for request in requests {
                println!("{}", machine.raw(&request)?);
            }
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Fetch { model } => {
            let fetched = model.fetch()?;
            println!("{}\n{}", fetched.version(), fetched.program().display());
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Probe => {
            println!("{}", probe());
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Kernel { vmlinux } => {
            let kernel = Kernel::fetch()?;
            let path = if vmlinux {
                kernel.vmlinux()?
            } else {
                kernel.bzimage()
            };
            println!("{}", path.display());
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Initramfs(args) => {
            let mut made = hello_initramfs()?;
            let modules: Vec<&str> = args.modules.iter().map(String::as_str).collect();
            made.modules(&Kernel::fetch()?, &modules)?;
            if let Some(init) = &args.init {
                made.copy(init, "/init", 0o755)?;
            }
            for (from, path) in &args.files {
                made.copy(from, path, 0o755)?;
            }
            made.write(&args.output)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn bochs(args: BochsArgs) -> Result<ExitCode> {
    let payload = if args.payload.is_dir() {
        build_payload(&args.payload)?
    } else {
        args.payload
    };
    let mut bochs = Bochs::new()
        .memory_mib(args.memory)
        .time_out(Duration::from_secs(args.time_out));
    if let Some(model) = args.model {
        let model = model.fetch()?;
        bochs = bochs.program(model.program(), model.bochs_share());
    }
    if args.ignore_unknown_msrs {
        bochs = bochs.unknown_msrs(UnknownMsrs::Zero);
    }
    if let Some(cpu) = &args.cpu {
        bochs = bochs.cpu(cpu);
    }
    for (file, address) in args.images {
        let bytes =
            std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        bochs = bochs.image(bytes, address);
    }
    let report = bochs.watch(show).run(&payload)?;
    if args.log {
        eprintln!("--- log\n{}", report.log);
    }
    eprintln!(
        "--- {:?} after {:.1} s; {}",
        report.exit,
        report.total.as_secs_f64(),
        report.version().unwrap_or("Bochs of unknown version")
    );
    Ok(match report.exit {
        Exit::Shutdown => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Passes on what a machine prints.
fn show(bytes: &[u8]) {
    let mut out = std::io::stdout();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

fn hello_initramfs() -> Result<Initramfs> {
    let mut made = Initramfs::with_busybox()?;
    made.file("/init", 0o755, HELLO_INIT);
    Ok(made)
}

fn host(args: HostArgs) -> Result<ExitCode> {
    let mut host = Host::new()
        .memory_mib(args.memory)
        .cpus(args.cpus)
        .qemu_args(args.qemu)
        .time_out(Duration::from_secs(args.time_out));
    if args.icount {
        host = host.clock(Clock::Instructions);
    }
    if args.iommufd {
        let qemu = Model::Qemu11.fetch()?;
        host = host.kernel(with_iommufd()?).qemu(qemu.program());
    }
    for (from, path) in &args.files {
        host = host.file(from, path, 0o755);
    }
    for (from, path) in &args.programs {
        host = host.program(from, path);
    }
    for (from, path) in &args.trees {
        host = host.tree(from, path);
    }
    for name in &args.modules {
        host = host.module(name);
    }
    if args.guest {
        let kernel = Kernel::fetch()?;
        host = host
            .file(kernel.bzimage(), "/boot/bzImage", 0o644)
            .file(kernel.vmlinux()?, "/boot/vmlinux", 0o644)
            .data(hello_initramfs()?.build()?, "/boot/initramfs", 0o644);
    }
    if args.shell {
        return host.shell();
    }
    let command: Vec<String> = args.command.iter().map(|word| quoted(word)).collect();
    let report = host.watch(show).run(&[command.join(" ")])?;
    if args.console {
        eprintln!("--- the host's console\n{}", report.console);
    }
    if let Some(folder) = args.out {
        for (name, data) in &report.files {
            let path = folder.join(name);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&path, data)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let status = report.commands.first().map_or(-1, |c| c.status);
    eprintln!(
        "--- status {status}; first command after {:.1} s, all {:.1} s",
        report.until_first_command.as_secs_f64(),
        report.total.as_secs_f64()
    );
    Ok(u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// A word as the shell must read it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }

    #[test]
    fn a_file_names_its_place_in_the_host() {
        assert_eq!(pair("a/b:/c"), Ok(("a/b".into(), "/c".to_owned())));
        assert!(pair("a/b").is_err());
        assert!(pair("a:b").is_err());
    }

    #[test]
    fn an_image_names_its_address() {
        assert_eq!(placed("a@b@0x10"), Ok(("a@b".into(), 0x10)));
        assert!(placed("a@16").is_err());
        assert!(placed("a").is_err());
    }
}
