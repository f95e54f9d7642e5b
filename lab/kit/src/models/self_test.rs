// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a model can be believed: `lab/payloads/selftest` on it, and a VT-d unit's tables.
//!
//! Arithmetic is compared with what this machine's own processor makes of the same source; paging and, where the model has
//! VMX, VM entries with the SDM's words, by the payload itself.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use thiserror::Error;

use crate::bochs::{self, Bochs, Exit, boot_sector};
use crate::paths;
use crate::payload::build_payload;
use crate::process::{Deadline, Tethered, tether};
use crate::qtest::{Batch, Edu, QtestOptions, VTD};

#[expect(unsafe_code, reason = "instructions whose results are compared")]
#[expect(unreachable_pub, reason = "the payload's own file, shared with it")]
#[path = "../../../../lab/payloads/selftest/src/arithmetic.rs"]
mod arithmetic;

use arithmetic::Digest;

/// Where the payload expects its input.
const INPUT: u64 = 0x100_0000;
const SEED: u64 = 0x6877_6b69_745f_6c61;
const ROUNDS: u32 = 20_000;
/// To be raised with every check that is added: what passed an older test must pass the new one.
pub(super) const REVISION: u32 = 2;
/// How long a model may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a model differs from a processor.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Wrong {
    /// It computes something else than this machine's processor.
    #[error("its {kind} arithmetic gives {seen}, a processor {expected}")]
    Arithmetic {
        /// Which kind.
        kind: &'static str,
        /// The model's.
        seen: String,
        /// This machine's.
        expected: String,
    },
    /// It pages, or enters a guest, otherwise than the manual says.
    #[error("it is not the manual's: {0}")]
    Manual(String),
    /// It has no VMX, where the laboratory wants it.
    #[error("it has no VMX")]
    NoVmx,
    /// The payload did not get to its end.
    #[error("the self-test did not end: {0}")]
    Unfinished(String),
    /// The VT-d unit translates, or faults, otherwise than its tables say.
    #[error("its VT-d unit: {what} is {seen:#x} where {expected:#x} should be")]
    Vtd {
        /// What was looked at.
        what: &'static str,
        /// What was seen.
        seen: u64,
        /// What should have been.
        expected: u64,
    },
}

/// Where QEMU's emulator is known to differ, version after version. SDM 3A, "Page-Fault
/// Exceptions": a reserved bit is only looked at in a present entry, so P is set with RSVD.
const QEMU_KNOWN: &[&str] = &["a reserved bit: 0x8 where 0x9 should be"];

/// Judges what the payload printed, apart from deviations that are `known`.
fn judge(text: &str, expected: &Digest, known: &[&str]) -> Result<(), Wrong> {
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .ok_or_else(|| Wrong::Unfinished(text.to_owned()))
    };
    for (kind, expected) in [
        ("integer", expected.integer),
        ("flags", expected.flags),
        ("sse", expected.sse),
        ("x87", expected.x87),
    ] {
        let (seen, expected) = (value(kind)?, format!("{expected:#x}"));
        if seen != expected {
            return Err(Wrong::Arithmetic {
                kind,
                seen: seen.to_owned(),
                expected,
            });
        }
    }
    let mut wrongs = text.lines().filter_map(|line| line.strip_prefix("wrong: "));
    if let Some(wrong) = wrongs.find(|wrong| !known.contains(wrong)) {
        return Err(Wrong::Manual(wrong.to_owned()));
    }
    if !text.lines().any(|line| line == "done") {
        return Err(Wrong::Unfinished(text.to_owned()));
    }
    Ok(())
}

fn input() -> Vec<u8> {
    [&SEED.to_le_bytes()[..], &ROUNDS.to_le_bytes()].concat()
}

fn payload() -> Result<Vec<u8>> {
    let flat = build_payload(&paths::root().join("lab/payloads/selftest"))?;
    Ok(fs::read(flat)?)
}

/// Tests a Bochs, VM entries among the rest; returns its version. Fails with [`Wrong`] if it cannot be believed.
pub fn bochs(bochs: Bochs) -> Result<String> {
    let report = bochs
        .image(input(), INPUT)
        .time_out(PATIENCE)
        .run_bytes(&payload()?)?;
    if report.exit != Exit::Shutdown {
        bail!(Wrong::Unfinished(report.to_string()));
    }
    let text = report.text();
    judge(&text, &arithmetic::digest(SEED, ROUNDS), &[])?;
    ensure!(text.lines().any(|line| line == "entered"), Wrong::NoVmx);
    let version = report.version().context("this Bochs has no version")?;
    Ok(version.to_owned())
}

/// Tests a QEMU, its emulator and its VT-d unit; returns its version.
///
/// Fails with [`Wrong`] if it cannot be believed.
pub fn qemu(program: &Path) -> Result<String> {
    let text = payload_in_qemu(program)?;
    judge(&text, &arithmetic::digest(SEED, ROUNDS), QEMU_KNOWN)?;
    vtd(&QtestOptions::new().qemu(program))?;
    let output = std::process::Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next().context("this QEMU has no version")?;
    Ok(line.to_owned())
}

/// What the payload prints in QEMU's emulator.
fn payload_in_qemu(program: &Path) -> Result<String> {
    let deadline = Deadline::after(PATIENCE);
    let folder = tempfile::Builder::new().prefix("hvkit-model").tempdir()?;
    let file = |name: &str| folder.path().join(name);
    let mut disk = boot_sector::boot_sector(bochs::ENTRY, &[]).to_vec();
    disk.resize(1 << 20, 0);
    fs::write(file("disk"), disk)?;
    fs::write(file("payload"), payload()?)?;
    fs::write(file("input"), input())?;
    let mut qemu = tether(program);
    qemu.args(["-accel", "tcg", "-M", "pc", "-m", "256", "-cpu", "max"])
        .args(["-nodefaults", "-display", "none", "-serial", "file:serial"])
        .args(["-drive", "file=disk,format=raw"]);
    for (name, address) in [("payload", u64::from(bochs::ENTRY)), ("input", INPUT)] {
        qemu.args([
            "-device",
            &format!("loader,file={name},addr={address:#x},force-raw=on"),
        ]);
    }
    qemu.current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(file("stderr"))?);
    let mut qemu = Tethered::spawn(qemu)?;
    loop {
        let ended = qemu.wait(Duration::from_millis(20)).is_some();
        let text = fs::read_to_string(file("serial")).unwrap_or_default();
        if text.ends_with("done\n") {
            return Ok(text);
        }
        if ended || deadline.left().is_none() {
            let stderr = fs::read_to_string(file("stderr")).unwrap_or_default();
            bail!(Wrong::Unfinished(format!("{text}{stderr}")));
        }
    }
}

/// A DMA through tables written by hand, and one that must fault.
fn vtd(options: &QtestOptions) -> Result<()> {
    let [root, context, levels] = [0x10_0000, 0x10_1000, 0x10_2000u64];
    let page = 0x20_0000;
    let word = 0x1122_3344_5566_7788;
    let mut machine = options.start()?;
    let edu = Edu::find(&mut machine)?;
    let mut batch = Batch::new();
    let entry = context + u64::from(edu.address().requester_id() & 0xff) * 16;
    batch.writeq(root, context | 1);
    batch.writeq(entry, levels | 1);
    batch.writeq(entry + 8, 1 << 8 | 2);
    for level in 0..3 {
        batch.writeq(levels + level * 0x1000, levels + (level + 1) * 0x1000 + 3);
    }
    batch.writeq(levels + 0x3000 + 5 * 8, page | 3);
    batch.writeq(page, word);
    let capability = batch.readq(VTD + 0x08);
    let extended = batch.readq(VTD + 0x10);
    let answers = machine.run(&batch)?;
    let fault_record = VTD + (answers.value(capability) >> 24 & 0x3ff) * 16;
    let iotlb_command = VTD + (answers.value(extended) >> 8 & 0x3ff) * 16 + 8;
    let mut batch = Batch::new();
    batch.writeq(VTD + 0x20, root);
    batch.writel(VTD + 0x18, 1 << 30);
    batch.writeq(VTD + 0x28, 1 << 63 | 1 << 61);
    batch.writeq(iotlb_command, 1 << 63 | 1 << 60);
    batch.writel(VTD + 0x18, 1 << 31);
    machine.run(&batch)?;
    edu.read_memory(&mut machine, 0x5000, 0, 8)?;
    edu.write_memory(&mut machine, 0x5100, 0, 8)?;
    let moved = machine.readq(page + 0x100)?;
    edu.read_memory(&mut machine, 0x9000, 0, 8)?;
    let address = machine.readq(fault_record)?;
    // Reason and source.
    let reason = machine.readq(fault_record + 8)? & 0xff_0000_ffff;
    let source = u64::from(edu.address().requester_id());
    for (what, seen, expected) in [
        ("the word moved through the tables", moved, word),
        ("the address that faults", address, 0x9000),
        ("reason and source of the fault", reason, 6 << 32 | source),
    ] {
        ensure!(
            seen == expected,
            Wrong::Vtd {
                what,
                seen,
                expected
            }
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: Digest = Digest {
        integer: 1,
        flags: 2,
        sse: 3,
        x87: 4,
    };
    const GOOD: &str = "integer=0x1\nflags=0x2\nsse=0x3\nx87=0x4\ndone\n";

    #[test]
    fn a_model_is_believed_only_if_all_agrees() {
        assert_eq!(judge(GOOD, &EXPECTED, &[]), Ok(()));
        let wrong = judge(&GOOD.replace("0x3", "0x5"), &EXPECTED, &[]).unwrap_err();
        assert!(
            matches!(wrong, Wrong::Arithmetic { kind: "sse", .. }),
            "{wrong}"
        );
        for cut in ["done\n", "x87=0x4\n"] {
            let wrong = judge(&GOOD.replace(cut, ""), &EXPECTED, &[]);
            assert!(matches!(wrong, Err(Wrong::Unfinished(_))), "without {cut}");
        }
    }

    #[test]
    fn only_the_very_deviation_that_is_known_is_passed_over() {
        let known = "a reserved bit: 0x8 where 0x9 should be";
        let other = "a reserved bit: 0x0 where 0x9 should be";
        let [one, two] = [known, other].map(|w| GOOD.replace("done", &format!("wrong: {w}\ndone")));
        assert_eq!(judge(&one, &EXPECTED, QEMU_KNOWN), Ok(()));
        assert_eq!(
            judge(&one, &EXPECTED, &[]),
            Err(Wrong::Manual(known.to_owned()))
        );
        assert_eq!(
            judge(&two, &EXPECTED, QEMU_KNOWN),
            Err(Wrong::Manual(other.to_owned()))
        );
    }

    #[test]
    fn the_digest_depends_on_the_seed() {
        let (a, b) = (arithmetic::digest(1, 50), arithmetic::digest(3, 50));
        assert!(a.integer != b.integer && a.flags != b.flags && a.sse != b.sse && a.x87 != b.x87);
    }
}
