// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host that the tests of passing through use, and the guest in it.

use std::path::Path;
use std::time::Duration;

use lab_kit::host::{CommandReport, Host, HostError, HostReport};
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;

use crate::evidence::{hex, said};

/// Memory of the host that nothing uses, at an address where the guest has no memory.
pub(crate) const VICTIM: u64 = 0x6000_0000;
pub(crate) const NVME: &str = "0000:00:05.0";
/// Behind a root port, whose bus can be reset; `edu` cannot reset itself.
pub(crate) const EDU: &str = "0000:01:00.0";

/// Functions for the host's shell.
pub(crate) const HOST_SCRIPT: &str = r#"
sys=/sys/bus/pci/devices
# Gives device $1 to driver $2.
give() {
    echo $2 >$sys/$1/driver_override
    [ -e $sys/$1/driver ] && echo $1 >$sys/$1/driver/unbind
    echo $1 >/sys/bus/pci/drivers_probe
    readlink $sys/$1/driver | sed 's,.*/,,'
}
# The digest of $3 MiB of disk $1 from MiB $2 on, when the disk is there.
digest() {
    for _ in $(seq 100); do [ -b $1 ] && break; sleep 0.1; done
    dd if=$1 bs=1M skip=$2 count=$3 2>/dev/null | sha256sum | cut -d' ' -f1
}
# Asks each line of the log of what is written.
ask() { for line in "$@"; do echo "@test $line $(echo ${line%-*} | socat -t 60 - UNIX-CONNECT:/dirty)"; done; }
# Runs a guest that reads until the disk $1 is unbound under it. The host has that at once, and the guest goes on without.
# What is written is logged meanwhile.
unplug() {
    disk=$1; shift
    rm -f /dirty
    run 'lost nvme_core.io_timeout=2 intel_iommu=on' --dirty-log /dirty "$@" >/log 2>&1 &
    for _ in $(seq 600); do grep -q 'test ready' /log && break; sleep 0.1; done
    ask start pages-1 pages-2 >/asked
    give $disk nvme
    digest /dev/nvme0n1 0 8
    kill -0 $! && echo runs
    ask pages-3 stop >>/asked
    wait $!; echo "ended $?"
    cat /log /asked
}
run() {
    what=$1; shift
    vmm --kernel /guest/vmlinux --initramfs ${guest:-/guest/initramfs} --memory size=256M \
        --cmdline "console=ttyS0 quiet panic=-1 do=$what" "$@"
}
hash_victim() { dd if=/dev/mem bs=4096 skip=$((victim / 4096)) count=256 2>/dev/null | sha256sum; }
# Writes words into the victim's memory that nothing else has.
fill_victim() {
    for i in $(seq 0 63); do devmem $((victim + 8 * i)) 64 $((0x5ec2e70000000000 + i)); done
    hash_victim >/before
}
# Whether that memory is as it was, and what the host's IOMMU has stopped.
unharmed() { hash_victim | cmp - /before && dmesg | grep DMAR:; }
"#;

fn guest(kernel: &Kernel, written: &[u8]) -> Initramfs {
    let mut initramfs = Initramfs::with_busybox().unwrap();
    initramfs
        .file("/init", 0o755, include_str!("guest.sh"))
        .file("/written", 0o644, written);
    assert!(kernel.modules(&["nvme"]).unwrap().is_empty(), "built in");
    initramfs
}

/// `host` with a second guest's initramfs, which has this program and what it takes to assign a device to it.
pub(crate) fn with_nested_guest(host: Host, kernel: &Kernel) -> Host {
    let mut initramfs = guest(kernel, &[]);
    let ourselves = std::env::current_exe().unwrap();
    initramfs.stripped(&ourselves, "/bin/nested").unwrap();
    let modules = ["vfio-pci", "vfio_iommu_type1"];
    initramfs.modules(kernel, &modules).unwrap();
    host.data(initramfs.build().unwrap(), "/guest/nested", 0o644)
}

/// `host` with memory at [`VICTIM`] that nothing uses.
pub(crate) fn with_victim(host: Host) -> Host {
    host.kernel_arg(&format!("memmap=1M${VICTIM:#x}"))
}

/// That `unharmed` found the victim as it was, and that the host's IOMMU has stopped these accesses of `edu`, in this order: which
/// way, and of which page.
pub(crate) fn stopped(command: &CommandReport, accesses: &[(&str, u64)]) {
    let text = command.text();
    assert_eq!(command.status, 0, "the host's memory changed: {text}");
    let faults: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("Request device"))
        .collect();
    assert_eq!(faults.len(), accesses.len(), "{text}");
    for (fault, (way, address)) in faults.into_iter().zip(accesses) {
        let place = format!("[{}] fault addr {address:#x}", &EDU[5..]);
        assert!(
            fault.contains(&format!("DMA {way}")) && fault.contains(&place),
            "{text}"
        );
    }
}

/// `host` with an NVMe disk of the image `disk` at [`NVME`], and `edu`, of these properties, at [`EDU`].
pub(crate) fn with_devices(host: Host, disk: &Path, edu: &str) -> Host {
    host.qemu_args([
        "-drive".to_owned(),
        format!("file={},if=none,id=disk,format=raw", disk.display()),
        "-device".to_owned(),
        "nvme,serial=hvkit,drive=disk,addr=5".to_owned(),
        "-device".to_owned(),
        "pcie-root-port,id=port1,slot=1,chassis=1,addr=6".to_owned(),
        "-device".to_owned(),
        format!("edu,bus=port1{edu}"),
    ])
}

/// That `edu` reaches all of memory.
pub(crate) const WIDE: &str = ",dma_mask=0xffffffffffffffff";

pub(crate) fn host(kernel: &Kernel, written: &[u8]) -> Host {
    // One processor. With two, QEMU's emulator now and then lost itself: both of its threads went round and round the
    // locks that they share, and the host's kernel told of a soft lockup.
    Host::new()
        .memory_mib(2560)
        .time_out(Duration::from_secs(300))
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .program("/usr/bin/setpriv", "/setpriv")
        .program("/usr/bin/socat", "/bin/socat")
        .file(kernel.vmlinux().unwrap(), "/guest/vmlinux", 0o644)
        .data(
            guest(kernel, written).build().unwrap(),
            "/guest/initramfs",
            0o644,
        )
        .data(
            format!("victim={VICTIM:#x}\n{HOST_SCRIPT}"),
            "/host.sh",
            0o644,
        )
}

/// Runs commands in the host that `machine` makes. QEMU's emulator may lose itself: a host that does not come to its end
/// is said, and tried again.
/// Anything else that goes wrong is a failure at once.
pub(crate) fn run(machine: impl Fn() -> Host, commands: &[&str]) -> HostReport {
    let commands: Vec<String> = commands
        .iter()
        .map(|command| format!(". /host.sh\n{command}"))
        .collect();
    let mut tries = 3;
    loop {
        tries -= 1;
        match machine().run(&commands) {
            Err(error) if tries > 0 && timed_out(error.downcast_ref()) => {
                eprintln!("once more, because {error}");
            }
            result => return result.unwrap(),
        }
    }
}

/// Whether it is that the host did not come to its end.
pub(crate) fn timed_out(error: Option<&HostError>) -> bool {
    matches!(error, Some(HostError::TimedOut { .. }))
}

/// The number behind `word=` in the log's `answer`.
fn count(answer: &str, word: &str) -> u32 {
    let find = |part: &str| part.strip_prefix(word)?.strip_prefix('=')?.parse().ok();
    let found = answer.split(' ').find_map(find);
    found.unwrap_or_else(|| panic!("no {word} in {answer}"))
}

/// What the log says that `unplug` asks: the guest's processors, and the disk, of which it is told `by` whom that is. The number of
/// pages that the disk may have written.
pub(crate) fn logged(text: &str, by: &str) -> u32 {
    let said = said(text);
    assert_eq!((said["start"], said["stop"]), ("ok", "ok"), "{text}");
    let (first, again) = (said["pages-1"], said["pages-2"]);
    for answer in [first, again] {
        assert!(answer.ends_with(&format!(" disk.by={by}")), "{text}");
        let [all, disk] = ["all", "disk"].map(|word| count(answer, word));
        assert!(disk > 0 && disk <= all && all <= PAGES, "{text}");
    }
    // Its kernel reads a disk.
    let processors = count(first, "processors") + count(again, "processors");
    assert!(processors > 0, "{text}");
    count(again, "disk")
}

/// Of the guest's memory.
pub(crate) const PAGES: u32 = 65536;

/// What `unplug` has to have said: the host has its disk with the digest `known`, and the guest is well without.
pub(crate) fn unplugged(text: &str, known: &str, written: &[u8]) {
    let start = format!("nvme\n{known}\nruns\nended 0\n");
    assert!(text.starts_with(&start), "{text}");
    assert!(
        text.contains("vmm: warn: the host wanted disk back"),
        "{text}"
    );
    let said = said(text);
    assert_eq!(said["nothing"], "ffffffff ffffffff 0xFFFFFFFF", "{text}");
    assert_eq!(said["disks"], "", "{text}");
    assert_eq!(said["well"], hex(written), "{text}");
}
