// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fixed table: a hardware-reduced platform, its sleep and its reset register.
//!
//! "Fixed ACPI Description Table (FADT)".

use super::power::{RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT};
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::machine::address_map::RESET_PORT;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

/// "IA-PC Boot Architecture Flags": what need not be looked for. The 8042 bit is clear: none.
const NO_VGA: u16 = 1 << 2;
const NO_ASPM: u16 = 1 << 4;
const NO_CMOS_RTC: u16 = 1 << 5;

pub(super) fn build(dsdt: u64) -> FADT {
    let flags = [
        // Must be set: caches are coherent.
        Flags::Wbinvd,
        // No fixed power or sleep button.
        Flags::PwrButton,
        Flags::SlpButton,
        Flags::ResetRegSup,
        Flags::Headless,
        Flags::HwReducedAcpi,
    ];
    let fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut fadt = flags
        .into_iter()
        .fold(fadt, FADTBuilder::flag)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer);
    fadt.iapc_boot_arch = (NO_VGA | NO_ASPM | NO_CMOS_RTC).into();
    fadt.reset_reg = byte_port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = byte_port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = byte_port(SLEEP_STATUS_PORT);
    fadt.finalize()
}

/// "Generic Address Structure".
fn byte_port(port: u16) -> GAS {
    let (space, size) = (AddressSpace::SystemIo, AccessSize::ByteAccess);
    GAS::new(space, 8, 0, size, port.into())
}
