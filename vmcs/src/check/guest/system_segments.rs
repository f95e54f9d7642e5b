// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on guest TR and LDTR.

use super::segments::{LDTR, TR, granular, system, usable};
use crate::{
    check::{
        context::{Controls, Run},
        memory::PhysicalMemory,
        report::{Expected, Sink},
        rule::{Area, declare},
    },
    fields as f,
    store::Fields,
};

declare! { RULES: Area::Guest(0), "Checks on Guest Segment Registers";
    TR_TI = "guest.tr.ti", [GUEST_TR_SELECTOR],
        "The TI flag of TR must be 0.";
    LDTR_TI = "guest.ldtr.ti", [GUEST_LDTR_SELECTOR, GUEST_LDTR_ACCESS_RIGHTS],
        "If LDTR is usable, its TI flag must be 0.";
    TR_BASE = "guest.tr.base", [GUEST_TR_BASE],
        "The base of TR must be canonical.";
    LDTR_BASE = "guest.ldtr.base", [GUEST_LDTR_BASE, GUEST_LDTR_ACCESS_RIGHTS],
        "If LDTR is usable, its base must be canonical.";
    TR_TYPE = "guest.tr.type", [GUEST_TR_ACCESS_RIGHTS, ENTRY_CONTROLS],
        "The type of TR must be 11 (busy TSS), or 3 (16-bit busy TSS) if the guest will not be in IA-32e mode.";
    TR_S = "guest.tr.s", [GUEST_TR_ACCESS_RIGHTS],
        "The S bit of TR must be 0.";
    TR_PRESENT = "guest.tr.present", [GUEST_TR_ACCESS_RIGHTS],
        "The P bit of TR must be 1.";
    TR_RESERVED_LOW = "guest.tr.reserved-low", [GUEST_TR_ACCESS_RIGHTS],
        "Bits 11:8 of the access rights of TR must be 0.";
    TR_G_SMALL = "guest.tr.g-clear", [GUEST_TR_ACCESS_RIGHTS, GUEST_TR_LIMIT],
        "If any of bits 11:0 of the limit of TR is 0, G must be 0.";
    TR_G_LARGE = "guest.tr.g-set", [GUEST_TR_ACCESS_RIGHTS, GUEST_TR_LIMIT],
        "If any of bits 31:20 of the limit of TR is 1, G must be 1.";
    TR_USABLE = "guest.tr.usable", [GUEST_TR_ACCESS_RIGHTS],
        "TR must be usable.";
    TR_RESERVED_HIGH = "guest.tr.reserved-high", [GUEST_TR_ACCESS_RIGHTS],
        "Bits 31:17 of the access rights of TR must be 0.";
    LDTR_TYPE = "guest.ldtr.type", [GUEST_LDTR_ACCESS_RIGHTS],
        "If LDTR is usable, its type must be 2 (LDT).";
    LDTR_S = "guest.ldtr.s", [GUEST_LDTR_ACCESS_RIGHTS],
        "If LDTR is usable, its S bit must be 0.";
    LDTR_PRESENT = "guest.ldtr.present", [GUEST_LDTR_ACCESS_RIGHTS],
        "If LDTR is usable, its P bit must be 1.";
    LDTR_RESERVED_LOW = "guest.ldtr.reserved-low", [GUEST_LDTR_ACCESS_RIGHTS],
        "If LDTR is usable, bits 11:8 of its access rights must be 0.";
    LDTR_G_SMALL = "guest.ldtr.g-clear", [GUEST_LDTR_ACCESS_RIGHTS, GUEST_LDTR_LIMIT],
        "If LDTR is usable and any of bits 11:0 of its limit is 0, G must be 0.";
    LDTR_G_LARGE = "guest.ldtr.g-set", [GUEST_LDTR_ACCESS_RIGHTS, GUEST_LDTR_LIMIT],
        "If LDTR is usable and any of bits 31:20 of its limit is 1, G must be 1.";
    LDTR_RESERVED_HIGH = "guest.ldtr.reserved-high", [GUEST_LDTR_ACCESS_RIGHTS],
        "If LDTR is usable, bits 31:17 of its access rights must be 0.";
}

const SAYS: Expected = Expected::AsTheRuleSays;
const TI: u64 = 1 << 2;
const S: u64 = 1 << 4;

#[inline(always)]
pub(super) fn check<F: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, F, M, K>,
    c: &Controls,
) {
    let selector = run.get(f::GUEST_TR_SELECTOR);
    run.only_bits(!TI, &TR_TI, (f::GUEST_TR_SELECTOR, selector));
    let base = run.get(f::GUEST_TR_BASE);
    run.canonical(&TR_BASE, (f::GUEST_TR_BASE, base));
    let (rights, limit) = (run.get(TR.rights), run.get(TR.limit));
    let at = (TR.rights, rights);
    let kind = rights & 0xf;
    let (long, legacy): (&[u64], &[u64]) = (&[11], &[3, 11]);
    let types = if c.ia32e_guest() { long } else { legacy };
    let holds = kind == 11 || kind == 3 && !c.ia32e_guest();
    run.require(holds, &TR_TYPE, at, Expected::OneOf(types));
    run.require(usable(rights), &TR_USABLE, at, SAYS);
    // S, P, and bits 11:8 and 31:17 in one test.
    if rights & 0xfffe_0f90 != 0x80 || !granular(limit, rights) {
        run.require(rights & S == 0, &TR_S, at, SAYS);
        let rules = [
            &TR_PRESENT,
            &TR_RESERVED_LOW,
            &TR_RESERVED_HIGH,
            &TR_G_SMALL,
            &TR_G_LARGE,
        ];
        system(run, at, limit, rules);
    }
    ldtr(run);
}

#[inline(always)]
fn ldtr<F: Fields, M: PhysicalMemory, K: Sink + ?Sized>(run: &mut Run<'_, F, M, K>) {
    let rights = run.get(LDTR.rights);
    if !usable(rights) {
        return;
    }
    let selector = run.get(f::GUEST_LDTR_SELECTOR);
    run.only_bits(!TI, &LDTR_TI, (f::GUEST_LDTR_SELECTOR, selector));
    let base = run.get(f::GUEST_LDTR_BASE);
    run.canonical(&LDTR_BASE, (f::GUEST_LDTR_BASE, base));
    let (limit, at) = (run.get(LDTR.limit), (LDTR.rights, rights));
    run.require(rights & 0xf == 2, &LDTR_TYPE, at, Expected::Exactly(2));
    if rights & 0xfffe_0f90 != 0x80 || !granular(limit, rights) {
        run.require(rights & S == 0, &LDTR_S, at, SAYS);
        let rules = [
            &LDTR_PRESENT,
            &LDTR_RESERVED_LOW,
            &LDTR_RESERVED_HIGH,
            &LDTR_G_SMALL,
            &LDTR_G_LARGE,
        ];
        system(run, at, limit, rules);
    }
}
