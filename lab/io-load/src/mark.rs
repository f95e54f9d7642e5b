// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two lines around what is measured.

use std::io::{Result, Write};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Time for whoever reads the lines to look at the VMM while nothing happens in the guest.
const QUIET: Duration = Duration::from_millis(20);

/// Prints `@io begin NAME`, does `work`, and prints `@io end NAME requests=N ns=T`, T being the time that `work` took by this
/// machine's clock and N the number that it returns.
pub(crate) fn around(name: &str, work: impl FnOnce() -> Result<u64>) -> Result<()> {
    line(&format!("@io begin {name}"))?;
    sleep(QUIET);
    let start = Instant::now();
    let requests = work()?;
    let took = start.elapsed().as_nanos();
    sleep(QUIET);
    line(&format!("@io end {name} requests={requests} ns={took}"))?;
    sleep(QUIET);
    Ok(())
}

fn line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{text}\n").as_bytes())?;
    out.flush()
}
