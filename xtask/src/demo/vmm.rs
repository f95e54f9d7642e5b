// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reference VMM: built so that it runs anywhere, and run where there is a KVM for it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Place;
use super::guest::{Guest, WRITTEN_MIB, arguments};
use crate::cargo::cargo;
use lab_kit::host::Host;
use lab_kit::paths;
use lab_kit::probe::{Choice, probe};
use lab_kit::process::{Deadline, Tethered, tether};

use crate::step;

/// The one target that a static program is built for here.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// How long the guest may take, on an emulated host on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is known after a run.
#[derive(Debug)]
pub(super) struct Run {
    /// Everything on the guest's console, and the VMM's messages.
    pub(super) console: String,
    /// How the VMM ended; none if by a signal.
    pub(super) exit_code: Option<i32>,
    /// SHA-256 of what the guest wrote, taken outside of it.
    pub(super) disk_digest: String,
    /// What the guest wrote to its paravirtual console.
    pub(super) console_file: String,
}

/// Builds `vmm` as a static program, which the laboratory's host can run too.
pub fn build() -> Result<PathBuf> {
    static_program("hvkit-vmm", "vmm")
}

/// Builds a workspace program so that it needs no libraries.
pub(crate) fn static_program(package: &str, bin: &str) -> Result<PathBuf> {
    let folder = paths::target().join("static");
    step::run(
        &format!("build {bin}"),
        cargo(&["build", "--release", "--package", package, "--bin", bin])
            .args(["--target", TARGET, "--target-dir"])
            .arg(&folder)
            .env("RUSTFLAGS", "-Ctarget-feature=+crt-static"),
    )?;
    Ok(folder.join(TARGET).join("release").join(bin))
}

/// Where the VMM can run.
pub(super) fn place(lab_wanted: bool) -> Place {
    if lab_wanted {
        return Place::Lab("asked for with --lab".to_owned());
    }
    match probe() {
        Choice::Direct => Place::Here,
        Choice::Lab(why) => Place::Lab(why.to_string()),
    }
}

/// Boots the guest to its end.
pub(super) fn run(vmm: &Path, guest: &Guest, place: &Place, watch: bool) -> Result<Run> {
    match place {
        Place::Here => here(vmm, guest, watch),
        Place::Lab(_) => in_lab(vmm, guest, watch),
    }
}

fn here(vmm: &Path, guest: &Guest, watch: bool) -> Result<Run> {
    let mut command = tether(vmm);
    command
        .args(arguments(
            &guest.kernel(),
            &guest.initramfs(),
            &guest.disk(),
            &guest.console(),
            "",
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let deadline = Deadline::after(PATIENCE);
    let mut child = Tethered::spawn(command)?;
    let mut out = child.stdout().context("the VMM's output is not piped")?;
    let (send, pieces) = mpsc::channel();
    // A pipe's read has no time-out, so a thread waits for it.
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = out.read(&mut buffer) {
            if send.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut console = Vec::new();
    loop {
        let left = deadline.left().unwrap_or_default();
        match pieces.recv_timeout(left) {
            Ok(piece) => {
                if watch {
                    show(&piece);
                }
                console.extend(piece);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => bail!(
                "the guest did not end within {} s; its console:\n{}",
                PATIENCE.as_secs(),
                String::from_utf8_lossy(&console)
            ),
        }
    }
    let status = child
        .wait(Duration::from_secs(5))
        .context("the VMM closed its output but did not end")?;
    Ok(Run {
        console: String::from_utf8_lossy(&console).into_owned(),
        exit_code: status.code(),
        disk_digest: guest.written_digest()?,
        console_file: std::fs::read_to_string(guest.console())
            .context("cannot read the guest's console file")?,
    })
}

fn in_lab(vmm: &Path, guest: &Guest, watch: bool) -> Result<Run> {
    let boot = format!("vmm {}", quoted_arguments(""));
    let (skip, count) = WRITTEN_MIB;
    let digest =
        format!("dd if=/guest/disk bs=1M skip={skip} count={count} 2>/dev/null | sha256sum");
    let report = lab_host(vmm, guest)
        .time_out(PATIENCE)
        .watch(move |piece| {
            if watch {
                show(piece);
            }
        })
        .run(&[boot, digest, "cat /guest/console".to_owned()])?;
    let [boot, digest, console] = report.commands.as_slice() else {
        bail!("the host ran {} of three commands", report.commands.len());
    };
    Ok(Run {
        console: boot.text(),
        // The shell says 128 and the signal's number for a program that a signal ended.
        exit_code: Some(boot.status).filter(|status| *status < 128),
        disk_digest: digest
            .text()
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned(),
        console_file: console.text(),
    })
}

/// Gives the guest's console to this terminal.
pub(super) fn interactive(vmm: &Path, guest: &Guest, place: &Place) -> Result<ExitCode> {
    const SHELL: &str = "hvkit.shell";
    match place {
        Place::Here => {
            eprintln!("Ctrl-A x ends the VMM");
            let status = Command::new(vmm)
                .args(arguments(
                    &guest.kernel(),
                    &guest.initramfs(),
                    &guest.disk(),
                    &guest.console(),
                    SHELL,
                ))
                .status()
                .with_context(|| format!("cannot start {}", vmm.display()))?;
            Ok(match status.code().and_then(|c| u8::try_from(c).ok()) {
                Some(code) => ExitCode::from(code),
                None => ExitCode::FAILURE,
            })
        }
        Place::Lab(_) => {
            eprintln!("Ctrl-A x ends the host, Ctrl-A Ctrl-A x the VMM in it");
            lab_host(vmm, guest).on_terminal(&format!("vmm {}", quoted_arguments(SHELL)))
        }
    }
}

/// The laboratory's host with the VMM and the guest in it.
fn lab_host(vmm: &Path, guest: &Guest) -> Host {
    Host::new()
        .file(vmm, "/bin/vmm", 0o755)
        .file(guest.kernel(), "/guest/kernel", 0o644)
        .file(guest.initramfs(), "/guest/initramfs", 0o644)
        .file(guest.disk(), "/guest/disk", 0o644)
}

/// The VMM's arguments in the host, as a shell reads them.
fn quoted_arguments(more: &str) -> String {
    let at = |name: &str| PathBuf::from(format!("/guest/{name}"));
    let files = ["kernel", "initramfs", "disk", "console"].map(at);
    let [kernel, initramfs, disk, console] = &files;
    arguments(kernel, initramfs, disk, console, more)
        .iter()
        .map(|word| format!("'{word}'"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn show(piece: &[u8]) {
    let mut out = std::io::stdout();
    // Whoever watches may go away; the run does not depend on it.
    let _ = out.write_all(piece).and_then(|()| out.flush());
}
