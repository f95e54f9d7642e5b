// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that does what it likes to its tables and registers, on shadow tables.
//!
//! The board panics where a processor would corrupt memory in silence, or fault for ever.

use arbitrary::{Arbitrary, Unstructured};
use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{Board, Doing, Instruction, Outcome};
use hvkit_shadow_paging::guest::{
    Access, Features, GuestFault, Kind, Privilege, Registers, cr0, cr4, efer, probe,
};
use hvkit_shadow_paging::mmu::Tuning;

/// Steps of one input, at most.
const STEPS: usize = 48;

/// An entry, most of which leads into the first 16 frames.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Entry {
    frame: u8,
    flags: u16,
    high: u8,
}

impl Entry {
    pub(crate) fn value(self) -> u64 {
        let frame = match self.frame {
            0xff => 0xfee0_0000,
            0xfe => 0x7000_0000,
            frame => u64::from(frame & 0xf) << 12 | u64::from(frame >> 4 & 1) << 21,
        };
        let high = match self.high & 3 {
            0 => 1 << 63,
            1 if self.high & 0x80 != 0 => 1 << 51,
            _ => 0,
        };
        frame | u64::from(self.flags & 0xfff) | high
    }
}

/// Two bits for each level's index, and the offset.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Linear(u16, u16);

impl Linear {
    pub(crate) fn address(self, four: bool) -> u64 {
        let bits = if four { 10 } else { 9 };
        let sum = (0..5).fold(0, |sum, level| {
            let index = [0, 1, 2, (1 << bits) - 1][usize::from(self.0 >> (2 * level) & 3)];
            sum | index << (12 + bits * level)
        });
        let offset = u64::from(self.1 & 0xff8);
        if four {
            (sum | offset) & 0xffff_ffff
        } else if self.0 >> 15 != 0 {
            ((sum << 16) as i64 >> 16) as u64 | offset
        } else {
            sum | offset
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Access(Linear, u8, u64),
    /// Writes an entry by a linear address.
    Edit(Linear, Entry),
    /// A device writes an entry: frame, index.
    Device(u8, u8, Entry),
    Cr3(u8, bool),
    Control(u8),
    Invlpg(Linear),
    InvalidateAll,
    /// After an invalidation, an access comes to what the tables say.
    Check(Linear, u8),
    Speculate(Linear),
    Migrate(u8),
    Log(u8),
    Shrink(u8),
}

/// Plays an input.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(tuning) = input.arbitrary::<u8>() else {
        return;
    };
    let budget = if tuning & 1 == 0 { 16 } else { 64 };
    let mut board = Board::new(budget, Features::all(40));
    board.tune(Tuning {
        prefetch: 1 << (tuning >> 1 & 3),
        flood: 1 + (tuning >> 3 & 3),
        largest: 1 + (tuning >> 5 & 3),
        ..Tuning::default()
    });
    board.start(Registers {
        cr0: cr0::PE,
        ..Registers::default()
    });
    for _ in 0..STEPS {
        let Ok(step) = input.arbitrary::<Step>() else {
            break;
        };
        play(&mut board, step);
    }
    board.audit();
}

pub(crate) fn access(bits: u8) -> Access {
    let kind = [Kind::Read, Kind::Write, Kind::Fetch, Kind::Write][usize::from(bits & 3)];
    let privilege = [
        Privilege::User,
        Privilege::Supervisor,
        Privilege::SupervisorAc,
        Privilege::Implicit,
    ][usize::from(bits >> 2 & 3)];
    Access::new(kind, privilege)
}

fn play(board: &mut Board, step: Step) {
    let registers = board.registers();
    let four = registers.cr4 & cr4::PAE == 0;
    match step {
        Step::Access(linear, bits, value) => {
            let access = access(bits);
            let doing = if access.kind == Kind::Write {
                Doing::StoreEight(value)
            } else {
                Doing::Load
            };
            board.access(linear.address(four), access, doing);
        }
        Step::Edit(linear, entry) => {
            board.edit(linear.address(four), Width::Eight, entry.value());
        }
        Step::Device(frame, index, entry) => {
            let index = [0, 1, 2, 511][usize::from(index & 3)];
            let at = (u64::from(frame & 0xf) << 12) + index * 8;
            board.wrote(at, Width::Eight, entry.value());
        }
        Step::Cr3(frame, keep) => {
            let keep = if keep { 1 << 63 } else { 0 };
            board.intercept(Instruction::Cr3(u64::from(frame & 0xf) << 12 | keep));
        }
        Step::Control(bit) => {
            board.intercept(control(bit, &registers));
        }
        Step::Invlpg(linear) => {
            board.intercept(Instruction::Invlpg(linear.address(four)));
        }
        Step::InvalidateAll => {
            board.intercept(Instruction::InvalidateAll);
        }
        Step::Check(linear, bits) => check(board, linear.address(four), access(bits)),
        Step::Speculate(linear) => board.speculate(linear.address(four)),
        Step::Migrate(frame) => board.migrate(u64::from(frame & 0x1f) << 12),
        Step::Log(frame) => board.log_writes(u64::from(frame & 0x1f) << 12),
        Step::Shrink(count) => board.shrink(usize::from(count & 7)),
    }
}

/// One bit of the control registers, the other way round.
fn control(bit: u8, registers: &Registers) -> Instruction {
    match bit % 10 {
        0 => Instruction::Cr0(registers.cr0 ^ cr0::WP),
        1 | 2 => Instruction::Cr0(registers.cr0 ^ cr0::PG),
        3 => Instruction::Cr4(registers.cr4 ^ cr4::PAE),
        4 => Instruction::Cr4(registers.cr4 ^ cr4::PSE),
        5 => Instruction::Cr4(registers.cr4 ^ cr4::SMEP),
        6 => Instruction::Cr4(registers.cr4 ^ cr4::SMAP),
        7 => Instruction::Cr4(registers.cr4 ^ cr4::PCIDE),
        8 => Instruction::Efer(registers.efer ^ efer::LME),
        _ => Instruction::Efer(registers.efer ^ efer::NXE),
    }
}

fn check(board: &mut Board, linear: u64, access: Access) {
    // A read that changes nothing but flags: what is checked is who may, not what is there.
    if !board.intercept(Instruction::InvalidateAll) {
        return;
    }
    let Some(mode) = board.mode() else {
        return;
    };
    let expected = probe(&mode, &board.host().guest(), linear, access);
    let ours = board.access(linear, access, Doing::Load);
    match (expected, ours) {
        (Err(GuestFault::Page { linear, code, .. }), ours) => {
            let Outcome::Fault(GuestFault::Page {
                linear: cr2,
                code: told,
                ..
            }) = ours
            else {
                panic!("{code:?} at {linear:#x}, and not {ours:?}");
            };
            assert_eq!((cr2, told), (linear, code));
        }
        (Ok(_), ours) => assert!(!matches!(ours, Outcome::Fault(_)), "{ours:?}"),
        (Err(_), ours) => assert!(!matches!(ours, Outcome::Done(_)), "{ours:?}"),
    }
}
