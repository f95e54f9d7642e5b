// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `workload ROUNDS`: a fixed piece of work for the kernel under it, without a clock, without chance.
//!
//! Prints the time-stamp counter before each part and after the last, when all is done: a serial line that prints in between
//! would be part of the work. A hypervisor is told of the same moments by a CPUID leaf that does no harm where there is none.

mod parts;

use core::arch::x86_64::{__cpuid_count, _rdtsc};
use std::process::ExitCode;

use lab_cases::type1::{MARK, PARTS};

fn main() -> ExitCode {
    let rounds = std::env::args().nth(1).and_then(|word| word.parse().ok());
    let Some(rounds) = rounds else {
        eprintln!("workload ROUNDS");
        return ExitCode::from(2);
    };
    let parts: [fn(u32) -> std::io::Result<u64>; PARTS.len()] = [
        parts::processes,
        parts::copies_on_write,
        parts::files,
        parts::mappings,
        parts::switches,
    ];
    let mut marks = Vec::new();
    let mut checksum = 0u64;
    for (number, part) in (0..).zip(parts) {
        marks.push(mark(number));
        match part(rounds) {
            Ok(sum) => checksum = checksum.rotate_left(7) ^ sum,
            Err(error) => {
                eprintln!("workload: part {number}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    marks.push(mark(PARTS.len() as u32));
    for (number, ticks) in marks.iter().enumerate() {
        println!("workload: mark {number} at {ticks}");
    }
    println!("workload: checksum {checksum:#x}");
    ExitCode::SUCCESS
}

/// Tells the hypervisor, if there is one, and reads the time-stamp counter.
fn mark(number: u32) -> u64 {
    __cpuid_count(MARK, number);
    #[expect(unsafe_code, reason = "reading the time-stamp counter")]
    // SAFETY: Linux lets programs read it.
    unsafe {
        _rdtsc()
    }
}
