// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What our walker says of a case, as the record that the model should send.

use anyhow::{Result, bail};
use hvkit_shadow_paging::guest::{
    Access, Features, GuestFault, Kind, LoadError, PagingMode, PdpteError, Privilege, Registers,
};
use lab_cases::paging::{
    CODE_OFFSETS, Case, Cpu, DONE, Doing, Mode, Record, STORED, Stored, Who, arena, pattern,
};

use super::prepared;
use super::quirks::Quirks;
use crate::oracle::memory::Memory;

/// #GP and #PF.
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;

/// Our side of a case.
pub(super) struct Expected {
    /// What the model should send.
    pub(super) record: Record,
    /// Why, in words.
    pub(super) why: String,
}

/// Runs `case` on our walker, or on it as it would be with a model's `quirks`.
pub(super) fn expect(case: &Case, cpu: &Cpu, quirks: Quirks) -> Result<Expected> {
    let memory = prepared::memory(case);
    let (mut record, why) = outcome(case, cpu, &memory, quirks)?;
    record.tables = memory.digest(&[arena()]);
    Ok(Expected { record, why })
}

/// The record but for the tables, and the reason.
fn outcome(case: &Case, cpu: &Cpu, memory: &Memory, quirks: Quirks) -> Result<(Record, String)> {
    let features = Features {
        gib_pages: cpu.gib_pages,
        ..Features::all(cpu.physical_address_bits)
    };
    let registers = Registers {
        cr0: case.cr0 | 0x33,
        cr3: case.cr3,
        cr4: case.cr4,
        efer: case.efer,
        pkru: case.pkru,
        pkrs: case.pkrs,
    };
    let mode = match PagingMode::load(&registers, &features, memory) {
        Ok(mode) => mode,
        Err(LoadError::Pdpte(why @ PdpteError::Reserved { .. })) => {
            return Ok((exception(GENERAL_PROTECTION, 0, 0), why.to_string()));
        }
        Err(error) => bail!("the case cannot be: {error}"),
    };
    let privilege = match (case.doing, case.who) {
        (Doing::Implicit, who) => quirks.implicit(who),
        (Doing::ShadowStack, _) | (_, Who::User) => Privilege::User,
        (_, Who::Supervisor) => Privilege::Supervisor,
        (_, Who::SupervisorAc) => Privilege::SupervisorAc,
    };
    let go = |linear, kind| {
        let access = Access::new(kind, privilege);
        quirks
            .translate(&mode, case, memory, linear, access)
            .map(|found| found.physical)
    };
    let done = match case.doing {
        Doing::Read => go(case.linear, Kind::Read).map(|at| completed(memory.load_32(at))),
        Doing::Write => write(case, memory, go),
        Doing::Exchange => go(case.linear, Kind::Write).map(|at| {
            let value = memory.load_32(at);
            memory.store_32(at, STORED);
            Record {
                stored: stored(memory, value, 0),
                ..completed(value)
            }
        }),
        Doing::Fetch => match go(case.linear, Kind::Fetch) {
            Ok(at) if !pattern().contains(&at) || !CODE_OFFSETS.contains(&(at & 0xfff)) => {
                bail!("the case runs what is at {at:#x}, which is no code")
            }
            at => at.map(|at| completed(at as u32)),
        },
        Doing::Implicit => go(case.linear, Kind::Read).map(|_| completed(0)),
        Doing::ShadowStack => {
            // Zero over zero, but for pages that are tables: those are only read.
            go(case.linear.wrapping_add(4), Kind::ShadowStackWrite).map(|_| completed(0))
        }
    };
    Ok(match done {
        Ok(record) => (record, "allowed".to_owned()),
        Err(fault) => {
            let record = match fault {
                GuestFault::Page { linear, code, .. } => {
                    exception(PAGE_FAULT, code.0 as u16, linear)
                }
                GuestFault::NonCanonical { .. } => exception(GENERAL_PROTECTION, 0, 0),
                other => bail!("no outcome of a processor: {other}"),
            };
            (record, fault.to_string())
        }
    })
}

/// The write of 4 bytes above the linear address, and the read at it.
fn write(
    case: &Case,
    memory: &Memory,
    go: impl Fn(u64, Kind) -> Result<u64, GuestFault<std::convert::Infallible>>,
) -> Result<Record, GuestFault<std::convert::Infallible>> {
    let at = go(case.linear.wrapping_add(4), Kind::Write)?;
    memory.store_32(at, STORED);
    let value = memory.load_32(go(case.linear, Kind::Read)?);
    Ok(Record {
        stored: stored(memory, value, 4),
        ..completed(value)
    })
}

/// What the payload finds `offset` above the address that it read, if that is one of the pattern.
fn stored(memory: &Memory, value: u32, offset: u64) -> Stored {
    let at = u64::from(value);
    let there = pattern().contains(&at) && at.is_multiple_of(4);
    if there && memory.load_32(at + offset) == STORED {
        Stored::Yes
    } else {
        Stored::No
    }
}

fn completed(value: u32) -> Record {
    Record {
        vector: DONE,
        value,
        ..Record::default()
    }
}

fn exception(vector: u8, error: u16, cr2: u64) -> Record {
    Record {
        vector,
        error,
        cr2,
        ..Record::default()
    }
}

/// What kind of case it was, for the count of what was exercised: mode, and how it ended.
pub(super) fn kind(case: &Case, record: &Record) -> String {
    let mode = match case.mode {
        Mode::Unpaged => "no paging",
        Mode::ThirtyTwoBit => "32-bit",
        Mode::Pae => "PAE",
        Mode::FourLevel => "4-level",
    };
    match record.vector {
        DONE => format!("{mode}: allowed"),
        PAGE_FAULT => format!("{mode}: #PF({:#04x})", record.error),
        GENERAL_PROTECTION => format!("{mode}: #GP"),
        other => format!("{mode}: vector {other}"),
    }
}
