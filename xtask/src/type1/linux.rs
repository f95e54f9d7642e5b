// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel as the hypervisor's guest.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab_cases::type1::Linux;

use super::{Options, bochs};
use lab_kit::bochs::Exit;
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;

const MEMORY_MIB: u64 = 256;
/// Above what the kernel uses before it has read the memory map.
const KERNEL_AT: u64 = 0x800_0000;
const INITRAMFS_AT: u64 = 0xa00_0000;
/// Bochs's chipset: the port its BIOS puts power management at, and the control register in it.
const POWER_PORT: u16 = 0xb000 + 4;
/// The TSC counts Bochs's instructions, 50 million a second; CPUID tells the kernel of the model's 3.5 GHz.
const COMMAND_LINE: &str = "console=ttyS0,115200 earlyprintk=ttyS0,115200 panic=-1 nokaslr mitigations=off \
                            random.trust_cpu=on tsc_early_khz=50000";
/// On an idle machine it takes a minute.
const PATIENCE: Duration = Duration::from_secs(1200);
/// A page of the hypervisor, in pages: where its code begins.
const ITS_PAGE: u64 = 512;
/// The share of instructions that the hypervisor may take: one in so many.
const SHARE: u64 = 200;

/// Boots, and verifies that the guest did its work, did not reach the hypervisor, and powered off.
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

/// A busybox that works a little, reaches for the hypervisor's memory, and powers off.
///
/// With `STRICT_DEVMEM` the kernel lets `/dev/mem` reach what is no RAM by its memory map: the hypervisor's pages are such.
fn initramfs() -> Result<Vec<u8>> {
    let init = format!(
        "#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
echo guest: reached its initramfs
grep -o -w -m 1 vmx /proc/cpuinfo || echo guest: no vmx
i=0
while [ $i -lt 50 ]; do /bin/true; i=$((i + 1)); done
dd if=/dev/urandom of=/tmp/a bs=64k count=8 2> /dev/null
cp /tmp/a /tmp/b && cmp /tmp/a /tmp/b && echo guest: worked
nothing=$(dd if=/dev/zero bs=4096 count=1 2> /dev/null | md5sum)
there=$(dd if=/dev/mem bs=4096 skip={ITS_PAGE} count=1 2> /dev/null | md5sum)
[ \"$there\" = \"$nothing\" ] && echo guest: reads nothing where the hypervisor is
echo changed | dd of=/dev/mem bs=4096 seek={ITS_PAGE} conv=notrunc 2> /dev/null || echo guest: cannot write there
poweroff -f
"
    );
    let mut made = Initramfs::with_busybox()?;
    made.file("/init", 0o755, init);
    made.build()
}

/// Lines that must come.
const WANTED: [&str; 8] = [
    "check: no rule is broken, 0 undecided",
    "guest: reached its initramfs",
    "guest: no vmx",
    "guest: worked",
    "guest: reads nothing where the hypervisor is",
    "guest: cannot write there",
    "type1: the guest powers off",
    "type1: left VMX operation",
];

/// Holds what was printed against what must come.
fn verify(text: &str) -> Result<String> {
    for wanted in WANTED {
        ensure!(
            text.lines().any(|line| line.trim_end() == wanted),
            "no line \"{wanted}\""
        );
    }
    let at = format!("isolation: {:#x} ", ITS_PAGE << 12);
    let refused = text.lines().filter_map(|line| line.strip_prefix(&at));
    let refused: Vec<&str> = refused.collect();
    for what in ["reads nothing", "refused"] {
        ensure!(
            refused.iter().any(|line| line.starts_with(what)),
            "the hypervisor did not report that its page {what}: {refused:?}"
        );
    }
    let numbers = |prefix: &str| -> Result<Vec<u64>> {
        let line = text
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix(prefix));
        let line = line.with_context(|| format!("no \"{prefix}\""))?;
        let words = line.split_whitespace();
        Ok(words.filter_map(|word| word.parse().ok()).collect())
    };
    let exits = numbers("exits: ")?;
    let ticks = numbers("ticks: ")?;
    let (&[exits], &[guest, hypervisor]) = (&exits[..], &ticks[..]) else {
        anyhow::bail!("no numbers in {exits:?} and {ticks:?}");
    };
    ensure!(
        hypervisor < guest / SHARE,
        "the hypervisor took {hypervisor} of {guest} instructions: more than one in {SHARE}"
    );
    Ok(format!(
        "worked in its initramfs and powered off; {exits} exits, {:.4}% of {:.0} million instructions in the hypervisor",
        hypervisor as f64 * 100.0 / (guest + hypervisor) as f64,
        (guest + hypervisor) as f64 / 1e6
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed() -> String {
        let more = "isolation: 0x200000 reads nothing: EPT violation\r\nisolation: 0x200000 refused: EPT violation\n\
                    exits: 7 CPUID\nexits: 1218 in all\nticks: 1000000 in the guest, 100 in the hypervisor\n";
        WANTED.join("\r\n") + "\n" + more
    }

    #[test]
    fn a_boot_as_it_must_be_passes() {
        let seen = verify(&printed()).unwrap();
        assert!(seen.contains("1218 exits, 0.0100% of 1 million"), "{seen}");
    }

    #[test]
    fn each_thing_that_is_missing_is_found() {
        let others = [
            ("0x200000 reads nothing", "0x80000 reads nothing"),
            ("0x200000 refused", "0x80000 refused"),
            ("1000000 in the guest", "10000 in the guest"),
            ("ticks: ", ""),
        ];
        let wanted = WANTED.map(|line| (line, "something else"));
        for (piece, instead) in wanted.into_iter().chain(others) {
            let text = printed();
            assert!(text.contains(piece), "{piece}");
            let changed = text.replacen(piece, instead, 1);
            assert!(verify(&changed).is_err(), "{piece}");
        }
    }
}
