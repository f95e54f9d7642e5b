// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The processor's side of `cargo xtask oracle shadow`: runs programs on its own paging, sends records.
//!
//! Each access is made as in the payload of `oracle paging`, which begins with an empty TLB: an
//! INVLPG has nothing left to do. Programs invalidate what they must, so it makes no difference.
#![no_std]
#![no_main]

#[path = "../../paging/src/access.rs"]
mod access;
#[path = "../../paging/src/descriptors.rs"]
mod descriptors;
#[path = "../../paging/src/switch.rs"]
mod switch;

use lab_cases::shadow::{ACCESSES, HEADER_MAGIC, Op, Program, Record, Table, arena, harness};
use lab_cases::{Digest, Order};
use payload_rt::{input, serial};

use crate::access::{cpu, perform, read, start, write};

payload_rt::entry!(main);

fn main() {
    let order = Order::from_bytes(input(Order::BYTES));
    start(arena().end - arena().start);
    harness(|at, width, value| store(&Table { at, width, value }));
    let cpu = cpu();
    serial::write(HEADER_MAGIC);
    serial::write(&cpu.to_bytes());
    for index in order.first..order.first.saturating_add(order.count) {
        let record = run(Program::new(order.seed, index, &cpu));
        serial::write(&record.to_bytes());
    }
}

fn store(entry: &Table) {
    if entry.width == 4 {
        write(entry.at, entry.value as u32);
    } else {
        write(entry.at, entry.value);
    }
}

/// Runs one program, and leaves the arena as it was before: zero.
fn run(mut program: Program) -> Record {
    let mut record = Record::default();
    let mut accesses = 0;
    program.initial().iter().for_each(store);
    for at in 0..program.ops().len() {
        match program.ops()[at] {
            Op::Access { linear, doing, who } => {
                let mut access = perform(&program.case(linear, doing, who));
                access.tables = program.digest(read);
                record.accesses[accesses] = access;
                accesses += 1;
            }
            Op::Store(entry) => store(&entry),
            Op::Invlpg(_) => (),
            Op::Cr3(cr3) => program.cr3 = cr3,
            Op::Control { cr0, cr4 } => (program.cr0, program.cr4) = (cr0, cr4),
        }
    }
    record.accesses[ACCESSES - 1].tables = clear();
    record
}

/// The digest of the whole arena, which is zero afterwards.
fn clear() -> u32 {
    let mut digest = Digest::default();
    for at in arena().step_by(8) {
        let word: u64 = read(at);
        if word != 0 {
            digest.add(at, word);
            write(at, 0u64);
        }
    }
    digest.sum()
}
