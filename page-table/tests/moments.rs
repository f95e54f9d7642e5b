// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every moment between two stores: each address translates as before the operation or as after it.
//!
//! Over a table of 64 pages, so that every address is looked at in every moment.

mod formats;

use formats::{Eights, MARKS, R, RW, RWX, Rights};
use hvkit_page_table::fake::{FakeTables, Words};
use hvkit_page_table::{
    Collect, Fault, Frames, Mapper, OwnEntries, Refused, Root, Sizes, Stale, Width, translate,
};

type Tiny<'a> = Mapper<Eights, &'a FakeTables, &'a FakeTables>;
type View = Vec<Option<(u64, Rights)>>;

const PAGE: u64 = 0x1000;
const FOUR: u64 = 4 * PAGE; // what one level 2 entry covers
const SIXTEEN: u64 = 16 * PAGE; // what one level 3 entry covers

/// Where each page leads in `words`. Panics on a malformed entry: no moment may show one.
fn view(words: &Words, root: u64) -> View {
    (0..64)
        .map(
            |page| match translate(&Eights::tiny(), words, Root::Table(root), page * PAGE) {
                Ok(there) => Some((there.target, there.attributes)),
                Err(fault) => {
                    assert!(matches!(fault, Fault::NotPresent { .. }), "{fault}");
                    None
                }
            },
        )
        .collect()
}

/// Runs `operation` on a table made by `prepare`, and looks at every moment of it.
fn watch(
    prepare: impl Fn(&mut Tiny<'_>),
    operation: impl Fn(&mut Tiny<'_>) -> Result<Option<Stale>, Refused<Eights>>,
) -> (View, View) {
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
    prepare(&mut mapper);
    memory.checkpoint();
    let stale = operation(&mut mapper).unwrap();
    let (before, after) = check(&memory, mapper.root());
    // What is stale covers what changed.
    if let Some(stale) = stale {
        for page in 0..64 {
            let covered = stale
                .spans()
                .iter()
                .any(|span| span.contains(page as u64 * PAGE));
            let (old, new) = (before[page], after[page]);
            assert!(
                old.is_none() || old == new || covered,
                "page {page} changed unseen"
            );
        }
        mapper
            .settle(stale, &mut |_: &Stale| Ok::<(), ()>(()))
            .unwrap();
    }
    // Nothing leaks: taking the table down frees every frame.
    mapper.destroy(&mut |_: &Stale| Ok::<(), ()>(())).unwrap();
    assert_eq!(memory.in_use(), 0);
    (before, after)
}

/// Looks at every moment since the checkpoint. Returns the first and the last.
fn check(memory: &FakeTables, root: u64) -> (View, View) {
    let mut before = None;
    memory.each_moment(|_, words| {
        before.get_or_insert_with(|| view(words, root));
    });
    let (before, after) = (before.unwrap(), view(&memory.words(), root));
    memory.each_moment(|n, words| {
        for (page, here) in view(words, root).into_iter().enumerate() {
            assert!(
                here == before[page] || here == after[page],
                "page {page} after {n} stores: {here:x?}, neither {:x?} nor {:x?}",
                before[page],
                after[page],
            );
        }
    });
    (before, after)
}

/// A table with every kind of slot in it.
fn mixed(mapper: &mut Tiny<'_>) {
    mapper.map(0..SIXTEEN, 0x10_0000, RWX).unwrap(); // one level 3 leaf
    mapper
        .map(SIXTEEN..SIXTEEN + 2 * FOUR, 0x20_4000, RW)
        .unwrap(); // level 2 leaves
    mapper
        .map(
            SIXTEEN + 2 * FOUR..SIXTEEN + 2 * FOUR + 3 * PAGE,
            0x30_1000,
            R,
        )
        .unwrap();
    mapper
        .map(2 * SIXTEEN + PAGE..2 * SIXTEEN + 2 * PAGE, 0x40_0000, RWX)
        .unwrap();
}

/// Every range of whole pages.
fn ranges() -> impl Iterator<Item = (u64, u64)> {
    (0..64).flat_map(|lo| (lo + 1..=64).map(move |hi| (lo * PAGE, hi * PAGE)))
}

#[test]
fn map_into_holes() {
    for (lo, hi) in ranges() {
        // Congruent targets make large pages, others small ones.
        for target in [0x10_0000 + lo, 0x10_1000 + lo] {
            let (before, after) = watch(|_| (), |m| m.map(lo..hi, target, RW).map(|()| None));
            assert!(before.iter().all(Option::is_none));
            for (page, after) in after.into_iter().enumerate() {
                let at = page as u64 * PAGE;
                let expected = (lo..hi).contains(&at).then(|| (target + at - lo, RW));
                assert_eq!(after, expected);
            }
        }
    }
}

#[test]
fn unmap_any_range() {
    for (lo, hi) in ranges().filter(|&(lo, _)| lo < 2 * SIXTEEN) {
        if lo >= SIXTEEN + 2 * FOUR + 3 * PAGE {
            continue; // nothing may be mapped there
        }
        let (before, after) = watch(mixed, |m| m.unmap(lo..hi).map(Some));
        for page in 0..64 {
            let inside = (lo..hi).contains(&(page as u64 * PAGE));
            assert_eq!(after[page], if inside { None } else { before[page] });
        }
    }
}

#[test]
fn protect_any_range() {
    let less = |rights: Rights| Rights {
        write: false,
        ..rights
    };
    for (lo, hi) in ranges().filter(|&(lo, _)| lo < SIXTEEN + 2 * FOUR) {
        let (before, after) = watch(mixed, |m| m.protect(lo..hi, less).map(Some));
        for page in 0..64 {
            let inside = (lo..hi).contains(&(page as u64 * PAGE));
            let weaker = before[page].map(|(target, rights)| (target, less(rights)));
            assert_eq!(after[page], if inside { weaker } else { before[page] });
        }
    }
}

#[test]
fn remap_any_range() {
    for (lo, hi) in ranges() {
        for target in [0x50_0000 + lo, 0x50_1000 + lo] {
            let (before, after) = watch(mixed, |m| m.remap(lo..hi, target, R).map(Some));
            for page in 0..64 {
                let at = page as u64 * PAGE;
                let inside = (lo..hi)
                    .contains(&at)
                    .then_some((target + at.saturating_sub(lo), R));
                assert_eq!(after[page], inside.or(before[page]));
            }
        }
    }
}

#[test]
fn split_any_range_to_each_level() {
    for (lo, hi) in ranges().filter(|&(lo, _)| lo < SIXTEEN + 2 * FOUR) {
        for level in [1, 2] {
            let (before, after) = watch(mixed, |m| {
                let stale = m.split(lo..hi, level)?;
                for page in (lo..hi).step_by(PAGE as usize) {
                    let there = m.translate(page);
                    assert!(there.is_err() || there.unwrap().level <= level);
                }
                Ok(Some(stale))
            });
            assert_eq!(before, after);
        }
    }
}

#[test]
fn merge_makes_large_pages_and_drops_empty_tables() {
    let small = |mapper: &mut Tiny<'_>| {
        mapper.set_sizes(Sizes::SMALLEST);
        mapper.map(0..2 * SIXTEEN + FOUR, 0x10_0000, RW).unwrap();
        mapper
            .map(3 * SIXTEEN..3 * SIXTEEN + PAGE, 0x70_0000, RW)
            .unwrap();
        let stale = mapper.unmap(3 * SIXTEEN..3 * SIXTEEN + PAGE).unwrap();
        mapper
            .settle(stale, &mut |_: &Stale| Ok::<(), ()>(()))
            .unwrap();
        mapper.set_sizes(Sizes::ANY);
    };
    for (lo, hi) in ranges() {
        let (before, after) = watch(small, |m| m.merge(lo..hi).map(Some));
        assert_eq!(before, after);
    }
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
    small(&mut mapper);
    assert_eq!(memory.in_use(), 1 + 4 + 9 + 1);
    let stale = mapper.merge(0..64 * PAGE).unwrap();
    assert!(stale.tables());
    assert_eq!(mapper.translate(0).unwrap().level, 3);
    assert_eq!(mapper.translate(2 * SIXTEEN).unwrap().level, 2);
    assert_eq!(
        mapper.walk(3 * SIXTEEN).steps().len(),
        1,
        "the empty tables are gone"
    );
    mapper
        .settle(stale, &mut |_: &Stale| Ok::<(), ()>(()))
        .unwrap();
    assert_eq!(memory.in_use(), 2);
}

#[test]
fn a_merged_table_is_not_written_before_it_is_settled() {
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
    mapper.set_sizes(Sizes::SMALLEST);
    mapper.map(0..2 * FOUR, 0x10_0000, RW).unwrap();
    mapper.set_sizes(Sizes::ANY);
    let old: Vec<u64> = [0, FOUR]
        .map(|at| mapper.walk(at).steps()[2].at.unwrap() & !0xfff)
        .to_vec();
    memory.checkpoint();
    let stale = mapper.merge(0..2 * FOUR).unwrap();
    let written = |frame: &u64| {
        memory
            .journal()
            .iter()
            .any(|store| store.at & !0xfff == *frame)
    };
    assert!(
        !old.iter().any(written),
        "hardware may still translate through them"
    );
    mapper
        .settle(stale, &mut |_: &Stale| Ok::<(), ()>(()))
        .unwrap();
}

#[test]
fn the_test_can_fail() {
    // A link stored before its table is filled shows what is in the frame.
    let attempt = |link_first: bool| {
        let memory = FakeTables::new();
        let mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
        memory.checkpoint();
        let frame = memory.allocate().unwrap();
        let link = || memory.write(mapper.root(), Width::Eight, frame | 3);
        if link_first {
            link();
        }
        (0..4).for_each(|i| memory.write(frame + i * 8, Width::Eight, 0));
        if !link_first {
            link();
        }
        let root = mapper.root();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&memory, root))).is_ok()
    };
    assert!(attempt(false));
    assert!(!attempt(true));
}

#[test]
fn marks_that_hardware_sets_in_between_are_kept() {
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
    let settle = |mapper: &Tiny<'_>, stale| {
        mapper
            .settle(stale, &mut |_: &Stale| Ok::<(), ()>(()))
            .unwrap();
    };
    mapper.map(0..SIXTEEN, 0x10_0000, RW).unwrap();
    // A split: each of the small pages inherits it.
    memory.mark_before_exchange(DIRTY);
    let stale = mapper.split(0..SIXTEEN, 1).unwrap();
    settle(&mapper, stale);
    let leaf = |mapper: &Tiny<'_>, at| mapper.walk(at).steps().last().unwrap().entry;
    assert!((0..16).all(|page| leaf(&mapper, page * PAGE) & DIRTY != 0));
    // A harvest clears and tells.
    let mut marked = vec![];
    let stale = mapper
        .harvest(0..SIXTEEN, Collect::Both, |m| {
            marked.push(m);
        })
        .unwrap();
    settle(&mapper, stale);
    assert_eq!(marked.len(), 1);
    assert_eq!(
        (marked[0].span.length, marked[0].accessed, marked[0].dirty),
        (SIXTEEN, false, true)
    );
    assert!((0..16).all(|page| leaf(&mapper, page * PAGE) & DIRTY == 0));
    // A change of rights.
    memory.mark_before_exchange(DIRTY);
    let stale = mapper.protect(0..PAGE, |_| R).unwrap();
    settle(&mapper, stale);
    assert_eq!(leaf(&mapper, 0), 0x10_0000 | 1 << 63 | DIRTY | 1);
    // A harvest that hardware gets in the way of: nothing is lost.
    memory.mark_before_exchange(ACCESSED);
    let mut marked = vec![];
    let stale = mapper
        .harvest(0..PAGE, Collect::Both, |m| marked.push(m))
        .unwrap();
    settle(&mapper, stale);
    assert_eq!((marked[0].accessed, marked[0].dirty), (true, true));
    // One that was read and not written.
    memory.mark_before_exchange(ACCESSED);
    let stale = mapper.protect(0..PAGE, |_| RW).unwrap();
    settle(&mapper, stale);
    let mut marked = vec![];
    let stale = mapper
        .harvest(0..PAGE, Collect::Both, |m| marked.push(m))
        .unwrap();
    settle(&mapper, stale);
    assert_eq!((marked[0].accessed, marked[0].dirty), (true, false));
}

/// A large page that is cut is read more than once. Whenever hardware marks it, before any of those
/// reads, the small pages that still lead where it led are marked.
#[test]
fn a_page_that_is_written_while_its_cut_is_planned_stays_dirty() {
    const DIRTY: u64 = 1 << 6;
    type Cut = fn(&mut Tiny<'_>) -> Result<Stale, Refused<Eights>>;
    let cuts: [(&str, Cut, u64); 5] = [
        // Name, operation, how often it reads the first large page.
        ("split", |m| m.split(0..2 * SIXTEEN, 1), 3),
        ("split to fours", |m| m.split(0..SIXTEEN, 2), 3),
        ("unmap", |m| m.unmap(PAGE..2 * PAGE), 4),
        ("protect", |m| m.protect(0..PAGE, |_| R), 4),
        ("remap", |m| m.remap(5 * PAGE..6 * PAGE, 0x50_0000, R), 4),
    ];
    for (name, cut, reads) in cuts {
        for read in 0..reads {
            let memory = FakeTables::new();
            let mut mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
            mapper.map(0..2 * SIXTEEN, 0x10_0000, RW).unwrap();
            // Of two pages that are cut, the other's marks are not this one's.
            let second = mapper.walk(SIXTEEN).steps()[0];
            memory.tamper(second.at.unwrap(), Width::Eight, second.entry | DIRTY);
            let large = mapper.walk(0).steps()[0].at.unwrap();
            memory.mark_before_read(large, Width::Eight, read, DIRTY);
            let stale = cut(&mut mapper).unwrap();
            mapper
                .settle(stale, &mut |_: &Stale| Ok::<(), ()>(()))
                .unwrap();
            for page in 0..16 {
                let leaf = *mapper.walk(page * PAGE).steps().last().unwrap();
                let kept = matches!(mapper.translate(page * PAGE), Ok(there) if there.target == 0x10_0000 + page * PAGE);
                assert!(
                    !kept || leaf.entry & DIRTY != 0,
                    "{name}, marked before read {read}: page {page} lost it"
                );
            }
            // It was marked in time, or the test says nothing.
            assert!(
                (0..16).any(|page| {
                    mapper.walk(page * PAGE).steps().last().unwrap().entry & DIRTY != 0
                }),
                "{name} does not read {read} times"
            );
        }
    }
}

#[test]
fn leaves_that_are_born_marked_stay_so() {
    let memory = FakeTables::new();
    let format = Eights {
        born: MARKS.all(),
        ..Eights::tiny()
    };
    let mut mapper = Mapper::new(format, &memory, &memory).unwrap();
    mapper.map(0..2 * SIXTEEN, 0x10_0000, RW).unwrap();
    let all_marked = |mapper: &Tiny<'_>| {
        let leaf = |page| mapper.walk(page * PAGE).steps().last().unwrap().entry;
        (0..32).all(|page| leaf(page) & MARKS.all() == MARKS.all())
    };
    assert!(all_marked(&mapper));
    // Whatever is made of them anew: smaller pages, of two at once, for which one of the tables is the other's link for a
    // while; the same with other rights; larger ones.
    let changes: [fn(&mut Tiny<'_>) -> Stale; 3] = [
        |mapper| mapper.split(0..2 * SIXTEEN, 1).unwrap(),
        |mapper| mapper.protect(0..2 * PAGE, |_| R).unwrap(),
        |mapper| mapper.merge(4 * PAGE..SIXTEEN).unwrap(),
    ];
    for change in changes {
        let stale = change(&mut mapper);
        mapper
            .settle(stale, &mut |_: &Stale| Ok::<(), ()>(()))
            .unwrap();
        assert!(all_marked(&mapper));
    }
}
