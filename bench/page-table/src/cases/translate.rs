// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Translating addresses: in order, and at random.

use std::hint::black_box;

use hvkit_page_table::{LeafCache, Root, translate_batch};

use super::{Random, START, each_peer};
use crate::arena::{self, Pages};
use crate::ept::Ept;
use crate::harness::{Aim, Case, Report, Role, compare, time};
use crate::tables::{Ours, Size, Table};

const FLAT: &str = "flat array, one load";
const CACHED: &str = "hvkit-page-table, leaf-table cache";
const BATCH: &str = "hvkit-page-table, batch of 16";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Sequential,
    Random,
}

/// Asks `translate` for `operations` addresses of `pages` pages.
#[inline(always)]
fn drive(order: Order, operations: u64, pages: u64, mut translate: impl FnMut(u64) -> u64) -> f64 {
    let mut random = Random(7);
    time(|| {
        let mut all = 0u64;
        match order {
            Order::Sequential => {
                let mut page = 0;
                for _ in 0..operations {
                    all ^= translate(START + page * 4096);
                    page += 1;
                    if page == pages {
                        page = 0;
                    }
                }
            }
            Order::Random => {
                for _ in 0..operations {
                    all ^= translate(START + random.below(pages) * 4096);
                }
            }
        }
        all
    })
}

fn case<'a, T: Table + 'a>(
    mut table: T,
    role: Role,
    order: Order,
    operations: u64,
    pages: u64,
) -> Case<'a> {
    let run = move || drive(order, operations, pages, |at| table.translate(at));
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

fn batch(ours: &Ours, order: Order, operations: u64, pages: u64) -> f64 {
    let (mut random, mut page) = (Random(7), 0);
    let root = Root::Table(ours.0.root());
    time(|| {
        let mut all = 0u64;
        for _ in 0..operations / 16 {
            let mut addresses = [0; 16];
            for address in &mut addresses {
                let next = match order {
                    Order::Sequential => page,
                    Order::Random => random.below(pages),
                };
                page = if page + 1 == pages { 0 } else { page + 1 };
                *address = START + next * 4096;
            }
            for there in translate_batch(&Ept, ours.0.memory(), root, &addresses) {
                all ^= there.expect("mapped").target;
            }
        }
        all
    })
}

/// Both orders.
pub fn all(gib: u64, rounds: usize) -> Vec<Report> {
    let (pages, length) = (gib << 18, gib << 30);
    let bytes = (pages * 8) as usize;
    let operations = (pages * 4).min(2_000_000);
    [Order::Sequential, Order::Random]
        .into_iter()
        .map(|order| {
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
            let limit = move || drive(order, operations, pages, load);
            let mut cases = vec![Case {
                name: FLAT.into(),
                role: Role::Limit,
                run: Box::new(limit),
            }];
            let ours: Ours = built(length);
            let ours = &ours;
            let plain = move || {
                drive(order, operations, pages, |at| {
                    ours.0.translate(at).expect("mapped").target
                })
            };
            let name = Ours::NAME.to_owned();
            cases.push(Case {
                name,
                role: Role::Ours,
                run: Box::new(plain),
            });
            let mut cache = Box::new(LeafCache::<_, 4096>::new());
            let cached = move || {
                let root = Root::Table(ours.0.root());
                drive(order, operations, pages, |at| {
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
            let batched = move || batch(ours, order, operations, pages);
            cases.push(Case {
                name: BATCH.into(),
                role: Role::Ours,
                run: Box::new(batched),
            });
            macro_rules! peer {
                ($peer:ty) => {
                    cases.push(case::<$peer>(
                        built(length),
                        Role::Peer,
                        order,
                        operations,
                        pages,
                    ))
                };
            }
            each_peer!(peer);
            let (kind, aim) = match order {
                Order::Sequential => (
                    "in order",
                    Aim {
                        case: CACHED,
                        limit: Some(FLAT),
                        at_most: 1.8,
                    },
                ),
                Order::Random => (
                    "at random",
                    Aim {
                        case: BATCH,
                        limit: Some(FLAT),
                        at_most: 2.2,
                    },
                ),
            };
            let title = format!("translate in {gib} GiB of 4 KiB pages, {kind}");
            let report = compare(&title, "address", operations as f64, rounds, cases, &[aim]);
            arena::release();
            report
        })
        .collect()
}
