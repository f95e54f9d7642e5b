// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Several processors whose TLBs keep what they may, and tokens that are settled late: no access goes through a translation
//! whose token was settled, no freed page is used, each access comes to what the manual permits.

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{Cluster, Doing, Instruction, Seen};
use hvkit_shadow_paging::guest::{Access, Kind, Layout, Privilege, Registers, cr0, cr4, efer};
use hvkit_shadow_paging::mmu::Tuning;
use hvkit_shadow_paging::x86::InvalidateKind;
use lab_cases::Random;

use crate::tables::Tables;
use crate::{LAYOUTS, cases};

const STEPS: u64 = 250;

#[derive(Debug, Default)]
struct Counts {
    done: u64,
    faults: u64,
    waits: u64,
    failed: u64,
    stale: u64,
    undecided: u64,
    unsync: usize,
    /// Executed, by kind.
    by: [u64; KINDS],
}

/// Ways to invalidate, each of which is to be executed often: INVLPG, INVPCID of each type, MOV to CR4 that changes PGE, that
/// clears PCIDE, that sets SMEP, MOV to CR0 that clears PG.
const KINDS: usize = 9;

/// Two of them.
const PCIDE: usize = 6;
const SMEP: usize = 7;

/// The ways that name an address.
const BY_ADDRESS: [usize; 2] = [0, 1];

struct Player {
    r: Random,
    tables: Tables,
    cluster: Cluster,
    processors: u64,
    counts: Counts,
}

fn play(layout: Layout, seed: u64, processors: u64, budget: u32, counts: &mut Counts) {
    let mut r = Random::of_case(seed, 100 + layout as u64);
    let tables = Tables::new(layout, &mut r);
    let (base, lme) = match layout {
        Layout::ThirtyTwoBit => (cr4::PSE, 0),
        Layout::Pae => (cr4::PAE, 0),
        Layout::FourLevel => (cr4::PAE | r.bit(cr4::PCIDE, 1, 2), efer::LME),
        Layout::FiveLevel => (cr4::PAE | cr4::LA57 | r.bit(cr4::PCIDE, 1, 2), efer::LME),
    };
    let registers = Registers {
        cr0: cr0::PG | cr0::PE | cr0::WP,
        cr3: tables.root(0),
        cr4: base,
        efer: lme | efer::NXE,
        ..Registers::default()
    };
    let entries = tables.now.iter().map(|(&at, &(_, value))| (at, value));
    let words: Vec<_> = entries
        .chain(tables.window())
        .map(|(at, value)| (at, tables.width, value))
        .collect();
    let tuning = Tuning::default();
    let cluster = Cluster::new(processors as usize, budget, tuning, registers, &words);
    let mut player = Player {
        r,
        tables,
        cluster,
        processors,
        counts: Counts::default(),
    };
    for step in 0..STEPS {
        player.step();
        if step % 5 == 0 {
            player.counts.unsync += player.cluster.check().unsync;
        }
    }
    player.cluster.settle_all();
    player.cluster.check();
    let Counts {
        done,
        faults,
        waits,
        failed,
        unsync,
        by,
        ..
    } = player.counts;
    for (all, more) in counts.by.iter_mut().zip(by) {
        *all += more;
    }
    counts.done += done;
    counts.faults += faults;
    counts.waits += waits;
    counts.failed += failed;
    counts.unsync += unsync;
    counts.stale += player.cluster.stale;
    counts.undecided += player.cluster.undecided;
}

impl Player {
    fn step(&mut self) {
        let p = self.r.below(self.processors) as usize;
        if self.cluster.waits(p) {
            if self.r.chance(1, 3) {
                self.cluster.settle(p);
            }
            return;
        }
        if self.r.chance(1, 4) {
            let linear = self.tables.linear(&mut self.r);
            self.cluster.speculate(p, linear);
        }
        match self.r.below(24) {
            0..=5 => self.edit(p),
            6 => self.switch(p),
            7 | 12 => self.control(p),
            8 | 9 => {
                let linear = self.tables.linear(&mut self.r);
                let kind = self.r.pick(&BY_ADDRESS);
                self.invalidate(p, kind, linear);
            }
            10 => {
                let kind = self.way(p);
                self.invalidate(p, kind, 0);
            }
            11 => self.host(),
            _ => self.access(p),
        }
    }

    fn saw(&mut self, seen: Seen) {
        match seen {
            Seen::Done(_) => self.counts.done += 1,
            Seen::Fault(_) => self.counts.faults += 1,
            Seen::Waits => self.counts.waits += 1,
            Seen::Failed => self.counts.failed += 1,
            Seen::Elsewhere => (),
        }
    }

    fn access(&mut self, p: usize) {
        let linear = self.tables.linear(&mut self.r);
        self.access_to(p, linear);
    }

    fn access_to(&mut self, p: usize, page: u64) {
        let r = &mut self.r;
        let kind = r.pick(&[Kind::Read, Kind::Read, Kind::Write, Kind::Fetch]);
        let privilege = r.pick(&[
            Privilege::User,
            Privilege::User,
            Privilege::Supervisor,
            Privilege::SupervisorAc,
            Privilege::Implicit,
        ]);
        let doing = match kind {
            Kind::Write => Doing::Store(r.next() as u32),
            _ => Doing::Load,
        };
        let linear = page + (r.below(512) << 3);
        let seen = self
            .cluster
            .access(p, linear, Access::new(kind, privilege), doing);
        self.saw(seen);
    }

    /// Writes an entry, and invalidates it here, on all processors, or not at all.
    fn edit(&mut self, p: usize) {
        let slots: Vec<(u64, usize)> = self
            .tables
            .now
            .iter()
            .filter(|&(_, &(level, _))| level == 1 || self.tables.levels > level || level == 2)
            .map(|(&at, &(level, _))| (at, level))
            .collect();
        let kind = if self.r.chance(1, 3) {
            self.r.pick(&BY_ADDRESS)
        } else {
            self.way(p)
        };
        if kind == SMEP {
            let cr4 = self.cluster.registers(p).cr4;
            self.cluster
                .intercept(p, Instruction::Cr4(cr4 & !cr4::SMEP));
            self.cluster.settle(p);
        }
        let (at, level) = self.r.pick(&slots);
        let value = self.tables.change(at, &mut self.r);
        let doing = match self.tables.width {
            Width::Four => Doing::Store(value as u32),
            Width::Eight => Doing::StoreEight(value),
        };
        let write = Access::new(Kind::Write, Privilege::Supervisor);
        let seen = self.cluster.access(p, at, write, doing);
        self.saw(seen);
        if !matches!(seen, Seen::Done(_)) {
            return;
        }
        self.tables.now.insert(at, (level, value));
        if self.r.chance(1, 2) {
            return;
        }
        let everywhere = self.r.chance(1, 2);
        for q in (0..self.processors as usize).filter(|&q| everywhere || q == p) {
            let addresses = if BY_ADDRESS.contains(&kind) {
                self.tables.addresses_of(at)
            } else {
                vec![0]
            };
            for linear in addresses {
                self.invalidate(q, kind, linear);
                // A shootdown in haste: the next does not wait for the last one's token.
                if self.r.chance(1, 2) {
                    self.cluster.settle(q);
                }
            }
            // Nothing that it had is left; nothing else has invalidated anything since.
            let translated = self.tables.addresses_of(at);
            if !translated.is_empty() && self.r.chance(1, 2) {
                self.cluster.settle(q);
                let linear = self.r.pick(&translated);
                self.access_to(q, linear);
            }
        }
    }

    /// A way to invalidate that processor `p` has now, the rarest most often.
    fn way(&mut self, p: usize) -> usize {
        if self.r.chance(1, 4) {
            return SMEP;
        }
        let tagged = self.cluster.registers(p).cr4 & cr4::PCIDE != 0;
        if tagged && self.r.chance(1, 2) {
            return PCIDE;
        }
        self.r.below(KINDS as u64) as usize
    }

    /// Processor `p` invalidates `linear`, or more, by an instruction of `kind`, if it can.
    fn invalidate(&mut self, p: usize, kind: usize, linear: u64) {
        let registers = self.cluster.registers(p);
        let instruction = match kind {
            0 => Instruction::Invlpg(linear),
            1 => Instruction::Invpcid(InvalidateKind::Address(linear)),
            2 => Instruction::Invpcid(InvalidateKind::Context),
            3 => Instruction::Invpcid(InvalidateKind::AllWithGlobal),
            4 => Instruction::Invpcid(InvalidateKind::All),
            5 => Instruction::Cr4(registers.cr4 ^ cr4::PGE),
            PCIDE if registers.cr4 & cr4::PCIDE != 0 => {
                Instruction::Cr4(registers.cr4 & !cr4::PCIDE)
            }
            SMEP if registers.cr4 & cr4::SMEP == 0 => Instruction::Cr4(registers.cr4 | cr4::SMEP),
            8 => Instruction::Cr0(registers.cr0 & !cr0::PG),
            _ => return,
        };
        let done = self.cluster.intercept(p, instruction);
        self.counts.by[kind] += u64::from(done);
        if kind == 8 && done {
            self.cluster.settle(p);
            let paging = self
                .cluster
                .intercept(p, Instruction::Cr0(registers.cr0 | cr0::PG));
            assert!(paging, "what was possible before");
        }
    }

    fn switch(&mut self, p: usize) {
        let pcid = self.cluster.registers(p).cr4 & cr4::PCIDE != 0;
        let number = self.r.below(3);
        let tag = if pcid { number + 1 } else { 0 };
        let keep = if pcid { self.r.bit(1 << 63, 1, 2) } else { 0 };
        let value = self.tables.root(number) | tag | keep;
        self.cluster.intercept(p, Instruction::Cr3(value));
    }

    fn control(&mut self, p: usize) {
        let registers = self.cluster.registers(p);
        let long = matches!(self.tables.layout, Layout::FourLevel | Layout::FiveLevel);
        let instruction = match self.r.below(4) {
            0 => Instruction::Cr0(registers.cr0 ^ cr0::WP),
            1 => Instruction::Cr4(registers.cr4 ^ cr4::SMEP),
            2 if long && registers.cr4 & cr4::PCIDE == 0 => {
                // PCIDE cannot be set while CR3 has a PCID.
                let root = registers.cr3 & !0xfff;
                self.cluster.intercept(p, Instruction::Cr3(root));
                self.cluster.settle(p);
                Instruction::Cr4(registers.cr4 | cr4::PCIDE)
            }
            _ => Instruction::Cr4(registers.cr4 ^ cr4::SMAP),
        };
        self.cluster.intercept(p, instruction);
    }

    fn host(&mut self) {
        let page = Tables::some_page(&mut self.r);
        match self.r.below(5) {
            0 => self.cluster.migrate(page),
            1 => self.cluster.log_writes(page),
            2 | 3 => self.cluster.settle_late(),
            _ => self.cluster.shrink(self.r.below(4) as usize),
        }
    }
}

#[test]
fn several_processors_come_to_what_the_manual_permits() {
    let mut counts = Counts::default();
    let count = cases(30);
    for layout in LAYOUTS {
        for seed in 0..count {
            let processors = 2 + seed % 3;
            let budget = [32, 64, 128][seed as usize / 3 % 3];
            play(layout, seed, processors, budget, &mut counts);
        }
    }
    println!("{counts:?}");
    // Some 33 of each a program, and fewer of what needs several processors.
    let [some, few] = [1000, 10].map(|usual| usual * count / 30);
    let least = few * 4;
    assert!(counts.by.iter().all(|&by| by > least), "{counts:?}");
    assert_eq!(counts.undecided, 0, "each access is decided");
    assert!(counts.done > some && counts.faults > some, "{counts:?}");
    assert!(
        2 * counts.stale > few && counts.waits > 10 * few,
        "{counts:?}"
    );
}
