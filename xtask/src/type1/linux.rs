// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel as the hypervisor's guest, with a fixed piece of work.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab_cases::type1::{Linux, Paging};
use lab_kit::bochs::BochsReport;

use super::report::{self, Seen};
use super::{ITS_PAGES, bochs};
use crate::demo;
use lab_kit::bochs::{Exit, UnknownMsrs};
use lab_kit::initramfs::{Initramfs, MODULE_LIST};
use lab_kit::kernel::Kernel;

const MEMORY_MIB: u64 = 256;
/// Above what the kernel uses before it has read the memory map.
const KERNEL_AT: u64 = 0x800_0000;
const INITRAMFS_AT: u64 = 0xa00_0000;
/// Bochs's chipset: the port its BIOS puts power management at, and the control register in it.
const POWER_PORT: u16 = 0xb000 + 4;
/// The TSC counts Bochs's instructions, 50 million a second; CPUID tells the kernel of the model's 3.5 GHz.
pub(super) const COMMAND_LINE: &str = "console=ttyS0,115200 earlyprintk=ttyS0,115200 panic=-1 nokaslr mitigations=off \
                            random.trust_cpu=on tsc_early_khz=50000 norandmaps";
/// On an idle machine it takes a minute.
const PATIENCE: Duration = Duration::from_secs(1200);
/// The MSRs that it reaches for: `IA32_VMX_BASIC`, to read, and `IA32_FEATURE_CONTROL`, to write.
const CAPABILITY: &str = "0x480";
const FEATURES: &str = "0x3a";
/// The share of instructions that the hypervisor may take under EPT: one in so many.
const SHARE: u64 = 200;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) paging: Paging,
    /// How much work the guest has.
    pub(super) rounds: u32,
    /// How many bytes of paging events to record.
    pub(super) trace: u64,
    pub(super) verbose: bool,
}

/// What a boot was.
pub(super) struct Booted {
    pub(super) seen: Seen,
    pub(super) kernel: String,
    pub(super) model: String,
    /// What was recorded, if it was to be.
    pub(super) trace: Option<Vec<u8>>,
}

/// What stands before a trace in Bochs's output, and 8 bytes of its length after it.
const TRACE: &[u8] = b"[trace ";

/// The trace in what came out of Bochs.
fn trace(output: &[u8]) -> Option<Vec<u8>> {
    let at = output
        .windows(TRACE.len())
        .position(|bytes| bytes == TRACE)?;
    let (length, rest) = output.get(at + TRACE.len()..)?.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    rest.get(..length).map(<[u8]>::to_vec)
}

/// A kernel with what it needs, on the bare machine or with the hypervisor below it.
pub(super) struct Boot<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) initramfs: Vec<u8>,
    /// After the words that any kernel here is given.
    pub(super) words: &'a str,
    pub(super) paging: Paging,
    pub(super) trace: u64,
    pub(super) memory_mib: u64,
    pub(super) patience: Duration,
    pub(super) verbose: bool,
}

impl Boot<'_> {
    /// Runs it to its end, whatever that is.
    pub(super) fn run(self) -> Result<BochsReport> {
        let image = fs::read(self.kernel.bzimage()).context("cannot read the kernel")?;
        let command_line = format!("{COMMAND_LINE} {}", self.words);
        let order = Linux {
            paging: self.paging,
            trace: self.trace,
            kernel: (KERNEL_AT, image.len() as u64),
            initramfs: (INITRAMFS_AT, self.initramfs.len() as u64),
            memory: self.memory_mib << 20,
            power_port: POWER_PORT,
            command_line: command_line.len() as u16,
        };
        let mut input = order.to_bytes().to_vec();
        input.extend_from_slice(command_line.as_bytes());
        bochs(&input, |bochs| {
            let bochs = bochs
                .memory_mib(self.memory_mib)
                .image(image, KERNEL_AT)
                .image(self.initramfs, INITRAMFS_AT)
                .time_out(self.patience);
            // Alone, nobody answers for IA32_MISC_ENABLE.
            let bochs = match self.paging {
                Paging::None => bochs.unknown_msrs(UnknownMsrs::Zero),
                Paging::Ept | Paging::Shadow => bochs,
            };
            if self.verbose {
                bochs.watch(|bytes| print!("{}", String::from_utf8_lossy(bytes)))
            } else {
                bochs
            }
        })
    }
}

/// Whether a run ended by the guest's power-off.
pub(super) fn powered_off(paging: Paging, exit: &Exit) -> bool {
    match (paging, exit) {
        (Paging::None, Exit::Panic(words)) => words.contains("soft power off"),
        (_, exit) => *exit == Exit::Shutdown,
    }
}

/// Boots, and verifies that the guest did its work, did not reach the hypervisor, and powered off.
pub(super) fn boot(run: Run) -> Result<Booted> {
    let kernel = Kernel::fetch()?;
    // The words that the kernel does not know are init's.
    let alone = u8::from(run.paging == Paging::None);
    let report = Boot {
        kernel: &kernel,
        initramfs: initramfs(&kernel)?,
        words: &format!("rounds={} alone={alone}", run.rounds),
        paging: run.paging,
        trace: run.trace,
        memory_mib: MEMORY_MIB,
        patience: PATIENCE,
        verbose: run.verbose,
    }
    .run()?;
    ensure!(powered_off(run.paging, &report.exit), "{report}");
    let text = report.text();
    let seen = verify(&text, run.paging).with_context(|| format!("it printed:\n{text}"))?;
    Ok(Booted {
        seen,
        kernel: kernel.release().to_owned(),
        model: report.version().unwrap_or("an unknown model").to_owned(),
        trace: trace(&report.output),
    })
}

impl Booted {
    /// In one line.
    pub(super) fn line(&self) -> String {
        let seen = &self.seen;
        let (whole, hypervisor) = (seen.whole.ticks, seen.whole.hypervisor());
        let said = if whole == 0 {
            format!("{:.0} million instructions", seen.total() as f64 / 1e6)
        } else {
            format!(
                "{} exits, {:.4}% of {:.0} million instructions in the hypervisor",
                seen.whole.count(),
                hypervisor as f64 * 100.0 / whole as f64,
                whole as f64 / 1e6
            )
        };
        let Self { kernel, model, .. } = self;
        format!("kernel {kernel}: worked in its initramfs and powered off; {said}, {model}")
    }
}

/// A busybox that works, reaches for the hypervisor's memory, and powers off.
///
/// With `STRICT_DEVMEM` the kernel lets programs map, by `/dev/mem`, what is no RAM by its memory map: the hypervisor's pages
/// are such. A write that the hypervisor refuses is a general-protection exception, which ends the writer.
pub(super) fn initramfs(kernel: &Kernel) -> Result<Vec<u8>> {
    let pages = ITS_PAGES.map(|page| page.to_string()).join(" ");
    let init = format!(
        "#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
echo guest: reached its initramfs
/bin/workload $rounds $port && echo guest: worked
[ $again ] && /bin/workload $rounds $port && echo guest: worked again
if [ $alone = 0 ]; then
grep -o -w -m 1 vmx /proc/cpuinfo || echo guest: no vmx
for page in {pages}; do
at=$((page * 4096 + 8))
[ $(devmem $at 64) = 0x0000000000000000 ] && echo guest: reads nothing at page $page
devmem $at 64 7 || echo guest: cannot write at page $page
done
for module in $(cat {MODULE_LIST}); do insmod $module; done
msr=/dev/cpu/0/msr
dd if=$msr of=/tmp/msr bs=8 count=1 skip=$(({CAPABILITY})) iflag=skip_bytes 2> /dev/null || echo guest: cannot read MSR {CAPABILITY}
dd if=/dev/zero of=$msr bs=8 count=1 seek=$(({FEATURES})) oflag=seek_bytes conv=notrunc 2> /dev/null || echo guest: cannot write MSR {FEATURES}
fi
${{end:-poweroff}} -f
"
    );
    let mut made = Initramfs::with_busybox()?;
    let workload = demo::static_program("hvkit-lab-workload", "workload")?;
    made.copy(&workload, "/bin/workload", 0o755)?;
    made.modules(kernel, &["msr"])?;
    made.file("/init", 0o755, init);
    made.build()
}

/// Lines that must come under a hypervisor.
fn wanted() -> Vec<String> {
    let mut wanted = [
        "check: no rule is broken, 0 undecided",
        "guest: reached its initramfs",
        "guest: no vmx",
        "guest: worked",
        "type1: the guest powers off",
        "type1: left VMX operation",
    ]
    .map(str::to_owned)
    .to_vec();
    wanted.push(format!("guest: cannot read MSR {CAPABILITY}"));
    wanted.push(format!("guest: cannot write MSR {FEATURES}"));
    for page in ITS_PAGES {
        wanted.push(format!("guest: reads nothing at page {page}"));
        wanted.push(format!("guest: cannot write at page {page}"));
    }
    wanted
}

/// Holds what was printed against what must come.
fn verify(text: &str, paging: Paging) -> Result<Seen> {
    let has = |wanted: &str| text.lines().any(|line| line.trim_end() == wanted);
    let seen = report::read(text)?;
    if paging == Paging::None {
        ensure!(has("guest: worked"), "the guest did not do its work");
        return Ok(seen);
    }
    for wanted in wanted() {
        ensure!(has(&wanted), "no line \"{wanted}\"");
    }
    for page in ITS_PAGES {
        let at = format!("isolation: {:#x} ", page << 12 | 8);
        let reported: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix(&at))
            .collect();
        for what in ["reads nothing", "refused"] {
            ensure!(
                reported.iter().any(|line| line.starts_with(what)),
                "the hypervisor did not report that its page {page} {what}: {reported:?}"
            );
        }
    }
    for msr in [CAPABILITY, FEATURES] {
        let refused = format!("isolation: {msr} refused: Msr");
        ensure!(
            text.lines().any(|line| line.starts_with(&refused)),
            "the hypervisor did not report MSR {msr}"
        );
    }
    let hypervisor = seen.whole.hypervisor();
    ensure!(seen.guest > 0, "the hypervisor counted nothing");
    match paging {
        Paging::Ept => ensure!(
            hypervisor < seen.guest / SHARE,
            "the hypervisor took {hypervisor} of {} instructions: more than one in {SHARE}",
            seen.guest
        ),
        Paging::Shadow | Paging::None => {
            let audit = text
                .lines()
                .find_map(|line| line.strip_prefix("shadow: audit: "));
            let audit = audit.context("no audit of the shadow")?.trim_end();
            ensure!(
                audit.ends_with(" entries, 0 wrong"),
                "the audit of the shadow: {audit}"
            );
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed() -> String {
        let mut text = report::tests::printed() + &wanted().join("\r\n") + "\n";
        for page in ITS_PAGES {
            text += &format!(
                "isolation: {0:#x} reads nothing: x\r\nisolation: {0:#x} refused: x\n",
                page << 12 | 8
            );
        }
        for msr in [CAPABILITY, FEATURES] {
            text += &format!("isolation: {msr} refused: Msr at RIP 0x1\r\n");
        }
        text.replace("audit: nothing", "audit: 77 entries, 0 wrong")
    }

    #[test]
    fn a_trace_is_found_whole_or_not_at_all() {
        let output = [b"said\n[trace ".as_slice(), &3_u64.to_le_bytes(), b"abcdef"].concat();
        assert_eq!(trace(&output).unwrap(), b"abc");
        assert_eq!(trace(&output[..output.len() - 4]), None);
        assert_eq!(trace(b"[trac"), None);
    }

    #[test]
    fn a_boot_as_it_must_be_passes() {
        for paging in [Paging::None, Paging::Ept, Paging::Shadow] {
            assert_eq!(verify(&printed(), paging).unwrap().guest, 100_000);
        }
    }

    #[test]
    fn each_thing_that_is_missing_is_found() {
        let others = [
            ("0x200008 reads nothing", "0x2008 reads nothing"),
            ("isolation: 0x480", "isolation: 0x481"),
            ("isolation: 0x3a", "isolation: 0x3b"),
            ("0x200008 refused", "0x2008 refused"),
            ("ticks: 100000", "ticks: 100"),
            ("\nticks: ", "\nclock: "),
        ];
        let others = others.map(|(piece, instead)| (piece.to_owned(), instead));
        let wanted = wanted().into_iter().map(|line| (line, "something else"));
        for (piece, instead) in wanted.chain(others) {
            let text = printed();
            assert!(text.contains(&piece), "{piece}");
            let changed = text.replacen(&piece, instead, 1);
            assert!(verify(&changed, Paging::Ept).is_err(), "{piece}");
        }
        let wrong = printed().replace("entries, 0 wrong", "entries, 1 wrong");
        assert!(verify(&wrong, Paging::Shadow).is_err());
        let idle = printed().replace("guest: worked", "guest: idle");
        assert!(verify(&idle, Paging::None).is_err());
    }
}
