// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bochs: a VMX processor that runs a flat bare-metal payload in about a second.
//!
//! The payload is entered at 2 MiB in flat 32-bit protected mode, interrupts off, with a stack. It
//! talks through the first serial port (which it must set up) and ends by writing the letters
//! `Shutdown` to port 0x8900. [`payload`](crate::payload) builds one from Rust.
//!
//! ```no_run
//! use lab_kit::bochs::{Bochs, Exit};
//!
//! let report = Bochs::new().run(std::path::Path::new("payload.bin"))?;
//! assert_eq!(report.exit, Exit::Shutdown, "{report}");
//! print!("{}", report.text());
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! Bochs counts time by instructions, so a run repeats exactly.

pub(crate) mod boot_sector;

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use self::boot_sector::Load;
use crate::process::{Deadline, Tethered, tether};
use crate::skip;

/// Where the payload lies and is entered.
pub const ENTRY: u32 = 0x20_0000;
/// What Bochs is started with.
const TEMPLATE: &str = include_str!("../../../bochs/bochsrc.template");
/// A cylinder of the template's disk: heads, sectors, bytes.
const CYLINDER: u64 = 16 * 63 * boot_sector::SIZE as u64;
/// Below, the BIOS and the boot sector have their data; from the other end on, 32 bits do not reach.
const LOADABLE: Range<u64> = 1 << 20..1 << 32;
/// How often to look for serial output and the end.
const POLL: Duration = Duration::from_millis(10);
/// How much of the log a failed run shows, in lines.
const SHOWN_LINES: usize = 30;

/// What this machine lacks to run Bochs, if anything: for [`skip_if`](crate::skip_if).
pub fn missing() -> Option<String> {
    skip::missing(&[
        "/usr/bin/bochs",
        "/usr/share/bochs/BIOS-bochs-latest",
        "/usr/share/bochs/VGABIOS-lgpl-latest",
    ])
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The payload asked for it, at port 0x8900.
    Shutdown,
    /// A fault while delivering a double fault. The registers are in the log.
    TripleFault,
    /// Bochs gave up: its words.
    Panic(String),
    /// The payload was still running when the time was over.
    TimedOut,
    /// Bochs ended without saying why: its status and output.
    Error(String),
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct BochsReport {
    /// How it ended.
    pub exit: Exit,
    /// What the payload sent to the serial port.
    pub serial: Vec<u8>,
    /// What Bochs itself printed, and within it what the payload sent to port 0xe9.
    pub output: Vec<u8>,
    /// Bochs's log: it names every refused VM entry, VMX instruction failure and triple fault.
    pub log: String,
    /// The whole run, on this machine's clock.
    pub total: Duration,
}

impl BochsReport {
    /// The serial output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.serial).into_owned()
    }

    /// The last lines of the log.
    pub fn log_end(&self) -> String {
        let lines: Vec<&str> = self.log.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }

    /// The version of the model, as its log says: "Bochs x86 Emulator 2.7".
    pub fn version(&self) -> Option<&str> {
        self.log
            .lines()
            .find_map(|line| line.find("Bochs x86 Emulator").map(|at| line[at..].trim()))
    }
}

/// For an assertion's message: the end, the serial output, the end of the log.
impl fmt::Display for BochsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.exit)?;
        writeln!(f, "--- serial\n{}--- log", self.text())?;
        writeln!(f, "{}", self.log_end())
    }
}

/// What an MSR does that Bochs does not know, and that the modelled processor may well have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownMsrs {
    /// #GP, as a processor does of one it does not have.
    Fault,
    /// It reads as 0 and takes anything: Linux reads `IA32_MISC_ENABLE` before it can handle a fault.
    Zero,
}

type Watcher = Box<dyn FnMut(&[u8]) + Send>;

/// A machine in the making.
pub struct Bochs {
    program: PathBuf,
    share: PathBuf,
    cpu: String,
    memory_mib: u64,
    instructions_per_second: u64,
    unknown_msrs: UnknownMsrs,
    images: Vec<(Vec<u8>, u64)>,
    patience: Duration,
    watcher: Option<Watcher>,
}

impl fmt::Debug for Bochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bochs")
            .field("program", &self.program)
            .field("cpu", &self.cpu)
            .field("memory_mib", &self.memory_mib)
            .field("images", &self.images.len())
            .finish_non_exhaustive()
    }
}

impl Default for Bochs {
    fn default() -> Self {
        Self::new()
    }
}

impl Bochs {
    /// This machine's Bochs as a Skylake-X (VMX with EPT), 256 MiB, one minute.
    pub fn new() -> Self {
        Bochs {
            program: "bochs".into(),
            share: "/usr/share/bochs".into(),
            cpu: "corei7_skylake_x".to_owned(),
            memory_mib: 256,
            instructions_per_second: 50_000_000,
            unknown_msrs: UnknownMsrs::Fault,
            images: Vec::new(),
            patience: Duration::from_secs(60),
            watcher: None,
        }
    }

    /// Another Bochs: its program and the folder of its BIOS images.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>, share: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self.share = share.into();
        self
    }

    /// The processor, by the name of Bochs's model (`bochs -help cpu` lists them).
    #[must_use]
    pub fn cpu(mut self, model: &str) -> Self {
        model.clone_into(&mut self.cpu);
        self
    }

    /// Memory, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// How many instructions a second of the machine's own time has. The serial port sends some 11,000
    /// bytes in one: a payload that sends much wants a small number here.
    #[must_use]
    pub fn instructions_per_second(mut self, number: u64) -> Self {
        self.instructions_per_second = number;
        self
    }

    /// What an MSR does that the model does not know. [`UnknownMsrs::Fault`] if nothing is said.
    #[must_use]
    pub fn unknown_msrs(mut self, what: UnknownMsrs) -> Self {
        self.unknown_msrs = what;
        self
    }

    /// Bytes that lie at physical `address` when the payload starts: its input. Any size from 1 MiB up; the boot sector
    /// reads them from the disk.
    #[must_use]
    pub fn image(mut self, bytes: impl Into<Vec<u8>>, address: u64) -> Self {
        self.images.push((bytes.into(), address));
        self
    }

    /// How long the run may take, on this machine's clock.
    #[must_use]
    pub fn time_out(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Is given the serial output while it comes.
    #[must_use]
    pub fn watch(mut self, watcher: impl FnMut(&[u8]) + Send + 'static) -> Self {
        self.watcher = Some(Box::new(watcher));
        self
    }

    /// Runs the flat binary in file `payload`.
    pub fn run(self, payload: &Path) -> Result<BochsReport> {
        let bytes =
            fs::read(payload).with_context(|| format!("cannot read {}", payload.display()))?;
        self.run_bytes(&bytes)
    }

    /// Runs a flat binary.
    ///
    /// However the payload ends, that is a report; an error means that Bochs was not run.
    pub fn run_bytes(self, payload: &[u8]) -> Result<BochsReport> {
        ensure!(!payload.is_empty(), "the payload is empty");
        let folder = tempfile::Builder::new().prefix("hvkit-bochs").tempdir()?;
        let disk = File::create(folder.path().join("disk"))?;
        let end = self.write_disk(payload, disk)?;
        self.run_in(folder.path(), end)
    }

    /// Boots the disk image in file `image`, such as a hybrid ISO, by Bochs's BIOS. The images of [`image`](Self::image) are not used.
    pub fn run_disk(self, image: &Path) -> Result<BochsReport> {
        let folder = tempfile::Builder::new().prefix("hvkit-bochs").tempdir()?;
        let copy = folder.path().join("disk");
        let bytes =
            fs::copy(image, &copy).with_context(|| format!("cannot copy {}", image.display()))?;
        let end = bytes.div_ceil(CYLINDER) * CYLINDER;
        File::options().write(true).open(&copy)?.set_len(end)?;
        self.run_in(folder.path(), end)
    }

    /// Runs what is on the disk in `folder`, which has `end` bytes.
    fn run_in(mut self, folder: &Path, end: u64) -> Result<BochsReport> {
        let deadline = Deadline::after(self.patience);
        self.prepare(folder, end)?;
        let output = folder.join("output");
        let mut bochs = tether(&self.program);
        bochs
            .args(["-q", "-f", "bochsrc", "-rc", "commands"])
            .current_dir(folder)
            .env("TERM", "xterm")
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::options().append(true).open(&output)?);
        let mut bochs = Tethered::spawn(bochs)?;

        let mut serial = Serial::new(folder.join("serial"), self.watcher.take());
        let status = loop {
            let status = bochs.wait(POLL);
            serial.read_on()?;
            if status.is_some() || deadline.left().is_none() {
                break status;
            }
        };
        bochs.kill();
        serial.read_on()?;
        let log = fs::read(folder.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let output = fs::read(&output).unwrap_or_default();
        let said = String::from_utf8_lossy(&output);
        // Before the log is open, Bochs complains to its output.
        let exit = match (status, last_words(&log).or_else(|| last_words(&said))) {
            (None, _) => Exit::TimedOut,
            (Some(_), Some(words)) => exit(words),
            (Some(status), None) => Exit::Error(format!("{status}: {said}")),
        };
        Ok(BochsReport {
            exit,
            serial: serial.seen,
            output,
            log,
            total: deadline.elapsed(),
        })
    }

    /// Writes what Bochs reads besides the disk, which has `end` bytes.
    fn prepare(&self, folder: &Path, end: u64) -> Result<()> {
        // Debian's build starts in its debugger: continue.
        fs::write(folder.join("commands"), "c\n")?;
        let configuration = TEMPLATE
            .replace("@MEMORY@", &self.memory_mib.to_string())
            .replace("@SHARE@", &self.share.to_string_lossy())
            .replace("@CPU@", &self.cpu)
            .replace(
                "@IGNORE_MSRS@",
                match self.unknown_msrs {
                    UnknownMsrs::Fault => "0",
                    UnknownMsrs::Zero => "1",
                },
            )
            .replace("@IPS@", &self.instructions_per_second.to_string())
            .replace("@CYLINDERS@", &(end / CYLINDER).to_string());
        fs::write(folder.join("bochsrc"), configuration)?;
        Ok(())
    }

    /// Writes the boot sector and the images after it, in the order of their addresses: what fills an image's last sector
    /// must not cover the next one. Returns the disk's size.
    fn write_disk(&self, payload: &[u8], mut disk: File) -> Result<u64> {
        let mut images: Vec<(&[u8], u64)> = vec![(payload, u64::from(ENTRY))];
        images.extend(self.images.iter().map(|(bytes, at)| (&bytes[..], *at)));
        images.retain(|(bytes, _)| !bytes.is_empty());
        images.sort_by_key(|(_, address)| *address);
        ensure!(
            images.len() <= boot_sector::MOST_LOADS,
            "{} images, where the boot sector takes {}",
            images.len(),
            boot_sector::MOST_LOADS
        );
        let size = boot_sector::SIZE as u64;
        let (mut loads, mut sector, mut free) = (Vec::new(), 1, LOADABLE.start);
        let memory = LOADABLE.end.min(self.memory_mib << 20);
        for (bytes, address) in &images {
            let count = (bytes.len() as u64).div_ceil(size);
            ensure!(
                *address >= free,
                "{} bytes at {address:#x} begin below {free:#x}, where what is there ends",
                bytes.len()
            );
            ensure!(
                address.saturating_add(count * size) <= memory,
                "{} bytes at {address:#x} do not fit into {} MiB",
                bytes.len(),
                memory >> 20
            );
            loads.push(Load {
                sector: u32::try_from(sector)?,
                count: u32::try_from(count)?,
                address: u32::try_from(*address)?,
            });
            sector += count;
            free = address + bytes.len() as u64;
        }
        disk.write_all(&boot_sector::boot_sector(ENTRY, &loads))?;
        for ((bytes, _), load) in images.iter().zip(&loads) {
            disk.seek(SeekFrom::Start(u64::from(load.sector) * size))?;
            disk.write_all(bytes)?;
        }
        // The rest is a hole in the file.
        let end = (sector * size).div_ceil(CYLINDER) * CYLINDER;
        disk.set_len(end)?;
        Ok(end)
    }
}

/// The serial output, a file that grows.
struct Serial {
    path: PathBuf,
    file: Option<File>,
    seen: Vec<u8>,
    watcher: Option<Watcher>,
}

impl Serial {
    fn new(path: PathBuf, watcher: Option<Watcher>) -> Self {
        Serial {
            path,
            file: None,
            seen: Vec::new(),
            watcher,
        }
    }

    /// Takes what is new.
    fn read_on(&mut self) -> Result<()> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        if let Some(file) = &mut self.file {
            let before = self.seen.len();
            file.read_to_end(&mut self.seen)?;
            if let (Some(watcher), new @ [_, ..]) = (&mut self.watcher, &self.seen[before..]) {
                watcher(new);
            }
        }
        Ok(())
    }
}

/// The last line of the log that says why Bochs ended.
fn last_words(log: &str) -> Option<&str> {
    log.lines().rev().find_map(|line| {
        let (_, words) = line.split_once(">>PANIC<< ")?;
        Some(words.trim())
    })
}

fn exit(words: &str) -> Exit {
    if words.contains("Shutdown port: shutdown requested") {
        Exit::Shutdown
    } else if words.contains("exception with no resolution") {
        Exit::TripleFault
    } else {
        Exit::Panic(words.to_owned())
    }
}
