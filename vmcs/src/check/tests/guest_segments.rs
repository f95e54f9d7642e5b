// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! "Checks on Guest Segment Registers".

use super::*;

/// Numbers of selector, limit, access rights and base, in the order ES, CS, SS, DS, FS, GS, LDTR, TR.
const fn selector(register: u32) -> u32 {
    0x800 + 2 * register
}
const fn limit(register: u32) -> u32 {
    0x4800 + 2 * register
}
const fn rights(register: u32) -> u32 {
    0x4814 + 2 * register
}
const fn base(register: u32) -> u32 {
    0x6806 + 2 * register
}
const ES: u32 = 0;
const CS: u32 = 1;
const SS: u32 = 2;
const DS: u32 = 3;
const FS: u32 = 4;
const GS: u32 = 5;
const LDTR: u32 = 6;
const TR: u32 = 7;

const UNUSABLE: u64 = 1 << 16;
const FRED: Change = Change {
    field: 0x6804,
    clear: 0,
    set: 1 << 32,
};
/// SS, CS, DS, ES at privilege level 3.
const USER: [Change; 4] = [
    Change {
        field: selector(SS),
        clear: 3,
        set: 3,
    },
    Change {
        field: selector(CS),
        clear: 3,
        set: 3,
    },
    Change {
        field: rights(SS),
        clear: 0,
        set: 3 << 5,
    },
    Change {
        field: rights(CS),
        clear: 0,
        set: 3 << 5,
    },
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = virtual_8086();
    cases.extend(bases_and_types());
    cases.extend(privilege());
    cases.extend(common());
    cases.extend(system(TR));
    cases.extend(system(LDTR));
    cases.extend(system_only());
    cases
}

fn virtual_8086() -> Vec<Case> {
    let on = |rule| case(rule).seed(Seed::Virtual8086);
    let (mut bases, mut limits, mut words) = (
        on("guest.v8086.base"),
        on("guest.v8086.limit"),
        on("guest.v8086.rights"),
    );
    for register in [ES, CS, SS, DS, FS, GS] {
        bases = bases
            .breaks([set(base(register), 1)])
            .breaks([set(selector(register), 1)])
            .passes([
                set(base(register), 0xf_fff0),
                set(selector(register), 0xffff),
            ]);
        limits = limits.breaks([set(limit(register), 0xfffe)]);
        words = words
            .breaks([set(rights(register), 0x93)])
            .breaks([or(rights(register), 1 << 12)])
            .breaks([or(rights(register), UNUSABLE)]);
    }
    vec![bases, limits.passes([]), words.passes([])]
}

fn bases_and_types() -> Vec<Case> {
    let mut cs_type = case("guest.cs.type");
    for kind in [0, 1, 2, 3, 4, 8, 10, 12, 14] {
        cs_type = cs_type.breaks([not(rights(CS), 0xf), or(rights(CS), kind)]);
    }
    let mut free_type = case("guest.cs.type").base([or(0x401e, 0x82)]);
    for kind in [0, 1, 2, 7, 8, 10, 12, 14] {
        free_type = free_type.breaks([not(rights(CS), 0xf), or(rights(CS), kind)]);
    }
    let mut ss_type = case("guest.ss.type");
    for kind in [0, 1, 2, 5, 9, 11, 15] {
        ss_type = ss_type.breaks([not(rights(SS), 0xf), or(rights(SS), kind)]);
    }
    let (mut accessed, mut readable) = (case("guest.data.accessed"), case("guest.data.readable"));
    for register in [DS, ES, FS, GS] {
        let with = |kind| [not(rights(register), 0xf), or(rights(register), kind)];
        accessed = accessed
            .breaks(with(0))
            .breaks(with(2))
            .breaks(with(10))
            .passes(with(1))
            .passes(with(5));
        readable = readable
            .breaks(with(9))
            .breaks(with(13))
            .passes(with(11))
            .passes(with(15));
        accessed = accessed.passes([or(rights(register), UNUSABLE), not(rights(register), 1)]);
    }
    let mut low = case("guest.ss-ds-es.base");
    for register in [SS, DS, ES] {
        low = low
            .breaks([set(base(register), 1 << 32)])
            .passes([set(base(register), 0xffff_ffff)])
            .passes([set(base(register), 1 << 32), or(rights(register), UNUSABLE)]);
    }
    vec![
        cs_type.passes([or(rights(CS), 0xf)]),
        // Type 3, which wants DPL 0 and makes CS data: real mode.
        free_type.passes([not(rights(CS), 0xf), or(rights(CS), 3)]),
        ss_type
            .passes([or(rights(SS), 7)])
            .passes([or(rights(SS), UNUSABLE), not(rights(SS), 0xf)]),
        accessed,
        readable,
        low,
        case("guest.fs-gs.base")
            .breaks([set(base(FS), 1 << 56)])
            .breaks([set(base(GS), 1 << 56)])
            // Unusable or not.
            .breaks([set(base(FS), 1 << 56), or(rights(FS), UNUSABLE)])
            .passes([set(base(FS), 0xff00_0000_0000_0000)]),
        case("guest.cs.base")
            .breaks([set(base(CS), 1 << 32)])
            .passes([set(base(CS), 0xffff_ffff)]),
        case("guest.cs.db")
            .breaks([or(rights(CS), 1 << 14)])
            .passes([or(rights(CS), 1 << 14), not(rights(CS), 1 << 13)]),
        // Outside IA-32e mode the L bit means nothing.
        case("guest.cs.db")
            .breaks([or(rights(CS), 1 << 14)])
            .passes([not(0x4012, 1 << 9), set(0x2806, 0), or(rights(CS), 1 << 14)]),
    ]
}

fn privilege() -> Vec<Case> {
    let unrestricted = or(0x401e, 0x82);
    let user = |changes: &[Change]| USER.iter().chain(changes).copied().collect::<Vec<_>>();
    let mut data = case("guest.data.dpl");
    for register in [DS, ES, FS, GS] {
        let rpl = or(selector(register), 3);
        data = data
            .breaks([rpl])
            .breaks([rpl, or(rights(register), 2 << 5)])
            .passes([rpl, or(rights(register), 3 << 5)])
            .passes([rpl, or(rights(register), UNUSABLE)])
            // Conforming code, and unrestricted guests, are free of it.
            .passes([rpl, or(rights(register), 0xf)])
            .passes([rpl, unrestricted]);
    }
    vec![
        data,
        case("guest.ss.rpl")
            .breaks([or(selector(CS), 1)])
            .passes([or(selector(CS), 1), unrestricted])
            .passes(USER),
        case("guest.ss.dpl-rpl")
            .breaks([or(selector(CS), 3), or(selector(SS), 3)])
            .passes([or(selector(CS), 3), or(selector(SS), 3), unrestricted]),
        // Also if SS is unusable: its DPL is the CPL.
        case("guest.ss.dpl-rpl")
            .base([or(rights(SS), UNUSABLE)])
            .breaks([or(selector(CS), 3), or(selector(SS), 3)])
            .passes([]),
        case("guest.ss.dpl-zero")
            .seed(Seed::RealMode)
            .breaks([or(rights(SS), 1 << 5), or(rights(CS), 1 << 5)])
            .passes([]),
        case("guest.ss.dpl-zero")
            .seed(Seed::Protected)
            .base([unrestricted])
            .breaks([
                not(rights(CS), 0xf),
                or(rights(CS), 3),
                or(rights(SS), 3 << 5),
            ])
            .passes([not(rights(CS), 0xf), or(rights(CS), 3)]),
        case("guest.cs.dpl-data")
            .base([unrestricted, not(rights(CS), 0xf), or(rights(CS), 3)])
            .breaks([or(rights(CS), 1 << 5)])
            .passes([]),
        case("guest.cs.dpl-non-conforming")
            .breaks([or(rights(CS), 1 << 5)])
            .breaks(user(&[not(rights(CS), 1 << 5)]))
            .breaks([or(rights(CS), 2 << 5), not(rights(CS), 2)])
            .passes(USER),
        case("guest.cs.dpl-conforming")
            .breaks([or(rights(CS), 0xf | 1 << 5)])
            .passes(user(&[or(rights(CS), 0xf), not(rights(CS), 3 << 5)]))
            .passes(user(&[or(rights(CS), 0xf)])),
        case("guest.fred.dpl")
            .base([FRED])
            .breaks(user(&[
                not(selector(SS), 2),
                not(selector(CS), 2),
                not(rights(SS), 2 << 5),
                not(rights(CS), 2 << 5),
            ]))
            .passes(USER),
        case("guest.fred.long")
            .base([FRED])
            .breaks([not(rights(CS), 1 << 13)])
            .passes(user(&[not(rights(CS), 1 << 13)])),
        case("guest.fred.user")
            .base([FRED])
            .breaks(user(&[or(0x6820, 1 << 12)]))
            .breaks(user(&[or(0x6820, 1 << 13)]))
            .breaks(user(&[or(0x6820, 1 << 9), or(0x4824, 1)]))
            .passes([or(0x6820, 3 << 12 | 1 << 9), or(0x4824, 1)])
            .passes(USER),
    ]
}

fn common() -> Vec<Case> {
    let (mut s, mut present, mut low, mut high, mut small, mut large) = (
        case("guest.segment.s"),
        case("guest.segment.present"),
        case("guest.segment.reserved-low"),
        case("guest.segment.reserved-high"),
        case("guest.segment.g-clear"),
        case("guest.segment.g-set"),
    );
    for register in [ES, CS, SS, DS, FS, GS] {
        let word = rights(register);
        s = s.breaks([not(word, 1 << 4)]);
        present = present.breaks([not(word, 1 << 7)]);
        low = low.breaks([or(word, 1 << 8)]).breaks([or(word, 1 << 11)]);
        high = high.breaks([or(word, 1 << 17)]).breaks([or(word, 1 << 31)]);
        small = small
            .breaks([set(limit(register), 0xffff_fffe)])
            .breaks([set(limit(register), 0x7ff)])
            .passes([set(limit(register), 0xfff)]);
        large = large
            .breaks([not(word, 1 << 15), set(limit(register), 0x10_0000)])
            .passes([not(word, 1 << 15), set(limit(register), 0xf_fffe)]);
        if register != CS {
            let nothing = [set(word, UNUSABLE), set(limit(register), 0x1234_5678)];
            s = s.passes(nothing);
            let garbage = [set(word, UNUSABLE | 0xfffe_ff00), set(limit(register), 1)];
            high = high.passes(garbage);
        }
    }
    // CS counts as usable whatever its unusable bit says.
    let cs = [or(rights(CS), UNUSABLE), not(rights(CS), 1 << 7)];
    vec![
        s,
        present.breaks(cs).passes([or(rights(CS), UNUSABLE)]),
        low.passes([or(rights(DS), 1 << 12)]),
        high,
        small,
        large,
    ]
}

/// TR and LDTR share most rules; the seeds have an unusable LDTR, which is made usable.
fn system(register: u32) -> Vec<Case> {
    let (word, size) = (rights(register), limit(register));
    let name = |tr, ldtr| if register == TR { tr } else { ldtr };
    let usable = if register == TR {
        vec![]
    } else {
        vec![set(word, 0x82), set(size, 0xff)]
    };
    let on = |tr, ldtr| case(name(tr, ldtr)).base(usable.clone());
    vec![
        on("guest.tr.ti", "guest.ldtr.ti")
            .breaks([or(selector(register), 4)])
            .passes([or(selector(register), 3)]),
        on("guest.tr.base", "guest.ldtr.base")
            .breaks([set(base(register), 1 << 56)])
            .passes([set(base(register), 0xff00_0000_0000_0000)]),
        on("guest.tr.s", "guest.ldtr.s")
            .breaks([or(word, 1 << 4)])
            .passes([]),
        on("guest.tr.present", "guest.ldtr.present")
            .breaks([not(word, 1 << 7)])
            .passes([]),
        on("guest.tr.reserved-low", "guest.ldtr.reserved-low")
            .breaks([or(word, 1 << 8)])
            .breaks([or(word, 1 << 11)])
            .passes([or(word, 1 << 12)]),
        on("guest.tr.reserved-high", "guest.ldtr.reserved-high")
            .breaks([or(word, 1 << 17)])
            .breaks([or(word, 1 << 31)])
            .passes([or(word, 1 << 13)]),
        on("guest.tr.g-clear", "guest.ldtr.g-clear")
            .breaks([or(word, 1 << 15)])
            .passes([or(word, 1 << 15), set(size, 0xfff)]),
        on("guest.tr.g-set", "guest.ldtr.g-set")
            .breaks([set(size, 0x10_0000)])
            .passes([set(size, 0xf_ffff)]),
    ]
}

fn system_only() -> Vec<Case> {
    let mut ldtr = case("guest.ldtr.type").base([set(rights(LDTR), 0x82)]);
    for kind in [0, 1, 3, 9, 11, 15] {
        ldtr = ldtr.breaks([not(rights(LDTR), 0xf), or(rights(LDTR), kind)]);
    }
    let mut tr = case("guest.tr.type");
    for kind in [0, 1, 2, 3, 9, 15] {
        tr = tr.breaks([not(rights(TR), 0xf), or(rights(TR), kind)]);
    }
    let garbage = [
        set(rights(LDTR), 0xffff_ffff),
        or(selector(LDTR), 4),
        set(base(LDTR), 1 << 56),
        set(limit(LDTR), 1),
    ];
    vec![
        ldtr.passes(garbage),
        tr.passes([]),
        case("guest.tr.type")
            .seed(Seed::Protected)
            .breaks([not(rights(TR), 0xf), or(rights(TR), 9)])
            .passes([not(rights(TR), 0xf), or(rights(TR), 3)]),
        case("guest.tr.usable")
            .breaks([or(rights(TR), UNUSABLE)])
            .passes([]),
    ]
}
