// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on guest CS, SS, DS, ES, FS and GS.
//!
//! The unusable bit of CS is not looked at: the manual's conditions say "if the register is CS or if the register is
//! usable".

use super::Guest;
use crate::{
    Field,
    check::{
        context::{Controls, Run},
        memory::PhysicalMemory,
        report::{Expected, Sink},
        rule::{Area, Rule, declare},
    },
    field::{Natural, ReadWrite, W16, W32},
    fields as f,
    store::Fields,
};

declare! { RULES: Area::Guest(0), "Checks on Guest Segment Registers";
    SS_RPL = "guest.ss.rpl", [GUEST_SS_SELECTOR, GUEST_CS_SELECTOR, GUEST_RFLAGS, PRIMARY_CONTROLS, SECONDARY_CONTROLS],
        "Unless the guest will be virtual-8086 or unrestricted, RPL of SS must equal RPL of CS.";
    V86_BASE = "guest.v8086.base", [GUEST_CS_BASE, GUEST_SS_BASE, GUEST_DS_BASE, GUEST_ES_BASE, GUEST_FS_BASE, GUEST_GS_BASE, GUEST_CS_SELECTOR, GUEST_SS_SELECTOR, GUEST_DS_SELECTOR, GUEST_ES_SELECTOR, GUEST_FS_SELECTOR, GUEST_GS_SELECTOR],
        "If the guest will be virtual-8086, each base must be the selector times 16.";
    V86_LIMIT = "guest.v8086.limit", [GUEST_CS_LIMIT, GUEST_SS_LIMIT, GUEST_DS_LIMIT, GUEST_ES_LIMIT, GUEST_FS_LIMIT, GUEST_GS_LIMIT],
        "If the guest will be virtual-8086, each limit must be FFFFH.";
    V86_RIGHTS = "guest.v8086.rights", [GUEST_CS_ACCESS_RIGHTS, GUEST_SS_ACCESS_RIGHTS, GUEST_DS_ACCESS_RIGHTS, GUEST_ES_ACCESS_RIGHTS, GUEST_FS_ACCESS_RIGHTS, GUEST_GS_ACCESS_RIGHTS],
        "If the guest will be virtual-8086, the access rights must be F3H: present, DPL 3, writable data.";
    FS_GS_BASE = "guest.fs-gs.base", [GUEST_FS_BASE, GUEST_GS_BASE],
        "The bases of FS and GS must be canonical.";
    CS_BASE = "guest.cs.base", [GUEST_CS_BASE],
        "Bits 63:32 of the CS base must be 0.";
    DATA_BASE = "guest.ss-ds-es.base", [GUEST_SS_BASE, GUEST_DS_BASE, GUEST_ES_BASE, GUEST_SS_ACCESS_RIGHTS, GUEST_DS_ACCESS_RIGHTS, GUEST_ES_ACCESS_RIGHTS],
        "If SS, DS or ES is usable, bits 63:32 of its base must be 0.";
    CS_TYPE = "guest.cs.type", [GUEST_CS_ACCESS_RIGHTS, SECONDARY_CONTROLS, PRIMARY_CONTROLS, GUEST_RFLAGS],
        "The type of CS must be 9, 11, 13 or 15 (accessed code), or for an unrestricted guest also 3 (accessed writable data).";
    SS_TYPE = "guest.ss.type", [GUEST_SS_ACCESS_RIGHTS],
        "If SS is usable, its type must be 3 or 7 (accessed writable data).";
    ACCESSED = "guest.data.accessed", [GUEST_DS_ACCESS_RIGHTS, GUEST_ES_ACCESS_RIGHTS, GUEST_FS_ACCESS_RIGHTS, GUEST_GS_ACCESS_RIGHTS],
        "If DS, ES, FS or GS is usable, bit 0 of its type must be 1 (accessed).";
    READABLE = "guest.data.readable", [GUEST_DS_ACCESS_RIGHTS, GUEST_ES_ACCESS_RIGHTS, GUEST_FS_ACCESS_RIGHTS, GUEST_GS_ACCESS_RIGHTS],
        "If DS, ES, FS or GS is usable and a code segment, bit 1 of its type must be 1 (readable).";
    S_BIT = "guest.segment.s", [GUEST_CS_ACCESS_RIGHTS, GUEST_SS_ACCESS_RIGHTS, GUEST_DS_ACCESS_RIGHTS, GUEST_ES_ACCESS_RIGHTS, GUEST_FS_ACCESS_RIGHTS, GUEST_GS_ACCESS_RIGHTS],
        "The S bit of CS and of each usable segment must be 1 (code or data).";
    CS_DPL_DATA = "guest.cs.dpl-data", [GUEST_CS_ACCESS_RIGHTS, GUEST_RFLAGS],
        "If the type of CS is 3 (writable data), its DPL must be 0.";
    CS_DPL_EQUAL = "guest.cs.dpl-non-conforming", [GUEST_CS_ACCESS_RIGHTS, GUEST_SS_ACCESS_RIGHTS],
        "If the type of CS is 9 or 11 (non-conforming code), its DPL must equal the DPL of SS.";
    CS_DPL_CONFORMING = "guest.cs.dpl-conforming", [GUEST_CS_ACCESS_RIGHTS, GUEST_SS_ACCESS_RIGHTS],
        "If the type of CS is 13 or 15 (conforming code), its DPL must not exceed the DPL of SS.";
    SS_DPL_RPL = "guest.ss.dpl-rpl", [GUEST_SS_ACCESS_RIGHTS, GUEST_SS_SELECTOR, GUEST_RFLAGS, PRIMARY_CONTROLS, SECONDARY_CONTROLS],
        "Unless the guest is unrestricted, the DPL of SS must equal the RPL of its selector.";
    SS_DPL_ZERO = "guest.ss.dpl-zero", [GUEST_SS_ACCESS_RIGHTS, GUEST_CS_ACCESS_RIGHTS, GUEST_CR0, GUEST_RFLAGS],
        "If the type of CS is 3, or CR0.PE is 0, the DPL of SS must be 0.";
    FRED_DPL = "guest.fred.dpl", [GUEST_SS_ACCESS_RIGHTS, GUEST_CR4],
        "If the guest will use FRED transitions, the DPL of SS must be 0 or 3.";
    FRED_LONG = "guest.fred.long", [GUEST_CS_ACCESS_RIGHTS, GUEST_SS_ACCESS_RIGHTS, GUEST_CR4],
        "If the guest will use FRED transitions and the DPL of SS is 0, the L bit of CS must be 1.";
    FRED_USER = "guest.fred.user", [GUEST_RFLAGS, GUEST_INTERRUPTIBILITY, GUEST_SS_ACCESS_RIGHTS, GUEST_CR4],
        "If the guest will use FRED transitions and the DPL of SS is 3, IOPL and blocking by STI must be 0.";
    DATA_DPL = "guest.data.dpl", [GUEST_DS_ACCESS_RIGHTS, GUEST_ES_ACCESS_RIGHTS, GUEST_FS_ACCESS_RIGHTS, GUEST_GS_ACCESS_RIGHTS, PRIMARY_CONTROLS, SECONDARY_CONTROLS],
        "Unless the guest is unrestricted, if DS, ES, FS or GS is usable and of type 0 to 11, its DPL must not be less than the RPL of its selector.";
    PRESENT = "guest.segment.present", [GUEST_CS_ACCESS_RIGHTS, GUEST_SS_ACCESS_RIGHTS, GUEST_DS_ACCESS_RIGHTS, GUEST_ES_ACCESS_RIGHTS, GUEST_FS_ACCESS_RIGHTS, GUEST_GS_ACCESS_RIGHTS],
        "The P bit of CS and of each usable segment must be 1.";
    RESERVED_LOW = "guest.segment.reserved-low", [GUEST_CS_ACCESS_RIGHTS, GUEST_SS_ACCESS_RIGHTS, GUEST_DS_ACCESS_RIGHTS, GUEST_ES_ACCESS_RIGHTS, GUEST_FS_ACCESS_RIGHTS, GUEST_GS_ACCESS_RIGHTS],
        "Bits 11:8 of the access rights of CS and of each usable segment must be 0.";
    CS_DB = "guest.cs.db", [GUEST_CS_ACCESS_RIGHTS, ENTRY_CONTROLS],
        "If the guest will be in IA-32e mode and the L bit of CS is 1, its D/B bit must be 0.";
    G_SMALL = "guest.segment.g-clear", [GUEST_CS_ACCESS_RIGHTS, GUEST_SS_ACCESS_RIGHTS, GUEST_DS_ACCESS_RIGHTS, GUEST_ES_ACCESS_RIGHTS, GUEST_FS_ACCESS_RIGHTS, GUEST_GS_ACCESS_RIGHTS, GUEST_CS_LIMIT, GUEST_SS_LIMIT, GUEST_DS_LIMIT, GUEST_ES_LIMIT, GUEST_FS_LIMIT, GUEST_GS_LIMIT],
        "For CS and each usable segment: if any of bits 11:0 of the limit is 0, G must be 0.";
    G_LARGE = "guest.segment.g-set", [GUEST_CS_ACCESS_RIGHTS, GUEST_SS_ACCESS_RIGHTS, GUEST_DS_ACCESS_RIGHTS, GUEST_ES_ACCESS_RIGHTS, GUEST_FS_ACCESS_RIGHTS, GUEST_GS_ACCESS_RIGHTS, GUEST_CS_LIMIT, GUEST_SS_LIMIT, GUEST_DS_LIMIT, GUEST_ES_LIMIT, GUEST_FS_LIMIT, GUEST_GS_LIMIT],
        "For CS and each usable segment: if any of bits 31:20 of the limit is 1, G must be 1.";
    RESERVED_HIGH = "guest.segment.reserved-high", [GUEST_CS_ACCESS_RIGHTS, GUEST_SS_ACCESS_RIGHTS, GUEST_DS_ACCESS_RIGHTS, GUEST_ES_ACCESS_RIGHTS, GUEST_FS_ACCESS_RIGHTS, GUEST_GS_ACCESS_RIGHTS],
        "Bits 31:17 of the access rights of CS and of each usable segment must be 0.";
}

/// The four fields of a segment register.
#[derive(Clone, Copy)]
pub(super) struct Register {
    pub(super) selector: Field<W16, ReadWrite>,
    pub(super) base: Field<Natural, ReadWrite>,
    pub(super) limit: Field<W32, ReadWrite>,
    pub(super) rights: Field<W32, ReadWrite>,
}

macro_rules! register {
    ($name:ident: $selector:ident, $base:ident, $limit:ident, $rights:ident) => {
        pub(super) const $name: Register = Register {
            selector: f::$selector,
            base: f::$base,
            limit: f::$limit,
            rights: f::$rights,
        };
    };
}
register!(CS: GUEST_CS_SELECTOR, GUEST_CS_BASE, GUEST_CS_LIMIT, GUEST_CS_ACCESS_RIGHTS);
register!(SS: GUEST_SS_SELECTOR, GUEST_SS_BASE, GUEST_SS_LIMIT, GUEST_SS_ACCESS_RIGHTS);
register!(DS: GUEST_DS_SELECTOR, GUEST_DS_BASE, GUEST_DS_LIMIT, GUEST_DS_ACCESS_RIGHTS);
register!(ES: GUEST_ES_SELECTOR, GUEST_ES_BASE, GUEST_ES_LIMIT, GUEST_ES_ACCESS_RIGHTS);
register!(FS: GUEST_FS_SELECTOR, GUEST_FS_BASE, GUEST_FS_LIMIT, GUEST_FS_ACCESS_RIGHTS);
register!(GS: GUEST_GS_SELECTOR, GUEST_GS_BASE, GUEST_GS_LIMIT, GUEST_GS_ACCESS_RIGHTS);
register!(TR: GUEST_TR_SELECTOR, GUEST_TR_BASE, GUEST_TR_LIMIT, GUEST_TR_ACCESS_RIGHTS);
register!(LDTR: GUEST_LDTR_SELECTOR, GUEST_LDTR_BASE, GUEST_LDTR_LIMIT, GUEST_LDTR_ACCESS_RIGHTS);

const SAYS: Expected = Expected::AsTheRuleSays;

#[inline(always)]
pub(super) const fn usable(rights: u64) -> bool {
    rights & 1 << 16 == 0
}

#[inline(always)]
const fn kind(rights: u64) -> u64 {
    rights & 0xf
}

#[inline(always)]
const fn dpl(rights: u64) -> u64 {
    rights >> 5 & 3
}

/// Whether limit and G bit fit each other.
#[inline(always)]
pub(super) const fn granular(limit: u64, rights: u64) -> bool {
    if rights & 1 << 15 != 0 {
        limit & 0xfff == 0xfff
    } else {
        limit >> 20 == 0
    }
}

#[inline(always)]
pub(super) fn check<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    guest: &Guest,
) {
    if guest.virtual_8086() {
        for register in [CS, SS, DS, ES, FS, GS] {
            virtual_8086(run, register);
        }
        return;
    }
    code(run, c, guest);
    stack(run, c, guest);
    if guest.fred() {
        fred(run, guest);
    }
    data(run, c, DS);
    data(run, c, ES);
    data(run, c, FS);
    data(run, c, GS);
    for_low(run, DS);
    for_low(run, ES);
    for (field, value) in [
        (f::GUEST_FS_BASE, run.get(f::GUEST_FS_BASE)),
        (f::GUEST_GS_BASE, run.get(f::GUEST_GS_BASE)),
    ] {
        run.canonical(&FS_GS_BASE, (field, value));
    }
}

#[inline(never)]
fn virtual_8086<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    register: Register,
) {
    let want = run.get(register.selector) << 4;
    let base = run.get(register.base);
    run.require(
        base == want,
        &V86_BASE,
        (register.base, base),
        Expected::Exactly(want),
    );
    let limit = run.get(register.limit);
    run.require(
        limit == 0xffff,
        &V86_LIMIT,
        (register.limit, limit),
        Expected::Exactly(0xffff),
    );
    let rights = run.get(register.rights);
    run.require(
        rights == 0xf3,
        &V86_RIGHTS,
        (register.rights, rights),
        Expected::Exactly(0xf3),
    );
}

#[inline(always)]
fn code<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    guest: &Guest,
) {
    let (rights, at) = (
        guest.cs_rights,
        (f::GUEST_CS_ACCESS_RIGHTS, guest.cs_rights),
    );
    let base = run.get(f::GUEST_CS_BASE);
    run.only_bits(0xffff_ffff, &CS_BASE, (f::GUEST_CS_BASE, base));
    let of_code = rights & 9 == 9;
    let (restricted, free): (&[u64], &[u64]) = (&[9, 11, 13, 15], &[3, 9, 11, 13, 15]);
    let types = if c.unrestricted() { free } else { restricted };
    let holds = of_code || c.unrestricted() && kind(rights) == 3;
    run.require(holds, &CS_TYPE, at, Expected::OneOf(types));
    let (own, stack) = (dpl(rights), guest.ss_dpl());
    match kind(rights) {
        3 => run.require(own == 0, &CS_DPL_DATA, at, SAYS),
        9 | 11 => run.require(own == stack, &CS_DPL_EQUAL, at, SAYS),
        13 | 15 => run.require(own <= stack, &CS_DPL_CONFORMING, at, SAYS),
        _ => {}
    }
    let holds = !(c.ia32e_guest() && guest.cs_long() && rights & 1 << 14 != 0);
    run.require(holds, &CS_DB, at, SAYS);
    common(run, CS, rights);
}

#[inline(always)]
fn stack<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    guest: &Guest,
) {
    let (rights, at) = (
        guest.ss_rights,
        (f::GUEST_SS_ACCESS_RIGHTS, guest.ss_rights),
    );
    let selector = run.get(f::GUEST_SS_SELECTOR);
    if !c.unrestricted() {
        let rpl = run.get(f::GUEST_CS_SELECTOR) & 3;
        run.require(
            selector & 3 == rpl,
            &SS_RPL,
            (f::GUEST_SS_SELECTOR, selector),
            SAYS,
        );
        run.require(dpl(rights) == selector & 3, &SS_DPL_RPL, at, SAYS);
    }
    let must_be_zero = kind(guest.cs_rights) == 3 || !guest.protected();
    run.require(dpl(rights) == 0 || !must_be_zero, &SS_DPL_ZERO, at, SAYS);
    if usable(rights) {
        run.require(rights & 0xb == 3, &SS_TYPE, at, Expected::OneOf(&[3, 7]));
        common(run, SS, rights);
    }
    for_low(run, SS);
}

#[inline(never)]
fn fred<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(run: &mut Run<'_, S, M, K>, guest: &Guest) {
    let at = (f::GUEST_SS_ACCESS_RIGHTS, guest.ss_rights);
    match guest.ss_dpl() {
        0 => {
            let at = (f::GUEST_CS_ACCESS_RIGHTS, guest.cs_rights);
            run.require(guest.cs_long(), &FRED_LONG, at, SAYS);
        }
        3 => {
            run.only_bits(!0x3000, &FRED_USER, (f::GUEST_RFLAGS, guest.rflags));
            let at = (f::GUEST_INTERRUPTIBILITY, guest.interruptibility);
            run.only_bits(!1, &FRED_USER, at);
        }
        _ => run.require(false, &FRED_DPL, at, SAYS),
    }
}

#[inline(always)]
fn data<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    register: Register,
) {
    let rights = run.get(register.rights);
    if !usable(rights) {
        return;
    }
    let at = (register.rights, rights);
    run.require(rights & 1 != 0, &ACCESSED, at, SAYS);
    run.require(rights & 0b1010 != 0b1000, &READABLE, at, SAYS);
    if !c.unrestricted() && kind(rights) <= 11 {
        let rpl = run.get(register.selector) & 3;
        run.require(dpl(rights) >= rpl, &DATA_DPL, at, SAYS);
    }
    common(run, register, rights);
}

/// The base of SS, DS or ES, which has 32 bits.
#[inline(always)]
fn for_low<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    register: Register,
) {
    let (rights, base) = (run.get(register.rights), run.get(register.base));
    let holds = !usable(rights) || base >> 32 == 0;
    let expected = Expected::Bits {
        must_be_one: 0,
        may_be_one: 0xffff_ffff,
    };
    run.require(holds, &DATA_BASE, (register.base, base), expected);
}

/// What CS and every usable segment must satisfy. One test passes those that do.
#[inline(always)]
fn common<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    register: Register,
    rights: u64,
) {
    let limit = run.get(register.limit);
    if rights & 0xfffe_0f90 != 0x90 || !granular(limit, rights) {
        uncommon(run, register, rights, limit);
    }
}

#[cold]
#[inline(never)]
fn uncommon<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    register: Register,
    rights: u64,
    limit: u64,
) {
    let at = (register.rights, rights);
    run.require(rights & 1 << 4 != 0, &S_BIT, at, SAYS);
    system(
        run,
        at,
        limit,
        [&PRESENT, &RESERVED_LOW, &RESERVED_HIGH, &G_SMALL, &G_LARGE],
    );
}

/// P, reserved bits and G, for segments of either kind.
pub(super) fn system<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    at: (Field<W32, ReadWrite>, u64),
    limit: u64,
    [present, reserved_low, reserved_high, g_small, g_large]: [&'static Rule; 5],
) {
    let rights = at.1;
    let g = rights & 1 << 15 != 0;
    run.require(rights & 1 << 7 != 0, present, at, SAYS);
    run.only_bits(!0xf00, reserved_low, at);
    run.only_bits(!0xfffe_0000, reserved_high, at);
    run.require(!g || limit & 0xfff == 0xfff, g_small, at, SAYS);
    run.require(g || limit >> 20 == 0, g_large, at, SAYS);
}
