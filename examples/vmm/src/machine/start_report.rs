// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long the VMM took until the guest's first instruction, for the benchmark.

use super::error::MachineError;
use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time until the first entry of the first vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Start {
    /// Of the clock on the wall.
    elapsed: Duration,
    /// Of processors, all threads, kernel and user.
    cpu: Duration,
}

impl Start {
    fn now(began: Instant) -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = u64::try_from(cpu.tv_sec).unwrap_or(0);
        let nanoseconds = u32::try_from(cpu.tv_nsec).unwrap_or(0);
        Start {
            elapsed: began.elapsed(),
            cpu: Duration::new(seconds, nanoseconds),
        }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{{\"start_to_first_run_us\":{},\"cpu_us\":{}}}",
            self.elapsed.as_micros(),
            self.cpu.as_micros()
        )
    }
}

/// What the first vCPU does before it first enters the guest: takes the time, and tells it. With no
/// file it goes to the log. The file is made now: a vCPU may open none.
pub(super) fn teller(
    began: Instant,
    path: Option<PathBuf>,
) -> Result<impl FnOnce() + Send, MachineError> {
    let file = path.map(|path| match File::create(&path) {
        Ok(file) => Ok((path, file)),
        Err(source) => Err(MachineError::Report { path, source }),
    });
    let file = file.transpose()?;
    Ok(move || {
        let start = Start::now(began);
        log::info!(
            "first instruction after {} us, {} us of processor time",
            start.elapsed.as_micros(),
            start.cpu.as_micros()
        );
        if let Some((path, mut file)) = file
            && let Err(error) = file.write_all(start.to_string().as_bytes())
        {
            log::warn!("cannot write {}: {error}", path.display());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_json_in_microseconds() {
        let start = Start {
            elapsed: Duration::from_nanos(1_234_567),
            cpu: Duration::from_millis(7),
        };
        assert_eq!(
            start.to_string(),
            "{\"start_to_first_run_us\":1234,\"cpu_us\":7000}\n"
        );
    }
}
