// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The DMAR table: how firmware tells of remapping units, and of memory that devices must keep reaching.
//!
//! VT-d, "BIOS Considerations". Reading copies nothing and believes nothing: each length is checked against
//! the bytes there are, and each structure is at least a header long, so a walk ends.
//!
//! ```
//! use hvkit_vtd_iommu::dmar::{
//!     Builder, Dmar, Drhd, DrhdFlags, NewScope, Oem, ScopeKind, Structure, TableFlags,
//! };
//!
//! let unit = Drhd { flags: DrhdFlags::INCLUDE_PCI_ALL, size: 0, segment: 0, base: 0xfed9_0000 };
//! let ioapic = NewScope::new(ScopeKind::IO_APIC, 0, 0xff, &[(0, 0)]);
//! let table = Builder::new(39, TableFlags::INTR_REMAP)
//!     .drhd(unit, &[ioapic])
//!     .build(Oem::default())?;
//!
//! let dmar = Dmar::parse(&table)?;
//! assert_eq!(dmar.host_address_bits(), 39);
//! for structure in dmar.structures() {
//!     let Structure::Drhd(found, scopes) = structure? else { continue };
//!     assert_eq!(found, unit);
//!     let scope = scopes.into_iter().next().unwrap()?;
//!     assert_eq!((scope.kind, scope.start_bus), (ScopeKind::IO_APIC, 0xff));
//! }
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```

mod build;
mod parse;
mod scope;
mod structure;
#[cfg(test)]
mod tests;

pub use build::{BuildError, Builder, Oem};
pub use parse::{Dmar, DmarError, Structures};
pub use scope::{NewScope, Path, Scope, ScopeKind, Scopes};
pub use structure::{
    Andd, Atsr, AtsrFlags, Drhd, DrhdFlags, Rhsa, Rmrr, Satc, SatcFlags, Sidp, Structure,
    StructureKind, TableFlags,
};

/// Bytes of the table before the first structure: ACPI's header, the host address width, flags.
pub const HEADER: usize = 48;
