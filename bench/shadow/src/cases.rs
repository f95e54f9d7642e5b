// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is measured.

use hvkit_page_table::{Root, translate};
use hvkit_shadow_paging::mmu::{Backed, Reclaim, Tuning, Unsync};
use hvkit_shadow_paging::x86::Vcpu;

use crate::guest::{BenchMmu, Guest, KERNEL_WRITE, USED, USER_READ, fault, machine, settle, start};
use crate::harness::{Aim, Case, Report, Role, compare, time};
use crate::memory::Memory;
use crate::second::Second;

/// Where programs have their memory.
const USER: u64 = 0x10_0000_0000;
pub const TWO: &str = "2-D walk and one store";
pub const REPAIR: &str = "fault repaired";

pub const fn small(prefetch: u8) -> Tuning {
    Tuning {
        prefetch,
        flood: 3,
        unsync: Unsync::Allowed,
        largest: 1,
        reclaim: Reclaim::Any,
    }
}

/// Leaves that were dropped are made again; the tables above are there.
pub fn repair(rounds: usize) -> Report {
    const PAGES: u64 = 8192;
    let memory = &Memory::new();
    let guest = Guest::new(memory);
    let root = guest.frame();
    for page in 0..PAGES {
        guest.map(root, USER + page * 4096, guest.page(page));
    }
    let (mut one, vcpu) = start(memory, root, 512, small(1));
    let (mut eight, other) = start(memory, root, 512, small(8));
    let format = *vcpu.mode().format().expect("paging");
    let nested = Second::new(memory, format, USED);
    let order: Vec<u64> = (0..PAGES).map(|i| USER + i * 4099 % PAGES * 4096).collect();
    let order = order.as_slice();
    let mut flat = vec![0u64; PAGES as usize];
    let walk = move || {
        time(|| {
            for &linear in order {
                let there = translate(&format, &nested, Root::Table(root), linear);
                let host = nested.host(there.expect("mapped").target).expect("mapped");
                flat[((linear - USER) >> 12) as usize] = host | USED;
            }
        })
    };
    let again = |mmu: &mut BenchMmu<'_>, vcpu: &Vcpu, group: u64| {
        let gone = Backed {
            guest: 32 << 20,
            host: 32 << 20,
            length: 32 << 20,
        };
        let owed = mmu.host_unmap(gone);
        settle(mmu, owed);
        let first = order.iter().filter(|&linear| (linear >> 12) % group == 0);
        let first: Vec<u64> = first.copied().collect();
        time(|| {
            for &linear in &first {
                fault(mmu, vcpu, memory, linear, USER_READ);
            }
        })
    };
    let cases = vec![
        Case {
            name: TWO.to_owned(),
            role: Role::Limit,
            run: Box::new(walk),
        },
        Case {
            name: REPAIR.to_owned(),
            role: Role::Ours,
            run: Box::new(|| again(&mut one, &vcpu, 1)),
        },
        Case {
            name: "the same, by groups of eight".to_owned(),
            role: Role::Ours,
            run: Box::new(|| again(&mut eight, &other, 8)),
        },
    ];
    let aims = [Aim {
        case: REPAIR,
        limit: Some(TWO),
        at_most: 4.0,
    }];
    compare(
        "a leaf repaired",
        "page",
        PAGES as f64,
        rounds,
        cases,
        &aims,
    )
}

/// MOV to CR3 among 64 spaces that are known.
pub fn switch(rounds: usize) -> Report {
    const SPACES: u64 = 64;
    const SWITCHES: u64 = 100_000;
    let memory = &Memory::new();
    let guest = Guest::new(memory);
    let roots: Vec<u64> = (0..SPACES).map(|_| guest.frame()).collect();
    for (i, &root) in (0..).zip(&roots) {
        (0..8).for_each(|page| {
            guest.map(root, USER + page * 4096, guest.page(i * 8 + page));
        });
    }
    let (mut mmu, mut vcpu) = start(memory, roots[0], 1024, Tuning::default());
    for _ in 0..3 {
        for &root in &roots {
            let control = vcpu
                .write_cr3(&mut mmu, machine(memory), root)
                .expect("a root");
            settle(&mut mmu, control.owed);
            fault(&mut mmu, &vcpu, memory, USER, USER_READ);
        }
    }
    let table: Vec<(u64, u64)> = roots.iter().map(|&root| (root, root ^ 5)).collect();
    let roots = roots.as_slice();
    let limit = move || {
        time(|| {
            (0..SWITCHES).fold(0, |all, i| {
                let wanted = roots[(i * 37 % SPACES) as usize];
                let found = table.iter().find(|(root, _)| *root == wanted);
                all ^ found.map_or(0, |(_, ours)| *ours)
            })
        })
    };
    let ours = || {
        time(|| {
            for i in 0..SWITCHES {
                let root = roots[(i * 37 % SPACES) as usize];
                let control = vcpu
                    .write_cr3(&mut mmu, machine(memory), root)
                    .expect("a root");
                settle(&mut mmu, control.owed);
            }
        })
    };
    const SWITCH: &str = "write_cr3 to a known root";
    let cases = vec![
        Case {
            name: "a root looked for in a list of 64".to_owned(),
            role: Role::Limit,
            run: Box::new(limit),
        },
        Case {
            name: SWITCH.to_owned(),
            role: Role::Ours,
            run: Box::new(ours),
        },
    ];
    let aims = [Aim {
        case: SWITCH,
        limit: None,
        at_most: 100.0,
    }];
    compare(
        "64 address spaces",
        "switch",
        SWITCHES as f64,
        rounds,
        cases,
        &aims,
    )
}

/// A storm of stores into page tables, as at a fork: each entry of 64 tables loses R/W.
pub fn storm(rounds: usize) -> Report {
    const TABLES: u64 = 16;
    let run = |unsync: Unsync| {
        move || {
            let memory = &Memory::new();
            let guest = Guest::new(memory);
            let root = guest.frame();
            // Not by prefetch: the window is for the kernel's stores.
            let window = 1 << 46;
            let mut entries = vec![];
            for page in 0..TABLES * 512 {
                entries.push(guest.map(root, USER + page * 4096, guest.page(page)));
            }
            for at in (0..2 << 20).step_by(4096) {
                guest.map(root, window + at, at | USED);
            }
            let tuning = Tuning {
                unsync,
                flood: u8::MAX,
                ..Tuning::default()
            };
            let (mut mmu, mut vcpu) = start(memory, root, 512, tuning);
            for page in 0..TABLES * 512 {
                fault(&mut mmu, &vcpu, memory, USER + page * 4096, USER_READ);
            }
            time(|| {
                let mut open = u64::MAX;
                for &at in &entries {
                    // A table that was made unsync is written without a fault.
                    if at >> 12 == open {
                        memory.word(at).update(|entry| entry & !2);
                        continue;
                    }
                    let guarded = fault(&mut mmu, &vcpu, memory, window + at, KERNEL_WRITE);
                    memory.word(at).update(|entry| entry & !2);
                    if guarded {
                        let owed = mmu.guest_wrote(at, 8);
                        settle(&mut mmu, owed);
                    } else {
                        open = at >> 12;
                    }
                }
                let control = vcpu
                    .write_cr3(&mut mmu, machine(memory), root)
                    .expect("a root");
                settle(&mut mmu, control.owed);
            })
        }
    };
    let stores = (TABLES * 512) as f64;
    let plain = move || {
        let words: Vec<std::cell::Cell<u64>> = vec![std::cell::Cell::new(7); stores as usize];
        time(|| {
            words
                .iter()
                .for_each(|word| word.update(|entry| entry & !2))
        })
    };
    let cases = vec![
        Case {
            name: "the stores alone".to_owned(),
            role: Role::Limit,
            run: Box::new(plain),
        },
        Case {
            name: "unsync: a fault a table, looked at once".to_owned(),
            role: Role::Ours,
            run: Box::new(run(Unsync::Allowed)),
        },
        Case {
            name: "guarded: a fault a store (exits not counted)".to_owned(),
            role: Role::Ours,
            run: Box::new(run(Unsync::Never)),
        },
    ];
    compare(
        "a storm of stores into page tables",
        "store",
        stores,
        rounds,
        cases,
        &[],
    )
}

/// Memory for 32 processes that share a kernel, all of whose pages are used: shadow tables, and what is remembered of them,
/// a guest table.
pub fn memory() -> f64 {
    let memory = &Memory::new();
    let guest = Guest::new(memory);
    let kernel = guest.frame();
    let high = 0x7000_0000_0000u64;
    for page in 0..4096 {
        guest.map(kernel, high + page * 4096, guest.page(page));
    }
    let mut linears = vec![];
    let mut roots = vec![];
    for process in 0..32 {
        let root = guest.frame();
        memory
            .word(root + (high >> 39) * 8)
            .set(memory.word(kernel + (high >> 39) * 8).get());
        for area in 0..6 {
            for page in 0..300 {
                let linear = USER + (area << 30) + (page << 12);
                guest.map(root, linear, guest.page(process * 1800 + area * 300 + page));
                linears.push((root, linear));
            }
        }
        roots.push(root);
    }
    let (mut mmu, mut vcpu) = start(memory, roots[0], 2048, Tuning::default());
    for &root in &roots {
        let control = vcpu
            .write_cr3(&mut mmu, machine(memory), root)
            .expect("a root");
        settle(&mut mmu, control.owed);
        for (_, linear) in linears.iter().filter(|(of, _)| *of == root) {
            fault(&mut mmu, &vcpu, memory, *linear, USER_READ);
        }
        (0..4096).for_each(|page| {
            fault(&mut mmu, &vcpu, memory, high + page * 4096, USER_READ);
        });
    }
    // The kernel's own root runs nobody.
    let (usage, tables) = (mmu.usage(), guest.tables.get() as f64 - 1.0);
    let ratio = usage.tables as f64 / tables;
    println!("\nmemory of 32 processes and a kernel, every page used");
    println!(
        "  guest tables {tables}, shadow tables {}: {ratio:.3} of the guest's",
        usage.tables
    );
    let heap = usage.heap as f64 / 4096.0 / tables;
    println!("  reverse map and roles, on the heap: {heap:.3} of the guest's tables");
    let all = ratio + heap;
    println!(
        "  aim {}: within 1.20 in all: {all:.3}",
        if all <= 1.2 { "met" } else { "missed" }
    );
    all
}
