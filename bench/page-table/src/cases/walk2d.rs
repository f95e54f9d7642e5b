// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's table walked through an EPT: each guest entry read costs a walk of its own.

use std::convert::Infallible;

use hvkit_page_table::{
    Fault, LeafCache, Mapper, Outcome, OwnEntries, PhysicalWindow, ReadEntry, Root, Width,
    translate,
};

use super::START;
use super::order::{AtRandom, InOrder, Order};
use crate::arena::{self, Pages};
use crate::ept::{Attributes, Ept, RWX_WB, Rule};
use crate::harness::{Aim, Case, Report, Role, compare, time};
use crate::tables::{Pool, window};

type Cache = LeafCache<Attributes, 4096>;
type Stage = Mapper<Ept, PhysicalWindow, Pool>;
const FLAT: &str = "flat array, one load";
const BY_HAND: &str = "2-D walk and fill by hand, unchecked";
const FROM_LEAVES: &str = "2-D walk and fill by hand, leaf tables known";
const ONE: &str = "1-D walk of the guest's table alone";
const CACHED: &str = "2-D walk and fill, leaf-table caches";
const PLAIN: &str = "2-D walk and fill, EPT of 4 KiB pages";

/// Where guest-physical addresses lead.
trait Stage2 {
    fn stage2(&self, at: u64) -> Outcome<Ept, PhysicalWindow>;
    fn host(&self) -> &PhysicalWindow;
}

/// By a walk of the EPT each time.
struct Walked<'a>(&'a Stage);

impl Stage2 for Walked<'_> {
    #[inline(always)]
    fn stage2(&self, at: u64) -> Outcome<Ept, PhysicalWindow> {
        self.0.translate(at)
    }

    #[inline(always)]
    fn host(&self) -> &PhysicalWindow {
        self.0.memory()
    }
}

/// Through a cache of the EPT's leaf tables.
struct Cached<'a>(&'a Stage, Box<Cache>);

impl Stage2 for Cached<'_> {
    #[inline(always)]
    fn stage2(&self, at: u64) -> Outcome<Ept, PhysicalWindow> {
        let Self(ept, cache) = self;
        cache.translate(&Ept, ept.memory(), Root::Table(ept.root()), at)
    }

    #[inline(always)]
    fn host(&self) -> &PhysicalWindow {
        self.0.memory()
    }
}

/// Guest-physical memory.
struct Nested<S>(S);

impl<S: Stage2> ReadEntry for Nested<S> {
    type Error = Fault<Rule, Infallible>;

    #[inline(always)]
    fn read(&self, at: u64, width: Width) -> Result<u64, Self::Error> {
        let there = self.0.stage2(at)?;
        Ok(self.0.host().load(there.target, width))
    }
}

/// The entry at `at`, unchecked.
///
/// # Safety
///
/// `at` is an entry in the arena, where physical addresses are virtual ones.
#[inline(always)]
unsafe fn peek(at: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::read_volatile(at as *const u64) }
}

/// What a 2-D walk is at least: for each of the guest's four entries, and for the page, the four loads
/// of a stage 2 walk, each waiting for the one before. Looks at nothing but addresses.
///
/// # Safety
///
/// `guest` and `ept` are roots of tables of 4 KiB pages in the arena, and map what is asked for.
#[inline(always)]
pub unsafe fn by_hand(guest: u64, ept: u64, address: u64) -> u64 {
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    let slot = |table: u64, address: u64, shift: u32| (table & FRAME) | (address >> shift & 0xff8);
    let stage2 = |at: u64| {
        let mut table = ept;
        for shift in [36, 27, 18, 9] {
            // SAFETY: the caller's promise.
            table = unsafe { peek(slot(table, at, shift)) };
        }
        (table & FRAME) | (at & 0xfff)
    };
    let mut table = guest;
    for shift in [36, 27, 18, 9] {
        // SAFETY: the caller's promise.
        table = unsafe { peek(stage2(slot(table, address, shift))) };
    }
    stage2(table & FRAME)
}

/// The same where the leaf tables are known: the guest's by `address`, the EPT's by guest-physical
/// address. Three entries, and where their tables are.
///
/// # Safety
///
/// `guest` and `ept` are the leaf tables for what is asked for, of 2 MiB each, from address 0.
#[inline(always)]
unsafe fn by_hand_from_leaves(guest: &[u64], ept: &[u64], address: u64) -> u64 {
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    let entry = |tables: &[u64], address: u64| {
        // SAFETY: the caller's promise.
        unsafe {
            let table = *tables.get_unchecked((address >> 21) as usize);
            peek(table | (address >> 9 & 0xff8))
        }
    };
    let stage2 = |at: u64| (entry(ept, at) & FRAME) | (at & 0xfff);
    // SAFETY: the caller's promise.
    let at = unsafe { guest.get_unchecked((address >> 21) as usize) } | (address >> 9 & 0xff8);
    // SAFETY: the EPT leads into the arena.
    let page = unsafe { peek(stage2(at)) };
    stage2(page & FRAME)
}

/// The frames of the tables at level 1 for the 2 MiB blocks below `end`; 0 where there is none.
fn leaf_tables(table: &Stage, end: u64) -> Vec<u64> {
    let table_of = |block: u64| {
        let walk = table.walk(block << 21);
        let leaf = walk.steps().iter().find(|step| step.level == 1);
        leaf.map_or(0, |step| step.at.expect("in memory") & !0xfff)
    };
    (0..end.div_ceil(2 << 20)).map(table_of).collect()
}

/// Sequential and random guest addresses.
pub fn all(rounds: usize) -> [Report; 2] {
    [of::<InOrder>(rounds), of::<AtRandom>(rounds)]
}

fn of<O: Order>(rounds: usize) -> Report {
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
    let flat: Vec<u64> = (0..PAGES)
        .map(|page| start + page * 4096 % length)
        .collect();
    let flat = flat.as_slice();
    let mut cases = vec![case::<O>(FLAT, Role::Limit, move |page| {
        flat[page as usize]
    })];
    let (root, ept_root) = (guest.root(), ept.root());
    let mut shadow = vec![0u64; PAGES as usize];
    cases.push(case::<O>(BY_HAND, Role::Limit, move |page| {
        // SAFETY: both tables are in the arena; the guest's maps `PAGES` pages from `START` into the
        // arena, and the EPT all of that.
        let there = unsafe { by_hand(root, ept_root, START + page * 4096) };
        shadow[page as usize] = there | 7;
        there
    }));
    // The arena is high up, so its EPT's array is long; only the end of it is used.
    let guest_leaves = leaf_tables(guest, START + (PAGES << 12));
    let ept_leaves = leaf_tables(ept, start + length);
    let mut shadow = vec![0u64; PAGES as usize];
    cases.push(case::<O>(FROM_LEAVES, Role::Limit, move |page| {
        let address = START + page * 4096;
        // SAFETY: the arrays have the leaf tables of all that is asked for.
        let there = unsafe { by_hand_from_leaves(&guest_leaves, &ept_leaves, address) };
        shadow[page as usize] = there | 7;
        there
    }));
    cases.push(case::<O>(ONE, Role::Ours, move |page| {
        let there = translate(&Ept, guest.memory(), Root::Table(root), START + page * 4096);
        there.expect("mapped").target
    }));
    for (name, ept) in [
        (PLAIN, ept),
        ("2-D walk and fill, EPT of 2 MiB pages", large),
    ] {
        let nested = Nested(Walked(ept));
        let mut shadow = vec![0u64; PAGES as usize];
        cases.push(case::<O>(name, Role::Ours, move |page| {
            let there = translate(&Ept, &nested, Root::Table(root), START + page * 4096);
            let there = nested.0.stage2(there.expect("mapped").target);
            let there = there.expect("mapped").target;
            shadow[page as usize] = there | 7;
            there
        }));
    }
    let nested = Nested(Cached(ept, Box::default()));
    let guest_cache: Box<Cache> = Box::default();
    let mut shadow = vec![0u64; PAGES as usize];
    cases.push(case::<O>(CACHED, Role::Ours, move |page| {
        let there = guest_cache.translate(&Ept, &nested, Root::Table(root), START + page * 4096);
        let there = nested.0.stage2(there.expect("mapped").target);
        let there = there.expect("mapped").target;
        shadow[page as usize] = there | 7;
        there
    }));
    let aim = |case, at_most| Aim {
        case,
        limit: None,
        at_most,
    };
    let aims = [aim(PLAIN, 30.0), aim(CACHED, 5.0)];
    let title = format!("guest table of 1 GiB through an EPT, {}", O::KIND);
    return compare(&title, "address", OPERATIONS as f64, rounds, cases, &aims);

    /// Asks `f` for pages.
    fn case<'a, O: Order>(name: &str, role: Role, mut f: impl FnMut(u64) -> u64 + 'a) -> Case<'a> {
        let run = move || {
            let mut order = O::of(PAGES);
            time(|| {
                let mut all = 0;
                for _ in 0..OPERATIONS {
                    all ^= f(order.next());
                }
                all
            })
        };
        Case {
            name: name.to_owned(),
            role,
            run: Box::new(run),
        }
    }
}
