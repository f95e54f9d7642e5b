// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Three processors that do what they like to one guest's tables, with TLBs that keep what they may and tokens that are
//! settled late.
//!
//! The cluster panics where an access comes to what the manual does not permit, and where something in a TLB is neither in
//! the tables nor to be flushed.

use arbitrary::{Arbitrary, Unstructured};
use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{Cluster, Doing, Instruction};
use hvkit_shadow_paging::guest::{Kind, Registers, cr0, cr4, efer};
use hvkit_shadow_paging::mmu::Tuning;
use hvkit_shadow_paging::x86::InvalidateKind;

use crate::shadow::{Entry, Linear, access};

/// Steps of one input, at most.
const STEPS: usize = 64;
const PROCESSORS: usize = 3;

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
    Speculate(Linear),
    Settle,
    SettleLate,
    Migrate(u8),
    Log(u8),
    Shrink(u8),
    Check,
}

/// Plays an input.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let (Ok(mode), Ok(entries)) = (input.arbitrary::<u8>(), input.arbitrary::<[Entry; 24]>())
    else {
        return;
    };
    let (flags, long) = match mode & 3 {
        0 => (cr4::PSE, 0),
        1 => (cr4::PAE, 0),
        2 => (cr4::PAE, efer::LME),
        _ => (cr4::PAE | cr4::PCIDE, efer::LME),
    };
    let width = if mode & 3 == 0 {
        Width::Four
    } else {
        Width::Eight
    };
    let registers = Registers {
        cr0: cr0::PE | cr0::PG | cr0::WP,
        cr3: 0x1000,
        cr4: flags,
        efer: long | efer::NXE,
        ..Registers::default()
    };
    // Four entries each of six frames, the first the root; none of PAE's registers is reserved.
    let words: Vec<_> = (0..)
        .zip(entries)
        .map(|(i, entry)| {
            let at = 0x1000 + (i >> 2 << 12) + index(i as u8) * width.bytes();
            let register = mode & 3 == 1 && i < 4;
            let value = if register {
                entry.value() & 0x20_f001
            } else {
                entry.value()
            };
            (at, width, value)
        })
        .collect();
    let budget = if mode & 4 == 0 { 32 } else { 64 };
    let tuning = Tuning {
        prefetch: 1 << (mode >> 3 & 3),
        flood: 1 + (mode >> 5 & 3),
        ..Tuning::default()
    };
    let mut cluster = Cluster::new(PROCESSORS, budget, tuning, registers, &words);
    for _ in 0..STEPS {
        let Ok((p, step)) = input.arbitrary::<(u8, Step)>() else {
            break;
        };
        play(&mut cluster, usize::from(p) % PROCESSORS, width, step);
    }
    cluster.settle_all();
    cluster.check();
}

fn index(choice: u8) -> u64 {
    [0, 1, 2, 511][usize::from(choice & 3)]
}

fn play(cluster: &mut Cluster, p: usize, width: Width, step: Step) {
    let four = width == Width::Four;
    let store = |value: u64| match width {
        Width::Four => Doing::Store(value as u32),
        Width::Eight => Doing::StoreEight(value),
    };
    let registers = cluster.registers(p);
    match step {
        Step::Access(linear, bits, value) => {
            let access = access(bits);
            let doing = if access.kind == Kind::Write {
                store(value)
            } else {
                Doing::Load
            };
            cluster.access(p, linear.address(four), access, doing);
        }
        Step::Edit(linear, entry) => {
            let write = access(0b0101);
            cluster.access(p, linear.address(four), write, store(entry.value()));
        }
        Step::Device(frame, choice, entry) => {
            let at = (u64::from(frame & 0xf) << 12) + index(choice) * width.bytes();
            cluster.wrote(at, width, entry.value());
        }
        Step::Cr3(frame, keep) => {
            let frame = u64::from(frame & 0xf);
            let pcid = registers.cr4 & cr4::PCIDE != 0;
            let tag = if pcid {
                frame | if keep { 1 << 63 } else { 0 }
            } else {
                0
            };
            cluster.intercept(p, Instruction::Cr3(frame << 12 | tag));
        }
        Step::Control(bit) => {
            cluster.intercept(
                p,
                match bit % 8 {
                    0 => Instruction::Cr0(registers.cr0 ^ cr0::WP),
                    1 => Instruction::Cr4(registers.cr4 ^ cr4::SMEP),
                    2 => Instruction::Cr4(registers.cr4 ^ cr4::PGE),
                    3 => Instruction::Cr4(registers.cr4 ^ cr4::PCIDE),
                    4 => Instruction::Invpcid(InvalidateKind::Context),
                    5 => Instruction::Invpcid(InvalidateKind::AllWithGlobal),
                    6 => Instruction::Efer(registers.efer ^ efer::NXE),
                    _ => Instruction::Cr4(registers.cr4 ^ cr4::SMAP),
                },
            );
        }
        Step::Invlpg(linear) => {
            cluster.intercept(p, Instruction::Invlpg(linear.address(four)));
        }
        Step::InvalidateAll => {
            cluster.intercept(p, Instruction::InvalidateAll);
        }
        Step::Speculate(linear) => cluster.speculate(p, linear.address(four)),
        Step::Settle => cluster.settle(p),
        Step::SettleLate => cluster.settle_late(),
        Step::Migrate(frame) => cluster.migrate(u64::from(frame & 0x1f) << 12),
        Step::Log(frame) => cluster.log_writes(u64::from(frame & 0x1f) << 12),
        Step::Shrink(count) => cluster.shrink(usize::from(count & 7)),
        Step::Check => {
            cluster.check();
        }
    }
}
