// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Operations on an EPT, beside the plainest model of one: a sorted map of ranges. Other formats are `mapper_formats`'.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use hvkit_ept::spec::{Controls, EptVpidCap, MemoryType, Rights, WalkLength};
use hvkit_ept::{Attributes, Ept};
use hvkit_page_table::{Encode, MapError, Mapper, Sizes, Span, Stale};

use crate::arena::Arena;

/// Those that there are until an operation says otherwise: enough for each kind of splitting, and few, so that an input is
/// quickly done with.
const AT_FIRST: usize = 64;

/// Pages of the space that operations choose from: 8 GiB, so that every page size occurs.
const PAGES: u64 = 1 << 21;

/// Bytes of the space that is looked at: what no operation chooses, too.
pub(crate) const SPACE: u64 = 1 << 34;

#[derive(Arbitrary, Debug, Clone, Copy)]
pub(crate) enum Op {
    Map(Place, u32, Kind),
    Remap(Place, u32, Kind),
    Unmap(Place),
    Protect(Place, Kind),
    Split(Place, u8),
    Merge(Place),
    FaultIn(Place, u32, Kind),
    Sizes(u8, u8),
    Frames(u8),
}

/// A range of pages, mostly aligned to something.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub(crate) struct Place {
    page: u32,
    length: u32,
    align: u8,
}

impl Place {
    /// In the space that begins at `base`.
    fn span(self, base: u64) -> Span {
        let shift = [0, 0, 0, 9, 9, 18][usize::from(self.align % 6)];
        let start = ((u64::from(self.page) % PAGES) >> shift) << shift;
        let most = if shift == 18 { 2 } else { 8 };
        let length = (1 + u64::from(self.length) % most) << shift;
        Span::new(base + (start << 12), length << 12)
    }
}

#[derive(Arbitrary, Debug, Clone, Copy)]
pub(crate) struct Kind(pub(crate) u8);

fn attributes(kind: Kind) -> Attributes {
    let rights = match kind.0 & 3 {
        0 => Rights::READ,
        1 => Rights::READ_WRITE,
        2 => Rights::READ | Rights::EXECUTE,
        _ => Rights::READ_WRITE_EXECUTE,
    };
    let memory_type = if kind.0 & 4 == 0 {
        MemoryType::WriteBack
    } else {
        MemoryType::Uncacheable
    };
    Attributes::new(rights, memory_type)
}

/// Start to end, target and attributes; neighbours that continue each other are one.
#[derive(Clone, Debug, PartialEq)]
struct Model<A>(BTreeMap<u64, (u64, u64, A)>);

/// Start, end, target and attributes of what is mapped.
type Stretches<A> = Vec<(u64, u64, u64, A)>;

impl<A: Copy + PartialEq> Model<A> {
    fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Removes what is in `start..end`, and returns it in pieces.
    fn cut(&mut self, start: u64, end: u64) -> Stretches<A> {
        let over: Vec<_> = self
            .0
            .range(..end)
            .filter(|(_, (e, ..))| *e > start)
            .map(|(&s, &(e, t, a))| (s, e, t, a))
            .collect();
        let mut cut = vec![];
        for (s, e, t, a) in over {
            self.0.remove(&s);
            if s < start {
                self.0.insert(s, (start, t, a));
            }
            if e > end {
                self.0.insert(end, (e, t + (end - s), a));
            }
            let (low, high) = (s.max(start), e.min(end));
            cut.push((low, high, t + (low - s), a));
        }
        cut
    }

    fn insert(&mut self, start: u64, end: u64, target: u64, attributes: A) {
        self.0.insert(start, (end, target, attributes));
    }

    /// As `Mapper::mappings` tells it.
    fn stretches(&self) -> Stretches<A> {
        let mut out: Stretches<A> = vec![];
        for (&s, &(e, t, a)) in &self.0 {
            match out.last_mut() {
                Some(last) if last.1 == s && last.2 + (s - last.0) == t && last.3 == a => {
                    last.1 = e;
                }
                _ => out.push((s, e, t, a)),
            }
        }
        out
    }
}

type Table<'a, F> = Mapper<F, &'a Arena, &'a Arena>;

fn settle<F: Encode>(mapper: &Table<'_, F>, stale: Stale) {
    let mut flush = |_: &Stale| Ok::<(), u8>(());
    assert!(mapper.settle(stale, &mut flush).is_ok());
}

fn stretches<F: Encode>(mapper: &Table<'_, F>, base: u64) -> Stretches<F::Attributes> {
    let all = mapper.mappings(Span::new(base, SPACE)).unwrap();
    all.map(|m| m.unwrap())
        .map(|m| {
            (
                m.span.start,
                m.span.start + m.span.length,
                m.target,
                m.attributes,
            )
        })
        .collect()
}

/// Does `ops` to a new table of `format`, in the space from `base`, with the attributes that `of` makes.
pub(crate) fn check<F: Encode>(
    format: F,
    base: u64,
    of: impl Fn(Kind) -> F::Attributes,
    ops: &[Op],
) {
    let memory = Arena::new(AT_FIRST);
    let mut mapper = Mapper::new(format, &memory, &memory).unwrap();
    let mut model = Model::new();
    for &op in ops.iter().take(32) {
        let target = |page: u32| (u64::from(page) % (1 << 24)) << 12;
        let frames = memory.used();
        let refused = match op {
            Op::Map(place, page, kind) => {
                let (span, target, a) = (place.span(base), target(page), of(kind));
                let end = span.start + span.length;
                let taken = !model.clone().cut(span.start, end).is_empty();
                let done = mapper.map(span, target, a);
                // Without frames, the plan may stop before it comes to what is there.
                let overlaps = matches!(done, Err(MapError::Overlap { .. }));
                assert!(
                    if taken { done.is_err() } else { !overlaps },
                    "{op:?}: {done:?}"
                );
                if done.is_ok() {
                    model.insert(span.start, end, target, a);
                }
                done.err()
            }
            Op::Remap(place, page, kind) => {
                let (span, target, a) = (place.span(base), target(page), of(kind));
                match mapper.remap(span, target, a) {
                    Ok(stale) => {
                        settle(&mapper, stale);
                        let end = span.start + span.length;
                        model.cut(span.start, end);
                        model.insert(span.start, end, target, a);
                        None
                    }
                    Err(why) => Some(why),
                }
            }
            Op::Unmap(place) => {
                let span = place.span(base);
                match mapper.unmap(span) {
                    Ok(stale) => {
                        settle(&mapper, stale);
                        model.cut(span.start, span.start + span.length);
                        None
                    }
                    Err(why) => Some(why),
                }
            }
            Op::Protect(place, kind) => {
                let (span, a) = (place.span(base), of(kind));
                match mapper.protect(span, |_| a) {
                    Ok(stale) => {
                        settle(&mapper, stale);
                        for (s, e, t, _) in model.cut(span.start, span.start + span.length) {
                            model.insert(s, e, t, a);
                        }
                        None
                    }
                    Err(why) => Some(why),
                }
            }
            Op::Split(place, level) => match mapper.split(place.span(base), level % 5) {
                Ok(stale) => {
                    settle(&mapper, stale);
                    None
                }
                Err(why) => Some(why),
            },
            Op::Merge(place) => match mapper.merge(place.span(base)) {
                Ok(stale) => {
                    settle(&mapper, stale);
                    assert!(memory.used() <= frames, "merging frees");
                    None
                }
                Err(why) => Some(why),
            },
            Op::FaultIn(place, page, kind) => {
                let (span, target, a) = (place.span(base), target(page), of(kind));
                match mapper.fault_in(span, target, a) {
                    Ok(filled) => {
                        assert_eq!(filled.added + filled.same + filled.other, span.length);
                        // It fills slots of one size that hold nothing, and leaves the others: which
                        // those are, a model without tables cannot know. What it can: all that was
                        // there is there, and what is new is as asked.
                        let mut after = Model::new();
                        for (s, e, t, a) in stretches(&mapper, base) {
                            after.insert(s, e, t, a);
                        }
                        let mut new = after.clone();
                        for (s, e, t, a) in model.stretches() {
                            let there = new.cut(s, e);
                            assert!(
                                there
                                    .iter()
                                    .all(|&(low, _, to, b)| (to, b) == (t + (low - s), a))
                            );
                            let bytes: u64 = there.iter().map(|(low, high, ..)| high - low).sum();
                            assert_eq!(bytes, e - s, "{op:?} took something away");
                        }
                        let mut added = 0;
                        for (s, e, t, b) in new.stretches() {
                            assert_eq!((t, b), (target + (s - span.start), a), "{op:?}");
                            added += e - s;
                        }
                        assert_eq!(added, filled.added);
                        model = after;
                        None
                    }
                    Err(why) => Some(why),
                }
            }
            Op::Sizes(largest, largest_executable) => {
                let level = |n| n % 4;
                mapper.set_sizes(Sizes {
                    largest: level(largest),
                    largest_executable: level(largest_executable),
                });
                None
            }
            Op::Frames(more) => {
                memory.limit(frames + usize::from(more));
                None
            }
        };
        if let Some(why) = refused {
            assert_eq!(
                memory.used(),
                frames,
                "{op:?} was refused and kept frames: {why}"
            );
        }
        assert_eq!(stretches(&mapper, base), model.stretches(), "after {op:?}");
    }
    assert!(mapper.destroy(&mut |_: &Stale| Ok::<(), u8>(())).is_ok());
    assert_eq!(memory.used(), 0, "a frame is lost");
}

/// Reads `data` as a list of operations.
pub fn run(data: &[u8]) {
    if let Ok(ops) = Vec::<Op>::arbitrary_take_rest(Unstructured::new(data)) {
        let capability = EptVpidCap::from_msr(0x0f01_0673_4141);
        let controls = Controls::ACCESSED_DIRTY;
        let ept = Ept::new(capability, 46, WalkLength::Four, controls).unwrap();
        check(ept, 0, attributes, &ops);
    }
}
