// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask type1 --kvm`: the same kernel and work under KVM, whose host is Debian's kernel in Bochs, started by our own
//! loader.
//!
//! ```text
//!   Bochs: Debian's kernel, kvm-intel with ept=1 or ept=0, `launcher` --KVM--> Debian's kernel, `workload`
//! ```
//!
//! The guest does its work twice: once as it is, for instructions; then while the host's kernel counts its trace event `kvm_exit` by
//! reason, for exits (`lab/launcher`).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab_cases::type1::{MARK_PORT, Paging};

use super::linux;
use super::report::{self, Seen};
use crate::demo;
use lab_kit::initramfs::{Initramfs, MODULE_LIST};
use lab_kit::kernel::Kernel;

/// The host's memory: its own, the guest's, and twice what is read from files.
const MEMORY_MIB: u64 = 768;
/// On an idle machine it takes some minutes.
const PATIENCE: Duration = Duration::from_secs(3600);
/// What the guest's command line has besides what any kernel's has here: no words on a serial line of which each letter costs KVM two
/// trips to user space; marks by a port; a triple fault as its end, as it has no ACPI.
const GUEST_WORDS: &str = "quiet reboot=t alone=1 again=1 end=reboot";

/// The host's files: KVM, the launcher, the guest's kernel and initramfs.
fn host(kernel: &Kernel, rounds: u32) -> Result<Vec<u8>> {
    let line = linux::COMMAND_LINE.replace("earlyprintk=ttyS0,115200 ", "");
    let guest = format!("{line} {GUEST_WORDS} rounds={rounds} port={MARK_PORT}");
    let init = format!(
        "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
for module in $(cat {MODULE_LIST}); do
case $module in *intel*) intel=$module ;; *) insmod $module ;; esac
done
for ept in 1 0; do
insmod $intel ept=$ept
echo host: ept $(cat /sys/module/kvm_intel/parameters/ept)
launcher /guest/kernel /guest/initramfs '{guest}' /sys/kernel/tracing/events/kvm/kvm_exit && echo host: ran
rmmod kvm_intel
done
poweroff -f
"
    );
    let mut made = Initramfs::with_busybox()?;
    let launcher = demo::static_program("hvkit-lab-launcher", "launcher")?;
    made.copy(&launcher, "/bin/launcher", 0o755)?;
    made.copy(&kernel.bzimage(), "/guest/kernel", 0o644)?;
    made.file("/guest/initramfs", 0o644, linux::initramfs(kernel)?);
    made.modules(kernel, &["kvm_intel"])?;
    made.file("/init", 0o755, init);
    made.build()
}

/// What the two guests were.
pub(super) struct UnderKvm {
    pub(super) ept: Seen,
    pub(super) shadow: Seen,
    pub(super) kernel: String,
    pub(super) model: String,
}

impl UnderKvm {
    /// In one line.
    pub(super) fn line(&self) -> String {
        let of = |seen: &Seen| {
            let exits: u64 = seen.parts.iter().map(|part| part.count()).sum();
            let ticks = seen.total() as f64 / 1e6;
            format!("{exits} exits, {ticks:.0} million instructions")
        };
        let Self { kernel, model, .. } = self;
        let (ept, shadow) = (of(&self.ept), of(&self.shadow));
        format!("kernel {kernel}: with EPT {ept}; without {shadow}; {model}")
    }
}

/// Boots the host, and in it the guest, with EPT and without.
pub(super) fn boot(rounds: u32, verbose: bool) -> Result<UnderKvm> {
    let kernel = Kernel::fetch()?;
    let report = linux::Boot {
        initramfs: host(&kernel, rounds)?,
        kernel: &kernel,
        words: "quiet",
        paging: Paging::None,
        trace: 0,
        memory_mib: MEMORY_MIB,
        patience: PATIENCE,
        verbose,
    }
    .run()?;
    let over = linux::powered_off(Paging::None, &report.exit);
    ensure!(over, "{report}");
    let text = report.text();
    let (ept, shadow) = verify(&text).with_context(|| format!("it printed:\n{text}"))?;
    Ok(UnderKvm {
        ept,
        shadow,
        kernel: kernel.release().to_owned(),
        model: report.version().unwrap_or("an unknown model").to_owned(),
    })
}

/// What stands before each guest's lines: KVM with EPT, and without.
const BEGINS: [&str; 2] = ["host: ept Y", "host: ept N"];

/// Holds what was printed against what must come.
fn verify(text: &str) -> Result<(Seen, Seen)> {
    let [ept, shadow] = BEGINS.map(|begin| text.split_once(begin).map(|(_, rest)| rest));
    let shadow = shadow.context("KVM without EPT did not begin")?;
    let ept = ept.context("KVM with EPT did not begin")?;
    let ept = ept.split(BEGINS[1]).next().unwrap_or(ept);
    let read = |run: &str| {
        for wanted in ["guest: worked", "guest: worked again", "host: ran"] {
            ensure!(
                run.lines().any(|line| line.trim_end() == wanted),
                "no \"{wanted}\""
            );
        }
        report::read(run)
    };
    let (ept, shadow) = (read(ept)?, read(shadow)?);
    ensure!(
        ept.checksum == shadow.checksum,
        "the guests' work came to different sums"
    );
    Ok((ept, shadow))
}
