// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine in the making: what QEMU is started with.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufReader, ErrorKind};
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use super::trace::Trace;
use super::{Qtest, QtestError};
use crate::process::{Deadline, Tethered, tether};

/// How often to look whether QEMU has connected.
const POLL: Duration = Duration::from_millis(2);
/// The BIOS: 64 KiB that end at 4 GiB, with the reset vector 16 bytes below the end.
const BIOS_SIZE: usize = 64 << 10;
/// cli; hlt; jmp back to the hlt.
const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];
/// A machine in the making.
#[derive(Clone, Debug)]
pub struct QtestOptions {
    qemu: OsString,
    memory_mib: u64,
    iommu: String,
    devices: Vec<String>,
    traces: Vec<String>,
    patience: Duration,
    instruction_shift: u32,
}

impl Default for QtestOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl QtestOptions {
    /// This machine's QEMU, 64 MiB, a 48-bit VT-d unit with interrupt remapping, and an `edu`
    /// device in slot 3.
    pub fn new() -> Self {
        QtestOptions {
            qemu: "qemu-system-x86_64".into(),
            memory_mib: 64,
            iommu: "aw-bits=48,intremap=on".to_owned(),
            devices: vec!["edu,addr=3,dma_mask=0xffffffffffffffff".to_owned()],
            traces: Vec::new(),
            patience: Duration::from_secs(120),
            instruction_shift: 0,
        }
    }

    /// Another QEMU program.
    #[must_use]
    pub fn qemu(mut self, program: impl Into<OsString>) -> Self {
        self.qemu = program.into();
        self
    }

    /// Memory, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// The properties of the VT-d unit, as QEMU spells them.
    #[must_use]
    pub fn iommu(mut self, properties: &str) -> Self {
        properties.clone_into(&mut self.iommu);
        self
    }

    /// One more device, as QEMU's `-device` takes it.
    #[must_use]
    pub fn device(mut self, device: &str) -> Self {
        self.devices.push(device.to_owned());
        self
    }

    /// One more trace point that is to be heard, as QEMU's `-trace` takes it: see [`Qtest::traced`].
    #[must_use]
    pub fn trace(mut self, event: &str) -> Self {
        self.traces.push(event.to_owned());
        self
    }

    /// How long an instruction takes, as a power of two of nanoseconds. The processor is halted; a coarse clock makes
    /// each wait for a timer of a device cost less (10: a quarter of what 0 costs).
    #[must_use]
    pub fn instruction_shift(mut self, shift: u32) -> Self {
        self.instruction_shift = shift;
        self
    }

    /// How long QEMU may take to start, and to answer one flush.
    #[must_use]
    pub fn time_out(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts the machine.
    pub fn start(&self) -> Result<Qtest> {
        let folder = tempfile::Builder::new().prefix("hvkit-qtest").tempdir()?;
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket)?;
        listener.set_nonblocking(true)?;
        let bios = folder.path().join("bios");
        fs::write(&bios, halting_bios())?;
        let log = folder.path().join("qemu");

        let mut qemu = tether(&self.qemu);
        qemu.args(["-machine", "q35", "-accel", "tcg"])
            .args([
                "-icount",
                &format!("shift={},sleep=off", self.instruction_shift),
            ])
            .args(["-nodefaults", "-display", "none"])
            .args(["-m", &self.memory_mib.to_string()])
            .arg("-bios")
            .arg(&bios)
            .args(["-device", &format!("intel-iommu,{}", self.iommu)]);
        for device in &self.devices {
            qemu.args(["-device", device]);
        }
        let trace = folder.path().join("trace");
        if !self.traces.is_empty() {
            qemu.arg("-D").arg(&trace);
        }
        for event in &self.traces {
            qemu.args(["-trace", event]);
        }
        qemu.arg("-qtest")
            .arg(format!("unix:{}", socket.display()))
            .args(["-qtest-log", "/dev/null"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let mut qemu = Tethered::spawn(qemu)?;

        let deadline = Deadline::after(self.patience);
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if qemu.wait(POLL).is_some() {
                bail!(QtestError::Ended {
                    stderr: fs::read_to_string(&log).unwrap_or_default()
                });
            }
            if deadline.left().is_none() {
                bail!(QtestError::TimedOut {
                    request: "start".to_owned(),
                    seconds: self.patience.as_secs(),
                });
            }
            thread::sleep(POLL);
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        let mut machine = Qtest {
            answers: BufReader::new(stream.try_clone()?),
            stream,
            patience: self.patience,
            interrupts: Vec::new(),
            log,
            trace: Trace::of(&trace),
            qemu,
            _folder: folder,
        };
        // QEMU connects before it makes its devices, and answers after: so a device that it
        // refuses shows here.
        machine.readb(0)?;
        Ok(machine)
    }
}

fn halting_bios() -> Vec<u8> {
    let mut bios = vec![0; BIOS_SIZE];
    bios[BIOS_SIZE - 16..][..HALT.len()].copy_from_slice(&HALT);
    bios
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bios_halts_at_the_reset_vector() {
        let bios = halting_bios();
        assert_eq!(bios.len(), 0x1_0000);
        assert_eq!(bios[0xfff0..0xfff4], [0xfa, 0xf4, 0xeb, 0xfd]);
    }
}
