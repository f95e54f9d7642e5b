// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Invalidation queues and descriptors, good ones and bad ones.

use hvkit_vtd_iommu::spec::registers::{GCMD, IECTL, IQA, IQT};
use lab_cases::Random;

use super::generate::{DEVFN, QIE};
use super::program::{Step, layout};
use super::tables::disturb;

/// A queue in the making.
pub(super) struct Queue {
    pub(super) tail: u64,
    pub(super) size: u64,
    pub(super) on: u32,
    /// Words of a descriptor: 2 or 4.
    width: u64,
}

impl Queue {
    /// Turns the queue on.
    pub(super) fn start(random: &mut Random, steps: &mut Vec<Step>) -> Self {
        Self::of_width(random, steps, 2)
    }

    /// Turns the queue on, with descriptors of 256 bits.
    pub(super) fn start_wide(random: &mut Random, steps: &mut Vec<Step>) -> Self {
        Self::of_width(random, steps, 4)
    }

    fn of_width(random: &mut Random, steps: &mut Vec<Step>, width: u64) -> Self {
        steps.push(Step::Write64 {
            offset: IQT.offset(),
            value: 0,
        });
        steps.push(Step::Write64 {
            offset: IQA.offset(),
            // DW.
            value: layout::QUEUE | (width / 4) << 11,
        });
        if random.chance(1, 4) {
            steps.push(Step::Write32 {
                offset: IECTL.offset(),
                value: 0,
            });
        }
        steps.push(Step::Write32 {
            offset: GCMD.offset(),
            value: QIE,
        });
        Self {
            tail: 0,
            size: 0x1000,
            on: QIE,
            width,
        }
    }

    pub(super) fn push(&mut self, steps: &mut Vec<Step>, words: [u64; 2]) {
        for (at, word) in (layout::QUEUE + self.tail..).step_by(8).zip(words) {
            steps.push(Step::Store { at, word });
        }
        self.tail = (self.tail + 8 * self.width) % self.size;
    }

    pub(super) fn ring(&self, steps: &mut Vec<Step>) {
        steps.push(Step::Write64 {
            offset: IQT.offset(),
            value: self.tail,
        });
    }
}

/// Looks at what the queue changes.
pub(super) fn look_at_queue(steps: &mut Vec<Step>) {
    steps.push(Step::Faults);
    steps.push(Step::Look {
        offset: 0x80,
        count: 8,
    });
    steps.push(Step::Look {
        offset: 0xa0,
        count: 1,
    });
    for at in [0, 8] {
        steps.push(Step::Load {
            at: layout::STATUS + at,
        });
    }
}

pub(super) fn wait(random: &mut Random) -> [u64; 2] {
    let flags = random.below(8) << 4 | 0x20;
    let at = layout::STATUS + 4 * random.below(4);
    [0x5 | flags | random.next() << 32, at]
}

/// A descriptor, good or not.
pub(super) fn descriptor(random: &mut Random, domain: u64) -> [u64; 2] {
    let domain = if random.chance(3, 4) {
        domain
    } else {
        random.below(8)
    };
    let good = match random.below(7) {
        0 => [
            0x1 | (1 + random.below(3)) << 4 | domain << 16 | DEVFN << 32,
            0,
        ],
        1 => [
            0x1 | random.below(4) << 4
                | domain << 16
                | random.below(0x100) << 32
                | random.below(4) << 48,
            0,
        ],
        2 => [
            0x2 | random.below(4) << 4 | random.below(4) << 6 | domain << 16,
            0,
        ],
        3 => {
            let address = random.next() & 0xffff_f000;
            [0x32 | domain << 16, address | random.below(32)]
        }
        4 => [
            0x4 | random.below(2) << 4 | random.below(16) << 27 | random.below(16) << 32,
            0,
        ],
        _ => wait(random),
    };
    let [low, high] = match random.below(12) {
        0 => [disturb(random, good[0]), good[1]],
        1 => [good[0], disturb(random, good[1])],
        2 => [random.next(), random.next()],
        _ => good,
    };
    // The model ends itself at a wait that asks for an interrupt and a status.
    let both = low & 0xf == 5 && low & 0x30 == 0x30;
    [if both { low & !0x10 } else { low }, high]
}
