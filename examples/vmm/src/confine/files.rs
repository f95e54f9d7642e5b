// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Landlock: nothing of the file system, no TCP, no abstract sockets or signals outside.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    RulesetStatus, Scope,
};

/// How much of what was asked for the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Everything.
    All,
    /// What this kernel's Landlock knows of.
    Part,
    /// Nothing: the kernel has none, or was started without it.
    None,
}

/// Takes every path from the calling thread and from the threads it starts, for ever. Files that are open stay so.
pub fn refuse_all() -> Result<Coverage, RulesetError> {
    let newest = ABI::V6;
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?;
    let status = rules.create()?.restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Coverage::All,
        RulesetStatus::PartiallyEnforced => Coverage::Part,
        RulesetStatus::NotEnforced => Coverage::None,
    })
}
