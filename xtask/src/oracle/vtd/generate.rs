// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases from numbers.

use hvkit_vtd_iommu::spec::registers::{
    CCMD, FEADDR, FECTL, FEDATA, FEUADDR, FSTS, GCMD, ICS, IEADDR, IECTL, IEDATA, IQA, IQT, IRTA,
    RTADDR,
};
use lab_cases::Random;

use super::program::{Program, Step, layout};
use super::queue::{Queue, descriptor, look_at_queue};
use super::tables::{Stage, Words, disturb, spoil};

/// Global commands.
const TE: u32 = 1 << 31;
const SRTP: u32 = 1 << 30;
pub(super) const QIE: u32 = 1 << 26;
/// Where the model has its invalidate-address, IOTLB and fault-record registers.
const IVA: u32 = 0xf0;
const IOTLB: u32 = 0xf8;
const RECORD: u32 = 0x220;
/// The device: 00:03.0.
pub(super) const DEVFN: u64 = 0x18;

/// Case `index` of the run with `seed`.
pub(super) fn case(seed: u64, index: u64) -> Program {
    let mut random = Random::of_case(seed, index);
    let random = &mut random;
    let (kind, may_be_stale, steps) = match random.below(20) {
        0..=11 => ("tables", false, tables(random)),
        12..=15 => ("queue", false, queue(random)),
        16 | 17 => ("stale", true, stale(random)),
        _ => ("registers", false, registers(random)),
    };
    Program {
        kind: kind.to_owned(),
        may_be_stale,
        steps,
    }
}

/// What the tables of a case translate.
pub(super) struct Mapped {
    /// Each page's first address, its level, and the entries that lead there.
    pub(super) pages: Vec<(u64, u8, Vec<u64>)>,
    pub(super) domain: u64,
    /// Of requests without one.
    pub(super) pasid: u64,
    pub(super) root: u64,
    pub(super) levels: u8,
}

impl Mapped {
    /// Where an entry is that leads to a page.
    pub(super) fn entry(&self, random: &mut Random) -> u64 {
        let (_, _, path) = &self.pages[random.below(self.pages.len() as u64) as usize];
        path[random.below(path.len() as u64) as usize]
    }
}

/// Good tables with a few pages: root, context, second stage.
fn good(random: &mut Random, words: &mut Words) -> Mapped {
    let levels = if random.chance(2, 3) { 4 } else { 3 };
    let domain = random.pick(&[0, 1, 2, 7, 0xffff]);
    let root = words.frame();
    words.set(layout::ROOT, layout::CONTEXT | 1);
    let at = layout::CONTEXT + DEVFN * 16;
    words.set(at, root | 1);
    words.set(at + 8, domain << 8 | (u64::from(levels) - 2));
    let pages = pages(random, words, Stage::Second, root, levels);
    Mapped {
        pages,
        domain,
        pasid: 0,
        root,
        levels,
    }
}

/// Maps a few pages, at any level of the table at `root`.
pub(super) fn pages(
    random: &mut Random,
    words: &mut Words,
    stage: Stage,
    root: u64,
    levels: u8,
) -> Vec<(u64, u8, Vec<u64>)> {
    let bits = 12 + 9 * u32::from(levels);
    let mut pages = Vec::new();
    for _ in 0..1 + random.below(3) {
        let level = random.pick(&[1, 1, 1, 1, 2, 3]);
        let size = 1u64 << (3 + 9 * u32::from(level));
        let address = match random.below(6) {
            0 => 0,
            1 => size,
            2 => (1 << bits) - size,
            3 => 0x4000_0000,
            4 => 0x1234_5000,
            _ => random.next() & ((1 << bits) - 1),
        } & !(size - 1);
        let target = match level {
            1 => layout::DATA + 0x1000 * random.below(layout::DATA_FRAMES),
            2 => layout::DATA,
            _ => 0,
        };
        let rights = stage.leaf(random);
        let path = words.map(stage, root, levels, address, level, target | rights);
        pages.push((address, level, path));
    }
    pages
}

/// An address worth asking for.
pub(super) fn address(random: &mut Random, mapped: &Mapped) -> u64 {
    let (page, level, _) = &mapped.pages[random.below(mapped.pages.len() as u64) as usize];
    let word = 8 * random.below(layout::DATA_BYTES / 8);
    let frame = 0x1000 * random.below(layout::DATA_FRAMES);
    let inside = match level {
        1 => page + word,
        2 => page + frame + word,
        _ => page + layout::DATA + frame + word,
    };
    match random.below(12) {
        0 => inside ^ 1 << (12 + random.below(36)),
        1 => inside | 1 << random.pick(&[39, 47, 48, 57, 63]),
        2 => random.next() & !7,
        _ => inside,
    }
}

pub(super) fn dma(random: &mut Random, address: u64) -> Step {
    // The interrupt addresses are another oracle's.
    let address = if address >> 20 == 0xfee {
        address ^ 1 << 28
    } else {
        address
    };
    let slot = random.below(layout::BUFFER_WORDS);
    if random.chance(1, 2) {
        Step::Read { address, slot }
    } else {
        Step::Write { address, slot }
    }
}

/// Takes the root table and turns translation on.
pub(super) fn turn_on(steps: &mut Vec<Step>, root: u64, kept: u32) {
    steps.push(Step::Write64 {
        offset: RTADDR.offset(),
        value: root,
    });
    for value in [SRTP | kept, TE | kept] {
        steps.push(Step::Write32 {
            offset: GCMD.offset(),
            value,
        });
    }
}

pub(super) fn clear_faults(steps: &mut Vec<Step>) {
    steps.push(Step::Write32 {
        offset: RECORD + 12,
        value: 1 << 31,
    });
    steps.push(Step::Write32 {
        offset: FSTS.offset(),
        value: 0x7f,
    });
}

/// DMA through tables that may be spoilt anywhere.
fn tables(random: &mut Random) -> Vec<Step> {
    let mut words = Words::default();
    let mapped = good(random, &mut words);
    if random.chance(1, 2) {
        let at = mapped.entry(random);
        let entry = spoil(random, words.get(at));
        words.set(at, entry);
    }
    if random.chance(1, 5) {
        let context = layout::CONTEXT + DEVFN * 16;
        let at = random.pick(&[
            layout::ROOT,
            layout::ROOT + 8,
            context,
            context,
            context + 8,
        ]);
        let entry = match random.below(5) {
            0 => words.get(at) & !1,
            // TT or AW.
            1 if at == context => words.get(at) ^ random.below(4) << 2,
            1 => words.get(at) ^ random.below(8),
            2 if at & 8 == 0 => words.get(at) | 1 << random.pick(&[32, 47, 48, 63]),
            _ => disturb(random, words.get(at)),
        };
        words.set(at, entry);
    }
    if random.chance(1, 8) {
        // FPD.
        let at = layout::CONTEXT + DEVFN * 16;
        words.set(at, words.get(at) | 2);
    }
    let mut steps: Vec<Step> = words.stores().collect();
    if random.chance(1, 4) {
        steps.push(Step::Write32 {
            offset: FECTL.offset(),
            value: 0,
        });
    }
    turn_on(&mut steps, layout::ROOT, 0);
    for _ in 0..1 + random.below(4) {
        let address = address(random, &mapped);
        steps.push(dma(random, address));
        steps.push(Step::Faults);
        if random.chance(3, 4) {
            clear_faults(&mut steps);
            steps.push(Step::Faults);
        }
    }
    steps
}

/// Descriptors of all kinds, with DMA in between; what changes is invalidated.
fn queue(random: &mut Random) -> Vec<Step> {
    let mut words = Words::default();
    let mapped = good(random, &mut words);
    let mut steps: Vec<Step> = words.stores().collect();
    let mut queue = Queue::start(random, &mut steps);
    turn_on(&mut steps, layout::ROOT, queue.on);
    for _ in 0..1 + random.below(3) {
        let address = address(random, &mapped);
        match random.below(4) {
            0 => {
                steps.push(dma(random, address));
                steps.push(Step::Faults);
                clear_faults(&mut steps);
            }
            1 => {
                // A page changes, and is invalidated one way or another.
                let (page, level, path) =
                    &mapped.pages[random.below(mapped.pages.len() as u64) as usize];
                steps.push(dma(random, *page + 8));
                clear_faults(&mut steps);
                let at = path[random.below(path.len() as u64) as usize];
                let entry = spoil(random, words.get(at));
                words.set(at, entry);
                steps.push(Step::Store { at, word: entry });
                let order = 9 * (u64::from(*level) - 1);
                let invalidation = match random.below(3) {
                    0 => [0x12, 0],
                    1 => [0x22 | mapped.domain << 16, 0],
                    _ if at == path[path.len() - 1] => [
                        0x32 | mapped.domain << 16,
                        page | order | random.below(2) << 6,
                    ],
                    _ => [0x22 | mapped.domain << 16, 0],
                };
                queue.push(&mut steps, invalidation);
                queue.push(&mut steps, [0x25 | random.next() << 32, layout::STATUS]);
                queue.ring(&mut steps);
                look_at_queue(&mut steps);
                steps.push(dma(random, *page + 16));
                steps.push(Step::Faults);
                clear_faults(&mut steps);
            }
            _ => {
                for _ in 0..1 + random.below(4) {
                    let words = descriptor(random, mapped.domain);
                    queue.push(&mut steps, words);
                }
                queue.ring(&mut steps);
                look_at_queue(&mut steps);
            }
        }
    }
    if random.chance(1, 6) {
        // A tail that is nowhere.
        steps.push(Step::Write64 {
            offset: IQT.offset(),
            value: random.next() & 0x7_fff0,
        });
        look_at_queue(&mut steps);
    }
    steps
}

/// Tables that change, with an invalidation that need not be enough.
fn stale(random: &mut Random) -> Vec<Step> {
    let mut words = Words::default();
    let mapped = good(random, &mut words);
    let mut steps: Vec<Step> = words.stores().collect();
    let mut queue = Queue::start(random, &mut steps);
    turn_on(&mut steps, layout::ROOT, queue.on);
    for _ in 0..1 + random.below(3) {
        let (page, _, path) = &mapped.pages[random.below(mapped.pages.len() as u64) as usize];
        let word = 8 * random.below(8);
        steps.push(dma(random, *page + word));
        clear_faults(&mut steps);
        let context = layout::CONTEXT + DEVFN * 16;
        let (at, entry) = match random.below(6) {
            0 => (context, disturb(random, words.get(context))),
            1 => {
                // Another table, and perhaps another domain.
                let domain = random.below(8);
                words.set(context + 8, domain << 8 | (u64::from(mapped.levels) - 2));
                steps.push(Step::Store {
                    at: context + 8,
                    word: words.get(context + 8),
                });
                (context, mapped.root | 1)
            }
            _ => {
                let at = path[random.below(path.len() as u64) as usize];
                (at, spoil(random, words.get(at)))
            }
        };
        words.set(at, entry);
        steps.push(Step::Store { at, word: entry });
        if random.chance(2, 3) {
            let domain = mapped.domain << 16;
            if at & !8 == context {
                // Context entries first, then what was translated through them: a unit may keep the one by the other. Not by
                // domain: whose the old entry was is not known here.
                let devices = (1 + 2 * random.below(2)) << 4 | DEVFN << 32;
                queue.push(&mut steps, [0x1 | devices | domain, 0]);
                queue.push(&mut steps, [0x12, 0]);
            } else {
                queue.push(
                    &mut steps,
                    match random.below(2) {
                        0 => [0x2 | (1 + random.below(2)) << 4 | domain, 0],
                        _ => [0x32 | domain, page ^ random.below(4) << 12],
                    },
                );
            }
            queue.push(&mut steps, [0x25, layout::STATUS]);
            queue.ring(&mut steps);
        }
        let word = 8 * random.below(8);
        steps.push(dma(random, *page + word));
        steps.push(Step::Faults);
        clear_faults(&mut steps);
    }
    steps
}

/// Writes to registers, and a look at all of them.
fn registers(random: &mut Random) -> Vec<Step> {
    const WIDE: [u32; 8] = [
        RTADDR.offset(),
        CCMD.offset(),
        IQT.offset(),
        IRTA.offset(),
        IVA,
        IOTLB,
        RECORD,
        RECORD + 8,
    ];
    const NARROW: [u32; 16] = [
        0x00,
        0x08,
        0x14,
        0x1c,
        FSTS.offset(),
        FECTL.offset(),
        FEDATA.offset(),
        FEADDR.offset(),
        FEUADDR.offset(),
        ICS.offset(),
        IECTL.offset(),
        IEDATA.offset(),
        IEADDR.offset(),
        0x64,
        0x80,
        RECORD + 12,
    ];
    let mut steps = Vec::new();
    let value = |random: &mut Random| match random.below(4) {
        0 => u64::MAX,
        1 => 1 << random.below(64),
        2 => random.next() & random.next(),
        _ => random.next(),
    };
    for _ in 0..1 + random.below(10) {
        let word = value(random);
        steps.push(match random.below(12) {
            0 => Step::Write32 {
                offset: GCMD.offset(),
                value: word as u32,
            },
            1 => Step::Write64 {
                offset: IQA.offset(),
                value: layout::QUEUE | word & 0x807,
            },
            2..=5 => Step::Write64 {
                offset: random.pick(&WIDE),
                value: word,
            },
            6 => Step::Write32 {
                offset: random.pick(&WIDE) + 4 * random.below(2) as u32,
                value: word as u32,
            },
            _ => Step::Write32 {
                offset: random.pick(&NARROW),
                value: word as u32,
            },
        });
        if random.chance(1, 3) {
            look_at_all(&mut steps);
        }
    }
    look_at_all(&mut steps);
    steps
}

fn look_at_all(steps: &mut Vec<Step>) {
    steps.push(Step::Faults);
    steps.push(Step::Look {
        offset: 0,
        count: 64,
    });
}
