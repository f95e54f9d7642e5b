// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Linux host with KVM (nested SVM), VT-d and VFIO: QEMU's emulator running Debian's kernel.
//!
//! ```no_run
//! let report = lab_kit::host::Host::new()
//!     .program("/usr/bin/lspci", "/bin/lspci")
//!     .run(&["lspci > /out/devices", "ls /dev/kvm /dev/vfio"])?;
//! report.check()?;
//! println!("{}", String::from_utf8_lossy(&report.files["devices"]));
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! The commands' output has a virtio-serial port of its own, apart from the kernel's console.

mod init;
mod report;
mod run;
mod stream;

use std::ffi::OsString;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::initramfs::Initramfs;
use crate::kernel::Kernel;
use crate::process::{Deadline, Tethered, tether};
use crate::skip;
use run::Run;

pub use report::{CommandReport, HostError, HostReport};

/// What the init itself needs, and what a host of virtual machines has.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "kvm_amd",
    "vfio_iommu_type1",
    "vfio_pci",
];
/// Without `no_timer_check` the kernel waits some 40 ms of its time for the first timer interrupts
/// and panics if there were too few, which happens when this machine is busy.
const KERNEL_ARGS: &[&str] = &[
    "console=ttyS0",
    "panic=-1",
    "intel_iommu=on",
    "no_timer_check",
    "quiet",
];
/// Where time is this machine's, the timer ticks whatever the kernel wants of it. Without that a host stood still for ever
/// in one of four runs of `vmm`'s test `virtio`, QEMU at full speed: as it would if a nested guest of two processors spun until
/// the other one runs, and the one interrupt were lost by which the host goes on. A tick that is lost is followed by another.
const TICKS: &[&str] = &["nohz=off", "highres=off"];
/// Below this the kernel and its own data do not fit.
const KERNEL_MIB: u64 = 160;

/// What this machine lacks to run the host, if anything: for [`skip_if`](crate::skip_if).
pub fn missing() -> Option<String> {
    skip::missing(&[
        "/usr/bin/qemu-system-x86_64",
        "/usr/bin/busybox",
        "/usr/share/seabios/bios-256k.bin",
    ])
}

/// How time passes in the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// As on this machine.
    #[default]
    Wall,
    /// By instructions executed: nearly the same in every run. For figures.
    Instructions,
}

/// Something to put into the host's file system.
#[derive(Clone, Debug)]
enum Payload {
    Copy(PathBuf, u32),
    Data(Vec<u8>, u32),
    Program(PathBuf),
    Tree(PathBuf),
}

type Watcher = Box<dyn FnMut(&[u8]) + Send>;

/// A host in the making.
pub struct Host {
    payloads: Vec<(String, Payload)>,
    modules: Vec<String>,
    qemu_args: Vec<OsString>,
    kernel_args: Vec<String>,
    memory_mib: u64,
    cpus: u32,
    clock: Clock,
    patience: Duration,
    watcher: Option<Watcher>,
    kernel: Option<Kernel>,
    qemu: PathBuf,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("payloads", &self.payloads.len())
            .field("memory_mib", &self.memory_mib)
            .field("cpus", &self.cpus)
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// One CPU, 2 GiB, two minutes.
    pub fn new() -> Self {
        Host {
            payloads: Vec::new(),
            modules: MODULES.iter().map(|&name| name.to_owned()).collect(),
            qemu_args: Vec::new(),
            kernel_args: Vec::new(),
            memory_mib: 2048,
            cpus: 1,
            clock: Clock::Wall,
            patience: Duration::from_secs(120),
            watcher: None,
            kernel: None,
            qemu: "qemu-system-x86_64".into(),
        }
    }

    /// Another kernel than this Debian's, such as [`with_iommufd`](crate::models::with_iommufd).
    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// Another QEMU than this machine's: a newer model's program.
    #[must_use]
    pub fn qemu(mut self, program: impl Into<PathBuf>) -> Self {
        self.qemu = program.into();
        self
    }

    /// A file of this machine at `path` in the host, with permission bits `mode`.
    #[must_use]
    pub fn file(mut self, from: impl AsRef<Path>, path: &str, mode: u32) -> Self {
        let payload = Payload::Copy(from.as_ref().to_path_buf(), mode);
        self.payloads.push((path.to_owned(), payload));
        self
    }

    /// A file of the given content at `path` in the host, with permission bits `mode`.
    #[must_use]
    pub fn data(mut self, data: impl Into<Vec<u8>>, path: &str, mode: u32) -> Self {
        self.payloads
            .push((path.to_owned(), Payload::Data(data.into(), mode)));
        self
    }

    /// A program of this machine at `path` in the host, with the shared libraries it needs.
    #[must_use]
    pub fn program(mut self, from: impl AsRef<Path>, path: &str) -> Self {
        let payload = Payload::Program(from.as_ref().to_path_buf());
        self.payloads.push((path.to_owned(), payload));
        self
    }

    /// A folder of this machine, with all that is in it, at `path` in the host.
    #[must_use]
    pub fn tree(mut self, from: impl AsRef<Path>, path: &str) -> Self {
        let payload = Payload::Tree(from.as_ref().to_path_buf());
        self.payloads.push((path.to_owned(), payload));
        self
    }

    /// One more kernel module, with what it depends on, inserted before the commands run.
    #[must_use]
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// More arguments for QEMU: devices, mostly.
    #[must_use]
    pub fn qemu_args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.qemu_args.extend(args.into_iter().map(Into::into));
        self
    }

    /// One more argument for the host's kernel.
    #[must_use]
    pub fn kernel_arg(mut self, arg: &str) -> Self {
        self.kernel_args.push(arg.to_owned());
        self
    }

    /// The host's memory, in MiB. Its files live there too.
    #[must_use]
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// The number of CPUs, 1 unless said.
    ///
    /// QEMU 7.2 with two emulated processors errs when both run nested guests: now and then it hangs in its own locks, or a guest
    /// finds the host's GS base. Tests leave it at 1.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// How time passes in the host.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// How long the whole run may take, on this machine's clock.
    #[must_use]
    pub fn time_out(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Is given what the commands print, while they run.
    #[must_use]
    pub fn watch(mut self, watcher: impl FnMut(&[u8]) + Send + 'static) -> Self {
        self.watcher = Some(Box::new(watcher));
        self
    }

    /// Boots, runs `commands` one by one, each a script for busybox's shell, and powers off.
    ///
    /// A command that fails does not stop the next: see [`HostReport::check`]. Fails with a
    /// [`HostError`] if the host does not come to its end, else if this machine lacks something.
    pub fn run(mut self, commands: &[impl AsRef<str>]) -> Result<HostReport> {
        let deadline = Deadline::after(self.patience);
        let folder = tempfile::Builder::new().prefix("hvkit-host").tempdir()?;
        let token = token();

        let mut image = self.image()?;
        image.file("/init", 0o755, init::batch(&token, commands.len()));
        for (index, command) in commands.iter().enumerate() {
            let path = format!("{}/{index}", init::COMMANDS);
            image.file(&path, 0o644, command.as_ref());
        }
        let mut qemu = tether(&self.qemu);
        self.machine(&mut qemu, &image, folder.path())?;
        qemu.args(["-display", "none", "-nodefaults"])
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", "stdio,id=out,signal=off"])
            .args(["-chardev", "file,id=files,path=files"])
            .args(["-chardev", "file,id=console,path=console"])
            .args(["-serial", "chardev:console"]);
        for (chardev, name) in [("out", init::OUTPUT_PORT), ("files", init::FILES_PORT)] {
            qemu.args([
                "-device",
                &format!("virtserialport,chardev={chardev},name={name}"),
            ]);
        }
        qemu.current_dir(folder.path())
            // An open pipe that nothing is written to: at the end of its input QEMU would take the
            // port for closed, and the commands' output would wait for ever.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.path().join("qemu"))?);
        let names = commands.iter().map(|c| c.as_ref().to_owned()).collect();
        let watcher = self.watcher.take();
        let qemu = Tethered::spawn(qemu)?;
        Run::new(qemu, &token, deadline, folder.path(), names, watcher).finish()
    }

    /// Boots and gives a shell on this terminal. `Ctrl-A x` ends the machine.
    pub fn shell(self) -> Result<ExitCode> {
        self.on_terminal("echo 'the laboratory host; exit or Ctrl-A x ends it'; exec sh")
    }

    /// Boots, runs `command`, a script for busybox's shell, on this terminal, and powers off.
    /// `Ctrl-A x` ends the machine.
    pub fn on_terminal(self, command: &str) -> Result<ExitCode> {
        let folder = tempfile::Builder::new().prefix("hvkit-host").tempdir()?;
        let mut image = self.image()?;
        image.file("/init", 0o755, init::on_terminal());
        image.file(&format!("{}/0", init::COMMANDS), 0o644, command);
        let mut qemu = Command::new(&self.qemu);
        self.machine(&mut qemu, &image, folder.path())?;
        let status = qemu
            .arg("-nographic")
            .status()
            .with_context(|| format!("cannot start {}", self.qemu.display()))?;
        Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn chosen_kernel(&self) -> Result<Kernel> {
        self.kernel.clone().map_or_else(Kernel::fetch, Ok)
    }

    /// The initramfs with all but the init.
    fn image(&self) -> Result<Initramfs> {
        let mut image = Initramfs::with_busybox()?;
        let modules: Vec<&str> = self.modules.iter().map(String::as_str).collect();
        image.modules(&self.chosen_kernel()?, &modules)?;
        for (path, payload) in &self.payloads {
            match payload {
                Payload::Copy(from, mode) => image.copy(from, path, *mode)?,
                Payload::Data(data, mode) => image.file(path, *mode, data.clone()),
                Payload::Program(from) => image.program(from, path)?,
                Payload::Tree(from) => image.tree(from, path)?,
            };
        }
        Ok(image)
    }

    /// The machine: processor, memory, VT-d, kernel and initramfs.
    fn machine(&self, qemu: &mut Command, image: &Initramfs, folder: &Path) -> Result<()> {
        let initramfs = folder.join("initramfs");
        let size_mib = image.write(&initramfs)?.div_ceil(1 << 20);
        // The archive and what was unpacked from it are there at once, and a file system in
        // memory may fill half of it.
        let needed_mib = KERNEL_MIB + 3 * size_mib;
        if needed_mib > self.memory_mib {
            bail!(HostError::Memory {
                initramfs_mib: size_mib,
                needed_mib,
                memory_mib: self.memory_mib,
            });
        }
        let ticks = match self.clock {
            Clock::Wall => TICKS,
            Clock::Instructions => &[],
        };
        let own = KERNEL_ARGS.iter().chain(ticks).copied();
        let kernel_args: Vec<&str> = own
            .chain(self.kernel_args.iter().map(String::as_str))
            .collect();
        let kernel_args = kernel_args.join(" ");
        qemu.args(["-accel", "tcg", "-M", "q35,kernel-irqchip=off"])
            .args(["-cpu", "EPYC-Rome,+svm,+npt", "-no-reboot"])
            .args(["-m", &self.memory_mib.to_string()])
            .args(["-smp", &self.cpus.to_string()])
            .args([
                "-device",
                "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on,aw-bits=48",
            ])
            .arg("-kernel")
            .arg(self.chosen_kernel()?.vmlinux()?)
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", &kernel_args]);
        if self.clock == Clock::Instructions {
            qemu.args(["-icount", "shift=1,sleep=off"]);
        }
        qemu.args(&self.qemu_args);
        Ok(())
    }
}

/// A word that no command prints: drawn from the seed that the standard library takes from the
/// system for its hash maps.
fn token() -> String {
    let draw = || {
        std::collections::hash_map::RandomState::new()
            .build_hasher()
            .finish()
    };
    format!("@lab-{:016x}{:016x}@", draw(), draw())
}
