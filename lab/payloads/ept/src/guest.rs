// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A case's VMCS: the part that all share, and the guest's registers and tables.

use hvkit_vmcs::{Encoding, fields as f, seed::Seed};
use lab_cases::ept::{Case, Doing, Mode, Nmi, PML_LOG, VE_INFORMATION, Who};
use payload_vmcs::Root;

/// The PML index.
pub(crate) const PML_INDEX: Encoding = f::PML_INDEX.encoding();

/// Enable EPT, unrestricted guest.
const SECONDARY: u64 = 1 << 1 | 1 << 7;
/// "NMI exiting" and "virtual NMIs".
const NMI_CONTROLS: u64 = 1 << 3 | 1 << 5;
/// IA-32e mode guest.
const LONG_MODE_GUEST: u64 = 1 << 9;
/// Blocking by NMI.
const BLOCKING_BY_NMI: u64 = 1 << 3;

/// Nothing is the same in two cases that the VMCS keeps after VMCLEAR, but its memory is: fields stay.
pub(crate) fn prepare(root: &Root) {
    root.store_seed(Seed::LongMode);
    // Every exception exits, whatever its error code.
    root.write(f::EXCEPTION_BITMAP, 0xffff_ffff);
    root.write(f::PAGE_FAULT_ERROR_MASK, 0);
    root.write(f::PAGE_FAULT_ERROR_MATCH, 0);
    root.write(f::PML_ADDRESS, PML_LOG);
    root.write(f::VE_INFORMATION_ADDRESS, VE_INFORMATION);
    root.write(f::EPTP_INDEX, 0);
    for (base, limit) in [
        (
            f::GUEST_GDTR_BASE.encoding(),
            f::GUEST_GDTR_LIMIT.encoding(),
        ),
        (
            f::GUEST_IDTR_BASE.encoding(),
            f::GUEST_IDTR_LIMIT.encoding(),
        ),
    ] {
        root.write(base, 0);
        root.write(limit, 0xffff);
    }
}

/// Writes what is the case's own.
pub(crate) fn store(case: &Case, root: &Root) {
    let capabilities = *root.capabilities();
    let long = case.mode == Mode::FourLevel;
    let pin = root.read(f::PIN_BASED_CONTROLS) & !NMI_CONTROLS;
    let virtual_nmis = case.nmi == Nmi::VirtualBlocked;
    root.write(
        f::PIN_BASED_CONTROLS,
        pin | if virtual_nmis { NMI_CONTROLS } else { 0 },
    );
    root.write(f::SECONDARY_CONTROLS, SECONDARY | case.secondary);
    let entry = root.read(f::ENTRY_CONTROLS) & !LONG_MODE_GUEST;
    root.write(
        f::ENTRY_CONTROLS,
        entry | if long { LONG_MODE_GUEST } else { 0 },
    );
    root.write(f::EPT_POINTER, case.eptp);
    root.write(PML_INDEX, case.pml_index.into());

    // NE and ET always; the fixed bits but for PE and PG, which an unrestricted guest chooses.
    let fixed = capabilities.cr0_fixed0 & !0x8000_0001;
    root.write(f::GUEST_CR0, case.cr0 | fixed | 0x30);
    root.write(f::GUEST_CR3, case.cr3);
    root.write(f::GUEST_CR4, case.cr4 | capabilities.cr4_fixed0);
    let active = if long { 1 << 10 } else { 0 };
    root.write(f::GUEST_EFER, case.efer | active);
    let pdptes = [
        f::GUEST_PDPTE0,
        f::GUEST_PDPTE1,
        f::GUEST_PDPTE2,
        f::GUEST_PDPTE3,
    ];
    for (field, value) in pdptes.into_iter().zip(case.pdptes) {
        root.write(field, value);
    }
    segments(case, root);
    root.write(f::GUEST_RIP, case.code);
    let stack = if case.doing == Doing::Iret {
        case.linear
    } else {
        0
    };
    root.write(f::GUEST_RSP, stack);
    root.write(f::GUEST_RFLAGS, 2);
    root.write(f::GUEST_DR7, 0x400);
    root.write(f::GUEST_ACTIVITY, 0);
    root.write(f::GUEST_PENDING_DEBUG, 0);
    let blocked = if case.nmi == Nmi::Open {
        0
    } else {
        BLOCKING_BY_NMI
    };
    root.write(f::GUEST_INTERRUPTIBILITY, blocked);
}

/// Flat segments of 4 GiB, 32-bit or 64-bit code; an LDT of one descriptor at the case's address.
fn segments(case: &Case, root: &Root) {
    let (dpl, rpl) = match case.who {
        Who::User => (3 << 5, 3),
        Who::Supervisor => (0, 0),
    };
    let size = if case.mode == Mode::FourLevel {
        1 << 13
    } else {
        1 << 14
    };
    let flat = 0x8090 | dpl;
    let data = flat | 1 << 14 | 3;
    let places = [
        (
            f::GUEST_CS_SELECTOR,
            f::GUEST_CS_LIMIT,
            f::GUEST_CS_ACCESS_RIGHTS,
            flat | size | 0xb,
        ),
        (
            f::GUEST_SS_SELECTOR,
            f::GUEST_SS_LIMIT,
            f::GUEST_SS_ACCESS_RIGHTS,
            data,
        ),
        (
            f::GUEST_DS_SELECTOR,
            f::GUEST_DS_LIMIT,
            f::GUEST_DS_ACCESS_RIGHTS,
            data,
        ),
        (
            f::GUEST_ES_SELECTOR,
            f::GUEST_ES_LIMIT,
            f::GUEST_ES_ACCESS_RIGHTS,
            data,
        ),
    ];
    for (selector, limit, rights, value) in places {
        root.write(selector, 0x10 | rpl);
        root.write(limit, 0xffff_ffff);
        root.write(rights, value);
    }
    root.write(f::GUEST_CS_BASE, 0);
    root.write(f::GUEST_LDTR_SELECTOR, 0x20);
    root.write(f::GUEST_LDTR_LIMIT, 7);
    root.write(f::GUEST_LDTR_ACCESS_RIGHTS, 0x82);
    root.write(f::GUEST_LDTR_BASE, case.linear);
}
