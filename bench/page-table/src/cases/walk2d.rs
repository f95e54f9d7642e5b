// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's table walked through an EPT: each guest entry read costs a walk of its own.

use std::cell::RefCell;

use hvkit_page_table::{
    Fault, LeafCache, Mapper, OwnEntries, PhysicalWindow, ReadEntry, Root, Translation, Width,
    translate,
};

use super::{Random, START};
use crate::arena::{self, Pages};
use crate::ept::{Attributes, Ept, RWX_WB, Rule};
use crate::harness::{Aim, Case, Report, Role, compare, time};
use crate::tables::{Pool, window};

type Cache = LeafCache<Attributes, 4096>;
type Stage = Mapper<Ept, PhysicalWindow, Pool>;
const CACHED: &str = "2-D walk and fill, leaf-table caches";
const PLAIN: &str = "2-D walk and fill, EPT of 4 KiB pages";

/// Guest-physical memory: through the EPT, with or without a cache.
struct Nested<'a> {
    ept: &'a Stage,
    cache: Option<RefCell<Box<Cache>>>,
}

impl Nested<'_> {
    #[inline(always)]
    fn stage2(
        &self,
        at: u64,
    ) -> Result<Translation<Attributes>, Fault<Rule, std::convert::Infallible>> {
        match &self.cache {
            None => self.ept.translate(at),
            Some(cache) => {
                let root = Root::Table(self.ept.root());
                cache
                    .borrow_mut()
                    .translate(&Ept, self.ept.memory(), root, at)
            }
        }
    }
}

impl ReadEntry for Nested<'_> {
    type Error = Fault<Rule, std::convert::Infallible>;

    #[inline(always)]
    fn read(&self, at: u64, width: Width) -> Result<u64, Self::Error> {
        let there = self.stage2(at)?;
        Ok(self.ept.memory().load(there.target, width))
    }
}

/// Sequential and random guest addresses.
pub fn all(rounds: usize) -> Vec<Report> {
    const PAGES: u64 = 1 << 18;
    const OPERATIONS: u64 = 500_000;
    arena::prepare(32 << 20, Pages::Resident);
    let (start, length, _) = arena::window();
    // The guest's tables and pages are the arena itself, so its EPT maps the arena onto itself.
    let mut ept = Stage::new(Ept, window(), Pool).expect("a root");
    ept.set_sizes(hvkit_page_table::Sizes::SMALLEST);
    ept.map(start..start + length, start, RWX_WB)
        .expect("mapped");
    let mut large = Stage::new(Ept, window(), Pool).expect("a root");
    large
        .map(start..start + length, start, RWX_WB)
        .expect("mapped");
    let mut guest = Stage::new(Ept, window(), Pool).expect("a root");
    for page in 0..PAGES {
        let (at, to) = (START + page * 4096, start + page * 4096 % length);
        guest.map(at..at + 4096, to, RWX_WB).expect("mapped");
    }
    let (ept, large, guest) = (&ept, &large, &guest);
    let root = Root::Table(guest.root());
    let flat: Vec<u64> = (0..PAGES)
        .map(|page| start + page * 4096 % length)
        .collect();
    let flat = flat.as_slice();
    [("in order", false), ("at random", true)]
        .map(|(kind, at_random)| {
            let drive = move |f: &mut dyn FnMut(u64) -> u64| {
                let mut random = Random(3);
                time(|| {
                    let mut all = 0;
                    for i in 0..OPERATIONS {
                        let page = if at_random {
                            random.below(PAGES)
                        } else {
                            i % PAGES
                        };
                        all ^= f(page);
                    }
                    all
                })
            };
            let limit = move || drive(&mut |page| flat[page as usize]);
            let name = "flat array, one load".to_owned();
            let mut cases = vec![Case {
                name,
                role: Role::Limit,
                run: Box::new(limit),
            }];
            let one = move || {
                let walk = |page| {
                    let there = translate(&Ept, guest.memory(), root, START + page * 4096);
                    there.expect("mapped").target
                };
                drive(&mut { walk })
            };
            let name = "1-D walk of the guest's table alone".to_owned();
            cases.push(Case {
                name,
                role: Role::Ours,
                run: Box::new(one),
            });
            let mut both = |name: &str, ept, cached: bool| {
                let mut shadow = vec![0u64; PAGES as usize];
                let cache = || cached.then(|| RefCell::new(Box::new(Cache::new())));
                let nested = Nested {
                    ept,
                    cache: cache(),
                };
                let guest_cache = cache();
                let run = move || {
                    let mut walk = |page: u64| {
                        let at = START + page * 4096;
                        let there = match &guest_cache {
                            None => translate(&Ept, &nested, root, at),
                            Some(cache) => cache.borrow_mut().translate(&Ept, &nested, root, at),
                        };
                        let there = nested
                            .stage2(there.expect("mapped").target)
                            .expect("mapped");
                        shadow[page as usize] = there.target | 7;
                        there.target
                    };
                    drive(&mut walk)
                };
                cases.push(Case {
                    name: name.to_owned(),
                    role: Role::Ours,
                    run: Box::new(run),
                });
            };
            both(PLAIN, ept, false);
            both("2-D walk and fill, EPT of 2 MiB pages", large, false);
            both(CACHED, ept, true);
            let aims = [
                Aim {
                    case: PLAIN,
                    limit: None,
                    at_most: 30.0,
                },
                Aim {
                    case: CACHED,
                    limit: None,
                    at_most: 5.0,
                },
            ];
            let title = format!("guest table of 1 GiB through an EPT, {kind}");
            compare(&title, "address", OPERATIONS as f64, rounds, cases, &aims)
        })
        .into()
}
