// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The real `vmm`, run to its end.

mod folder;
mod run;

pub(crate) use folder::Folder;
pub(crate) use run::run;

use std::process::{Command, Stdio};

/// The real program.
pub(crate) fn vmm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.stdin(Stdio::null());
    command
}
