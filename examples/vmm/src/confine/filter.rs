// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the lists to filters that the kernel runs.

use super::calls::{self, Arguments, Call};
use super::{ConfineError, Kind};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};
use std::collections::BTreeMap;
use std::os::raw::c_long;

/// The filters of all kinds, compiled.
#[derive(Debug)]
pub(super) struct Filters {
    /// In the order of [`Kind::ALL`].
    lists: Vec<BpfProgram>,
    /// What libraries ask for and do without: in the main thread, and in all others. One program for each, because the kernel
    /// runs every program of a thread at each entry into the guest.
    refused: BpfProgram,
    refused_elsewhere: BpfProgram,
    /// What the nursery's C library is to believe absent.
    absent: BpfProgram,
}

impl Filters {
    pub(super) fn compile() -> Result<Self, BackendError> {
        let lists = Kind::ALL.map(|kind| list(&calls::of(kind)));
        Ok(Filters {
            lists: lists.into_iter().collect::<Result<_, _>>()?,
            refused: answer(&[calls::REFUSED], libc::EACCES)?,
            refused_elsewhere: answer(&[calls::REFUSED, calls::LINKS], libc::EACCES)?,
            absent: answer(&[calls::ABSENT], libc::ENOSYS)?,
        })
    }

    /// Confines the calling thread. Filters add up: of several verdicts the hardest counts, so what the list allows and
    /// another filter refuses is refused.
    pub(super) fn apply(&self, kind: Kind) -> Result<(), ConfineError> {
        if kind == Kind::Nursery {
            apply_filter(&self.absent)?;
        }
        apply_filter(match kind {
            Kind::Main => &self.refused,
            _ => &self.refused_elsewhere,
        })?;
        for (program, of) in self.lists.iter().zip(Kind::ALL) {
            if of == kind {
                apply_filter(program)?;
            }
        }
        Ok(())
    }
}

/// Allows `calls`, and raises a signal at any other.
fn list(calls: &[Call]) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    // A call that is allowed with any arguments has no rules, whatever else is said of it.
    for call in calls {
        let rules = rules.entry(call.number).or_default();
        if let Arguments::Masked { index, mask, value } = call.arguments {
            let condition = SeccompCondition::new(
                index,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::MaskedEq(mask.into()),
                value.into(),
            )?;
            rules.push(SeccompRule::new(vec![condition])?);
        }
    }
    for call in calls {
        if call.arguments == Arguments::Any {
            rules.insert(call.number, Vec::new());
        }
    }
    filter(rules, SeccompAction::Trap, SeccompAction::Allow)
}

/// Answers all of `calls` with an error, and lets all others through.
fn answer(calls: &[&[c_long]], errno: i32) -> Result<BpfProgram, BackendError> {
    let rules = calls.iter().copied().flatten();
    let rules = rules.map(|call| (*call, Vec::new())).collect();
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    filter(rules, SeccompAction::Allow, errno)
}

fn filter(
    rules: BTreeMap<c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    then: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, then, TargetArch::x86_64)?.try_into()
}
