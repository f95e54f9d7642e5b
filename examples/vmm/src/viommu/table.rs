// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the guest is told of the unit: ACPI's DMAR table.

use super::UnitError;
use crate::acpi::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::machine::address_map::VTD_BASE;
use hvkit_vtd_iommu::dmar::{Builder, Drhd, DrhdFlags, NewScope, Oem, ScopeKind, TableFlags};
use hvkit_vtd_iommu::emulation::Options;
use hvkit_vtd_iommu::spec::RequesterId;

/// As whom the I/O APIC requests interrupts: bus 255, where there is nothing else.
pub const IO_APIC: RequesterId = RequesterId(0xff00);
/// Its identifier, as the MADT has it.
const IO_APIC_ID: u8 = 0;

/// The table of a machine with one unit, which has every PCI function of segment 0 and the I/O APIC.
///
/// # Errors
///
/// [`UnitError::Table`].
pub fn table(options: &Options) -> Result<Vec<u8>, UnitError> {
    let flags = if options.extended.interrupt_remapping() {
        TableFlags::INTR_REMAP
    } else {
        TableFlags::empty()
    };
    let unit = Drhd {
        flags: DrhdFlags::INCLUDE_PCI_ALL,
        size: 0,
        segment: 0,
        base: VTD_BASE,
    };
    let path = [(IO_APIC.device(), IO_APIC.function())];
    let io_apic = NewScope::new(ScopeKind::IO_APIC, IO_APIC_ID, IO_APIC.bus(), &path);
    let oem = Oem {
        id: OEM_ID,
        table_id: OEM_TABLE_ID,
        revision: OEM_REVISION,
        ..Oem::default()
    };
    let table = Builder::new(options.host_bits, flags).drhd(unit, &[io_apic]);
    Ok(table.build(oem)?)
}
