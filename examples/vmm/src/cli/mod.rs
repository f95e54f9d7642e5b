// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line, in cloud-hypervisor's spelling.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod counters;
mod dirty_log;
mod key_value;
mod log;
mod options;
mod peer;
mod restart;
mod serve;
mod served;
mod user_network;
mod vtd;

pub use key_value::OptionError;
pub(crate) use key_value::size;

use crate::config::{Config, KVM_DEVICE, Output, Transport, VirtioIommu, Watchdog};
use crate::exit_status::ExitStatus;
use crate::hello::{self, HelloError};
use crate::machine::{Machine, MachineError};
use crate::served::Served;
use crate::stderr;
use clap::{ArgAction, Parser, ValueEnum};
use options::{
    RANDOM, balloon, confinement, console, cpus, device, disk, memory, net, platform, pmem, rng,
    terminal, vsock,
};
use restart::{OnReboot, Waiting};
use signal_hook::consts::SIGUSR1;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use vmm_sys_util::signal::block_signal;
use vtd::vtd;

/// Runs a virtual machine on this host's KVM.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, after_help = after_help(), max_term_width = 100)]
struct Arguments {
    /// Kernel: a bzImage, or an ELF file (vmlinux) with a PVH note
    #[arg(long, value_name = "FILE", required_unless_present_any = ["guest", "restore"])]
    kernel: Option<PathBuf>,

    /// Initial RAM file system
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,

    /// Kernel command line
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0")]
    cmdline: String,

    /// Processors. Keys: boot=N
    #[arg(long, value_name = "boot=N", default_value = "boot=1")]
    cpus: String,

    /// Memory. Keys: size=BYTES, with K, M, G or T
    #[arg(long, value_name = "size=BYTES", default_value = "size=512M")]
    memory: String,

    /// Disk image; several may follow, and the option may be repeated. Keys: path=FILE,
    /// readonly=on|off, serial=TEXT, num_queues=N, queue_size=N, image_type=raw|qcow2,
    /// backing=on|off (whether a qcow2 image may be built on another), direct=on|off (without the
    /// host's cache), iommu=on|off|ID (of a --vtd), pci_segment=N, packed=on|off (off: queues are split), and limits of the whole disk: bw_size=BYTES, bw_refill_time=MS,
    /// ops_size=N, ops_refill_time=MS; control=PATH (a socket for the lines "size" and "resize", which looks how long a
    /// raw image is by now). Served by another process (vhost-user): vhost_user=on,
    /// socket=PATH, num_queues=N, queue_size=N, reconnect=SECONDS (when that process is gone, another is looked
    /// for so often, and the guest's requests wait), iommu=on|off, packed=on|off (on: queues can be packed; off if not given)
    #[arg(long, value_name = "path=FILE[,readonly=on]", num_args = 1.., action = ArgAction::Append)]
    disk: Vec<String>,

    /// PCI device of the host to pass through, bound to vfio-pci; several may follow, and the option
    /// may be repeated. Keys: path=FOLDER (in /sys/bus/pci/devices), id=NAME,
    /// iommu=on|off|ID (of a --vtd), pci_segment=N, iommufd=auto|on|off (by VFIO's character device and iommufd,
    /// where the host has them; auto if not given)
    #[arg(long, value_name = "path=FOLDER[,id=NAME]", num_args = 1.., action = ArgAction::Append)]
    device: Vec<String>,

    /// PCI device that another process serves (vfio-user); several may follow, and the option may be
    /// repeated. Keys: socket=PATH, id=NAME, iommu=on|off|ID (of a --vtd), pci_segment=N,
    /// share=on|off (on: the process is given the guest's memory; off: it asks for each transfer)
    #[arg(long, value_name = "socket=PATH[,id=NAME]", num_args = 1.., action = ArgAction::Append)]
    user_device: Vec<String>,

    /// Network card, on a tap interface of the host, on a network that needs no privilege (user: by passt, which is
    /// started) or at a socket of passt's; several may follow, and the option may be repeated. Keys: tap=NAME, user or
    /// socket=PATH, num_queue_pairs=N (of a tap), of user: tcp=PORT:GUESTPORT and udp=PORT:GUESTPORT (ports of the
    /// host that are the guest's, several with + between), host_loopback=on|off (whether the gateway's address is the
    /// host's own loopback; off if not given),
    /// mac=ADDRESS, mtu=BYTES, speed=MBIT that the guest shows, iommu=on|off|ID (of a --vtd), pci_segment=N, packed=on|off, and limits of each direction as for disks. Served by another process (vhost-user):
    /// vhost_user=on, socket=PATH, mac=ADDRESS, mtu=BYTES, num_queue_pairs=N, queue_size=N, reconnect=SECONDS,
    /// iommu=on|off, packed=on|off
    #[arg(long, value_name = "tap=NAME|user|socket=PATH[,mac=ADDRESS]", num_args = 1.., action = ArgAction::Append)]
    net: Vec<String>,

    /// Files of the host, served by another process such as virtiofsd; several may follow, and the
    /// option may be repeated. Keys: tag=NAME to mount it by, socket=PATH, num_queues=N, queue_size=N, iommu=on|off,
    /// packed=on|off
    #[arg(long, value_name = "tag=NAME,socket=PATH", num_args = 1.., action = ArgAction::Append)]
    fs: Vec<String>,

    /// Has the guest serve a device to another machine, whose VMM connects with --disk vhost_user=on,socket=PATH: the
    /// device carries the protocol's back end into the guest. May be repeated. Keys: socket=PATH to listen at,
    /// memory=BYTES of the other machine's for which there is room (4G if not given), iommu=on|off
    #[arg(long, value_name = "socket=PATH[,memory=BYTES]")]
    vhost_user_backend: Vec<String>,

    /// Source of random bytes. Keys: src=FILE, iommu=on|off|ID (of a --vtd), pci_segment=N, packed=on|off
    #[arg(long, value_name = "src=FILE", num_args = 0..=1, default_missing_value = RANDOM)]
    rng: Option<String>,

    /// Memory balloon. Keys: size=BYTES that the guest is to do without, deflate_on_oom=on|off,
    /// free_page_reporting=on|off, free_page_hints=on|off, socket=PATH for lines such as "target 64M",
    /// "stats" and "hints", packed=on|off
    #[arg(long, value_name = "size=BYTES[,socket=PATH]", num_args = 0..=1, default_missing_value = "size=0")]
    balloon: Option<String>,

    /// Sockets between host and guest. Keys: cid=N from 3 up, iommu=on|off|ID (of a --vtd), pci_segment=N, packed=on|off, socket=PATH: a client that writes
    /// "CONNECT PORT" there is the guest's; what the guest connects to is PATH_PORT
    #[arg(long, value_name = "cid=N,socket=PATH")]
    vsock: Option<String>,

    /// File that the guest has as persistent memory; several may follow, and the option may be
    /// repeated. Keys: path=FILE, discard_writes=on|off, pci_segment=N, packed=on|off
    #[arg(long, value_name = "path=FILE[,discard_writes=on]", num_args = 1.., action = ArgAction::Append)]
    pmem: Vec<String>,

    /// Watchdog (WDAT): a guest that starts it and then does not reset it in time is stopped
    #[arg(long)]
    watchdog: bool,

    /// Serial line: the terminal, nowhere, absent, or a file; if not given, the terminal, unless that is --console's
    #[arg(long, value_name = "tty|null|off|file=PATH")]
    serial: Option<String>,

    /// Paravirtual console (hvc0 in Linux): absent, nowhere, the terminal, a pseudo-terminal, or a file;
    /// and iommu=on|off|ID (of a --vtd), pci_segment=N, packed=on|off
    #[arg(long, value_name = "off|null|tty|pty|file=PATH", default_value = "off")]
    console: String,

    /// An emulated VT-d remapping unit, which devices with iommu=on are behind; the option may be repeated.
    /// Keys: aw=39|48|57 (bits of address that it translates; 48 if not given), intremap=on|off (interrupts
    /// are remapped, too; on if not given), caching=on|off (needed by --device), scalable=on|off,
    /// pci_segment=N (0 if not given), scope=segment|named (all devices of its segment, or those with
    /// iommu=NAME; segment if not given), id=NAME
    #[arg(long, value_name = "aw=48[,caching=on]", num_args = 0..=1, default_missing_value = vtd::PLAIN, action = ArgAction::Append)]
    vtd: Vec<String>,

    /// A virtio-iommu in place of remapping units: devices with iommu=on are behind it. For virtio devices of the VMM's own, on segment 0
    #[arg(long, conflicts_with = "vtd")]
    virtio_iommu: bool,

    /// The platform. Keys: num_pci_segments=N, 1 to 16. Disks, network cards, devices and so on are on
    /// segment 0, or on that of their key pci_segment=N
    #[arg(
        long,
        value_name = "num_pci_segments=N",
        default_value = "num_pci_segments=1"
    )]
    platform: String,

    /// What virtio devices are on: PCI, or windows of registers in memory that ACPI tells of (LNRO0005)
    #[arg(long, value_name = "pci|mmio", default_value = "pci")]
    transport: Transport,

    /// A log of what is written to the guest's memory. Keys: socket=PATH for the lines "start", "pages" and "stop",
    /// bitmap=FILE for the pages, bit by bit
    #[arg(long, value_name = "socket=PATH[,bitmap=FILE]")]
    dirty_log: Option<String>,

    /// What each queue of each virtio device has done. Keys: socket=PATH, where the line "counters" is answered by JSON on one line
    #[arg(long, value_name = "socket=PATH")]
    counters: Option<String>,

    /// Save the machine to this folder when SIGUSR1 comes, and end
    #[arg(long, value_name = "FOLDER")]
    snapshot: Option<PathBuf>,

    /// Go on with the machine that was saved to this folder; the other options as they were then, without
    /// --kernel, --initramfs and --cmdline
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["kernel", "initramfs", "cmdline"])]
    restore: Option<PathBuf>,

    /// What becomes of the machine when the guest asks for a reset: it ends (status 3), or another begins with the same options
    #[arg(long, value_name = "exit|restart", default_value = "exit", conflicts_with_all = ["restore", "guest"])]
    on_reboot: OnReboot,

    /// Run a guest that is built in, instead of a kernel
    #[arg(long, value_name = "NAME", conflicts_with_all = ["kernel", "initramfs", "cmdline", "cpus", "memory", "serial", "console", "platform", "transport", "confine", "report", "disk", "device", "user_device", "net", "fs", "vhost_user_backend", "rng", "balloon", "vsock", "pmem", "watchdog", "vtd", "virtio_iommu", "dirty_log", "counters", "snapshot", "restore"])]
    guest: Option<Guest>,

    /// Give up, while the guest runs, all files and system calls that the VMM does not need
    #[arg(long, value_name = "on|off", default_value = "on")]
    confine: String,

    /// Say more on standard error: -v what is done, -vv details
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,

    /// Who waits for this process and starts the next
    #[arg(long, value_name = "PROCESS,NUMBER", value_parser = restart::waiting, hide = true)]
    restarted_by: Option<Waiting>,

    /// KVM's device
    #[arg(long, value_name = "DEVICE", default_value = KVM_DEVICE, hide = true)]
    kvm: PathBuf,

    /// Write how long the start took, as JSON
    #[arg(long, value_name = "FILE", hide = true)]
    report: Option<PathBuf>,
}

/// The guests that are built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Guest {
    /// From real to long mode: port and memory accesses, arithmetic, halt
    Hello,
}

fn after_help() -> String {
    let mut text = String::from(
        "'vmm serve' serves a disk to another VMM; see its --help.\n\n\
         In a terminal, Ctrl-A x ends the machine, and Ctrl-A Ctrl-A sends one Ctrl-A.\n\n\
         Exit status:\n",
    );
    for status in ExitStatus::ALL {
        text.push_str(&format!("  {:>3}  {}\n", status.code(), status.meaning()));
    }
    text.push_str("  128 and more: ended by that signal, plus 128");
    text
}

/// The VMM as a command: its arguments, the program's name first; its exit status.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let mut arguments: Vec<_> = arguments.into_iter().collect();
    if arguments.get(1).is_some_and(|first| first == serve::WORD) {
        return serve::main(arguments.split_off(1));
    }
    let given = arguments;
    let arguments = match Arguments::try_parse_from(&given) {
        Ok(arguments) => arguments,
        Err(error) => return reported(&error),
    };
    log::start(arguments.verbose);
    match (arguments.restarted_by, arguments.on_reboot) {
        (None, OnReboot::Restart) => return restart::main(&given),
        (None, OnReboot::Exit) => {}
        (Some(waiting), _) => {
            if let Err(error) = waiting.end_with() {
                stderr::line(format_args!("vmm: {error}"));
                return ExitStatus::Host.code();
            }
        }
    }
    if arguments.snapshot.is_some() {
        // Until the machine can be saved, the request waits: else it would end the process. It may wait already.
        let _ = block_signal(SIGUSR1);
    }
    match run(arguments) {
        Ok(status) => status,
        Err(error) => {
            stderr::line(format_args!("vmm: {error}"));
            error.exit_status().code()
        }
    }
}

/// Says what is wrong with a command line, or what was asked of it: help and version. The exit status.
fn reported(error: &clap::Error) -> u8 {
    // Nobody may be there to read it.
    let _ = error.print();
    if error.use_stderr() {
        ExitStatus::Usage.code()
    } else {
        ExitStatus::PoweredOff.code()
    }
}

/// Why a command line describes no machine.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// The arguments; also help and version, where they were asked for.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The keys of an option.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The built-in guest, which has no configuration.
    #[error("there is no kernel")]
    NoKernel,
}

/// The machine that a command line describes, its program's name first. Nothing is opened.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Config, ParseError> {
    let arguments = Arguments::try_parse_from(arguments)?;
    let kernel = kernel(&arguments).ok_or(ParseError::NoKernel)?;
    Ok(config(arguments, kernel)?)
}

/// The kernel; a machine that was saved has its own in its memory.
fn kernel(arguments: &Arguments) -> Option<PathBuf> {
    let none = arguments.restore.as_ref().map(|_| PathBuf::new());
    arguments.kernel.clone().or(none)
}

/// Why the VMM did not run a machine to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An option.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The built-in guest.
    #[error(transparent)]
    Hello(#[from] HelloError),
}

impl RunError {
    fn exit_status(&self) -> ExitStatus {
        match self {
            RunError::Option(_) => ExitStatus::Usage,
            RunError::Machine(error) => error.into(),
            RunError::Hello(HelloError::Kvm(error)) => error.into(),
            RunError::Hello(_) => ExitStatus::Host,
        }
    }
}

fn run(arguments: Arguments) -> Result<u8, RunError> {
    let config = match (arguments.guest, kernel(&arguments)) {
        (None, Some(kernel)) => config(arguments, kernel)?,
        // clap sees to it that there is one of them.
        (Some(Guest::Hello), _) | (None, None) => {
            let report = hello::run(&arguments.kvm)?;
            let _ = write!(std::io::stdout(), "{report}");
            let status = if report.holds() {
                ExitStatus::PoweredOff
            } else {
                ExitStatus::WrongAnswer
            };
            return Ok(status.code());
        }
    };
    let outcome = Machine::new(&config)?.run()?;
    ::log::info!("{}", outcome.reason);
    if let Some(registers) = &outcome.registers {
        stderr::line(format_args!("vmm: {}\n{registers}", outcome.reason));
    } else if outcome.is_failure() {
        stderr::line(format_args!("vmm: {}", outcome.reason));
    }
    if outcome.is_failure() {
        stderr::text(&outcome.history);
    }
    Ok(ExitStatus::code_of(&outcome.reason))
}

/// Devices of other processes: disks, network cards, file systems.
fn served(arguments: &Arguments) -> Result<Vec<Served>, OptionError> {
    let disks = arguments.disk.iter().filter(|text| served::is_meant(text));
    let nets = arguments.net.iter().filter(|text| served::is_meant(text));
    disks
        .map(|text| served::disk(text))
        .chain(nets.map(|text| served::net(text)))
        .chain(arguments.fs.iter().map(|text| served::fs(text)))
        .collect()
}

fn config(arguments: Arguments, kernel: PathBuf) -> Result<Config, OptionError> {
    let (console, console_dma, console_place) = console(&arguments.console)?;
    let serial = terminal(arguments.serial.as_deref(), &console)?;
    let served = served(&arguments)?;
    Ok(Config {
        kvm: arguments.kvm,
        kernel,
        initramfs: arguments.initramfs,
        command_line: arguments.cmdline,
        cpus: cpus(&arguments.cpus)?,
        memory: memory(&arguments.memory)?,
        disks: arguments
            .disk
            .iter()
            .filter(|text| !served::is_meant(text))
            .map(|text| disk(text))
            .collect::<Result<_, _>>()?,
        served,
        back_ends: arguments
            .vhost_user_backend
            .iter()
            .map(|text| peer::back_end(text))
            .collect::<Result<_, _>>()?,
        devices: arguments
            .device
            .iter()
            .map(|text| device(text))
            .collect::<Result<_, _>>()?,
        user_devices: arguments
            .user_device
            .iter()
            .map(|text| served::user_device(text))
            .collect::<Result<_, _>>()?,
        nets: arguments
            .net
            .iter()
            .filter(|text| !served::is_meant(text))
            .map(|text| match user_network::is_meant(text) {
                true => user_network::net(text),
                false => net(text),
            })
            .collect::<Result<_, _>>()?,
        rng: arguments.rng.as_deref().map(rng).transpose()?,
        console,
        console_dma,
        console_place,
        vtds: arguments
            .vtd
            .iter()
            .map(|text| vtd(text))
            .collect::<Result<_, _>>()?,
        virtio_iommu: match arguments.virtio_iommu {
            true => VirtioIommu::Present,
            false => VirtioIommu::Absent,
        },
        segments: platform(&arguments.platform)?,
        balloon: arguments.balloon.as_deref().map(balloon).transpose()?,
        vsock: arguments.vsock.as_deref().map(vsock).transpose()?,
        pmems: arguments
            .pmem
            .iter()
            .map(|text| pmem(text))
            .collect::<Result<_, _>>()?,
        watchdog: match arguments.watchdog {
            true => Watchdog::Present,
            false => Watchdog::Absent,
        },
        serial,
        output: match arguments.restarted_by {
            Some(waiting) if waiting.before > 0 => Output::GoesOn,
            // What the machine wrote before it was saved is its own.
            _ if arguments.restore.is_some() => Output::GoesOn,
            _ => Output::Anew,
        },
        transport: arguments.transport,
        report: arguments.report,
        dirty_log: arguments
            .dirty_log
            .as_deref()
            .map(dirty_log::dirty_log)
            .transpose()?,
        counters: arguments
            .counters
            .as_deref()
            .map(counters::counters)
            .transpose()?,
        snapshot: arguments.snapshot,
        restore: arguments.restore,
        confinement: confinement(&arguments.confine)?,
    })
}

#[cfg(test)]
mod tests;
