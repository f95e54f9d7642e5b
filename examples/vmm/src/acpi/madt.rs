// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Processors and interrupt controllers.
//!
//! "Multiple APIC Description Table (MADT)" and the structures of the same names.

use super::{Platform, empty};
use crate::machine::address_map::{IO_APIC_BASE, LOCAL_APIC_BASE};
use acpi_tables::sdt::Sdt;

const REVISION: u8 = 5;
/// The two 8259s are there.
const PCAT_COMPAT: u32 = 1;

const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const INTERRUPT_SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;

const ENABLED: u32 = 1;
/// From this identifier on a processor needs the x2APIC structure.
const FIRST_X2APIC_ID: u32 = 255;
/// The I/O APIC that KVM emulates has this identifier after reset.
const IO_APIC_ID: u8 = 0;
/// Every processor, and every processor with an x2APIC structure.
const ALL: u8 = 0xff;
const ALL_X2APIC: u32 = u32::MAX;

pub(super) fn build(platform: &Platform) -> Sdt {
    let mut body = Vec::new();
    // The 32-bit field; both addresses are below 4 GiB.
    body.extend(((LOCAL_APIC_BASE & 0xffff_ffff) as u32).to_le_bytes());
    let flags = if platform.has_pics { PCAT_COMPAT } else { 0 };
    body.extend(flags.to_le_bytes());
    let mut wide = false;
    for (uid, &id) in (0u32..).zip(&platform.apic_ids) {
        match (u8::try_from(uid), u8::try_from(id)) {
            (Ok(uid), Ok(small)) if id < FIRST_X2APIC_ID => {
                body.extend([LOCAL_APIC, 8, uid, small]);
                body.extend(ENABLED.to_le_bytes());
            }
            _ => {
                wide = true;
                body.extend([LOCAL_X2APIC, 16, 0, 0]);
                for word in [id, ENABLED, uid] {
                    body.extend(word.to_le_bytes());
                }
            }
        }
    }
    body.extend([IO_APIC, 12, IO_APIC_ID, 0]);
    body.extend(((IO_APIC_BASE & 0xffff_ffff) as u32).to_le_bytes());
    // Its first input is global system interrupt 0.
    body.extend(0u32.to_le_bytes());
    // ISA interrupt 0, the timer, is wired to input 2; polarity and trigger as the ISA bus has.
    body.extend([INTERRUPT_SOURCE_OVERRIDE, 10, 0, 0]);
    body.extend(2u32.to_le_bytes());
    body.extend(0u16.to_le_bytes());
    // NMI is wired to LINT1 of every processor.
    body.extend([LOCAL_APIC_NMI, 6, ALL, 0, 0, 1]);
    if wide {
        body.extend([LOCAL_X2APIC_NMI, 12, 0, 0]);
        body.extend(ALL_X2APIC.to_le_bytes());
        body.extend([1, 0, 0, 0]);
    }

    let mut madt = empty(*b"APIC", REVISION);
    madt.append_slice(&body);
    madt
}
