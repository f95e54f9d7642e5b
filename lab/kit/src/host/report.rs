// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What comes back from the host, and how a run of it can fail.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use thiserror::Error;

/// One command, and what it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandReport {
    /// The command, as given.
    pub command: String,
    /// Its exit status as the shell gives it: 128 and the signal's number if one killed it.
    pub status: i32,
    /// Standard output and error, in the order they were written.
    pub output: Vec<u8>,
}

impl CommandReport {
    /// The output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct HostReport {
    /// The commands, in the order given.
    pub commands: Vec<CommandReport>,
    /// The files that lay under `/out` at the end, by their path below it.
    pub files: BTreeMap<String, Vec<u8>>,
    /// What the kernel wrote to its console.
    pub console: String,
    /// From the call to the start of the first command.
    pub until_first_command: Duration,
    /// From the call to the end.
    pub total: Duration,
}

impl HostReport {
    /// Fails, with its output, if a command did not exit with 0.
    pub fn check(&self) -> Result<()> {
        for command in &self.commands {
            ensure!(
                command.status == 0,
                "`{}` ended with status {} in the laboratory's host:\n{}",
                command.command,
                command.status,
                command.text()
            );
        }
        Ok(())
    }
}

/// Why a run of the host did not come to its end.
#[derive(Debug, Error)]
pub enum HostError {
    /// The host's kernel panicked.
    #[error("the host's kernel panicked: {message}\n{console}")]
    Panicked {
        /// The kernel's own words.
        message: String,
        /// The end of the console.
        console: String,
    },
    /// The time allowed was over.
    #[error("the host was still at {during} after {seconds} s\n{output}\n{console}")]
    TimedOut {
        /// What it was doing: booting, or a command.
        during: String,
        /// The time allowed.
        seconds: u64,
        /// The end of that command's output.
        output: String,
        /// The end of the console.
        console: String,
    },
    /// QEMU ended before the commands did.
    #[error("the host ended ({status}) at {during}\n{qemu}\n{console}")]
    Ended {
        /// How QEMU ended.
        status: String,
        /// What the host was doing.
        during: String,
        /// What QEMU wrote.
        qemu: String,
        /// The end of the console.
        console: String,
    },
    /// The initramfs is too large for the memory.
    #[error(
        "an initramfs of {initramfs_mib} MiB needs a host of at least {needed_mib} MiB; this has {memory_mib}"
    )]
    Memory {
        /// Size of the archive.
        initramfs_mib: u64,
        /// The least memory that would do.
        needed_mib: u64,
        /// The memory asked for.
        memory_mib: u64,
    },
}
