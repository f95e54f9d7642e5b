// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kinds of outcomes: agreement on nothing would be no result.

use lab_cases::ept::{Case, Mode, Record};

/// #GP, #PF and #VE.
pub(super) const GENERAL_PROTECTION: u8 = 13;
pub(super) const PAGE_FAULT: u8 = 14;
pub(super) const VIRTUALIZATION: u8 = 20;
/// Exit reasons.
pub(super) const VMCALL: u32 = 18;
pub(super) const EPT_VIOLATION: u32 = 48;
pub(super) const EPT_MISCONFIGURATION: u32 = 49;
pub(super) const LOG_FULL: u32 = 62;
/// What kind of case it was, for the count of what was exercised: mode, and how it ended.
pub(super) fn kind(case: &Case, record: &Record) -> String {
    let mode = match case.mode {
        Mode::Real => "real mode",
        Mode::Unpaged => "no paging",
        Mode::ThirtyTwoBit => "32-bit",
        Mode::Pae => "PAE",
        Mode::FourLevel => "4-level",
    };
    let outcome = match (record.reason, record.vector) {
        (0, PAGE_FAULT) => "#PF".to_owned(),
        (0, GENERAL_PROTECTION) => "#GP".to_owned(),
        (0, VIRTUALIZATION) => "#VE".to_owned(),
        (0, vector) => format!("vector {vector}"),
        (VMCALL, _) => "completed".to_owned(),
        (EPT_VIOLATION, _) => match record.qualification & 0x180 {
            0 => "violation without a linear address",
            0x80 => "violation by a table",
            _ => "violation by the page",
        }
        .to_owned(),
        (EPT_MISCONFIGURATION, _) => "misconfiguration".to_owned(),
        (LOG_FULL, _) => "log full".to_owned(),
        (reason, _) => format!("exit reason {reason:#x}"),
    };
    format!("{mode}: {outcome}")
}
