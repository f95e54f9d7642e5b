// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A second stage over a second stage: L1's EPT over ours, and a guest's VT-d tables, which are followed without faults.

use hvkit_ept::Ept;
use hvkit_ept::spec::{Controls, EptVpidCap, WalkLength};
use hvkit_page_table::{Format, Root, Span, translate};
use hvkit_shadow_paging::mmu::{Backed, Mmu, Reclaim, Space, Top, Tuning, Unsync, Verdict};
use hvkit_shadow_paging::nested::{Grants, Nested, SecondStage};
use hvkit_vtd_iommu::tables::SecondStage as Unit;

use crate::cases::{REPAIR, TWO, small};
use crate::guest::{Guest, machine, settle};
use crate::harness::{Aim, Case, Report, Role, compare, time};
use crate::memory::Memory;
use crate::second::Second;

type Engine<'a, F> = Mmu<Nested<F>, &'a Memory, &'a Memory>;

const PAGES: u64 = 8192;
/// Where the pages are in the guest's memory.
const FIRST: u64 = 32 << 20;

fn start<F: SecondStage>(
    memory: &Memory,
    format: F,
    root: u64,
    tuning: Tuning,
) -> (Engine<'_, F>, Space<Nested<F>>) {
    let mut mmu = Mmu::new(memory, memory, 512, tuning).expect("a budget that can be");
    let stage = Nested::new(format, format).expect("as many levels");
    let opened = mmu.open(stage, Top::Table(root), machine(memory));
    let (space, owed) = opened.expect("frames enough");
    settle(&mut mmu, owed);
    (mmu, space)
}

/// L1's EPT with every page mapped, each where another is in L1's memory; and addresses in an order that has no use for the
/// page before.
fn mapped(guest: &Guest<'_>, leaves: u64) -> (u64, Vec<u64>) {
    let root = guest.frame();
    for page in 0..PAGES {
        guest.map(root, page * 4096, (FIRST + page * 4096) | leaves);
    }
    (root, (0..PAGES).map(|i| i * 4099 % PAGES * 4096).collect())
}

/// The limit: both dimensions for each address, and a store.
fn walks<'a, F: Format + Copy + 'a>(
    order: &'a [u64],
    (format, second, root): (F, &'a Second<'a, F>, u64),
) -> Case<'a> {
    let mut flat = vec![0u64; PAGES as usize];
    Case {
        name: TWO.to_owned(),
        role: Role::Limit,
        run: Box::new(move || {
            time(|| {
                for &at in order {
                    let there = translate(&format, second, Root::Table(root), at).ok();
                    let host = second.host(there.expect("mapped").target).ok();
                    flat[(at >> 12) as usize] = host.expect("mapped") | 7;
                }
            })
        }),
    }
}

/// L2 under L1's EPT: a violation repaired, and an INVEPT of L1's that finds nothing changed.
pub fn ept(rounds: usize) -> Report {
    let memory = &Memory::new();
    let capability = EptVpidCap::WALK_LENGTH_4 | EptVpidCap::STRUCTURES_WRITE_BACK;
    let format = Ept::new(capability, 40, WalkLength::Four, Controls::empty());
    let format = format.expect("a processor that can be");
    let (root, order) = mapped(&Guest::linked_by(memory, 0x7), 0x37);
    let second = Second::with_leaves(memory, format, 0x7, 0x37);
    let fault = |mmu: &mut Engine<'_, Ept>, space: &Space<Nested<Ept>>, at: u64| {
        let answer = mmu.fault(space, machine(memory), at, Grants::READ);
        let answer = answer.expect("frames enough");
        settle(mmu, answer.owed);
        assert!(matches!(answer.verdict, Verdict::Repaired(_)));
    };
    let again = |(mmu, space): &mut (Engine<'_, Ept>, Space<Nested<Ept>>), group: u64| {
        let gone = Backed {
            guest: FIRST,
            host: FIRST,
            length: PAGES * 4096,
        };
        let owed = mmu.host_unmap(gone);
        settle(mmu, owed);
        let first: Vec<u64> = order
            .iter()
            .copied()
            .filter(|at| (at >> 12) % group == 0)
            .collect();
        time(|| first.iter().for_each(|&at| fault(mmu, space, at)))
    };
    let mut one = start(memory, format, root, small(1));
    let mut eight = start(memory, format, root, small(8));
    let unseen = Tuning {
        unsync: Unsync::Always,
        ..small(1)
    };
    let (mut unguarded, space) = start(memory, format, root, unseen);
    order
        .iter()
        .for_each(|&at| fault(&mut unguarded, &space, at));
    let cases = vec![
        walks(&order, (format, &second, root)),
        Case {
            name: REPAIR.to_owned(),
            role: Role::Ours,
            run: Box::new(|| again(&mut one, 1)),
        },
        Case {
            name: "the same, by groups of eight".to_owned(),
            role: Role::Ours,
            run: Box::new(|| again(&mut eight, 8)),
        },
        Case {
            name: "INVEPT, tables not guarded, nothing changed".to_owned(),
            role: Role::Ours,
            run: Box::new(|| {
                time(|| {
                    let owed = unguarded.invalidate_all(machine(memory));
                    settle(&mut unguarded, owed.expect("memory that can be read"));
                })
            }),
        },
    ];
    let aims = [Aim {
        case: REPAIR,
        limit: Some(TWO),
        at_most: 4.0,
    }];
    compare(
        "L1's EPT on EPT",
        "page",
        PAGES as f64,
        rounds,
        cases,
        &aims,
    )
}

/// A guest's VT-d domain: pages mapped, invalidated (as in caching mode), unmapped, invalidated.
pub fn vtd(rounds: usize) -> Report {
    const ONE: &str = "a page mapped and unmapped, each followed";
    let memory = &Memory::new();
    let format = Unit::new(4, 40).expect("a unit that can be");
    let guest = Guest::linked_by(memory, 0x3);
    let (root, order) = mapped(&guest, 0x3);
    let second = Second::new(memory, format, 0x3);
    let tuning = Tuning {
        largest: 1,
        reclaim: Reclaim::Unlinked,
        ..Tuning::DEVICES
    };
    let follow = |mmu: &mut Engine<'_, Unit>, space: &Space<Nested<Unit>>, span: Span| {
        let owed = mmu.follow(space, machine(memory), span);
        settle(mmu, owed.expect("frames enough"));
    };
    // Neighbours of the domain's pages, from 1 GiB on: `count` at a time.
    let busy = |(mmu, space): &mut (Engine<'_, Unit>, Space<Nested<Unit>>), count: u64| {
        let slots: Vec<u64> = (0..count)
            .map(|page| guest.map(root, (1 << 30) + page * 4096, 0))
            .collect();
        let span = Span::new(1 << 30, count * 4096);
        time(|| {
            for _ in 0..PAGES / count {
                for (page, &at) in (0..).zip(&slots) {
                    memory.word(at).set((FIRST + page * 4096) | 3);
                }
                follow(mmu, space, span);
                slots.iter().for_each(|&at| memory.word(at).set(0));
                follow(mmu, space, span);
            }
        })
    };
    let mut one = start(memory, format, root, tuning);
    let mut many = start(memory, format, root, tuning);
    let (mut whole, space) = start(memory, format, root, tuning);
    let all = Span::new(0, PAGES * 4096);
    follow(&mut whole, &space, all);
    let cases = vec![
        walks(&order, (format, &second, root)),
        Case {
            name: ONE.to_owned(),
            role: Role::Ours,
            run: Box::new(|| busy(&mut one, 1)),
        },
        Case {
            name: "the same, 256 at a time".to_owned(),
            role: Role::Ours,
            run: Box::new(|| busy(&mut many, 256)),
        },
        Case {
            name: "a domain invalidated, nothing changed".to_owned(),
            role: Role::Ours,
            run: Box::new(|| time(|| follow(&mut whole, &space, all))),
        },
    ];
    compare(
        "a guest's VT-d tables",
        "page",
        PAGES as f64,
        rounds,
        cases,
        &[],
    )
}
