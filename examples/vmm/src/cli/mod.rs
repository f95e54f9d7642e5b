// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line, in cloud-hypervisor's spelling.

mod key_value;
mod log;
mod options;
mod vtd;

pub use key_value::OptionError;

use crate::config::{Config, KVM_DEVICE};
use crate::exit_status::ExitStatus;
use crate::hello::{self, HelloError};
use crate::machine::{Machine, MachineError};
use clap::{ArgAction, Parser, ValueEnum};
use options::{RANDOM, console, cpus, device, disk, memory, net, rng, serial};
use std::ffi::OsString;
use std::path::PathBuf;
use vtd::vtd;

/// Runs a virtual machine on this host's KVM.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, after_help = after_help(), max_term_width = 100)]
struct Arguments {
    /// Kernel: a bzImage, or an ELF file (vmlinux) with a PVH note
    #[arg(long, value_name = "FILE", required_unless_present = "guest")]
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

    /// Raw disk image; several may follow, and the option may be repeated. Keys: path=FILE,
    /// readonly=on|off, serial=TEXT, num_queues=N, queue_size=N, image_type=raw, iommu=on|off, and
    /// limits of each queue: bw_size=BYTES, bw_refill_time=MS, ops_size=N, ops_refill_time=MS
    #[arg(long, value_name = "path=FILE[,readonly=on]", num_args = 1.., action = ArgAction::Append)]
    disk: Vec<String>,

    /// PCI device of the host to pass through, bound to vfio-pci; several may follow, and the option
    /// may be repeated. Keys: path=FOLDER (in /sys/bus/pci/devices), id=NAME,
    /// iommu=on|off
    #[arg(long, value_name = "path=FOLDER[,id=NAME]", num_args = 1.., action = ArgAction::Append)]
    device: Vec<String>,
    /// Network card on a tap interface of the host; several may follow, and the option may be
    /// repeated. Keys: tap=NAME, mac=ADDRESS, mtu=BYTES, iommu=on|off, and limits of each direction as
    /// for disks
    #[arg(long, value_name = "tap=NAME[,mac=ADDRESS]", num_args = 1.., action = ArgAction::Append)]
    net: Vec<String>,

    /// Source of random bytes. Keys: src=FILE, iommu=on|off
    #[arg(long, value_name = "src=FILE", num_args = 0..=1, default_missing_value = RANDOM)]
    rng: Option<String>,

    /// Serial line: the terminal, nowhere, absent, or a file
    #[arg(long, value_name = "tty|null|off|file=PATH", default_value = "tty")]
    serial: String,

    /// Paravirtual console (hvc0 in Linux): absent, nowhere, a pseudo-terminal, or a file; and
    /// iommu=on|off
    #[arg(long, value_name = "off|null|pty|file=PATH", default_value = "off")]
    console: String,

    /// An emulated VT-d remapping unit, which devices with iommu=on are behind. Keys: aw=39|48|57 (bits
    /// of address that it translates; 48 if not given), intremap=on|off (interrupts are remapped, too; on
    /// if not given), caching=on|off (needed by --device), scalable=on|off
    #[arg(long, value_name = "aw=48[,caching=on]", num_args = 0..=1, default_missing_value = vtd::PLAIN)]
    vtd: Option<String>,

    /// Run a guest that is built in, instead of a kernel
    #[arg(long, value_name = "NAME", conflicts_with_all = ["kernel", "initramfs", "disk", "device", "net", "rng", "vtd"])]
    guest: Option<Guest>,

    /// Say more on standard error: -v what is done, -vv details
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,

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
        "In a terminal, Ctrl-A x ends the machine, and Ctrl-A Ctrl-A sends one Ctrl-A.\n\n\
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
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way, too, and go to standard output.
            let _ = error.print();
            return if error.use_stderr() {
                ExitStatus::Usage.code()
            } else {
                ExitStatus::PoweredOff.code()
            };
        }
    };
    log::start(arguments.verbose);
    match run(arguments) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("vmm: {error}");
            error.exit_status().code()
        }
    }
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
    let config = match (arguments.guest, arguments.kernel.clone()) {
        (None, Some(kernel)) => config(arguments, kernel)?,
        // clap sees to it that there is one of them.
        (Some(Guest::Hello), _) | (None, None) => {
            let report = hello::run(&arguments.kvm)?;
            print!("{report}");
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
        eprintln!("vmm: {}\n{registers}", outcome.reason);
    } else if outcome.is_failure() {
        eprintln!("vmm: {}", outcome.reason);
    }
    Ok(ExitStatus::code_of(&outcome.reason))
}

fn config(arguments: Arguments, kernel: PathBuf) -> Result<Config, OptionError> {
    let (console, console_dma) = console(&arguments.console)?;
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
            .map(|text| disk(text))
            .collect::<Result<_, _>>()?,
        devices: arguments
            .device
            .iter()
            .map(|text| device(text))
            .collect::<Result<_, _>>()?,
        nets: arguments
            .net
            .iter()
            .map(|text| net(text))
            .collect::<Result<_, _>>()?,
        rng: arguments.rng.as_deref().map(rng).transpose()?,
        console,
        console_dma,
        vtd: arguments.vtd.as_deref().map(vtd).transpose()?,
        serial: serial(&arguments.serial)?,
        report: arguments.report,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Access, Disk, Dma, HostDevice, Net, Rng, Serial, VirtioConsole, Vtd};
    use clap::CommandFactory;
    use hvkit_virtio_devices::limit::{Limits, Rate};

    fn parse(line: &str) -> Config {
        let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
        let kernel = arguments.kernel.clone().unwrap();
        config(arguments, kernel).unwrap()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn cloud_hypervisors_spelling_is_understood() {
        let config = parse(
            "vmm --kernel vmlinux --initramfs i.cpio --cmdline quiet --cpus boot=4 \
             --memory size=2G --disk path=a.img path=b.img,readonly=on --disk c.img \
             --device path=/sys/bus/pci/devices/0000:01:00.0,id=nvme /dev2 --serial file=log \
             --console off -v",
        );
        assert_eq!(config.kernel, PathBuf::from("vmlinux"));
        assert_eq!(config.initramfs, Some("i.cpio".into()));
        assert_eq!((config.cpus, config.memory), (4, 2 << 30));
        let disks = [
            ("a.img", Access::ReadWrite),
            ("b.img", Access::ReadOnly),
            ("c.img", Access::ReadWrite),
        ];
        let disks = disks.map(|(path, access)| Disk {
            access,
            ..Disk::new(path.into())
        });
        assert_eq!(config.disks, disks);
        let devices = [
            ("/sys/bus/pci/devices/0000:01:00.0", Some("nvme")),
            ("/dev2", None),
        ];
        let devices = devices.map(|(path, id)| HostDevice {
            path: path.into(),
            id: id.map(str::to_owned),
            dma: Dma::Direct,
        });
        assert_eq!(config.devices, devices);
        assert_eq!(config.serial, Serial::File("log".into()));
    }

    #[test]
    fn without_options_it_is_the_library_s_default() {
        let config = parse("vmm --kernel k");
        assert_eq!(config, Config::new("k".into()));
    }

    #[test]
    fn a_device_has_a_path() {
        for wrong in ["id=a", "path=", "/a,id=", "/a,iommu=yes"] {
            assert!(device(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn serial_modes_are_listed_when_one_is_wrong() {
        assert_eq!(serial("null"), Ok(Serial::Null));
        assert!(
            serial("pty")
                .unwrap_err()
                .to_string()
                .contains("tty, null, off")
        );
        assert!(serial("file=").is_err());
    }

    #[test]
    fn devices_have_their_keys() {
        let config = parse("vmm --kernel k --net tap=t0,mac=52:54:00:aB:00:01 --rng --console pty");
        assert_eq!(
            config.nets,
            [Net {
                tap: "t0".into(),
                mac: Some([0x52, 0x54, 0, 0xab, 0, 1]),
                mtu: None,
                limits: Limits::default(),
                dma: Dma::Direct,
            }]
        );
        let random = |source: &str, dma| Rng {
            source: source.into(),
            dma,
        };
        assert_eq!(config.rng, Some(random("/dev/urandom", Dma::Direct)));
        assert_eq!(config.console, VirtioConsole::Pty);

        let config = parse("vmm --kernel k --rng src=/dev/hwrng --console file=log");
        assert_eq!(config.rng, Some(random("/dev/hwrng", Dma::Direct)));
        assert_eq!(config.console, VirtioConsole::File("log".into()));
        assert_eq!(config.vtd, None);

        let config = parse(
            "vmm --kernel k --vtd --disk d,iommu=on e --rng iommu=on --console null,iommu=on \
             --net tap=t,iommu=on --device /dev,iommu=on",
        );
        assert_eq!(config.vtd, Some(Vtd::default()));
        let dma = [
            config.disks[0].dma,
            config.disks[1].dma,
            config.console_dma,
            config.nets[0].dma,
            config.devices[0].dma,
        ];
        let translated = Dma::Translated;
        assert_eq!(
            dma,
            [translated, Dma::Direct, translated, translated, translated]
        );
        assert_eq!(config.rng, Some(random("/dev/urandom", translated)));
        assert_eq!(config.console, VirtioConsole::Null);

        let limited = disk(
            "d,serial=s1,num_queues=4,queue_size=128,image_type=raw,bw_size=1M,bw_refill_time=100,ops_size=50",
        );
        let expected = Disk {
            serial: "s1".into(),
            queues: Some(4),
            queue_size: Some(128),
            limits: Limits {
                bytes: Some(Rate {
                    per_second: 10 << 20,
                    burst: 1 << 20,
                }),
                requests: Some(Rate {
                    per_second: 50,
                    burst: 50,
                }),
            },
            ..Disk::new("d".into())
        };
        assert_eq!(limited, Ok(expected));
    }

    #[test]
    fn devices_that_make_no_sense_are_told_by_key() {
        let text = |error: OptionError| error.to_string();
        let raw = text(disk("d,image_type=qcow2").unwrap_err());
        assert_eq!(raw, "--disk: image_type=qcow2 is not raw");
        let time = text(disk("d,bw_size=1,bw_refill_time=0").unwrap_err());
        assert!(time.contains("bw_refill_time=0 is not a number of milliseconds above 0"));
        for wrong in [
            "1:2:3:4:5:6",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52-54-00-12-34-56",
            "+1:00:00:00:00:00",
        ] {
            let error = text(net(&format!("tap=t,mac={wrong}")).unwrap_err());
            assert!(error.contains("such as 52:54:00"), "{error}");
        }
        assert!(text(net("mac=52:54:00:12:34:56").unwrap_err()).contains("'tap' is missing"));
        assert!(text(console("tty").unwrap_err()).contains("off, null, pty"));
    }

    #[test]
    fn help_lists_keys_and_exit_statuses() {
        let help = Arguments::command().render_help().to_string();
        for part in [
            "boot=N",
            "size=BYTES",
            "readonly=on",
            "file=PATH",
            "Ctrl-A x",
        ] {
            assert!(help.contains(part), "{part} is not in\n{help}");
        }
        for status in ExitStatus::ALL {
            assert!(help.contains(status.meaning()), "{status:?}");
        }
    }
}
