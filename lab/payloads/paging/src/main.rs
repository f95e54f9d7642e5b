// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The processor's side of `cargo xtask oracle paging`: runs cases, sends records.
//!
//! In reading order: [`main`], then [`run`], then `access.rs`, and `switch.rs`, where a case's mode is
//! entered and left.
#![no_std]
#![no_main]

mod access;
mod descriptors;
mod switch;

use lab_cases::paging::{ARENA, ARENA_BYTES, Case, HEADER_MAGIC, Record};
use lab_cases::{Digest, Order};
use payload_rt::{input, serial};

use crate::access::{cpu, perform, read, start, write};

payload_rt::entry!(main);

fn main() {
    let order = Order::from_bytes(input(Order::BYTES));
    start(ARENA_BYTES);
    let cpu = cpu();
    serial::write(HEADER_MAGIC);
    serial::write(&cpu.to_bytes());
    for index in order.first..order.first.saturating_add(order.count) {
        let record = run(&Case::new(order.seed, index, &cpu));
        serial::write(&record.to_bytes());
    }
}

/// Runs one case, and leaves the arena and the pattern as they were before.
fn run(case: &Case) -> Record {
    for slot in case.entries.slots() {
        if slot.width == 4 {
            write(slot.at, slot.value as u32);
        } else {
            write(slot.at, slot.value);
        }
    }
    let record = perform(case);
    Record {
        tables: digest(case),
        ..record
    }
}

/// The digest of the arena, which is all zero afterwards.
fn digest(case: &Case) -> u32 {
    let mut digest = Digest::default();
    for slot in case.entries.slots() {
        let at = slot.at & !7;
        digest.add(at, read(at));
        write(at, 0u64);
    }
    // SAFETY: the arena is mapped, aligned, and written by nobody while this runs.
    let words =
        unsafe { core::slice::from_raw_parts(ARENA as *const u64, ARENA_BYTES as usize / 8) };
    if words.iter().fold(0, |all, word| all | word) != 0 {
        for at in (ARENA..ARENA + ARENA_BYTES).step_by(8) {
            digest.add(at, read(at));
            write(at, 0u64);
        }
    }
    digest.sum()
}
