// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Translating addresses: in order, and at random.

use std::hint::black_box;

use hvkit_page_table::{LeafCache, Root, visit_batch};

use super::order::{AtRandom, InOrder, Order};
use super::{START, each_peer};
use crate::arena::{self, Pages};
use crate::ept::Ept;
use crate::harness::{Aim, Case, Report, Role, compare, time};
use crate::tables::{Ours, Size, Table};

const FLAT: &str = "flat array, one load";
const CACHED: &str = "hvkit-page-table, leaf-table cache";
const BATCH: &str = "hvkit-page-table, batch of 16";

/// Asks `translate` for `operations` addresses of `order`.
#[inline(always)]
fn drive<O: Order>(mut order: O, operations: u64, mut translate: impl FnMut(u64) -> u64) -> f64 {
    time(|| {
        let mut all = 0u64;
        for _ in 0..operations {
            all ^= translate(START + order.next() * 4096);
        }
        all
    })
}

fn case<'a, T: Table + 'a, O: Order + 'a>(
    mut table: T,
    role: Role,
    order: O,
    operations: u64,
) -> Case<'a> {
    let run = move || drive(order, operations, |at| table.translate(at));
    Case {
        name: T::NAME.to_owned(),
        role,
        run: Box::new(run),
    }
}

fn built<T: Table>(length: u64) -> T {
    let mut table = T::new();
    table.map(START, START - 4096, length, Size::Small);
    table
}

fn batch<O: Order>(ours: &Ours, mut order: O, operations: u64) -> f64 {
    let root = Root::Table(ours.0.root());
    time(|| {
        let mut all = 0u64;
        for _ in 0..operations / 16 {
            let mut addresses = [0; 16];
            for address in &mut addresses {
                *address = START + order.next() * 4096;
            }
            visit_batch(&Ept, ours.0.memory(), root, &addresses, |_, there| {
                all ^= there.expect("mapped").target;
            });
        }
        all
    })
}

/// Both orders.
pub fn all(gib: u64, rounds: usize) -> [Report; 2] {
    let aim = |case, at_most| Aim {
        case,
        limit: Some(FLAT),
        at_most,
    };
    [
        of::<InOrder>(gib, rounds, aim(CACHED, 1.8)),
        of::<AtRandom>(gib, rounds, aim(BATCH, 2.2)),
    ]
}

fn of<O: Order>(gib: u64, rounds: usize, aim: Aim) -> Report {
    let (pages, length) = (gib << 18, gib << 30);
    let bytes = (pages * 8) as usize;
    let operations = (pages * 4).min(2_000_000);
    let order = O::of(pages);
    // The flat array, ours, and six peers.
    arena::prepare(9 * (bytes + bytes / 128 + (2 << 20)), Pages::Resident);
    let flat = arena::base() as *mut u64;
    for i in 0..pages as usize {
        if i % 512 == 0 {
            arena::allocate();
        }
        // SAFETY: in the frames just allocated, which are one stretch.
        unsafe { *flat.add(i) = (START - 4096 + i as u64 * 4096) | 0x37 };
    }
    let load = move |at: u64| {
        // SAFETY: `drive` asks for no page beyond the array.
        unsafe { *black_box(flat.add(((at - START) >> 12) as usize)) & !0xfff }
    };
    let limit = move || drive(order, operations, load);
    let mut cases = vec![Case {
        name: FLAT.into(),
        role: Role::Limit,
        run: Box::new(limit),
    }];
    let ours: Ours = built(length);
    let ours = &ours;
    let plain = move || {
        drive(order, operations, |at| {
            ours.0.translate(at).expect("mapped").target
        })
    };
    let name = Ours::NAME.to_owned();
    cases.push(Case {
        name,
        role: Role::Ours,
        run: Box::new(plain),
    });
    let cache = Box::new(LeafCache::<_, 4096>::new());
    let cached = move || {
        let root = Root::Table(ours.0.root());
        drive(order, operations, |at| {
            cache
                .translate(&Ept, ours.0.memory(), root, at)
                .expect("mapped")
                .target
        })
    };
    cases.push(Case {
        name: CACHED.into(),
        role: Role::Ours,
        run: Box::new(cached),
    });
    let batched = move || batch(ours, order, operations);
    cases.push(Case {
        name: BATCH.into(),
        role: Role::Ours,
        run: Box::new(batched),
    });
    macro_rules! peer {
        ($peer:ty) => {
            cases.push(case::<$peer, O>(
                built(length),
                Role::Peer,
                order,
                operations,
            ))
        };
    }
    each_peer!(peer);
    let title = format!("translate in {gib} GiB of 4 KiB pages, {}", O::KIND);
    let report = compare(&title, "address", operations as f64, rounds, cases, &[aim]);
    arena::release();
    report
}
