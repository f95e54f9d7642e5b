// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! L1 runs on tables that are not the MMU's, so what it writes into its EPT is not seen: INVEPT alone tells.

use std::convert::Infallible;

use hvkit_ept::Ept;
use hvkit_ept::spec::Controls;
use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::FakeHost;
use hvkit_shadow_paging::mmu::{Load, Machine, Mmu, Owed, Top, Tuning, Unsync, Verdict};
use hvkit_shadow_paging::nested::{Grants, Nested};
use lab_cases::Random;

use crate::ept::{Processor, entry, ept, frame, l2_stage};
use crate::history::History;

type Engine<'a> = Mmu<Nested<Ept>, &'a FakeHost, &'a FakeHost>;

fn settle(mmu: &mut Engine<'_>, processor: &mut Processor, owed: Owed) {
    let flushed = mmu.settle(owed, |flush| {
        processor.tlb.flush(flush);
        Ok::<(), Infallible>(())
    });
    flushed.unwrap();
}

/// What an access comes to: L1-physical, or an exit of L1's.
fn access(
    (mmu, processor): (&mut Engine<'_>, &mut Processor),
    host: &FakeHost,
    l2: &hvkit_shadow_paging::mmu::Space<Nested<Ept>>,
    at: u64,
    access: Grants,
) -> Option<u64> {
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: host,
    };
    for _ in 0..32 {
        if let Some(there) = processor.translate(host, l2.root(), at, access) {
            return Some(there);
        }
        let answer = mmu.fault(l2, machine, at, access).unwrap();
        settle(mmu, processor, answer.owed);
        match answer.verdict {
            Verdict::Guest(_) => return None,
            Verdict::Repaired(_) | Verdict::Retry => (),
            other => panic!("{other:?}"),
        }
    }
    panic!("{at:#x} faults for ever");
}

/// How many accesses were done, refused, and had a choice.
fn play(seed: u64, budget: u32) -> (u64, u64, u64) {
    let mut r = Random::of_case(seed, 78);
    let host = FakeHost::new(0x1000_0000);
    let mut history = History::new(ept(Controls::empty()));
    let mut slots = vec![];
    let write = |history: &mut History<Ept>, at: u64, value| {
        history.write(at, value);
        host.store(host.host(at).unwrap(), Width::Eight, value);
    };
    for level in 1..=4 {
        for table in 0..2 {
            for index in [1, 2] {
                let at = frame(level, table) + index * 8;
                write(&mut history, at, entry(level, Controls::empty(), &mut r));
                slots.push((level, at));
            }
        }
    }
    let tuning = Tuning {
        unsync: Unsync::Always,
        ..Tuning::default()
    };
    let mut mmu = Mmu::new(&host, &host, budget, tuning).unwrap();
    let mut processor = Processor::default();
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let stage = l2_stage(Controls::empty());
    let (mut l2, owed) = mmu.open(stage, Top::Table(frame(4, 0)), machine).unwrap();
    settle(&mut mmu, &mut processor, owed);
    let (mut done, mut refused, mut chosen) = (0, 0, 0);
    let mut number = 0;
    history.invalidated_all();
    for step in 0..200 {
        match r.below(12) {
            0..=2 => {
                let (level, at) = r.pick(&slots);
                write(&mut history, at, entry(level, Controls::empty(), &mut r));
            }
            3 => {
                // INVEPT, of one context or all.
                let owed = mmu.invalidate_all(machine).unwrap();
                settle(&mut mmu, &mut processor, owed);
                history.invalidated_all();
            }
            4 => {
                number = r.below(2);
                let top = Top::Table(frame(4, number));
                let owed = mmu.enter(&mut l2, stage, top, Load::Keep, machine).unwrap();
                settle(&mut mmu, &mut processor, owed);
            }
            _ => {
                let index = |r: &mut Random| 1 + r.below(2);
                let page = [39, 30, 21, 12]
                    .iter()
                    .fold(0, |page, shift| page | index(&mut r) << shift);
                let wanted = r.pick(&[Grants::READ, Grants::WRITE, Grants::EXECUTE]);
                let there = access((&mut mmu, &mut processor), &host, &l2, page, wanted);
                let bit = [Grants::READ, Grants::WRITE, Grants::EXECUTE]
                    .iter()
                    .position(|&grant| grant == wanted)
                    .unwrap();
                let reaches = history.reaches(0, frame(4, number), page);
                let mut permitted: Vec<_> = reaches
                    .iter()
                    .map(|reach| {
                        let (target, rights) = (*reach)?;
                        (rights >> bit & 1 != 0)
                            .then(|| host.host(target))
                            .flatten()
                    })
                    .collect();
                permitted.dedup();
                assert!(
                    permitted.contains(&there),
                    "seed {seed}, step {step}: {wanted:?} at {page:#x} came to {there:x?}, permitted {permitted:x?}"
                );
                chosen += u64::from(permitted.len() > 1);
                match there {
                    Some(_) => done += 1,
                    None => refused += 1,
                }
            }
        }
        if step % 4 == 0 {
            mmu.audit(machine, |finding| panic!("{finding:x?}"));
        }
    }
    mmu.close(l2);
    (done, refused, chosen)
}

#[test]
fn what_l1_writes_unseen_is_seen_at_invept() {
    for budget in [24, 64] {
        let (mut done, mut refused, mut chosen) = (0, 0, 0);
        for seed in 0..25 {
            let played = play(seed, budget);
            done += played.0;
            refused += played.1;
            chosen += played.2;
        }
        println!("{budget} tables: {done} done, {refused} refused, {chosen} with a choice");
        assert!(done > 100 && refused > 100 && chosen > 50);
    }
}
