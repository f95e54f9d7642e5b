// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit`: looks inside a hypervisor from its files.

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

use std::io::{self, ErrorKind, stdout};
use std::process::ExitCode;

use clap::Parser;
use hvkit_inspect::{Cli, Found, answer, plain};

fn main() -> ExitCode {
    match answer(&Cli::parse(), &mut stdout().lock()) {
        Ok(Found::Nothing) => ExitCode::SUCCESS,
        Ok(Found::Something) => ExitCode::from(1),
        Err(error) => {
            let cause = error.downcast_ref::<io::Error>();
            // Who reads no more, as `head`, has seen what it wanted.
            if cause.is_none_or(|cause| cause.kind() != ErrorKind::BrokenPipe) {
                eprintln!("error: {}", plain(&format!("{error:#}")));
            }
            ExitCode::from(2)
        }
    }
}
