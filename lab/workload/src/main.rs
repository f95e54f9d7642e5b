// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `workload ROUNDS [PORT]`: a fixed piece of work for the kernel under it, without a clock, without chance.
//!
//! Prints the time-stamp counter before each part and after the last, when all is done: a serial line that prints in between
//! would be part of the work. A hypervisor is told of the same moments by a CPUID leaf that does no harm where there is none.

mod parts;

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc};
use std::io::{Error, Result};
use std::process::ExitCode;

use lab_cases::type1::{MARK, PARTS};

fn main() -> ExitCode {
    let rounds = std::env::args().nth(1).and_then(|word| word.parse().ok());
    let Some(rounds) = rounds else {
        eprintln!("workload ROUNDS [PORT]");
        return ExitCode::from(2);
    };
    let port = std::env::args().nth(2).and_then(|word| word.parse().ok());
    match work(rounds, port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("workload: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(rounds: u32, port: Option<u16>) -> Result<()> {
    let parts: [fn(u32) -> Result<u64>; PARTS.len()] = [
        parts::processes,
        parts::copies_on_write,
        parts::files,
        parts::mappings,
        parts::switches,
    ];
    let mut marks = Vec::new();
    let mut checksum = 0u64;
    for (number, part) in (0..).zip(parts) {
        marks.push(mark(number, port)?);
        let sum = part(rounds).map_err(|error| Error::other(format!("part {number}: {error}")))?;
        checksum = checksum.rotate_left(7) ^ sum;
    }
    marks.push(mark(PARTS.len() as u32, port)?);
    for (number, ticks) in marks.iter().enumerate() {
        println!("workload: mark {number} at {ticks}");
    }
    println!("workload: checksum {checksum:#x}");
    Ok(())
}

/// Tells the hypervisor, if there is one, and reads the time-stamp counter.
#[expect(unsafe_code, reason = "a port, and the time-stamp counter")]
fn mark(number: u32, port: Option<u16>) -> Result<u64> {
    __cpuid_count(MARK, number);
    if let Some(port) = port {
        // SAFETY: a port that no device has; while the permission lasts, nothing else is executed.
        unsafe {
            if libc::ioperm(port.into(), 1, 1) != 0 {
                return Err(Error::last_os_error());
            }
            asm!("out dx, al", in("dx") port, in("al") number as u8, options(nomem, nostack, preserves_flags));
            libc::ioperm(port.into(), 1, 0);
        }
    }
    // SAFETY: Linux lets programs read it.
    Ok(unsafe { _rdtsc() })
}
