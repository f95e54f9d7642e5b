// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program from a seed and a number.
//!
//! Two roots share two tables of each level; two indices of each level are used, so that a handful of
//! addresses meet in every table. What no program may do is decided here: the monitor's root entries
//! stay, and what is read, written and run is the pattern only.

use super::harness::roots;
use super::program::{ACCESSES, List, Op, Program, Table};
use crate::Random;
use crate::paging::{
    ARENA, CODE_OFFSETS, Cpu, DATA_OFFSETS, Doing, Mode, PATTERN, PATTERN_BYTES, Who,
};

const PG: u64 = 1 << 31;
const WP: u64 = 1 << 16;
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;
const LME: u64 = 1 << 8;
const NXE: u64 = 1 << 11;
const PS: u64 = 1 << 7;
const XD: u64 = 1 << 63;

/// Indices of each level that a program uses.
const CHOICES: usize = 2;
/// Frames of the arena by level, the lowest first: first and count. The root's are 0 and 1.
const TABLES: [(u64, u64); 3] = [(6, 3), (4, 2), (2, 2)];

/// A program in the making.
struct Maker<'a> {
    r: &'a mut Random,
    cpu: &'a Cpu,
    program: Program,
    levels: usize,
    width: u64,
    indices: [[u64; CHOICES]; 4],
    /// The tables as the program has left them so far, flags apart.
    now: List<Table, 96>,
    cr3: u64,
}

impl Program {
    /// Program `index` of the run with `seed`, on `cpu`.
    #[must_use]
    pub fn new(seed: u64, index: u64, cpu: &Cpu) -> Self {
        let mut random = Random::of_case(seed, index);
        let r = &mut random;
        let mode = r.pick(&[
            Mode::ThirtyTwoBit,
            Mode::Pae,
            Mode::FourLevel,
            Mode::FourLevel,
        ]);
        let (levels, width) = match mode {
            Mode::ThirtyTwoBit => (2, 4),
            Mode::Pae => (3, 8),
            _ => (4, 8),
        };
        let mut maker = Maker {
            r,
            cpu,
            program: Program::blank(mode),
            levels,
            width,
            indices: [[0; CHOICES]; 4],
            now: List::new(Table::default()),
            cr3: ARENA,
        };
        maker.begin();
        maker.steps();
        maker.program
    }
}

impl Maker<'_> {
    fn begin(&mut self) {
        let (r, mode) = (&mut *self.r, self.program.mode);
        let pae = mode != Mode::ThirtyTwoBit;
        let pse = if pae { 0 } else { r.bit(PSE, 3, 4) };
        self.program.cr0 = PG | r.bit(WP, 2, 3);
        self.program.cr4 = pse | if pae { PAE } else { 0 } | Self::protections(r, self.cpu);
        self.program.efer = if mode == Mode::FourLevel { LME } else { 0 } | r.bit(NXE, 3, 4);
        self.program.cr3 = self.cr3;
        for level in 1..=self.levels {
            let first = self.r.below(16);
            for choice in 0..CHOICES {
                let other = first + 1 + choice as u64 * (1 + self.r.below(7));
                self.indices[level - 1][choice] = match (mode, level) {
                    // A large page at 0 leads to the pattern by these.
                    (Mode::FourLevel, 2) => 16 + other % 16,
                    (Mode::Pae, 3) => 1 + choice as u64 + first % 2,
                    (Mode::ThirtyTwoBit, 2) => 8 + other,
                    _ => other,
                };
            }
        }
        for root in 0..2 {
            let program = &mut self.program;
            roots(mode, ARENA + (root << 12), |entry| {
                program.initial.add(entry);
            });
            for choice in 0..CHOICES {
                self.first_entry(self.levels, root, choice);
            }
        }
        for level in (1..self.levels).rev() {
            let (first, count) = TABLES[level - 1];
            for frame in first..first + count {
                for choice in 0..CHOICES {
                    self.first_entry(level, frame, choice);
                }
            }
        }
    }

    fn first_entry(&mut self, level: usize, frame: u64, choice: usize) {
        let entry = Table {
            at: self.slot(level, frame, choice),
            width: self.width,
            value: self.entry(level),
        };
        self.program.initial.add(entry);
        self.now.add(entry);
    }

    fn slot(&self, level: usize, frame: u64, choice: usize) -> u64 {
        ARENA + (frame << 12) + self.indices[level - 1][choice] * self.width
    }

    fn protections(r: &mut Random, cpu: &Cpu) -> u64 {
        (r.bit(SMEP, 1, 3) | r.bit(SMAP, 1, 3)) & u64::from(cpu.cr4)
    }

    /// Steps, until there were enough accesses.
    fn steps(&mut self) {
        let mut accesses = 0;
        while accesses < ACCESSES {
            let room = self.program.ops.room() > ACCESSES - accesses + 8;
            match self.r.below(16) {
                0..=4 if room => self.edit(),
                5 if room => self.switch(),
                6 if room => self.control(),
                7 if room && self.r.chance(1, 2) => {
                    let linear = self.linear();
                    self.program.ops.add(Op::Invlpg(linear));
                }
                _ => {
                    self.access();
                    accesses += 1;
                }
            }
        }
    }

    fn access(&mut self) {
        let r = &mut *self.r;
        let who = r.pick(&[
            Who::User,
            Who::User,
            Who::Supervisor,
            Who::Supervisor,
            Who::SupervisorAc,
        ]);
        let doing = r.pick(&[
            Doing::Read,
            Doing::Read,
            Doing::Write,
            Doing::Exchange,
            Doing::Fetch,
        ]);
        let offset = if doing == Doing::Fetch {
            r.pick(&CODE_OFFSETS)
        } else {
            r.pick(&DATA_OFFSETS)
        };
        let linear = self.linear() | offset;
        self.program.ops.add(Op::Access { linear, doing, who });
    }

    /// One of the addresses that the tables translate, without an offset.
    fn linear(&mut self) -> u64 {
        let choices = [(); 4].map(|()| self.r.below(CHOICES as u64) as usize);
        self.address(choices)
    }

    fn address(&self, choices: [usize; 4]) -> u64 {
        let bits = if self.width == 4 { 10 } else { 9 };
        (0..self.levels).fold(0, |sum, i| {
            sum | self.indices[i][choices[i]] << (12 + bits * i)
        })
    }

    /// Another root, or the same again: all is forgotten.
    fn switch(&mut self) {
        self.cr3 = ARENA + (self.r.below(2) << 12);
        self.program.ops.add(Op::Cr3(self.cr3));
    }

    fn control(&mut self) {
        let keep = self.program.cr4 & (PSE | PAE);
        let cr0 = PG | self.r.bit(WP, 1, 2);
        let cr4 = keep | Self::protections(self.r, self.cpu);
        self.program.ops.add(Op::Control { cr0, cr4 });
    }

    /// A store into a table, and the invalidations that it needs.
    fn edit(&mut self) {
        let level = match self.r.below(8) {
            0 => self.levels,
            1 | 2 => 1 + self.r.below(self.levels as u64) as usize,
            _ => 1,
        };
        let (first, count) = if level == self.levels {
            (0, 2)
        } else {
            TABLES[level - 1]
        };
        let frame = first + self.r.below(count);
        let choice = self.r.below(CHOICES as u64) as usize;
        let at = self.slot(level, frame, choice);
        let Some(before) = self.entry_at(at) else {
            return;
        };
        // Now and then only flags or rights change.
        let value = if self.r.chance(1, 3) {
            before
                ^ self
                    .r
                    .pick(&[1, 1 << 1, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 0x60])
        } else {
            self.entry(level)
        };
        let value = self.tame(level, value);
        let entry = Table {
            at,
            width: self.width,
            value,
        };
        self.program.ops.add(Op::Store(entry));
        if let Some(there) = self.now.get_mut().iter_mut().find(|there| there.at == at) {
            there.value = value;
        }
        let register = self.program.mode == Mode::Pae && level == 3;
        if before & 1 == 0 && !register && self.r.chance(2, 3) {
            // What was not present is in no TLB.
            return;
        }
        let used = self.addresses_through(at);
        if level == 1 && used.get().len() <= 4 {
            for &linear in used.get() {
                self.program.ops.add(Op::Invlpg(linear));
            }
        } else {
            self.program.ops.add(Op::Cr3(self.cr3));
        }
    }

    fn entry_at(&self, at: u64) -> Option<u64> {
        let found = self.now.get().iter().find(|entry| entry.at == at);
        found.map(|entry| entry.value)
    }

    /// The addresses that the entry at `at` translates under the root in use.
    fn addresses_through(&self, at: u64) -> List<u64, 16> {
        let mut used = List::new(0);
        for number in 0..CHOICES.pow(self.levels as u32) {
            let choices = [0, 1, 2, 3].map(|level| number >> level & 1);
            let mut frame = self.cr3;
            for level in (1..=self.levels).rev() {
                let slot = frame + self.indices[level - 1][choices[level - 1]] * self.width;
                if slot == at {
                    used.add(self.address(choices));
                }
                let Some(value) = self.entry_at(slot) else {
                    break;
                };
                frame = value & 0xffff_f000;
            }
        }
        used
    }

    /// An entry of a table at `level`: mostly granting.
    fn entry(&mut self, level: usize) -> u64 {
        let (mode, cpu) = (self.program.mode, self.cpu);
        let r = &mut *self.r;
        let table = |r: &mut Random| {
            let (first, count) = TABLES[level.wrapping_sub(2) % 3];
            ARENA + ((first + r.below(count)) << 12)
        };
        if mode == Mode::Pae && level == 3 {
            return table(r) | r.bit(1, 15, 16);
        }
        let large = match (mode, level) {
            (Mode::ThirtyTwoBit, 2) => self.program.cr4 & PSE != 0 && r.chance(1, 4),
            (_, 2) => r.chance(1, 4),
            (_, 3) => cpu.gib_pages && r.chance(1, 8),
            _ => false,
        };
        let mut entry = r.bit(1, 9, 10) | r.bit(1 << 1, 3, 4) | r.bit(1 << 2, 3, 4);
        entry |= r.bit(1 << 5, 1, 3) | r.bit(1 << 6, 1, 3) | r.bit(1 << 9, 1, 4);
        if self.width == 8 {
            entry |= r.bit(XD, 1, if level == 1 { 6 } else { 16 });
        }
        if level > 1 && !large {
            return entry | table(r);
        }
        entry |= match (mode, level) {
            (_, 1) => PATTERN + (r.below(8) << 12),
            (Mode::ThirtyTwoBit, _) => PS | (PATTERN + (r.below(PATTERN_BYTES >> 22) << 22)),
            (_, 2) => PS | (PATTERN + (r.below(PATTERN_BYTES >> 21) << 21)),
            _ => PS,
        };
        if large && r.chance(1, 16) {
            entry |= 1 << 13; // reserved, or PSE-36: above all memory
        }
        self.tame(level, entry)
    }

    /// The entry, so that it does no harm: a PDPTE that can be loaded, and memory behind a page.
    fn tame(&self, level: usize, entry: u64) -> u64 {
        match (self.program.mode, level) {
            (Mode::Pae, 3) => entry & (0xffff_f000 | 1),
            (Mode::ThirtyTwoBit, 2) => entry & !(1 << 13),
            _ => entry,
        }
    }
}
