// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on guest page-directory-pointer-table entries. Breaking one gives qualification 2.

use super::Guest;
use crate::{
    check::{
        context::{Controls, Run},
        memory::PhysicalMemory,
        report::{Expected, Place, Sink},
        rule::{Area, declare},
    },
    controls::Secondary,
    fields as f,
    store::Fields,
};

declare! { RULES: Area::Guest(2), "Checks on Guest Page-Directory-Pointer-Table Entries";
    FIELD = "guest.pdpte.field", [GUEST_PDPTE0, GUEST_PDPTE1, GUEST_PDPTE2, GUEST_PDPTE3,
        GUEST_CR0, GUEST_CR4, ENTRY_CONTROLS, PRIMARY_CONTROLS, SECONDARY_CONTROLS],
        "If the guest will use PAE paging and EPT, a PDPTE field with bit 0 set must have bits 8:5, 2:1 and those beyond the physical-address width clear.";
    MEMORY = "guest.pdpte.memory", [GUEST_CR3, GUEST_CR0, GUEST_CR4, ENTRY_CONTROLS, PRIMARY_CONTROLS, SECONDARY_CONTROLS],
        "If the guest will use PAE paging without EPT, a present PDPTE in the table at CR3 must have bits 8:5, 2:1 and those beyond the physical-address width clear.";
}

const PRESENT: u64 = 1;

#[inline(always)]
pub(super) fn check<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    guest: &Guest,
) {
    let pae = guest.cr0 & 1 << 31 != 0 && guest.cr4 & 1 << 5 != 0 && !c.ia32e_guest();
    if pae {
        entries(run, c);
    }
}

#[inline(never)]
fn entries<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    let may_be_one = !(run.cpu.beyond_physical() | 0x1e6);
    let expected = Expected::Bits {
        must_be_one: 0,
        may_be_one,
    };
    let bad = |entry: u64| entry & PRESENT != 0 && entry & !may_be_one != 0;
    if c.secondary.contains(Secondary::ENABLE_EPT) {
        for field in [
            f::GUEST_PDPTE0,
            f::GUEST_PDPTE1,
            f::GUEST_PDPTE2,
            f::GUEST_PDPTE3,
        ] {
            let entry = run.get(field);
            run.require(!bad(entry), &FIELD, (field, entry), expected);
        }
        return;
    }
    // Bits 31:5 of CR3 are the address of four entries of 8 bytes.
    let table = run.get(f::GUEST_CR3) & 0xffff_ffe0;
    if let Some(bytes) = run.read_memory::<32>(&MEMORY, table) {
        for (number, chunk) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let entry = u64::from_le_bytes(*chunk);
            if bad(entry) {
                let place = Place::Memory {
                    address: table | (number as u64) << 3,
                };
                run.broken(&MEMORY, place, entry, expected);
            }
        }
    }
}
