// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The oracle without its model: the cases are such that the payload survives them, and a wrong answer
//! is seen. The model itself is asked by `cargo xtask oracle paging`.

use std::collections::BTreeMap;

use hvkit_page_table::{ReadEntry, Width};
use lab_cases::paging::{
    Case, Cpu, DONE, Doing, HARNESS_PDPT, HARNESS_PT_LOW, HARNESS_PT_USER, Mode, PATTERN, RAM_END,
    Record, STORED, Who, arena, pattern,
};

use super::expect::expect;
use super::prepared;
use super::quirks::Quirks;
use super::{Paging, explained, judge};
use crate::oracle::in_bochs::InBochs;
use crate::oracle::ledger;
use crate::oracle::tally::Verdict;

const CPU: Cpu = Cpu {
    physical_address_bits: 40,
    gib_pages: true,
    cr4: 0x01f0_0000,
};

fn cases() -> impl Iterator<Item = Case> {
    (0..20_000).map(|number| Case::new(7, number, &CPU))
}

#[test]
fn the_ledger_and_the_code_name_the_same_rules() {
    ledger::check("paging", &explained::names()).unwrap();
}

#[test]
fn no_case_takes_the_monitor_from_under_itself() {
    for case in cases() {
        let memory = prepared::memory(&case);
        let root = case.cr3 & !0xfff;
        let word = |at, width| memory.read(at, width).unwrap();
        match case.mode {
            Mode::Unpaged => {}
            Mode::ThirtyTwoBit => {
                assert_eq!(word(root, Width::Four), HARNESS_PT_LOW | 0x67);
                assert_eq!(word(root + 4, Width::Four), HARNESS_PT_USER | 0x67);
            }
            Mode::Pae => {
                let first = word(case.cr3 & !0x1f, Width::Eight);
                assert_eq!(first, HARNESS_PDPT + 0x1001, "{case:x?}");
            }
            Mode::FourLevel => assert_eq!(word(root, Width::Eight), HARNESS_PDPT | 0x67),
        }
        for slot in case.entries.slots() {
            assert!(arena().contains(&slot.at), "{case:x?}");
        }
        assert_eq!(case.pkru & 3, 0, "key 0 is the monitor's");
    }
}

#[test]
fn every_case_has_an_outcome_and_writes_only_where_it_is_undone() {
    let mut ended: BTreeMap<(u8, u16), u32> = BTreeMap::new();
    for case in cases() {
        // Fails if code is fetched from anywhere but the pattern.
        let record = expect(&case, &CPU, Quirks::NONE).unwrap().record;
        *ended.entry((record.vector, record.error)).or_default() += 1;
        if record.vector == DONE && matches!(case.doing, Doing::Write | Doing::Exchange) {
            let at = u64::from(record.value);
            assert!(
                pattern().contains(&at) || record.value == u32::MAX,
                "{record:x?} {case:x?}"
            );
        }
    }
    // All that there is to compare: what is allowed, #GP, and each error code that ordinary paging has.
    let p_w_u_i = [0, 1, 2, 3, 4, 5, 6, 7, 0x10, 0x11, 0x14, 0x15];
    let reserved = [0x09, 0x0b, 0x0d, 0x0f, 0x19, 0x1d];
    let keys = [0x21, 0x23, 0x25, 0x27];
    let shadow_stack = [0x46, 0x47, 0x4f, 0x67];
    let codes = p_w_u_i
        .into_iter()
        .chain(reserved)
        .chain(keys)
        .chain(shadow_stack);
    for outcome in codes.map(|code| (14, code)).chain([(DONE, 0), (13, 0)]) {
        assert!(
            ended.get(&outcome).is_some_and(|n| *n >= 10),
            "{outcome:x?} {ended:x?}"
        );
    }
}

#[test]
fn equal_numbers_give_equal_cases_and_others_do_not() {
    let text = |seed, number| format!("{:?}", Case::new(seed, number, &CPU));
    assert_eq!(text(3, 5), text(3, 5));
    assert_ne!(text(3, 5), text(3, 6));
    assert_ne!(text(3, 5), text(4, 5));
}

#[test]
fn memory_is_as_the_payload_prepares_it() {
    let memory = prepared::memory(&Case::new(0, 0, &CPU));
    assert_eq!(memory.load_32(PATTERN + 0x37f8), 0x0200_37f8);
    assert_eq!(memory.load_32(PATTERN + 0x37fc), 0);
    // mov eax, 0x02003400; int 0x81
    assert_eq!(
        memory.read(PATTERN + 0x3400, Width::Eight),
        Ok(0x0081_cd02_0034_00b8)
    );
    assert_eq!(memory.load_32(PATTERN + 0x3400), 0x0034_00b8);
    assert_eq!(memory.load_32(PATTERN + 0x3404), 0x0081_cd02);
    assert_eq!(memory.load_32(RAM_END), u32::MAX);
    memory.store_32(RAM_END, STORED);
    assert_eq!(memory.load_32(RAM_END), u32::MAX, "nothing is there");
    memory.store_32(PATTERN + 0x37fc, STORED);
    assert_eq!(memory.load_32(PATTERN + 0x37fc), STORED);
    assert_eq!(memory.load_32(PATTERN + 0x37f8), 0x0200_37f8);
}

#[test]
fn each_part_of_a_wrong_answer_is_seen() {
    let mut seen = 0;
    for case in cases().take(200) {
        let right = expect(&case, &CPU, Quirks::NONE).unwrap().record;
        assert_eq!(judge(&case, &CPU, &right).unwrap().1, Verdict::Agrees);
        let wrong = [
            Record {
                vector: right.vector ^ 1,
                ..right
            },
            Record {
                error: right.error ^ 8,
                ..right
            },
            Record {
                value: right.value ^ 4,
                ..right
            },
            Record {
                cr2: right.cr2 ^ 1 << 47,
                ..right
            },
            Record {
                tables: right.tables ^ 0x20,
                ..right
            },
        ];
        for record in wrong {
            let verdict = judge(&case, &CPU, &record).unwrap().1;
            assert!(matches!(verdict, Verdict::Differs(_)), "{record:x?}");
            seen += 1;
        }
    }
    assert_eq!(seen, 1000);
}

#[test]
fn a_quirk_excuses_its_own_answer_and_no_other() {
    // Of the ledger: VERR with EFLAGS.AC of an LDT in a user-mode page, under SMAP.
    let case = Case::new(
        1,
        1196,
        &Cpu {
            cr4: 0x0030_0000,
            ..CPU
        },
    );
    assert_eq!((case.doing, case.who), (Doing::Implicit, Who::SupervisorAc));
    let ours = expect(&case, &CPU, Quirks::NONE).unwrap().record;
    assert_eq!((ours.vector, ours.error, ours.cr2), (14, 1, case.linear));
    let bochs = Record {
        vector: DONE,
        error: 0,
        cr2: 0,
        tables: 0x8f54_b299,
        ..ours
    };
    let rule = |record: Record| explained::explain(&case, &CPU, &record).unwrap();
    assert_eq!(rule(bochs), Some("smap-implicit-ac"));
    assert_eq!(
        rule(Record {
            tables: ours.tables,
            ..bochs
        }),
        None,
        "without its accessed flags"
    );
    assert_eq!(rule(Record { error: 0, ..ours }), None);
}

#[test]
fn a_line_that_breaks_off_gives_the_records_before() {
    let record = Record {
        vector: 14,
        error: 5,
        ..Record::default()
    };
    let mut serial = b"HVKITPG1".to_vec();
    assert!(Paging::parse(&serial).is_none());
    serial.extend([40, 1, 0, 0, 0x30, 0]);
    serial.extend(record.to_bytes());
    serial.extend([1, 2, 3]);
    let (cpu, records) = Paging::parse(&serial).unwrap();
    assert_eq!(
        cpu,
        Cpu {
            cr4: 0x0030_0000,
            ..CPU
        }
    );
    assert_eq!(records.collect::<Vec<_>>(), [record]);
    assert!(Paging::parse(b"BIOS").is_none());
}
