// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU driven from here without a guest: its VT-d unit, a DMA device, and memory.
//!
//! The processor of the machine halts at its first instruction. Reads and writes come from here,
//! over QEMU's test socket. Time in the machine jumps to whatever timer is next, so nothing waits
//! longer than it takes to compute.
//!
//! ```no_run
//! use lab_kit::qtest::{Batch, QtestOptions, VTD};
//!
//! let mut machine = QtestOptions::new().start()?;
//! let mut batch = Batch::new();           // many requests, one flush
//! let version = batch.readl(VTD);
//! let capability = batch.readq(VTD + 8);
//! let answers = machine.run(&batch)?;
//! println!("{:#x} {:#x}", answers.value(version), answers.value(capability));
//! # Ok::<(), anyhow::Error>(())
//! ```

mod batch;
pub mod edu;
mod options;
mod pci;
mod trace;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use thiserror::Error;

use crate::process::Tethered;
use crate::skip;
use batch::Expected;
use trace::Trace;

pub use batch::{Batch, Bytes, Value};
pub use edu::{DmaError, Edu};
pub use options::QtestOptions;
pub use pci::PciAddress;

/// Where the registers of QEMU's VT-d unit are.
pub const VTD: u64 = 0xfed9_0000;
/// No answer line is longer than this; one that is ends the conversation.
const LONGEST_ANSWER: u64 = 64 << 20;

/// What this machine lacks to run QEMU, if anything: for [`skip_if`](crate::skip_if).
pub fn missing() -> Option<String> {
    skip::missing(&["/usr/bin/qemu-system-x86_64"])
}

/// Why QEMU did not answer as it should.
#[derive(Debug, Error)]
pub enum QtestError {
    /// QEMU is gone.
    #[error("QEMU ended: {stderr}")]
    Ended {
        /// What it said.
        stderr: String,
    },
    /// No answer in time.
    #[error("QEMU did not answer `{request}` within {seconds} s")]
    TimedOut {
        /// The request.
        request: String,
        /// The time allowed.
        seconds: u64,
    },
    /// The request was refused, or the answer makes no sense.
    #[error("QEMU answered `{request}` with `{answer}`")]
    Refused {
        /// The request.
        request: String,
        /// The answer.
        answer: String,
    },
}

/// A change of an interrupt line that was intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineChange {
    /// The input's number.
    pub line: u32,
    /// Whether it is asserted now.
    pub level: Level,
}

/// The level of an interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Asserted.
    High,
    /// Not asserted.
    Low,
}

/// A running machine. Dropping it ends it.
#[derive(Debug)]
pub struct Qtest {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
    patience: Duration,
    interrupts: Vec<LineChange>,
    log: PathBuf,
    trace: Trace,
    qemu: Tethered,
    _folder: tempfile::TempDir,
}

/// What the requests of a [`Batch`] read.
#[derive(Clone, Debug)]
pub struct Answers(Vec<Answer>);

#[derive(Clone, Debug)]
enum Answer {
    Nothing,
    Value(u64),
    Bytes(Vec<u8>),
}

impl Answers {
    /// A number that was read.
    ///
    /// # Panics
    ///
    /// If `value` is from another batch.
    pub fn value(&self, value: Value) -> u64 {
        match &self.0[value.0] {
            Answer::Value(number) => *number,
            other => panic!("the handle is from another batch: {other:?}"),
        }
    }

    /// Bytes that were read.
    ///
    /// # Panics
    ///
    /// If `bytes` is from another batch.
    pub fn bytes(&self, bytes: Bytes) -> &[u8] {
        match &self.0[bytes.0] {
            Answer::Bytes(bytes) => bytes,
            other => panic!("the handle is from another batch: {other:?}"),
        }
    }
}

/// One request at a time: a round trip each, so use a [`Batch`] where there are many.
macro_rules! single {
    ($($read:ident, $write:ident, $type:ty;)*) => {$(
        #[doc = concat!("Reads a `", stringify!($type), "`; one round trip.")]
        pub fn $read(&mut self, address: u64) -> Result<$type> {
            let mut batch = Batch::new();
            let value = batch.$read(address);
            Ok(<$type>::try_from(self.run(&batch)?.value(value))?)
        }

        #[doc = concat!("Writes a `", stringify!($type), "`; one round trip.")]
        pub fn $write(&mut self, address: u64, value: $type) -> Result<()> {
            let mut batch = Batch::new();
            batch.$write(address, value);
            self.run(&batch).map(drop)
        }
    )*};
}

impl Qtest {
    /// Sends all requests and reads all answers. Fails with a [`QtestError`].
    pub fn run(&mut self, batch: &Batch) -> Result<Answers> {
        let mut answers = Vec::with_capacity(batch.len());
        for chunk in batch.chunks() {
            let mut text = String::new();
            for request in chunk {
                text.push_str(&request.line);
                text.push('\n');
            }
            if let Err(error) = self.stream.write_all(text.as_bytes()) {
                return Err(self.failure(&chunk[0].line, &error).into());
            }
            for request in chunk {
                let answer = self.answer(&request.line)?;
                let parsed = parse(&answer, request.answer);
                answers.push(parsed.ok_or_else(|| QtestError::Refused {
                    request: request.line.chars().take(80).collect(),
                    answer,
                })?);
            }
        }
        Ok(Answers(answers))
    }

    single! {
        readb, writeb, u8;
        readw, writew, u16;
        readl, writel, u32;
        readq, writeq, u64;
    }

    /// Reads `length` bytes of memory.
    pub fn read(&mut self, address: u64, length: usize) -> Result<Vec<u8>> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let mut batch = Batch::new();
        let bytes = batch.read(address, length);
        Ok(self.run(&batch)?.bytes(bytes).to_vec())
    }

    /// Writes bytes to memory.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        let mut batch = Batch::new();
        batch.write(address, bytes);
        self.run(&batch).map(drop)
    }

    /// Sends one request in the protocol's own words and returns the answer, for what has no method.
    pub fn raw(&mut self, request: &str) -> Result<String> {
        let sent = self.stream.write_all(format!("{request}\n").as_bytes());
        sent.map_err(|error| self.failure(request, &error))?;
        let answer = self.answer(request)?;
        if !answer.starts_with("OK") {
            return Err(QtestError::Refused {
                request: request.to_owned(),
                answer,
            }
            .into());
        }
        Ok(answer)
    }

    /// From now on, records changes of the inputs of the device at `path` in QEMU's object tree
    /// (such as `ioapic`) instead of delivering them.
    pub fn intercept_interrupts(&mut self, path: &str) -> Result<()> {
        self.raw(&format!("irq_intercept_in {path}")).map(drop)
    }

    /// The changes of intercepted lines since this was last asked, oldest first.
    ///
    /// They arrive with the answers, so ask something after what should raise one.
    pub fn interrupts(&mut self) -> Vec<LineChange> {
        std::mem::take(&mut self.interrupts)
    }

    /// The next answer line; interrupts that come before it are recorded.
    fn answer(&mut self, request: &str) -> Result<String, QtestError> {
        loop {
            let mut line = String::new();
            let mut limited = std::io::Read::take(&mut self.answers, LONGEST_ANSWER);
            match limited.read_line(&mut line) {
                Ok(0) => return Err(self.failure(request, &ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(self.failure(request, &error)),
            }
            match line_change(&line) {
                Some(change) => self.interrupts.push(change),
                None => return Ok(line.trim_end().to_owned()),
            }
        }
    }

    fn failure(&mut self, request: &str, error: &std::io::Error) -> QtestError {
        if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
            return QtestError::TimedOut {
                request: request.chars().take(80).collect(),
                seconds: self.patience.as_secs(),
            };
        }
        // Its last words may still be on their way.
        self.qemu.wait(Duration::from_secs(1));
        let stderr = fs::read_to_string(&self.log).context("no log");
        QtestError::Ended {
            stderr: stderr.unwrap_or_else(|error| format!("{error:#}")),
        }
    }
}

/// `IRQ raise 16` and `IRQ lower 16` come between answers.
fn line_change(line: &str) -> Option<LineChange> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (level, line) = match words[..] {
        ["IRQ", "raise", line] => (Level::High, line),
        ["IRQ", "lower", line] => (Level::Low, line),
        _ => return None,
    };
    let line = line.parse().ok()?;
    Some(LineChange { line, level })
}

fn parse(answer: &str, expected: Expected) -> Option<Answer> {
    let rest = answer.strip_prefix("OK")?;
    let digits = || rest.strip_prefix(" 0x");
    match expected {
        Expected::Nothing => rest.is_empty().then_some(Answer::Nothing),
        Expected::Value => Some(Answer::Value(u64::from_str_radix(digits()?, 16).ok()?)),
        Expected::Bytes(length) => {
            let digits = digits()?.as_bytes();
            (digits.len() == 2 * length).then_some(())?;
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            let bytes: Option<Vec<u8>> = digits.chunks_exact(2).map(byte).collect();
            Some(Answer::Bytes(bytes?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_make_no_sense_are_refused() {
        for (answer, expected) in [
            ("OK 0x1", Expected::Nothing),
            ("OK", Expected::Value),
            ("OK 0xg", Expected::Value),
            ("FAIL Unknown command", Expected::Nothing),
            ("OK 0x0102", Expected::Bytes(3)),
            ("OK 0x01zz", Expected::Bytes(2)),
        ] {
            assert!(parse(answer, expected).is_none(), "{answer}");
        }
        assert!(
            matches!(parse("OK 0x0102", Expected::Bytes(2)), Some(Answer::Bytes(b)) if b == [1, 2])
        );
    }

    #[test]
    fn interrupts_are_told_from_answers() {
        let high = LineChange {
            line: 16,
            level: Level::High,
        };
        assert_eq!(line_change("IRQ raise 16\n"), Some(high));
        assert_eq!(line_change("OK\n"), None);
        assert_eq!(line_change("IRQ raise x\n"), None);
    }
}
