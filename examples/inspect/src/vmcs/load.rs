// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMCSs from a file, whatever its form.

use anyhow::{Context, Result, bail};
use hvkit_vmcs::store::{Snapshot, Vmcs12, logged, parse_listing};

/// The VMCSs in a file, and what form each had; at least one.
pub(super) fn vmcss(bytes: &[u8]) -> Result<Vec<(Snapshot, String)>> {
    if let Ok(vmcs12) = Vmcs12::new(bytes) {
        return Ok(vec![(
            Snapshot::of(&vmcs12),
            String::from("a VMCS12 of KVM"),
        )]);
    }
    let mut found = Vec::new();
    for dump in logged(bytes) {
        let dump = dump?;
        found.push((dump.vmcs, format!("logged at line {}", dump.line)));
    }
    if found.is_empty() {
        let listing = parse_listing(bytes).context(
            "neither a VMCS12 (its revision is another) nor a log with \"*** Guest State ***\" in it, so read as a listing",
        )?;
        if listing.is_empty() {
            bail!("there is no VMCS in it");
        }
        found.push((listing, String::from("a listing")));
    }
    Ok(found)
}
