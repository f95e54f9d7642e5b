// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random operations against a plain model: a sorted map of pages.
//!
//! `PAGE_TABLE_OPS` sets how many (10^4 unless told), `PAGE_TABLE_SEED` where to begin; a failure
//! prints the seed.

mod formats;

use std::collections::{BTreeMap, BTreeSet};

use formats::{Eights, MARKS, R, RW, RWX, RX, Rights};
use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::{
    Collect, MapError, Mapper, OwnEntries, Shape, Sizes, Span, Stale, Upper, Width, leaked,
};

const PAGE: u64 = 0x1000;

type Subject<'a> = Mapper<Eights, &'a FakeTables, &'a FakeTables>;

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What ought to be true: page number to target and rights, and the pages written since harvested.
#[derive(Clone, Default)]
struct Model {
    pages: BTreeMap<u64, (u64, Rights)>,
    written: BTreeSet<u64>,
}

impl Model {
    fn unmap(&mut self, lo: u64, hi: u64) {
        self.pages.retain(|page, _| !(lo..hi).contains(page));
        self.written.retain(|page| !(lo..hi).contains(page));
    }

    fn map(&mut self, lo: u64, hi: u64, target: u64, rights: Rights) {
        self.unmap(lo, hi);
        let pages = (lo..hi).map(|page| (page, (target + (page - lo) * PAGE, rights)));
        self.pages.extend(pages);
    }

    fn any(&self, lo: u64, hi: u64) -> bool {
        self.pages.range(lo..hi).next().is_some()
    }

    /// The longest linear stretches, as [`Mapper::mappings`] must find them.
    fn stretches(&self, lo: u64, hi: u64) -> Vec<(u64, u64, u64, Rights)> {
        let mut all: Vec<(u64, u64, u64, Rights)> = vec![];
        for (&page, &(target, rights)) in self.pages.range(lo..hi) {
            match all.last_mut() {
                Some((start, length, to, of))
                    if *start + *length == page
                        && *to + *length * PAGE == target
                        && *of == rights =>
                {
                    *length += 1;
                }
                _ => all.push((page, 1, target, rights)),
            }
        }
        all
    }
}

struct World<'a> {
    memory: &'a FakeTables,
    mapper: Subject<'a>,
    owed: Option<Stale>,
    model: Model,
    pages: u64,
    random: Random,
}

impl World<'_> {
    fn range(&mut self) -> (u64, u64) {
        // Half of the ranges are aligned to something.
        let grain = self.random.pick(&[1, 1, 2, 4, 8, 16]);
        let lo = self.random.below(self.pages) / grain * grain;
        let most = (self.pages - lo).div_ceil(grain);
        (
            lo,
            (lo + grain * (1 + self.random.below(most))).min(self.pages),
        )
    }

    fn target(&mut self, lo: u64) -> u64 {
        // Most targets are equal to the address modulo something, or nothing would ever be large.
        let base = self.random.below(64) * 0x40_0000;
        base + lo * PAGE + self.random.pick(&[0, 0, 0, 1, 2, 4]) * PAGE
    }

    fn owe(&mut self, stale: Stale) {
        match &mut self.owed {
            Some(owed) => self.mapper.merge_stale(owed, stale).unwrap(),
            None => self.owed = Some(stale),
        }
    }

    fn settle(&mut self) {
        if let Some(owed) = self.owed.take() {
            self.mapper
                .settle(owed, &mut |_: &Stale| Ok::<(), ()>(()))
                .unwrap();
        }
    }

    /// One operation on both. True if it changed something.
    fn step(&mut self) {
        let (lo, hi) = self.range();
        let span = Span::new(lo * PAGE, (hi - lo) * PAGE);
        let rights = self.random.pick(&[R, RW, RX, RWX]);
        let before = self.model.clone();
        let outcome = match self.random.below(12) {
            0..3 => {
                let target = self.target(lo);
                let overlap = self.model.any(lo, hi);
                if !overlap {
                    self.model.map(lo, hi, target, rights);
                }
                let outcome = self.mapper.map(span, target, rights);
                assert!(!overlap || outcome.is_err());
                if let Err(MapError::Overlap { address, .. }) = outcome {
                    assert!(overlap && span.contains(address));
                    assert!(self.model.pages.contains_key(&(address / PAGE)));
                    return;
                }
                outcome
            }
            3..5 => {
                let target = self.target(lo);
                self.model.map(lo, hi, target, rights);
                self.mapper
                    .remap(span, target, rights)
                    .map(|stale| self.owe(stale))
            }
            5..7 => {
                let nothing = !self.model.any(lo, hi);
                self.model.unmap(lo, hi);
                let outcome = self.mapper.unmap(span).map(|stale| self.owe(stale));
                if let Err(MapError::NothingMapped { .. }) = outcome {
                    assert!(nothing);
                    return;
                }
                outcome
            }
            7 => {
                for (_, (_, of)) in self.model.pages.range_mut(lo..hi) {
                    *of = rights;
                }
                let outcome = self
                    .mapper
                    .protect(span, |_| rights)
                    .map(|stale| self.owe(stale));
                if let Err(MapError::NothingMapped { .. }) = outcome {
                    assert!(!before.any(lo, hi));
                    return;
                }
                outcome
            }
            8 => {
                let level = 1 + self.random.below(2) as u8;
                let outcome = self.mapper.split(span, level).map(|stale| self.owe(stale));
                if let Err(MapError::NothingMapped { .. }) = outcome {
                    assert!(!before.any(lo, hi));
                    return;
                }
                outcome
            }
            9 => self.mapper.merge(span).map(|stale| self.owe(stale)),
            10 => {
                self.harvest(lo, hi);
                return;
            }
            _ => {
                let target = self.target(lo);
                let page = (lo, lo + 1);
                if !self.model.any(page.0, page.1) {
                    self.model.map(page.0, page.1, target, rights);
                }
                let span = Span::new(lo * PAGE, PAGE);
                self.mapper.fault_in(span, target, rights).map(|filled| {
                    let mapped = before.pages.get(&lo);
                    assert_eq!(filled.added == PAGE, mapped.is_none());
                    assert_eq!(filled.same == PAGE, mapped == Some(&(target, rights)));
                })
            }
        };
        if let Err(refused) = outcome {
            assert_eq!(refused, MapError::OutOfFrames);
            self.model = before;
        }
    }

    /// Hardware writes through a page.
    fn write(&mut self) {
        let page = self.random.below(self.pages);
        if !self
            .model
            .pages
            .get(&page)
            .is_some_and(|(_, rights)| rights.write)
        {
            return;
        }
        let leaf = *self.mapper.walk(page * PAGE).steps().last().unwrap();
        self.memory
            .tamper(leaf.at.unwrap(), Width::Eight, leaf.entry | MARKS.all());
        self.model.written.insert(page);
    }

    /// No written page may be missed; whatever is told is clean afterwards.
    fn harvest(&mut self, lo: u64, hi: u64) {
        let mut told = BTreeSet::new();
        let span = Span::new(lo * PAGE, (hi - lo) * PAGE);
        let stale = self.mapper.harvest(span, Collect::Dirty, |marked| {
            assert!(marked.dirty && !marked.accessed);
            let first = marked.span.start / PAGE;
            told.extend(first..first + marked.span.length / PAGE);
        });
        self.owe(stale.unwrap());
        let missed = self
            .model
            .written
            .range(lo..hi)
            .find(|page| !told.contains(page));
        assert_eq!(missed, None, "a written page was not reported");
        self.model.written.retain(|page| !told.contains(page));
    }

    fn check(&self) {
        for page in 0..self.pages {
            let there = self.mapper.translate(page * PAGE + 0x123).ok();
            let there = there.map(|there| (there.target - 0x123, there.attributes));
            assert_eq!(there, self.model.pages.get(&page).copied(), "page {page}");
        }
        let found: Vec<_> = self
            .mapper
            .mappings(0..self.pages * PAGE)
            .unwrap()
            .map(|mapped| {
                let mapped = mapped.unwrap();
                let Span { start, length } = mapped.span;
                (
                    start / PAGE,
                    length / PAGE,
                    mapped.target,
                    mapped.attributes,
                )
            })
            .collect();
        assert_eq!(found, self.model.stretches(0, self.pages));
    }

    /// Every leaf obeys the policy it was made under, which here never changes.
    fn check_sizes(&self) {
        let sizes = self.mapper.sizes();
        for page in 0..self.pages {
            if let Ok(there) = self.mapper.translate(page * PAGE) {
                assert!(there.level <= sizes.largest);
                assert!(!there.attributes.execute || there.level <= sizes.largest_executable);
            }
        }
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn run(index_bits: &[u8], sizes: Sizes, operations: u64, seed: u64) {
    let leaves = (1u8 << index_bits.len()) - 1;
    let shape = Shape::new(12, index_bits, leaves, Width::Eight, Upper::Zero).unwrap();
    let memory = FakeTables::new();
    let mapper = Mapper::new(Eights::with(shape), &memory, &memory)
        .unwrap()
        .with_sizes(sizes);
    let pages = 1u64 << (shape.address_bits() - 12);
    let random = Random(seed | 1);
    let model = Model::default();
    let mut world = World {
        memory: &memory,
        mapper,
        owed: None,
        model,
        pages,
        random,
    };
    for n in 0..operations {
        // Now and then the pool is nearly empty.
        if world.random.below(8) == 0 {
            memory.limit(memory.in_use() + world.random.below(4) as usize);
        }
        world.step();
        memory.unlimit();
        for _ in 0..world.random.below(3) {
            world.write();
        }
        if world.random.below(4) == 0 {
            world.settle();
        }
        if n % 512 == 0 {
            memory.checkpoint(); // the journal would grow for ever
        }
        world.check();
        world.check_sizes();
    }
    world.settle();
    world
        .mapper
        .destroy(&mut |_: &Stale| Ok::<(), ()>(()))
        .unwrap();
    assert_eq!(memory.in_use(), 0, "frames leaked");
}

#[test]
fn operations_do_what_the_plain_model_does() {
    let operations = number("PAGE_TABLE_OPS", 10_000);
    let seed = number("PAGE_TABLE_SEED", 0x5eed);
    println!("PAGE_TABLE_SEED={seed}");
    let shapes: [&[u8]; 5] = [
        &[2, 2, 2],
        &[3, 3],
        &[1, 1, 1, 1, 1],
        &[2, 1, 2, 1],
        &[4, 2],
    ];
    let policy = Sizes {
        largest: 3,
        largest_executable: 1,
    };
    for (i, shape) in shapes.iter().enumerate() {
        for (j, sizes) in [Sizes::ANY, policy].into_iter().enumerate() {
            let seed = seed.wrapping_mul(31).wrapping_add((i * 2 + j) as u64);
            run(shape, sizes, operations.div_ceil(10), seed);
        }
    }
    assert_eq!(leaked(), 0, "no token was lost on any path");
}

#[test]
fn real_shapes_at_their_edges() {
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::four_levels(), &memory, &memory).unwrap();
    let edges: Vec<u64> = [0, 1 << 21, 1 << 30, 1 << 39, 511 << 39, 1 << 48]
        .map(|edge: u64| edge)
        .to_vec();
    let done = &mut |_: &Stale| Ok::<(), ()>(());
    for &lo in &edges {
        for &hi in &edges {
            for (below, above) in [
                (0, 0),
                (PAGE, 0),
                (0, PAGE),
                (PAGE, PAGE),
                (1 << 21, 1 << 21),
            ] {
                let (lo, hi) = (lo.saturating_sub(below), hi + above);
                let (in_reach, some) = (hi <= 1 << 48, lo < hi && hi - lo <= 1 << 40);
                if !some || !in_reach {
                    continue;
                }
                let target = (lo & 0x3fff_ffff) + (1 << 40);
                mapper.map(lo..hi, target, RW).unwrap();
                let all: Vec<_> = mapper
                    .mappings(0..1 << 48)
                    .unwrap()
                    .map(Result::unwrap)
                    .collect();
                assert_eq!(all.len(), 1);
                assert_eq!((all[0].span, all[0].target), (Span::from(lo..hi), target));
                assert!(mapper.translate(hi).is_err());
                assert_eq!(
                    mapper.translate(hi - 1).unwrap().target,
                    target + (hi - lo - 1)
                );
                let stale = mapper.unmap(lo..hi).unwrap();
                mapper.settle(stale, done).unwrap();
                assert_eq!(mapper.mappings(0..1 << 48).unwrap().count(), 0);
                let stale = mapper.merge(0..1 << 48).unwrap();
                mapper.settle(stale, done).unwrap();
                assert_eq!(memory.in_use(), 1, "empty tables went");
                memory.checkpoint();
            }
        }
    }
    assert_eq!(memory.load(mapper.root(), Width::Eight), 0);
}
