// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the guest is told of the units: ACPI's DMAR table.
//!
//! ```text
//!   DRHD   a unit's registers, its segment, and: the functions that name it, or all of the segment that no other has
//!                                                the I/O APIC, by the one that has it
//! ```

use super::UnitError;
use crate::acpi::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::config::Scope;
use crate::interrupts::UnitNumber;
use crate::machine::address_map::VTD_BASE;
use crate::pci::FunctionAddress;
use hvkit_vtd_iommu::dmar::{Builder, Drhd, DrhdFlags, NewScope, Oem, ScopeKind, TableFlags};
use hvkit_vtd_iommu::emulation::{Options, WINDOW};
use hvkit_vtd_iommu::spec::RequesterId;

/// As whom the I/O APIC requests interrupts: bus 255, where there is nothing else.
pub const IO_APIC: RequesterId = RequesterId(0xff00);
/// Its identifier, as the MADT has it.
const IO_APIC_ID: u8 = 0;

/// What the table says of a unit.
#[derive(Clone, Debug)]
pub struct Described {
    /// What kind of unit it is.
    pub options: Options,
    /// The segment of its functions.
    pub segment: u16,
    /// Which of them it has.
    pub scope: Scope,
    /// Those, if they are named.
    pub functions: Vec<FunctionAddress>,
}

/// Where the registers of a unit are.
#[must_use]
pub fn registers(number: UnitNumber) -> u64 {
    VTD_BASE.saturating_add(u64::from(WINDOW).saturating_mul(number.0 as u64))
}

/// The table of a machine with these units, in the order of their numbers, of which `io_apic` has the I/O APIC.
///
/// # Errors
///
/// [`UnitError::Table`].
pub fn table(units: &[Described], io_apic: Option<UnitNumber>) -> Result<Vec<u8>, UnitError> {
    // Of all units or of none.
    let interrupts = |unit: &Described| unit.options.extended.interrupt_remapping();
    let flags = if units.iter().any(interrupts) {
        TableFlags::INTR_REMAP
    } else {
        TableFlags::empty()
    };
    let io_apic_path = [(IO_APIC.device(), IO_APIC.function())];
    let host_bits = units.first().map_or(0, |unit| unit.options.host_bits);
    let mut table = Builder::new(host_bits, flags);
    for (number, unit) in (0..).map(UnitNumber).zip(units) {
        let all = match unit.scope {
            Scope::Segment => DrhdFlags::INCLUDE_PCI_ALL,
            Scope::Named => DrhdFlags::empty(),
        };
        let drhd = Drhd {
            flags: all,
            size: 0,
            segment: unit.segment,
            base: registers(number),
        };
        // Their bus is 0, so that each is one step from where it begins.
        let paths: Vec<_> = unit
            .functions
            .iter()
            .map(|at| [(at.device(), at.function())])
            .collect();
        let mut scopes: Vec<_> = paths
            .iter()
            .map(|path| NewScope::new(ScopeKind::ENDPOINT, 0, 0, path))
            .collect();
        if io_apic == Some(number) {
            let bus = IO_APIC.bus();
            scopes.push(NewScope::new(
                ScopeKind::IO_APIC,
                IO_APIC_ID,
                bus,
                &io_apic_path,
            ));
        }
        table = table.drhd(drhd, &scopes);
    }
    let oem = Oem {
        id: OEM_ID,
        table_id: OEM_TABLE_ID,
        revision: OEM_REVISION,
        ..Oem::default()
    };
    Ok(table.build(oem)?)
}
