// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The watchdog: what a driver is to write where.
//!
//! Microsoft, "Hardware Watchdog Timers Design Specification", "Watchdog Action Table"; the ACPI Specification
//! reserves the name.

use super::empty;
use crate::machine::watchdog::{CONTROL, COUNT, MAX_COUNT, PERIOD_MS, RESET, RUNNING};
use acpi_tables::sdt::Sdt;

const REVISION: u8 = 1;
/// Bytes from the table's header to the entries.
const HEADER: u32 = 32;
/// "Not a PCI device": 0xff in the fields for its place, the first of which has two bytes.
const NO_PCI: [u8; 8] = [0xff, 0, 0xff, 0xff, 0xff, 0, 0, 0];
/// The watchdog may be used.
const ENABLED: u32 = 1;

/// What the driver wants done.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Action {
    Reset = 1,
    QueryCount = 4,
    QueryPeriod = 5,
    SetPeriod = 6,
    QueryRunning = 8,
    SetRunning = 9,
    QueryStopped = 10,
    SetStopped = 11,
}

/// How it is done.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Instruction {
    /// Yes, if the register has the value.
    ReadValue = 0,
    /// The register's value.
    ReadCount = 1,
    WriteValue = 2,
    /// Writes what the driver wants.
    WriteCount = 3,
}

pub(super) fn build(port: u16) -> Sdt {
    use Action::*;
    use Instruction::*;
    const ALL: u32 = u32::MAX;
    let entries = [
        (Reset, WriteValue, RESET, 1, ALL),
        (QueryCount, ReadCount, COUNT, 0, ALL),
        (QueryPeriod, ReadCount, COUNT, 0, ALL),
        (SetPeriod, WriteCount, COUNT, 0, MAX_COUNT),
        (QueryRunning, ReadValue, CONTROL, RUNNING, RUNNING),
        (SetRunning, WriteValue, CONTROL, RUNNING, RUNNING),
        (QueryStopped, ReadValue, CONTROL, 0, RUNNING),
        (SetStopped, WriteValue, CONTROL, 0, RUNNING),
    ];
    let mut body = Vec::new();
    body.extend(HEADER.to_le_bytes());
    body.extend(NO_PCI);
    for word in [PERIOD_MS, MAX_COUNT, 1, ENABLED, entries.len() as u32] {
        body.extend(word.to_le_bytes());
    }
    for (action, instruction, register, value, mask) in entries {
        body.extend([action as u8, instruction as u8, 0, 0]);
        // "Generic Address Structure": a port, 32 bits from bit 0, in one access of four bytes.
        body.extend([1, 32, 0, 3]);
        body.extend(u64::from(port.saturating_add(register)).to_le_bytes());
        body.extend(value.to_le_bytes());
        body.extend(mask.to_le_bytes());
    }
    let mut wdat = empty(*b"WDAT", REVISION);
    wdat.append_slice(&body);
    wdat
}
