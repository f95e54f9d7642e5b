// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases of interrupt remapping from numbers: entries, messages, and the cache of entries.

use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::interrupt::{Irte, Message, SourceCheck, SourceQualifier};
use hvkit_vtd_iommu::spec::registers::{GCMD, GSTS, IRTA};
use lab_cases::Random;

use super::generate::{DEVFN, clear_faults};
use super::program::{Program, Step, layout};
use super::queue::Queue;
use super::tables::disturb;

const SIRTP: u32 = 1 << 24;
const IRE: u32 = 1 << 25;
const CFI: u32 = 1 << 23;
/// EIME.
const EXTENDED: u64 = 1 << 11;

/// Case `index` of the run with `seed`.
pub(super) fn case(seed: u64, index: u64) -> Program {
    let mut random = Random::of_case(seed, index);
    let random = &mut random;
    let mut steps: Vec<Step> = layout::HANDLERS
        .iter()
        .map(|(at, word)| Step::Store {
            at: *at,
            word: *word,
        })
        .collect();
    let (kind, may_be_stale) = match random.below(10) {
        0..=5 => {
            entries(random, &mut steps);
            ("entries", false)
        }
        6 | 7 => {
            changes(random, &mut steps, Invalidation::Enough);
            ("invalidated", false)
        }
        8 => {
            changes(random, &mut steps, Invalidation::AnyOrNone);
            ("stale", true)
        }
        _ => {
            commands(random, &mut steps);
            // A new table pointer leaves what was kept of the old table's entries.
            ("commands", true)
        }
    };
    Program {
        kind: kind.to_owned(),
        may_be_stale,
        steps,
    }
}

/// A table in the making.
struct Table {
    /// The number of entries is 2 to the power of this and 1.
    size: u64,
    entries: Vec<(u64, Irte)>,
}

impl Table {
    fn new(random: &mut Random, steps: &mut Vec<Step>) -> Self {
        let size = random.pick(&[0, 1, 3, 7, 7, 9]);
        let mut table = Self {
            size,
            entries: Vec::new(),
        };
        for _ in 0..1 + random.below(4) {
            let index = match random.below(4) {
                0 => random.below(2),
                1 => table.length() - 1,
                _ => random.below(table.length()),
            };
            let entry = entry(random);
            table.entries.push((index, entry));
            store(steps, index, entry);
        }
        table
    }

    fn length(&self) -> u64 {
        2 << self.size
    }

    /// An entry that was made.
    fn one(&self, random: &mut Random) -> (u64, Irte) {
        self.entries[random.below(self.entries.len() as u64) as usize]
    }

    /// An index worth asking for.
    fn index(&self, random: &mut Random) -> u64 {
        match random.below(12) {
            0 => random.below(self.length()),
            1 => self.length(),
            2 => random.below(0x1_0000),
            3 => self.one(random).0 ^ 1 << random.below(16),
            _ => self.one(random).0,
        }
    }
}

fn store(steps: &mut Vec<Step>, index: u64, entry: Irte) {
    let at = layout::TABLES + index * Irte::SIZE;
    for (at, word) in [at, at + 8].into_iter().zip(entry.0) {
        steps.push(Step::Store { at, word });
    }
}

/// Takes the table and turns remapping on.
fn turn_on(steps: &mut Vec<Step>, table: u64, kept: u32) {
    steps.push(Step::Write64 {
        offset: IRTA.offset(),
        value: table,
    });
    for value in [SIRTP | kept, IRE | kept] {
        steps.push(command(value));
    }
}

fn command(value: u32) -> Step {
    Step::Write32 {
        offset: GCMD.offset(),
        value,
    }
}

/// An entry, good or not.
fn entry(random: &mut Random) -> Irte {
    let destination = match random.below(6) {
        0 => 0,
        1 => 0xff00,
        2 => 0xffff_ffff,
        3 => random.next() as u32,
        _ => (random.below(0x100) as u32) << 8,
    };
    let mut entry = Irte::remapped(random.below(256) as u8, destination)
        .with_dlm(random.pick(&[0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7]));
    // DM, RH, TM, AVAIL.
    for bit in [2, 3, 4, 8, 11] {
        entry.0[0] |= random.bit(bit, 1, 3);
    }
    if random.chance(1, 8) {
        entry = entry.with_fault_processing_disabled();
    }
    if random.chance(1, 2) {
        entry = entry.with_source_check(check(random));
    }
    match random.below(8) {
        0 => Irte([disturb(random, entry.0[0]), entry.0[1]]),
        1 => Irte([entry.0[0], disturb(random, entry.0[1])]),
        2 if random.chance(1, 2) => Irte([entry.0[0] & !1, entry.0[1]]),
        3 if random.chance(1, 4) => Irte([random.next(), random.next()]),
        _ => entry,
    }
}

/// A check of the source that the device may pass.
fn check(random: &mut Random) -> SourceCheck {
    let mut source = DEVFN as u16;
    for _ in 0..random.below(3) {
        source ^= 1 << random.pick(&[0, 1, 2, 2, 3, 4, 8, 15]);
    }
    let qualifier = SourceQualifier::from_bits(random.below(4));
    match random.below(8) {
        0 => SourceCheck::Reserved,
        1 | 2 => SourceCheck::Buses {
            first: random.pick(&[0, 0, 1]),
            last: random.pick(&[0, 1, 0xff]),
        },
        _ => SourceCheck::Requester(RequesterId(source), qualifier),
    }
}

/// A message that asks for entry `index`, by handle alone or with a subhandle, perhaps with bits that mean nothing; or
/// one of the compatibility format.
fn message(random: &mut Random, index: u64) -> Step {
    let mut message = match random.below(24) {
        0 => Message {
            address: 0xfee0_0000 | random.next() & 0xf_ffec,
            data: random.next() as u32 & 0xffff,
        },
        1..=10 => {
            let any = random.below(256) as u16;
            let subhandle = random.pick(&[0, 1, 5, 0x1f, any]);
            // Handles do not go below 0: one time in a few, handle and subhandle are beyond what an index can be.
            let subhandle = match random.below(30) {
                0 => 0xffff,
                _ => subhandle.min(index as u16),
            };
            Message::remappable_block((index as u16).wrapping_sub(subhandle), subhandle)
        }
        11..=14 => Message {
            data: random.next() as u32 & 0xffff,
            ..Message::remappable(index as u16)
        },
        _ => Message::remappable(index as u16),
    };
    if random.chance(1, 40) {
        message.data |= 1 << (16 + random.below(16));
    }
    Step::Message {
        address: message.address as u32,
        data: message.data,
    }
}

/// Sends a message and looks at what is recorded.
fn send(random: &mut Random, steps: &mut Vec<Step>, index: u64) {
    steps.push(message(random, index));
    steps.push(Step::Faults);
    if random.chance(3, 4) {
        clear_faults(steps);
    }
}

/// Entries of all kinds, and messages that ask for them.
fn entries(random: &mut Random, steps: &mut Vec<Step>) {
    let table = Table::new(random, steps);
    let extended = if random.chance(1, 3) { EXTENDED } else { 0 };
    let place = match random.below(30) {
        // Nothing is there.
        0 => 1 << 40,
        _ => layout::TABLES,
    };
    turn_on(steps, place | extended | table.size, 0);
    for _ in 0..1 + random.below(5) {
        let index = table.index(random);
        send(random, steps, index);
    }
}

/// What follows a change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Invalidation {
    /// What the specification wants.
    Enough,
    /// Some other, or none.
    AnyOrNone,
}

/// Entries that change under the unit.
fn changes(random: &mut Random, steps: &mut Vec<Step>, invalidation: Invalidation) {
    let table = Table::new(random, steps);
    let mut queue = Queue::start(random, steps);
    turn_on(steps, layout::TABLES | table.size, queue.on);
    for _ in 0..1 + random.below(3) {
        let (index, _) = table.one(random);
        send(random, steps, index);
        clear_faults(steps);
        store(steps, index, entry(random));
        let by_index = |order: u64, index: u64| [0x14 | order << 27 | index << 32, 0];
        let words = match (invalidation, random.below(4)) {
            (_, 0) => Some([0x4, 0]),
            (Invalidation::Enough, _) => {
                let order = random.below(5);
                Some(by_index(order, index >> order << order))
            }
            (Invalidation::AnyOrNone, 1) => None,
            (Invalidation::AnyOrNone, _) => {
                let near = index ^ 1 << random.below(3);
                Some(by_index(random.below(3), near))
            }
        };
        if let Some(words) = words {
            queue.push(steps, words);
            queue.push(steps, [0x25, layout::STATUS]);
            queue.ring(steps);
        }
        for _ in 0..1 + random.below(2) {
            send(random, steps, index);
        }
    }
    steps.push(Step::Faults);
}

/// Remapping on and off, other tables, compatibility format.
fn commands(random: &mut Random, steps: &mut Vec<Step>) {
    let table = Table::new(random, steps);
    let other = layout::TABLES + 0x6000;
    let index = table.one(random).0;
    let at = other + index * Irte::SIZE;
    for (at, word) in [at, at + 8].into_iter().zip(entry(random).0) {
        steps.push(Step::Store { at, word });
    }
    turn_on(steps, layout::TABLES | table.size, 0);
    for _ in 0..1 + random.below(4) {
        match random.below(6) {
            0 => steps.push(command(0)),
            1 => steps.push(command(IRE)),
            2 => steps.push(command(IRE | CFI)),
            3 => steps.push(Step::Write64 {
                // Not taken yet.
                offset: IRTA.offset(),
                value: random.pick(&[layout::TABLES, other]) | table.size | EXTENDED,
            }),
            4 => turn_on(steps, other | random.below(10), 0),
            _ => {
                // As wide as it may be, and the bits that are reserved.
                let reserved = random.next() & 0x7f0;
                turn_on(steps, layout::TABLES | reserved | table.size, 0);
            }
        }
        steps.push(Step::Look {
            offset: GSTS.offset(),
            count: 1,
        });
        let index = table.index(random);
        send(random, steps, index);
    }
    steps.push(Step::Look {
        offset: IRTA.offset(),
        count: 2,
    });
}
