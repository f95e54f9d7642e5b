// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reference VMM's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    hvkit_vmm::cli::main(std::env::args_os()).into()
}
