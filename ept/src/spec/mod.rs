// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The manual's words: entries, pointers, capabilities and exit qualifications, as data.
//!
//! Nothing here reads memory or walks a table.

mod capability;
mod entry;
mod eptp;
mod memory_type;
mod spp;
mod violation;

pub use capability::{EptVpidCap, Unsupported};
pub(crate) use entry::Kind;
pub use entry::{Controls, EntryRules, EptEntry, Misconfiguration, Rights, Use};
pub use eptp::{Eptp, EptpError, EptpList, WalkLength};
pub use memory_type::{MemoryType, Pat, PatType, effective};
pub use spp::{SppEntry, SppExit, SppFault, SppVector};
pub use violation::{
    Accesses, LinearAddress, Mode, PageRights, Qualification, Violation, ViolationFlags,
};
