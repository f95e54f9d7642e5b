// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The oracle without its model: programs are such that the payload survives them, and a wrong answer
//! is seen. The model itself is asked by `cargo xtask oracle shadow`.

use lab_cases::paging::{Cpu, Mode, Record as Access};
use lab_cases::shadow::{ACCESSES, HEADER_MAGIC, Op, Program, Record, arena};

use super::expect::expect;
use super::{Shadow, judge};
use crate::oracle::in_bochs::InBochs;
use crate::oracle::ledger;
use crate::oracle::tally::Verdict;

const CPU: Cpu = Cpu {
    physical_address_bits: 40,
    gib_pages: true,
    cr4: 0x0030_0000,
};

#[test]
fn the_ledger_explains_nothing_as_yet() {
    ledger::check("shadow", &[]).unwrap();
}

#[test]
fn no_program_takes_the_monitor_from_under_itself() {
    for number in 0..5000 {
        let program = Program::new(3, number, &CPU);
        let own = match program.mode {
            Mode::ThirtyTwoBit => vec![0, 4, 16],
            _ => vec![0],
        };
        let mut accesses = 0;
        for op in program.ops() {
            match *op {
                Op::Store(entry) => {
                    assert!(arena().contains(&entry.at), "{program:#x?}");
                    let root = entry.at < arena().start + 0x2000;
                    assert!(!root || !own.contains(&(entry.at & 0xfff)), "{program:#x?}");
                    if program.mode == Mode::Pae && root {
                        assert_eq!(entry.value & !0xffff_f001, 0, "a PDPTE that loads");
                    }
                }
                Op::Cr3(cr3) => assert!(arena().contains(&cr3)),
                Op::Access { .. } => accesses += 1,
                Op::Invlpg(_) | Op::Control { .. } => (),
            }
        }
        assert_eq!(accesses, ACCESSES);
    }
}

#[test]
fn what_a_host_does_meanwhile_changes_nothing() {
    for number in 0..200 {
        let program = Program::new(3, number, &CPU);
        let one = expect(&program, &CPU, number).unwrap();
        let other = expect(&program, &CPU, number + 1000).unwrap();
        assert_eq!(one, other, "{program:#x?}");
    }
}

#[test]
fn another_answer_differs() {
    let program = Program::new(3, 1, &CPU);
    let right = expect(&program, &CPU, 1).unwrap();
    let verdict = |record| judge(&program, &CPU, &record, 1).unwrap().1;
    assert_eq!(verdict(right), Verdict::Agrees);
    for at in 0..ACCESSES {
        for spoil in [
            (|access: &mut Access| access.tables ^= 1) as fn(&mut Access),
            |access| access.vector ^= 1,
            |access| access.cr2 ^= 1 << 40,
        ] {
            let mut wrong = right;
            spoil(&mut wrong.accesses[at]);
            assert!(matches!(verdict(wrong), Verdict::Differs(_)));
        }
    }
}

#[test]
fn a_line_that_breaks_off_gives_the_records_before() {
    let mut record = Record::default();
    record.accesses[11].cr2 = 7;
    let mut serial = HEADER_MAGIC.to_vec();
    assert!(Shadow::parse(&serial).is_none());
    serial.extend(CPU.to_bytes());
    serial.extend(record.to_bytes());
    serial.extend([1; 100]);
    let (cpu, records) = Shadow::parse(&serial).unwrap();
    assert_eq!(cpu, CPU);
    assert_eq!(records.collect::<Vec<_>>(), [record]);
}
