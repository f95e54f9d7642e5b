// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a case has in memory, for both sides.

use hvkit_vmcs::check::{PhysicalMemory, Unreadable};

use super::{ENTRY_MSRS, LINK, PDPT, SHADOW, VIRTUAL_APIC};

/// Where the model's memory ends, and where the payload begins and ends: what lies there is not the cases' business.
const END: u64 = 256 << 20;
const CASES: u64 = 0x600_0000;

/// The words in memory that differ from case to case.
#[derive(Clone, Debug)]
pub struct Memory {
    /// The revision identifier of the processor.
    pub revision: u32,
    /// VTPR, at offset 80H of the virtual-APIC page.
    pub vtpr: u8,
    /// The entries of the VM-entry MSR-load area: bits 63:0 and 127:64.
    pub msrs: [(u64, u64); 2],
    /// The four PDPTEs in memory.
    pub pdptes: [u64; 4],
}

impl Memory {
    /// All words that are not zero, with their addresses: what the payload writes before the case.
    pub fn words(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let fixed = [
            (LINK, u64::from(self.revision)),
            (SHADOW, u64::from(self.revision) | 1 << 31),
            (VIRTUAL_APIC + 0x80, u64::from(self.vtpr)),
        ];
        let msrs = self.msrs.iter().zip((ENTRY_MSRS..).step_by(16));
        let msrs = msrs.flat_map(|(&(index, value), at)| [(at, index), (at + 8, value)]);
        let pdptes = self
            .pdptes
            .iter()
            .zip((PDPT..).step_by(8))
            .map(|(&entry, at)| (at, entry));
        fixed.into_iter().chain(msrs).chain(pdptes)
    }

    fn byte(&self, address: u64) -> u8 {
        let word = self.words().find(|(at, _)| *at == address & !7);
        word.map_or(0, |(_, word)| (word >> (8 * (address & 7))) as u8)
    }
}

impl PhysicalMemory for &Memory {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let end = address
            .checked_add(into.len() as u64)
            .ok_or(Unreadable { address })?;
        if address < CASES || end > END {
            return Err(Unreadable { address });
        }
        for (at, byte) in (address..).zip(into) {
            *byte = self.byte(at);
        }
        Ok(())
    }
}
