// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From when on a processor of a cluster may still use what it has seen: what its instructions invalidate, and what they leave.

use alloc::collections::BTreeMap;

use super::board::Instruction;
use crate::guest::{Registers, cr0, cr4};
use crate::x86::InvalidateKind;

/// From when on a processor may remember. By CR3, which stands for a PCID, and by page.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) all: u64,
    pub(super) spaces: BTreeMap<u64, u64>,
    pub(super) pages: BTreeMap<(u64, u64), u64>,
    /// By page, whatever the PCID.
    pub(super) everywhere: BTreeMap<u64, u64>,
}

impl Memory {
    pub(super) fn since(&self, cr3: u64, page: u64) -> u64 {
        let space = self.spaces.get(&cr3).copied().unwrap_or(0);
        let everywhere = self.everywhere.get(&page).copied().unwrap_or(0);
        let page = self.pages.get(&(cr3, page)).copied().unwrap_or(0);
        self.all.max(space).max(everywhere).max(page)
    }

    /// The processor, whose registers were `before`, executed `instruction` at `now`. SDM 3A, "Operations that Invalidate TLBs
    /// and Paging-Structure Caches"; the guest has no global pages.
    pub(super) fn invalidated(&mut self, before: &Registers, instruction: Instruction, now: u64) {
        let tagged = before.cr4 & cr4::PCIDE != 0;
        let page = |linear: u64| linear & !0xfff;
        match instruction {
            Instruction::Cr3(value) if tagged && value >> 63 != 0 => (),
            Instruction::Cr3(value) if tagged => {
                self.spaces.insert(value, now);
            }
            Instruction::Cr3(_) | Instruction::InvalidateAll => self.all = now,
            Instruction::Invlpg(linear) => {
                self.pages.insert((before.cr3, page(linear)), now);
            }
            // The MMU is not told of the PCID, so it may have been any.
            Instruction::Invpcid(InvalidateKind::Address(linear)) => {
                self.everywhere.insert(page(linear), now);
            }
            Instruction::Invpcid(
                InvalidateKind::Context | InvalidateKind::AllWithGlobal | InvalidateKind::All,
            ) => self.all = now,
            Instruction::Cr0(value) if before.cr0 & !value & cr0::PG != 0 => self.all = now,
            Instruction::Cr4(value)
                if (before.cr4 ^ value) & cr4::PGE != 0
                    || before.cr4 & !value & cr4::PCIDE != 0 =>
            {
                self.all = now;
            }
            Instruction::Cr4(value)
                if (before.cr4 ^ value) & cr4::PAE != 0 || !before.cr4 & value & cr4::SMEP != 0 =>
            {
                self.spaces.insert(before.cr3, now);
            }
            Instruction::Cr0(_) | Instruction::Cr4(_) | Instruction::Efer(_) => (),
        }
    }
}
