// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One program, made and played step by step on both sides.

use std::collections::BTreeSet;

use hvkit_shadow_paging::fake::{Board, Doing, Instruction, Outcome};
use hvkit_shadow_paging::guest::{
    Access, Features, Kind, Layout, Privilege, Registers, cr0, cr4, efer,
};
use hvkit_shadow_paging::mmu::Tuning;
use lab_cases::Random;

use crate::native::Native;
use crate::tables::{TABLES_END, Tables};

const STEPS: u64 = 120;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) tuning: Tuning,
    pub(crate) budget: u32,
    /// The host moves pages, logs writes, takes tables back.
    pub(crate) host: bool,
    /// Allocations and guest reads fail now and then.
    pub(crate) failures: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            tuning: Tuning::default(),
            budget: 64,
            host: false,
            failures: false,
        }
    }
}

/// What was played.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Play {
    pub(crate) done: u64,
    pub(crate) refused: u64,
    mmio: u64,
    edits: u64,
    faults: u64,
    emulated: u64,
    unsync: usize,
    stale: usize,
    failed: u64,
}

impl Play {
    pub(crate) fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.refused += other.refused;
        self.mmio += other.mmio;
        self.edits += other.edits;
        self.faults += other.faults;
        self.emulated += other.emulated;
        self.unsync += other.unsync;
        self.stale += other.stale;
        self.failed += other.failed;
    }
}

struct Player<'a> {
    r: Random,
    plan: &'a Plan,
    tables: Tables,
    board: Board,
    native: Native,
    registers: Registers,
    /// Pages whose entries were changed and not invalidated: what an access there comes to is the
    /// TLB's choice.
    open: BTreeSet<u64>,
    play: Play,
}

pub(crate) fn play(layout: Layout, seed: u64, plan: &Plan) -> Play {
    let mut r = Random::of_case(seed, layout as u64);
    let tables = Tables::new(layout, &mut r);
    let features = Features::all(40);
    let mut board = Board::new(plan.budget, features);
    board.tune(plan.tuning);
    let native = Native::new(features);
    let (base, lme) = match layout {
        Layout::ThirtyTwoBit => (cr4::PSE, 0),
        Layout::Pae => (cr4::PAE, 0),
        Layout::FourLevel => (cr4::PAE | r.bit(cr4::PCIDE, 1, 3), efer::LME),
        Layout::FiveLevel => (cr4::PAE | cr4::LA57 | r.bit(cr4::PCIDE, 1, 3), efer::LME),
    };
    let registers = Registers {
        cr0: cr0::PG | cr0::PE | r.bit(cr0::WP, 1, 2),
        cr3: tables.root(0),
        cr4: base,
        efer: lme | r.bit(efer::NXE, 3, 4),
        ..Registers::default()
    };
    let window = tables.window();
    let entries = tables.now.iter().map(|(&at, &(_, value))| (at, value));
    for (at, value) in entries.chain(window) {
        board.set(at, tables.width, value);
        native.memory.set(at, tables.width, value);
    }
    let mut player = Player {
        r,
        plan,
        tables,
        board,
        native,
        registers,
        open: BTreeSet::new(),
        play: Play::default(),
    };
    player.native.load(&registers);
    player.board.start(registers);
    for step in 0..STEPS {
        player.step();
        if step % 8 == 0 {
            let audit = player.board.audit();
            player.play.unsync += audit.unsync;
            player.play.stale += audit.stale;
        }
        let ours = player.board.host().guest_words(0, TABLES_END);
        let theirs = player.native.memory.words(0, TABLES_END);
        assert_eq!(ours, theirs, "{layout:?}, seed {seed}, step {step}");
    }
    player.play.faults = player.board.faults;
    player.play.emulated = player.board.emulated;
    player.play
}

impl Player<'_> {
    fn step(&mut self) {
        if self.plan.host && self.r.chance(1, 6) {
            self.host();
        }
        if self.r.chance(1, 4) {
            let linear = self.tables.linear(&mut self.r);
            self.board.speculate(linear);
        }
        match self.r.below(16) {
            0..=3 => self.edit(),
            4 => self.switch(),
            5 => self.control(),
            6 => {
                let linear = self.tables.linear(&mut self.r);
                self.intercept(Instruction::Invlpg(linear));
            }
            _ => self.access(),
        }
    }

    fn access(&mut self) {
        let r = &mut self.r;
        let kind = r.pick(&[Kind::Read, Kind::Read, Kind::Write, Kind::Fetch]);
        let privilege = r.pick(&[
            Privilege::User,
            Privilege::User,
            Privilege::Supervisor,
            Privilege::SupervisorAc,
            Privilege::Implicit,
        ]);
        let doing = if kind == Kind::Write {
            Doing::Store(r.next() as u32)
        } else {
            Doing::Load
        };
        let page = self.tables.linear(r);
        if self.open.contains(&page) {
            return;
        }
        let linear = page + (r.below(1024) << 2);
        let access = Access::new(kind, privilege);
        let theirs = self.native.access(linear, access, doing);
        let ours = self.tolerant(|board| board.access(linear, access, doing));
        assert_eq!(ours, theirs, "{access:?} at {linear:#x}");
        match ours {
            Outcome::Done(_) => self.play.done += 1,
            Outcome::Fault(_) => self.play.refused += 1,
            Outcome::Mmio(_) => self.play.mmio += 1,
            Outcome::Failed => (),
        }
    }

    /// Tries with a failure first, now and then: afterwards all must be as if there had been none.
    fn tolerant(&mut self, go: impl Fn(&mut Board) -> Outcome) -> Outcome {
        if self.plan.failures && self.r.chance(1, 2) {
            if self.r.chance(1, 2) {
                let n = self.r.below(4);
                self.board.host().fail_allocation(Some(n));
            } else {
                let n = self.r.below(16);
                self.board.host().fail_read(Some(n));
            }
            let first = go(&mut self.board);
            self.board.host().fail_allocation(None);
            self.board.host().fail_read(None);
            self.board.audit();
            if first != Outcome::Failed {
                return first;
            }
            self.play.failed += 1;
        }
        go(&mut self.board)
    }

    fn intercept(&mut self, instruction: Instruction) {
        match instruction {
            Instruction::Invlpg(linear) => {
                self.open.remove(&linear);
            }
            Instruction::Cr3(value) if value >> 63 != 0 => (),
            _ => self.open.clear(),
        }
        if self.plan.failures && self.r.chance(1, 3) {
            let n = self.r.below(6);
            self.board.host().fail_read(Some(n));
            let done = self.board.intercept(instruction);
            self.board.host().fail_read(None);
            self.board.audit();
            if done {
                return;
            }
            self.play.failed += 1;
        }
        // The first may find no frame, and free some.
        let done = self.board.intercept(instruction) || self.board.intercept(instruction);
        assert!(done, "{instruction:x?}");
    }

    fn edit(&mut self) {
        self.play.edits += 1;
        let all: Vec<u64> = self.tables.now.keys().copied().collect();
        let lowest: Vec<u64> = self
            .tables
            .now
            .iter()
            .filter(|&(_, &(level, _))| level == 1)
            .map(|(&at, _)| at)
            .collect();
        let at = if self.r.chance(1, 3) {
            self.r.pick(&all)
        } else {
            self.r.pick(&lowest)
        };
        let (level, before) = self.tables.now[&at];
        let value = self.tables.change(at, &mut self.r);
        self.tables.now.insert(at, (level, value));
        let width = self.tables.width;
        self.native.memory.set(at, width, value);
        let by_device = self.r.chance(1, 10);
        if by_device {
            self.board.wrote(at, width, value);
        } else {
            let done = self.tolerant(|board| board.edit(at, width, value));
            assert!(matches!(done, Outcome::Done(_)), "{done:?}");
        }
        let register = self.tables.layout == Layout::Pae && level == 3;
        if before & 1 == 0 && !register && self.r.chance(2, 3) {
            return;
        }
        let pcid = self.registers.cr4 & cr4::PCIDE != 0;
        if register {
            self.load(self.registers.cr3);
        } else if level == 1 && !pcid && self.r.chance(1, 3) {
            self.open.extend(self.tables.addresses_of(at));
        } else if level == 1 && !pcid && self.r.chance(2, 3) {
            for linear in self.tables.addresses_of(at) {
                self.intercept(Instruction::Invlpg(linear));
            }
        } else {
            self.intercept(Instruction::InvalidateAll);
        }
    }

    /// MOV to CR3 on both sides.
    fn load(&mut self, value: u64) {
        self.intercept(Instruction::Cr3(value));
        self.registers.cr3 = value & !(1 << 63);
        self.native.load(&self.registers);
    }

    fn switch(&mut self) {
        let pcid = self.registers.cr4 & cr4::PCIDE != 0;
        let number = self.r.below(3);
        let root = self.tables.root(number);
        let tag = if pcid { number + 1 } else { 0 };
        let keep = if pcid { self.r.bit(1 << 63, 1, 2) } else { 0 };
        self.load(root | tag | keep);
    }

    fn control(&mut self) {
        match self.r.below(4) {
            0 => {
                self.registers.cr0 ^= cr0::WP;
                self.intercept(Instruction::Cr0(self.registers.cr0));
            }
            1 => {
                self.registers.efer ^= efer::NXE;
                self.intercept(Instruction::Efer(self.registers.efer));
            }
            which => {
                self.registers.cr4 ^= if which == 2 { cr4::SMEP } else { cr4::SMAP };
                self.intercept(Instruction::Cr4(self.registers.cr4));
            }
        }
        self.native.load(&self.registers);
    }

    /// What a host does behind the guest's back.
    fn host(&mut self) {
        let page = Tables::some_page(&mut self.r);
        match self.r.below(5) {
            0 | 1 => self.board.migrate(page),
            2 | 3 => self.board.log_writes(page),
            _ => {
                let count = self.r.below(6) as usize;
                self.board.shrink(count);
            }
        }
    }
}
