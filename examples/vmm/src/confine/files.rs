// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Landlock: nothing of the file system, no TCP, no abstract sockets or signals outside.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use std::path::PathBuf;

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
    refuse_all_but_removal(&[])
}

/// The same, but files and sockets in these `folders` can be removed: what the VMM made it is to take with it. A folder
/// that cannot be opened is none of them.
pub fn refuse_all_but_removal(folders: &[PathBuf]) -> Result<Coverage, RulesetError> {
    let newest = ABI::V6;
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?;
    let rules = rules.create()?;
    let folders = path_beneath_rules(folders, AccessFs::RemoveFile);
    let status = rules.add_rules(folders)?.restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Coverage::All,
        RulesetStatus::PartiallyEnforced => Coverage::Part,
        RulesetStatus::NotEnforced => Coverage::None,
    })
}
