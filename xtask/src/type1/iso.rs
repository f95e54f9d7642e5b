// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask type1 iso`: an image for a CD or a USB stick, with GRUB, the hypervisor, and Debian's kernel with its work. Tried in Bochs from the
//! image as a disk, and in QEMU's emulator, which has no VMX, up to where the hypervisor says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{linux, said, tour};
use crate::setup;
use lab_kit::bochs::{Bochs, Exit};
use lab_kit::kernel::Kernel;
use lab_kit::paths;
use lab_kit::payload::build_payload;
use lab_kit::process::{Deadline, Tethered, tether};

/// Where the image goes unless said otherwise, below the target folder.
pub(super) const NAME: &str = "hvkit-type1.iso";
/// What GRUB offers, in its order: what its line says, and the entry's name.
const ENTRIES: [(&str, &str); 6] = [
    ("tour", "The tour"),
    ("reach", "Guests that reach for the hypervisor"),
    ("fault", "A fault of the hypervisor's own"),
    ("ept", "Debian's kernel under EPT"),
    ("shadow", "Debian's kernel on shadow page tables"),
    ("none", "Debian's kernel alone"),
];
/// How long GRUB waits for a choice, in seconds.
const CHOICE: u32 = 5;
/// The kernel's words on a machine whose clock is what it says.
const COMMAND_LINE: &str = "console=tty0 console=ttyS0,115200 panic=-1 nokaslr rounds=4";
const PATIENCE: Duration = Duration::from_secs(900);
/// Few, or the tour's words take the time: see the tour without an image.
const INSTRUCTIONS_PER_SECOND: u64 = 4_000_000;
const QEMU: &str = "qemu-system-x86_64";
/// What the hypervisor says where there is no VMX.
const NO_VMX: &str = "type1: no VMX";
const POLL: Duration = Duration::from_millis(100);

/// What GRUB reads; `choice` is an entry of [`ENTRIES`] by its line.
fn menu(choice: &str) -> String {
    let at = ENTRIES.iter().position(|(what, _)| *what == choice);
    let mut text = format!("set timeout={CHOICE}\nset default={}\n", at.unwrap_or(0));
    for (what, name) in ENTRIES {
        text += &format!("menuentry \"{name}\" {{\n  multiboot /type1 {what}\n");
        if ["ept", "shadow", "none"].contains(&what) {
            let alone = u8::from(what == "none");
            text +=
                &format!("  module /kernel {COMMAND_LINE} alone={alone}\n  module /initramfs\n");
        }
        text += "}\n";
    }
    text
}

/// Makes the image, with this entry as the one that GRUB takes by itself.
fn make(to: &Path, choice: &str) -> Result<String> {
    setup::for_images()?;
    let kernel = Kernel::fetch()?;
    let payload = build_payload(&paths::root().join("examples/type1"))?;
    let tree = tempfile::tempdir()?;
    let grub = tree.path().join("boot/grub");
    fs::create_dir_all(&grub)?;
    fs::write(grub.join("grub.cfg"), menu(choice))?;
    fs::copy(payload, tree.path().join("type1"))?;
    fs::copy(kernel.bzimage(), tree.path().join("kernel"))?;
    fs::write(tree.path().join("initramfs"), linux::initramfs(&kernel)?)?;
    let output = Command::new("grub-mkrescue")
        .arg("-o")
        .args([to, tree.path()])
        .output()
        .context("cannot start grub-mkrescue (Debian package grub-common)")?;
    ensure!(
        output.status.success(),
        "grub-mkrescue: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mib = fs::metadata(to)?.len() >> 20;
    Ok(format!("{}, {mib} MiB", to.display()))
}

/// Makes the image, and tries it.
pub(super) fn run(to: Option<&Path>, verbose: bool) -> Result<()> {
    let to = to.map_or_else(|| paths::target().join(NAME), PathBuf::from);
    said("type1: the image", || make(&to, "tour"))?;
    said("type1: the tour, from the image", || {
        let text = in_bochs(&to, verbose)?;
        let seen = tour::verify(&text).with_context(|| format!("it printed:\n{text}"))?;
        Ok(format!(
            "{} exits, {} failures explained",
            seen.exits, seen.failures
        ))
    })?;
    said("type1: the image where there is no VMX", || in_qemu(&to))
}

/// Boots the image as a disk.
fn in_bochs(image: &Path, verbose: bool) -> Result<String> {
    let bochs = Bochs::new()
        .instructions_per_second(INSTRUCTIONS_PER_SECOND)
        .time_out(PATIENCE);
    let bochs = if verbose {
        bochs.watch(|bytes| print!("{}", String::from_utf8_lossy(bytes)))
    } else {
        bochs
    };
    let report = bochs.run_disk(image)?;
    ensure!(report.exit == Exit::Shutdown, "{report}");
    Ok(report.text())
}

/// Boots the image as a CD on an emulated processor without VMX.
fn in_qemu(image: &Path) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let serial = folder.path().join("serial");
    let mut qemu = tether(QEMU);
    qemu.args([
        "-accel",
        "tcg",
        "-m",
        "512",
        "-display",
        "none",
        "-no-reboot",
    ])
    .args(["-monitor", "none", "-cdrom"])
    .arg(image)
    .arg("-serial")
    .arg(format!("file:{}", serial.display()))
    .stdin(Stdio::null());
    let mut qemu = Tethered::spawn(qemu)?;
    let deadline = Deadline::after(PATIENCE);
    let text = loop {
        let ended = qemu.wait(POLL).is_some();
        let text = fs::read(&serial).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let said = text
            .lines()
            .any(|line| line.starts_with(NO_VMX) && text.ends_with('\n'));
        if said || ended || deadline.left().is_none() {
            break text;
        }
    };
    qemu.kill();
    let line = text.lines().find(|line| line.starts_with(NO_VMX));
    let line = line.with_context(|| format!("no \"{NO_VMX}\" in what it printed:\n{text}"))?;
    Ok(format!("\"{}\"", line.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_menu_has_modules_where_a_kernel_is_booted() {
        let text = menu("reach");
        assert!(text.contains("set default=1\n"), "{text}");
        assert_eq!(text.matches("multiboot /type1 ").count(), ENTRIES.len());
        assert_eq!(text.matches("module /kernel console=tty0").count(), 3);
        let (_, ept) = text.split_once("multiboot /type1 ept\n").unwrap();
        assert!(ept.starts_with("  module /kernel "), "{ept}");
        assert!(text.contains("alone=1\n  module /initramfs\n"), "{text}");
    }
}
