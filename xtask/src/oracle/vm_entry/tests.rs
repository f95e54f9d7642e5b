// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The oracle without its model: its cases, and that it sees wrong answers.

use std::collections::BTreeMap;

use hvkit_vmcs::check::Outcome;

use super::*;

/// Bochs's corei7_skylake_x, as its payload reported it.
fn cpu() -> Cpu {
    let mut msrs = [0; 20];
    msrs[..18].copy_from_slice(&[
        0x00d8_1000_0000_002b,
        0x0000_007f_0000_0016,
        0xf7f9_fffe_0401_e172,
        0x007f_ffff_0003_6dff,
        0x0000_ffff_0000_11ff,
        0x0000_0000_6004_01e0,
        0x0000_0000_8000_0021,
        0x0000_0000_ffff_ffff,
        0x0000_0000_0000_2000,
        0x0000_0000_0037_27ff,
        0x0000_0000_0000_0034,
        0x0217_7fff_0000_0000,
        0x0000_0f01_0633_4141,
        0x0000_007f_0000_0016,
        0xf7f9_fffe_0400_6172,
        0x007f_ffff_0003_6dfb,
        0x0000_ffff_0000_11fb,
        0x0000_0000_0000_0001,
    ]);
    Cpu {
        msrs,
        physical_address_bits: 40,
    }
}

/// What a processor that follows the manual in the chapter's order would send.
fn record(case: &Case) -> Record {
    match case.verdict(&cpu()).outcome() {
        Outcome::FailInvalid => Record {
            kind: 0,
            number: 0,
            qualification: 0,
        },
        Outcome::FailValid(error) => Record {
            kind: 1,
            number: error.0,
            qualification: 0,
        },
        Outcome::EntryFailure {
            reason,
            qualification,
        } => Record {
            kind: 2,
            number: reason.0,
            qualification,
        },
        Outcome::Enters => Record {
            kind: 2,
            number: 52,
            qualification: 0,
        },
    }
}

#[test]
fn cases_depend_on_seed_and_number_alone_and_reach_every_outcome() {
    let (cpu, mut outcomes) = (cpu(), BTreeMap::new());
    for number in 0..4000 {
        let case = Case::new(7, number, &cpu);
        assert_eq!(Case::new(7, number, &cpu).vmcs, case.vmcs);
        // Memory has an answer, or nobody asks.
        let verdict = case.verdict(&cpu);
        assert!(verdict.undecided == 0 || !verdict.enters(), "case {number}");
        *outcomes
            .entry(case.verdict(&cpu).outcome().to_string())
            .or_insert(0) += 1;
    }
    // VMfailInvalid, errors 26, 4, 5, 7, 8, reason 33 with 0, 2 and 4, reason 34 with 1 and 2, and guests that run.
    assert!(outcomes.len() >= 12, "{outcomes:#?}");
    assert!(outcomes["the guest runs"] > 400, "{outcomes:#?}");
}

#[test]
fn right_answers_agree_and_wrong_ones_do_not() {
    let cpu = cpu();
    let mut told = 0;
    for number in 0..400 {
        let case = Case::new(1, number, &cpu);
        let right = record(&case);
        assert_eq!(judge(&case, &cpu, &right).1, Verdict::Agrees);
        let wrong = Record {
            kind: 1,
            number: 13,
            qualification: 0,
        };
        let (_, verdict) = judge(&case, &cpu, &wrong);
        assert!(matches!(verdict, Verdict::Differs(_)), "{verdict:?}");
        // A guest that runs although a rule is broken is told apart, or explained by name.
        let runs = Record {
            kind: 2,
            number: 52,
            qualification: 0,
        };
        if right != runs && judge(&case, &cpu, &runs).1 != Verdict::Agrees {
            told += 1;
        }
    }
    assert!(told > 250, "{told}");
}

#[test]
fn records_and_processors_travel_as_raw_bytes() {
    let bytes = [2, 0x21, 0, 0, 0x80, 4, 0, 0, 0, 0, 0, 0, 0];
    let record = Record::from_bytes(&bytes);
    assert_eq!(
        (record.kind, record.number, record.qualification),
        (2, 0x8000_0021, 4)
    );
    assert_eq!(record.to_bytes(), bytes);
    let sent = cpu().to_bytes();
    assert_eq!((sent[0], sent[160]), (0x2b, 40));
    assert_eq!(Cpu::from_bytes(&sent).msrs, cpu().msrs);
    assert!(VmEntry::parse(b"nonsense").is_none());
}

#[test]
fn reasons_are_told_apart_by_their_words() {
    let log = "0001e[CPU0  ] VMENTER FAIL: VMCS guest CS not present\n\
        0002e[CPU0  ] VMENTER FAIL: VMCS guest DS not present\n\
        0003i[CPU0  ] something else\n\
        0004e[CPU0  ] VMFAIL: VMCS host state invalid CR0 0x80010013\n\
        0005e[CPU0  ] VMFAIL: VMCS host state invalid CR0 0x80010012";
    let seen: Vec<String> = reasons(log).into_iter().collect();
    assert_eq!(
        seen,
        [
            "VMENTER FAIL: VMCS guest %s not present",
            "VMFAIL: VMCS host state invalid CR0 #"
        ]
    );
}
