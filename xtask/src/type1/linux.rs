// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel as the hypervisor's guest.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab_cases::type1::Linux;

use super::{Options, bochs};
use crate::lab::bochs::Exit;
use crate::lab::initramfs::Initramfs;
use crate::lab::kernel::Kernel;

const MEMORY_MIB: u64 = 256;
/// Above what the kernel uses before it has read the memory map.
const KERNEL_AT: u64 = 0x800_0000;
const INITRAMFS_AT: u64 = 0xa00_0000;
/// Bochs's chipset: the port its BIOS puts power management at, and the control register in it.
const POWER_PORT: u16 = 0xb000 + 4;
/// The TSC counts Bochs's instructions, 50 million a second; CPUID tells the kernel of the model's 3.5 GHz.
const COMMAND_LINE: &str = "console=ttyS0,115200 earlyprintk=ttyS0,115200 panic=-1 nokaslr mitigations=off \
                            random.trust_cpu=on tsc_early_khz=50000";
/// On an idle machine it takes some two minutes.
const PATIENCE: Duration = Duration::from_secs(900);
/// What the guest's init says when it has done its work.
const SAID: &str = "guest: reached its initramfs";

/// Boots, and verifies that the guest reached its initramfs and powered off.
pub(super) fn boot(options: &Options) -> Result<String> {
    let kernel = Kernel::fetch()?;
    let image = fs::read(kernel.bzimage()).context("cannot read the kernel")?;
    let initramfs = initramfs()?;
    let order = Linux {
        kernel: (KERNEL_AT, image.len() as u64),
        initramfs: (INITRAMFS_AT, initramfs.len() as u64),
        memory: MEMORY_MIB << 20,
        power_port: POWER_PORT,
        command_line: COMMAND_LINE.len() as u16,
    };
    let mut input = order.to_bytes().to_vec();
    input.extend_from_slice(COMMAND_LINE.as_bytes());
    let verbose = options.verbose;
    let report = bochs(&input, |bochs| {
        let bochs = bochs
            .memory_mib(MEMORY_MIB)
            .image(image, KERNEL_AT)
            .image(initramfs, INITRAMFS_AT)
            .time_out(PATIENCE);
        if verbose {
            bochs.watch(|bytes| print!("{}", String::from_utf8_lossy(bytes)))
        } else {
            bochs
        }
    })?;
    ensure!(report.exit == Exit::Shutdown, "{report}");
    let text = report.text();
    let seen = verify(&text).with_context(|| format!("it printed:\n{text}"))?;
    Ok(format!(
        "kernel {}: {seen}, {}",
        kernel.release(),
        report.version().unwrap_or("an unknown model")
    ))
}

/// A busybox that says what it is on, and powers off.
fn initramfs() -> Result<Vec<u8>> {
    let mut made = Initramfs::with_busybox()?;
    made.file(
        "/init",
        0o755,
        format!(
            "#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
echo {SAID}
grep -c ^processor /proc/cpuinfo
grep -o -w -m 1 vmx /proc/cpuinfo || echo guest: no vmx
poweroff -f
"
        ),
    );
    made.build()
}

/// Holds what was printed against what must come.
fn verify(text: &str) -> Result<String> {
    for line in [
        SAID,
        "guest: no vmx",
        "type1: the guest powers off",
        "type1: left VMX operation",
    ] {
        ensure!(
            text.lines().any(|l| l.trim_end() == line),
            "no line \"{line}\""
        );
    }
    ensure!(
        text.contains("check: no rule is broken, 0 undecided"),
        "the guest was not checked"
    );
    let all = text
        .lines()
        .find_map(|line| line.strip_prefix("exits: ")?.strip_suffix(" in all"));
    let all = all.context("no count of exits")?;
    Ok(format!(
        "reached its initramfs and powered off after {all} exits"
    ))
}
