// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unmapping: a whole range, and one page again and again.

use super::{START, each_peer};
use crate::arena::{self, Pages};
use crate::ept::RWX_WB;
use crate::harness::{Aim, Case, Report, Role, compare, time};
use crate::tables::{Ours, Size, Table};

const FREES: &str = "read each link, free each table";
const SETTLED: &str = "hvkit-page-table, unmapped and settled";

fn range_case<'a, T: Table>(name: &str, role: Role, length: u64) -> Case<'a> {
    let run = move || {
        arena::reset(Pages::Resident);
        let mut table = T::new();
        table.map(START, START - 4096, length, Size::Small);
        let taken = time(|| table.unmap(START, length));
        std::mem::forget(table);
        taken
    };
    Case {
        name: name.to_owned(),
        role,
        run: Box::new(run),
    }
}

/// Everything that a range of 4 KiB pages needed, per leaf table.
pub fn range(gib: u64, rounds: usize) -> Report {
    let (tables, length) = (gib << 9, gib << 30);
    let bytes = (tables << 12) as usize;
    arena::prepare(bytes + bytes / 128 + (4 << 20), Pages::Resident);
    // The limit: a walk over the upper tables' entries that frees what they link. 8 bytes a table.
    let limit = move || {
        arena::reset(Pages::Resident);
        let links = arena::base() as *mut u64;
        for i in 0..tables as usize {
            // SAFETY: inside the arena, which this case has to itself.
            unsafe { *links.add(i) = arena::allocate() as u64 | 7 };
        }
        time(|| {
            for i in 0..tables as usize {
                // SAFETY: as above.
                arena::free((unsafe { *links.add(i) } & !0xfff) as usize);
            }
        })
    };
    let mut cases = vec![Case {
        name: FREES.into(),
        role: Role::Limit,
        run: Box::new(limit),
    }];
    let detach = move || {
        arena::reset(Pages::Resident);
        let mut table = Ours::new();
        table.map(START, START - 4096, length, Size::Small);
        let mut stale = None;
        let taken = time(|| stale = Some(table.0.unmap(START..START + length)));
        let stale = stale.expect("ran").expect("unmapped");
        table
            .0
            .settle(stale, &mut |_: &_| Ok::<(), ()>(()))
            .expect("settled");
        taken
    };
    let name = "hvkit-page-table, unmapped only".to_owned();
    cases.push(Case {
        name,
        role: Role::Ours,
        run: Box::new(detach),
    });
    cases.push(range_case::<Ours>(SETTLED, Role::Ours, length));
    macro_rules! peer {
        ($peer:ty) => {
            cases.push(range_case::<$peer>(<$peer>::NAME, Role::Peer, length))
        };
    }
    each_peer!(peer);
    let aims = [Aim {
        case: SETTLED,
        limit: None,
        at_most: 6.0,
    }];
    let title = format!("unmap {gib} GiB of 4 KiB pages");
    let report = compare(&title, "table", tables as f64, rounds, cases, &aims);
    arena::release();
    report
}

const PAIRS: u64 = 1 << 17;

/// The page of the `i`th pair: of 32 blocks in turn, but never the same slot of two in a row. Entries
/// with the same lowest 12 bits push each other out of the cache, and a load waits for a store that
/// looks like its own: all would measure that.
#[inline(always)]
fn page(i: u64) -> (u64, u64) {
    let block = i & 31;
    (block, 1 + ((i >> 5) + 16 * block) % 511)
}

fn single_case<'a, T: Table>() -> Case<'a> {
    let run = || {
        arena::reset(Pages::Resident);
        let mut table = T::new();
        // The tables are there already: a page in each 2 MiB stays.
        table.map(START, START - 4096, 64 << 20, Size::Small);
        for block in 0..32 {
            table.unmap(START + (block << 21) + 4096, 511 << 12);
        }
        time(|| {
            for i in 0..PAIRS {
                let (block, slot) = page(i);
                let at = START + (block << 21) + 4096 * slot;
                table.map(at, at + (1 << 40), 4096, Size::Small);
                table.unmap(at, 4096);
            }
            std::mem::forget(table);
        })
    };
    Case {
        name: T::NAME.to_owned(),
        role: Role::Peer,
        run: Box::new(run),
    }
}

/// A table of ours, and pairs in it by hand: each time three loads down to the leaf table, which wait for
/// each other, and a store. Looks at nothing but addresses.
fn single_by_hand() -> f64 {
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    arena::reset(Pages::Resident);
    let mut table = Ours::new();
    table.map(START, START - 4096, 64 << 20, Size::Small);
    let root = table.0.root();
    let slot = |at: u64| {
        let mut table = root;
        for shift in [36, 27, 18] {
            let entry = (table & FRAME) | (at >> shift & 0xff8);
            // SAFETY: an entry of the table just made: physical addresses are virtual ones.
            table = unsafe { std::ptr::read_volatile(entry as *const u64) };
        }
        ((table & FRAME) | (at >> 9 & 0xff8)) as *mut u64
    };
    time(|| {
        for i in 0..PAIRS {
            let (block, page) = page(i);
            let at = START + (block << 21) + 4096 * page;
            // SAFETY: slots of the leaf tables just made.
            unsafe {
                slot(at).write_volatile((at + (1 << 40)) | 0x37);
                slot(at).write_volatile(0);
            }
        }
    })
}

/// One page mapped and unmapped at once, where the tables stay.
pub fn single(rounds: usize) -> Report {
    arena::prepare(8 << 20, Pages::Resident);
    let limit = || {
        let at = arena::base() as *mut u64;
        time(|| {
            for i in 0..PAIRS {
                // SAFETY: inside the arena, which this case has to itself.
                unsafe {
                    let (block, slot) = page(i);
                    let slot = at.add(((block << 9) + slot) as usize);
                    slot.write_volatile((i << 12) | 0x37);
                    slot.write_volatile(0);
                }
            }
        })
    };
    let name = "two stores".to_owned();
    let mut cases = vec![Case {
        name,
        role: Role::Limit,
        run: Box::new(limit),
    }];
    cases.push(Case {
        name: "two walks by hand, unchecked, and two stores".to_owned(),
        role: Role::Limit,
        run: Box::new(single_by_hand),
    });
    let mut ours = single_case::<Ours>();
    ours.role = Role::Ours;
    cases.push(ours);
    macro_rules! peer {
        ($peer:ty) => {
            cases.push(single_case::<$peer>())
        };
    }
    each_peer!(peer);
    let fault_in = || {
        arena::reset(Pages::Resident);
        let table = Ours::new();
        table
            .0
            .fault_in(START..START + 4096, 1 << 40, RWX_WB)
            .expect("mapped");
        time(|| {
            for i in 1..512 {
                let at = START + 4096 * i;
                table
                    .0
                    .fault_in(at..at + 4096, at + (1 << 40), RWX_WB)
                    .expect("mapped");
            }
        }) * (PAIRS as f64 / 511.0)
    };
    let name = "hvkit-page-table, fault_in alone".to_owned();
    cases.push(Case {
        name,
        role: Role::Ours,
        run: Box::new(fault_in),
    });
    let aims = [Aim {
        case: Ours::NAME,
        limit: None,
        at_most: 6.0,
    }];
    let title = "map one 4 KiB page and unmap it";
    compare(title, "pair", PAIRS as f64, rounds, cases, &aims)
}
