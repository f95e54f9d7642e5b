// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program on our side: on a board with the shadow MMU, while the host does what hosts do.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{Board, Doing as Does, Instruction, Outcome};
use hvkit_shadow_paging::guest::{Access, Features, GuestFault, Kind, Privilege, Registers};
use lab_cases::paging::{
    self, CODE_OFFSETS, Cpu, DATA_OFFSETS, DONE, Doing, STORED, Stored, Who, pattern,
};
use lab_cases::shadow::{ACCESSES, Op, Program, Record, Table, arena, harness};
use lab_cases::{Digest, Random};

const PAGE_FAULT: u8 = 14;
const GENERAL_PROTECTION: u8 = 13;
/// Shadow tables of a program: some budgets are hardly enough.
const BUDGETS: [u32; 3] = [16, 32, 256];

/// Runs `program`; `number` chooses what the host does meanwhile.
pub(super) fn expect(program: &Program, cpu: &Cpu, number: u64) -> Result<Record> {
    let mut random = Random::of_case(number, 0x5ad0);
    let mut board = board(program, cpu, random.pick(&BUDGETS));
    let mut record = Record::default();
    let mut accesses = 0;
    for (step, op) in program.ops().iter().enumerate() {
        meanwhile(&mut board, &mut random);
        let done = match *op {
            Op::Access { linear, doing, who } => {
                let mut access = access(&mut board, linear, doing, who)?;
                access.tables = program.digest(|at| board.get(at, Width::Eight));
                record.accesses[accesses] = access;
                accesses += 1;
                true
            }
            // The arena is mapped onto itself.
            Op::Store(Table { at, width, value }) => {
                matches!(board.edit(at, wide(width), value), Outcome::Done(_))
            }
            Op::Invlpg(linear) => twice(&mut board, Instruction::Invlpg(linear)),
            Op::Cr3(cr3) => twice(&mut board, Instruction::Cr3(cr3)),
            Op::Control { cr0, cr4 } => {
                twice(&mut board, Instruction::Cr0(cr0 | 0x33))
                    && twice(&mut board, Instruction::Cr4(cr4))
            }
        };
        ensure!(done, "{op:x?} was refused");
        if step % 8 == 0 {
            board.audit();
        }
    }
    board.audit();
    let words = board.host().guest_words(arena().start, arena().end);
    let mut digest = Digest::default();
    words
        .into_iter()
        .for_each(|(at, word)| digest.add(at, word));
    record.accesses[ACCESSES - 1].tables = digest.sum();
    Ok(record)
}

fn wide(bytes: u64) -> Width {
    if bytes == 4 {
        Width::Four
    } else {
        Width::Eight
    }
}

/// An instruction whose first try may find no frame, and free some.
fn twice(board: &mut Board, instruction: Instruction) -> bool {
    board.intercept(instruction) || board.intercept(instruction)
}

/// The guest at its start.
fn board(program: &Program, cpu: &Cpu, budget: u32) -> Board {
    let features = Features {
        gib_pages: cpu.gib_pages,
        ..Features::all(cpu.physical_address_bits)
    };
    let mut board = Board::new(budget, features);
    harness(|at, width, value| board.set(at, wide(width), value));
    for entry in program.initial() {
        board.set(entry.at, wide(entry.width), entry.value);
    }
    fill_pattern(program, &mut board);
    board.start(Registers {
        cr0: program.cr0 | 0x33,
        cr3: program.cr3,
        cr4: program.cr4,
        efer: program.efer,
        ..Registers::default()
    });
    board
}

/// What a host does behind a guest's back, and a processor ahead of it.
fn meanwhile(board: &mut Board, random: &mut Random) {
    let page = if random.chance(1, 2) {
        arena().start + (random.below(9) << 12)
    } else {
        pattern().start + (random.below(8) << 12)
    };
    match random.below(24) {
        0 => board.migrate(page),
        1 => board.log_writes(page),
        2 => board.shrink(random.below(8) as usize),
        _ => (),
    }
}

/// One access, as the payload makes it.
fn access(board: &mut Board, linear: u64, doing: Doing, who: Who) -> Result<paging::Record> {
    let privilege = match who {
        Who::User => Privilege::User,
        Who::Supervisor => Privilege::Supervisor,
        Who::SupervisorAc => Privilege::SupervisorAc,
    };
    let mut go = |linear, kind, does| {
        let access = Access::new(kind, privilege);
        Ok(match board.access(linear, access, does) {
            Outcome::Done(value) => Ok(value),
            Outcome::Fault(fault) => Err(fault),
            other => bail!("no outcome of a processor: {other:x?}"),
        })
    };
    let store = Does::Store(STORED);
    let done = match doing {
        Doing::Read => go(linear, Kind::Read, Does::Load)?,
        Doing::Write => match go(linear + 4, Kind::Write, store)? {
            Ok(_) => go(linear, Kind::Read, Does::Load)?,
            fault => fault,
        },
        Doing::Exchange => go(linear, Kind::Write, store)?,
        // The code's first instruction loads its own address, which is its second to fifth byte.
        Doing::Fetch => go(linear, Kind::Fetch, Does::LoadEight)?.map(|code| code >> 8),
        Doing::Implicit | Doing::ShadowStack => bail!("no program does {doing:?}"),
    };
    Ok(match done {
        Ok(value) => {
            let value = value as u32;
            let stored = match doing {
                Doing::Write => take_back(board, value, 4, 0),
                Doing::Exchange => take_back(board, value, 0, value),
                _ => Stored::No,
            };
            paging::Record {
                vector: DONE,
                value,
                stored,
                ..paging::Record::default()
            }
        }
        Err(GuestFault::Page { linear, code, .. }) => paging::Record {
            vector: PAGE_FAULT,
            error: code.0 as u16,
            cr2: linear,
            ..paging::Record::default()
        },
        Err(_) => paging::Record {
            vector: GENERAL_PROTECTION,
            ..paging::Record::default()
        },
    })
}

/// As the payload does: whether what was written is `offset` above `page`, and `before` put back there.
fn take_back(board: &mut Board, page: u32, offset: u64, before: u32) -> Stored {
    let at = u64::from(page);
    if !pattern().contains(&at) || !at.is_multiple_of(4) {
        return Stored::No;
    }
    let found = board.get(at + offset, Width::Four);
    board.set(at + offset, Width::Four, u64::from(before));
    if found == u64::from(STORED) {
        Stored::Yes
    } else {
        Stored::No
    }
}

/// Fills each page of the pattern that some entry may lead some access to.
fn fill_pattern(program: &Program, board: &mut Board) {
    let stores = program.ops().iter().filter_map(|op| match op {
        Op::Store(entry) => Some(entry),
        _ => None,
    });
    let accesses = program.ops().iter().filter_map(|op| match op {
        Op::Access { linear, .. } => Some(*linear),
        _ => None,
    });
    let pages: BTreeSet<u64> = program
        .initial()
        .iter()
        .chain(stores)
        .flat_map(|entry| accesses.clone().map(|linear| (entry.value, linear)))
        .flat_map(|(value, linear)| {
            [12, 21, 22, 30].map(|shift| {
                let inside = (1 << shift) - 1;
                (value & 0xffff_f000 & !inside | linear & inside) & !0xfff
            })
        })
        .filter(|page| pattern().contains(page))
        .collect();
    for page in pages {
        for at in DATA_OFFSETS.map(|offset| page + offset) {
            board.set(at, Width::Eight, at);
        }
        for at in CODE_OFFSETS.map(|offset| page + offset) {
            board.set(at, Width::Eight, 0xb8 | at << 8 | 0x81cd << 40);
        }
    }
}
