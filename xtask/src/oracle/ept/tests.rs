// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The oracle without its model: the cases are such that the payload survives them, and a wrong answer is seen. The model
//! itself is asked by `cargo xtask oracle ept`.

use std::collections::{BTreeMap, BTreeSet};

use hvkit_vmcs::capability::Msr;
use lab_cases::ept::{ARENAS, CODE, Doing, Mode, SEQUENCE_BYTES, Who};

use super::*;
use crate::oracle::ledger;

/// What EPT depends on of a processor: its controls and EPT capabilities.
fn cpu(secondary: u64, ept: u64) -> EptCpu {
    let mut msrs = [0; Msr::ALL.len()];
    let values = [
        (Msr::BASIC, 0x00d8_1000_0000_002b),
        (Msr::PROCBASED_CTLS, 0xfff9_fffe_0401_e172),
        (Msr::TRUE_PROCBASED_CTLS, 0xfff9_fffe_0400_6172),
        (Msr::PROCBASED_CTLS2, secondary << 32),
        (Msr::EPT_VPID_CAP, ept),
    ];
    for (msr, value) in values {
        msrs[Msr::ALL.iter().position(|known| *known == msr).unwrap()] = value;
    }
    EptCpu {
        msrs,
        physical_address_bits: 40,
    }
}

/// Bochs's `tigerlake`: 2.7's, and 3.0's with mode-based execute control and advanced information.
fn processors() -> [EptCpu; 2] {
    [
        cpu(0x0297_7fff, 0xf01_06b3_4141),
        cpu(0x02d7_7fff, 0xf01_06f3_4141),
    ]
}

#[test]
fn the_ledger_and_the_code_name_the_same_rules() {
    ledger::check("ept", &explained::names()).unwrap();
}

#[test]
fn sequences_are_what_they_say() {
    let all: Vec<u8> = Doing::ALL.iter().flat_map(|doing| doing.bytes()).collect();
    assert_eq!(all.len() as u64, 7 * SEQUENCE_BYTES);
    let vmcall = [0x0f, 0x01, 0xc1];
    for doing in Doing::ALL {
        let leaves = doing.bytes().windows(3).any(|bytes| bytes == vmcall);
        // A jump leaves where it leads, IRET nowhere.
        assert_eq!(
            leaves,
            !matches!(doing, Doing::Fetch | Doing::Iret),
            "{doing:?}"
        );
    }
    assert_eq!(
        Doing::Write.bytes()[..7],
        [0xc7, 0x47, 4, 0x7a, 0xda, 0x0d, 0x60]
    );
}

#[test]
fn cases_reach_every_outcome_in_every_mode_and_run_no_other_code() {
    for cpu in processors() {
        let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
        let mut done = BTreeSet::new();
        for number in 0..20_000 {
            let case = Case::new(7, number, &cpu);
            assert!(case.mode != Mode::Real || case.who == Who::Supervisor);
            for slot in case.entries.slots() {
                assert!(
                    ARENAS.iter().any(|arena| arena.contains(&slot.at)),
                    "{case:x?}"
                );
                assert!(slot.at < CODE || slot.at % slot.width == 0);
            }
            // Fails if code is fetched from anywhere but the pattern.
            let record = expect::expect(&case, &cpu, Quirks::NONE).unwrap().record;
            *kinds.entry(kind::kind(&case, &record)).or_default() += 1;
            if record.reason == 18 {
                done.insert(format!("{:?}", case.doing));
            }
        }
        assert_eq!(done.len(), 6, "all but IRET complete: {done:?}");
        for mode in ["real mode", "no paging", "32-bit", "PAE", "4-level"] {
            let paged = !matches!(mode, "real mode" | "no paging");
            let mut outcomes = vec![
                "completed",
                "log full",
                "misconfiguration",
                "violation by the page",
            ];
            if paged {
                outcomes.extend(["#PF", "violation by a table"]);
            }
            // #VE needs protected mode.
            if mode != "real mode" {
                outcomes.extend(["#VE", "#GP"]);
            }
            if mode == "PAE" {
                outcomes.push("violation without a linear address");
            }
            for outcome in outcomes {
                let count = kinds.get(&format!("{mode}: {outcome}")).copied();
                assert!(
                    count.unwrap_or(0) >= 5,
                    "{mode}: {outcome} {count:?} {kinds:#?}"
                );
            }
        }
        assert!(!kinds.contains_key("real mode: #VE"));
    }
}

#[test]
fn equal_numbers_give_equal_cases_and_others_do_not() {
    let [cpu, _] = processors();
    let text = |seed, number| format!("{:?}", Case::new(seed, number, &cpu));
    assert_eq!(text(3, 5), text(3, 5));
    assert_ne!(text(3, 5), text(3, 6));
    assert_ne!(text(3, 5), text(4, 5));
}

#[test]
fn each_part_of_a_wrong_answer_is_seen() {
    let [cpu, _] = processors();
    let mut seen = 0;
    for number in 0..200 {
        let case = Case::new(7, number, &cpu);
        let right = expect::expect(&case, &cpu, Quirks::NONE).unwrap().record;
        assert_eq!(judge(&case, &cpu, &right).unwrap().1, Verdict::Agrees);
        #[rustfmt::skip]
        let wrong = [
            Record { reason: right.reason ^ 1, ..right },
            Record { vector: right.vector ^ 1, ..right },
            Record { error: right.error ^ 8, ..right },
            Record { value: right.value ^ 4, ..right },
            Record { qualification: right.qualification ^ 1 << 7, ..right },
            Record { guest_physical: right.guest_physical ^ 0x1000, ..right },
            Record { linear: right.linear ^ 1 << 31, ..right },
            Record { pml_index: right.pml_index ^ 1, ..right },
            Record { memory: right.memory ^ 0x20, ..right },
        ];
        for record in wrong {
            let verdict = judge(&case, &cpu, &record).unwrap().1;
            assert!(matches!(verdict, Verdict::Differs(_)), "{record:x?}");
            seen += 1;
        }
    }
    assert_eq!(seen, 1800);
}

#[test]
fn a_quirk_excuses_its_own_answer_and_no_other() {
    let [cpu, _] = processors();
    // The first case with a violation by a table under flags.
    let (case, ours) = (0..)
        .map(|number| Case::new(1, number, &cpu))
        .map(|case| {
            let record = expect::expect(&case, &cpu, Quirks::NONE).unwrap().record;
            (case, record)
        })
        .find(|(case, record)| {
            let log = case.secondary & lab_cases::ept::secondary::PML != 0;
            record.reason == 48 && record.qualification & 0x183 == 0x83 && !log
        })
        .unwrap();
    assert_eq!(case.eptp & 0x40, 0x40);
    let rule = |record: Record| explained::explain(&case, &cpu, &record).unwrap();
    let with = |qualification| Record {
        qualification,
        ..ours
    };
    assert_eq!(
        rule(with(ours.qualification & !1)),
        Some("tables-written-alone")
    );
    assert_eq!(rule(with(ours.qualification & !2)), None);
    assert_eq!(rule(with(ours.qualification & !1 | 0x100)), None);
    let elsewhere = Record {
        memory: ours.memory ^ 1,
        ..with(ours.qualification & !1)
    };
    assert_eq!(rule(elsewhere), None);
}

#[test]
fn a_line_that_breaks_off_gives_the_records_before() {
    let [cpu, _] = processors();
    let mut serial = b"HVKITEP1".to_vec();
    assert!(EptOracle::parse(&serial).is_none());
    serial.extend(cpu.to_bytes());
    let record = Record {
        reason: 48,
        guest_physical: 5,
        ..Record::default()
    };
    serial.extend(record.to_bytes());
    serial.extend([1, 2, 3]);
    let (seen, records) = EptOracle::parse(&serial).unwrap();
    assert_eq!(seen.msrs, cpu.msrs);
    assert_eq!(records.collect::<Vec<_>>(), [record]);
    assert!(EptOracle::parse(b"BIOS").is_none());
}
