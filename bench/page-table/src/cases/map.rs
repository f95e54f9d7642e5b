// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mapping a whole range.

use super::{START, each_peer};
use crate::arena::{self, Pages};
use crate::harness::{Aim, Case, Report, Role, compare, time};
use crate::tables::{Ours, Size, Table};

const STORES: &str = "sequential stores of the same entries";

/// The limit: stores `count` leaf entries and nothing else.
#[inline(never)]
fn stores(at: *mut u64, count: usize, first: u64, step: u64) {
    for i in 0..count {
        // SAFETY: the caller has that many entries there, in the arena.
        unsafe { *at.add(i) = first.wrapping_add((i as u64).wrapping_mul(step)) };
    }
}

fn case<'a, T: Table>(
    role: Role,
    gib: u64,
    to: u64,
    size: Size,
    pages: Pages,
    times: u64,
) -> Case<'a> {
    let length = gib << 30;
    let run = move || {
        let mut total = 0.0;
        for _ in 0..times {
            arena::reset(pages);
            let mut table = T::new();
            total += time(|| table.map(START, to, length, size));
            let last = START + length - 4096;
            assert_eq!(table.translate(last), to + length - 4096, "{}", T::NAME);
            std::mem::forget(table);
        }
        total
    };
    Case {
        name: T::NAME.to_owned(),
        role,
        run: Box::new(run),
    }
}

/// 4 KiB pages: the target is equal to the address modulo 4 KiB only.
pub fn small(gib: u64, pages: Pages, rounds: usize) -> Report {
    let (entries, to) = (gib << 18, START - 4096);
    let bytes = entries as usize * 8;
    arena::prepare(bytes + bytes / 128 + (4 << 20), pages);
    // Upper tables too: the range begins at 1 GiB, so 512 GiB of it need one of level 2 a GiB, one or two of
    // level 3, and the root. In untouched memory they may cost one more huge page.
    let upper = (gib + (gib + 1).div_ceil(512) + 1) << 9;
    let count = (entries + upper) as usize;
    let limit = move || {
        arena::reset(pages);
        time(|| stores(arena::base() as *mut u64, count, to | 0x37, 4096))
    };
    let mut cases = vec![Case {
        name: STORES.into(),
        role: Role::Limit,
        run: Box::new(limit),
    }];
    cases.push(case::<Ours>(Role::Ours, gib, to, Size::Small, pages, 1));
    macro_rules! peer {
        ($peer:ty) => {
            cases.push(case::<$peer>(Role::Peer, gib, to, Size::Small, pages, 1))
        };
    }
    each_peer!(peer);
    let at_most = if gib >= 16 || pages != Pages::Resident {
        1.1
    } else {
        1.3
    };
    let aims = [Aim {
        case: Ours::NAME,
        limit: Some(STORES),
        at_most,
    }];
    let title = format!("map {gib} GiB in 4 KiB pages, {pages:?} tables");
    let report = compare(&title, "page", entries as f64, rounds, cases, &aims);
    arena::release();
    report
}

/// 2 MiB pages, in as many builds as make the time measurable.
pub fn large(gib: u64, rounds: usize) -> Report {
    let (entries, to) = (gib << 9, START + (2 << 20));
    let times = (1 << 16) / entries;
    let times = times.max(1);
    arena::prepare(8 << 20, Pages::Resident);
    let limit = move || {
        let mut total = 0.0;
        for _ in 0..times {
            arena::reset(Pages::Resident);
            let at = arena::base() as *mut u64;
            total += time(|| stores(at, entries as usize, to | 0xb7, 2 << 20));
        }
        total
    };
    let mut cases = vec![Case {
        name: STORES.into(),
        role: Role::Limit,
        run: Box::new(limit),
    }];
    cases.push(case::<Ours>(
        Role::Ours,
        gib,
        to,
        Size::Large,
        Pages::Resident,
        times,
    ));
    macro_rules! peer {
        ($peer:ty) => {
            if <$peer>::LARGE {
                cases.push(case::<$peer>(
                    Role::Peer,
                    gib,
                    to,
                    Size::Large,
                    Pages::Resident,
                    times,
                ))
            }
        };
    }
    each_peer!(peer);
    let aims = [Aim {
        case: Ours::NAME,
        limit: Some(STORES),
        at_most: 1.5,
    }];
    let title = format!("map {gib} GiB in 2 MiB pages");
    let report = compare(
        &title,
        "page",
        (entries * times) as f64,
        rounds,
        cases,
        &aims,
    );
    arena::release();
    report
}
