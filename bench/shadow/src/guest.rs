// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Synthetic guests: address spaces as a kernel lays them out, and the exit handler around the MMU.

use std::cell::Cell;
use std::convert::Infallible;

use hvkit_shadow_paging::guest::{Access, Features, Kind, Privilege, Registers};
use hvkit_shadow_paging::mmu::{Machine, Mmu, Owed, Stage, Tuning, Verdict};
use hvkit_shadow_paging::x86::{Linear, Processor, Vcpu};

use crate::memory::{Flat, Memory};

pub type BenchMmu<'a> = Mmu<Linear, &'a Memory, &'a Memory>;

pub const USER_READ: Access = Access::new(Kind::Read, Privilege::User);
pub const KERNEL_WRITE: Access = Access::new(Kind::Write, Privilege::Supervisor);

/// All rights, A and D: a table that the guest has long used.
pub const USED: u64 = 0x67;

/// Tables of a guest, made frame by frame.
pub struct Guest<'a> {
    pub memory: &'a Memory,
    next: Cell<u64>,
    pub tables: Cell<u64>,
    /// Bits of an entry that leads to a table.
    links: u64,
}

impl<'a> Guest<'a> {
    pub fn new(memory: &'a Memory) -> Self {
        Self::linked_by(memory, USED)
    }

    pub fn linked_by(memory: &'a Memory, links: u64) -> Self {
        Self {
            memory,
            next: Cell::new(0x1000),
            tables: Cell::new(0),
            links,
        }
    }

    pub fn frame(&self) -> u64 {
        let frame = self.next.get();
        self.next.set(frame + 0x1000);
        self.tables.set(self.tables.get() + 1);
        frame
    }

    /// The table behind entry `index` of the table at `table`, which is made if need be.
    pub fn below(&self, table: u64, index: u64) -> u64 {
        let entry = self.memory.word(table + index * 8);
        if entry.get() & 1 == 0 {
            entry.set(self.frame() | self.links);
        }
        entry.get() & !0xfff
    }

    /// Maps the page at `linear`, below 2^47, and returns the address of its entry.
    pub fn map(&self, root: u64, linear: u64, entry: u64) -> u64 {
        let pdpt = self.below(root, linear >> 39 & 511);
        let directory = self.below(pdpt, linear >> 30 & 511);
        let table = self.below(directory, linear >> 21 & 511);
        let at = table + (linear >> 12 & 511) * 8;
        self.memory.word(at).set(entry);
        at
    }

    /// A page of data that is used.
    pub fn page(&self, number: u64) -> u64 {
        ((32 << 20) + (number % 8192) * 4096) | USED
    }
}

pub const fn machine(memory: &Memory) -> Machine<'_, Memory, Flat> {
    Machine { memory, map: &Flat }
}

/// An MMU and a processor whose root is `root`.
pub fn start<'a>(
    memory: &'a Memory,
    root: u64,
    budget: u32,
    tuning: Tuning,
) -> (BenchMmu<'a>, Vcpu) {
    let mut mmu = Mmu::new(memory, memory, budget, tuning).expect("a budget that can be");
    let features = Features::all(40);
    let registers = Registers {
        cr0: 0x8001_0001,
        cr3: root,
        cr4: 0x20,
        efer: 0x900,
        ..Registers::default()
    };
    let made = Vcpu::new(
        &mut mmu,
        machine(memory),
        registers,
        features,
        Processor::like(&features),
    );
    let (vcpu, owed) = made.expect("registers that can be");
    settle(&mut mmu, owed);
    (mmu, vcpu)
}

#[inline]
pub fn settle<S: Stage>(mmu: &mut Mmu<S, &Memory, &Memory>, owed: Owed) {
    let settled = mmu.settle(owed, |_| Ok::<(), Infallible>(()));
    settled.expect("our own token");
}

/// One fault; whether it was a write to be emulated.
#[inline]
pub fn fault(
    mmu: &mut BenchMmu<'_>,
    vcpu: &Vcpu,
    memory: &Memory,
    linear: u64,
    access: Access,
) -> bool {
    loop {
        let answer = mmu.fault(vcpu.space(), machine(memory), linear, access);
        let answer = answer.expect("frames enough");
        settle(mmu, answer.owed);
        match answer.verdict {
            Verdict::Repaired(_) => return false,
            Verdict::Guarded { .. } => return true,
            Verdict::Retry => (),
            other => panic!("{linear:#x}: {other:?}"),
        }
    }
}
