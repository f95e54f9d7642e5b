// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! EPT paging-structure entries: the bits, and what makes an entry misconfigured.
//!
//! ```text
//!         63  62  61  60  59  58  57 56    52 51  M M-1       12 11  10  9  8  7  6  5  3  2 1 0
//!  page  |SVE| - |SPP|SSS| - |PW |VGP| ignored | 0  |  address | - |XU | D| A| 1|IP|type | X W R |
//!  table |              ignored                | 0  |  address | - |XU | -| A| 0|    0   | X W R |
//!  absent|SVE|                         ignored                                           | 0 0 0 |
//! ```
//!
//! In an entry that maps a 4-KByte page bit 7 is ignored; SPP exists there only. An address is aligned
//! to what it names: its lower bits are reserved. SVE, SPP, SSS, PW, VGP, XU, D and A mean something
//! only where a control says so ([`Controls`]), and are ignored otherwise.

use bitflags::bitflags;

use super::capability::EptVpidCap;
use super::memory_type::{MemoryType, Pat};

bitflags! {
    /// The privileges that an entry grants, at the entry's own bit positions.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Rights: u64 {
        /// Bit 0: data reads.
        const READ = 1 << 0;
        /// Bit 1: data writes.
        const WRITE = 1 << 1;
        /// Bit 2: instruction fetches; with mode-based execute control, those of supervisor-mode
        /// linear addresses.
        const EXECUTE = 1 << 2;
        /// Bit 10: instruction fetches of user-mode linear addresses, with mode-based execute control.
        const USER_EXECUTE = 1 << 10;

        /// Reads and writes.
        const READ_WRITE = Self::READ.bits() | Self::WRITE.bits();
        /// Reads, writes and fetches (of either mode without mode-based execute control).
        const READ_WRITE_EXECUTE = Self::READ_WRITE.bits() | Self::EXECUTE.bits();
    }

    /// What gives the optional bits of an entry their meaning. A control that is off leaves its bit ignored.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Controls: u32 {
        /// "Mode-based execute control for EPT": bit 10 is [`Rights::USER_EXECUTE`].
        const MODE_BASED_EXECUTE = 1 << 0;
        /// Bit 6 of the EPTP: accessed and dirty flags; guest paging-structure accesses count as writes.
        const ACCESSED_DIRTY = 1 << 1;
        /// Bit 7 of the EPTP: bit 60 says where supervisor shadow stacks may be.
        const SUPERVISOR_SHADOW_STACK = 1 << 2;
        /// "EPT-violation #VE": bit 63 suppresses virtualization exceptions.
        const VIOLATION_EXCEPTION = 1 << 3;
        /// "EPT paging-write control": bit 58 lets paging write to a page that is not writable.
        const PAGING_WRITE = 1 << 4;
        /// "Guest-paging verification": bit 57 demands paging-write pages under a translation.
        const GUEST_PAGING_VERIFICATION = 1 << 5;
        /// "Sub-page write permissions for EPT": bit 61 sends refused writes to the sub-page table.
        const SUB_PAGE_WRITE = 1 << 6;
    }
}

/// Why an entry is misconfigured. SDM 3C, "EPT Misconfigurations".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Misconfiguration {
    /// Bit 1 is set and bit 0 is not.
    #[error("writes are allowed and reads are not")]
    WriteWithoutRead,
    /// Bit 2 (or 10) is set and bit 0 is not, on a processor without execute-only translations.
    #[error("execute-only translations are not supported")]
    ExecuteOnly,
    /// Bit 58 of an entry that maps a page is set and bit 0 is not, with EPT paging-write control.
    #[error("paging writes are allowed and reads are not")]
    PagingWriteWithoutRead,
    /// Bits that must be 0 at this level, or for this physical-address width.
    #[error("reserved bits {bits:#x} are set")]
    Reserved {
        /// Those that are set.
        bits: u64,
    },
    /// Bits 5:3 of an entry that maps a page are 2, 3 or 7.
    #[error("memory type {0} is reserved")]
    MemoryType(u8),
}

/// One 64-bit entry of an EPT paging structure, at any level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[repr(transparent)]
pub struct EptEntry(pub u64);

impl EptEntry {
    /// Lowest bit of the memory type.
    pub const MEMORY_TYPE_SHIFT: u32 = 3;
    /// Bits 5:3: the memory type of a page.
    pub const MEMORY_TYPE: u64 = 7 << Self::MEMORY_TYPE_SHIFT;
    /// Bit 6: the PAT is ignored for a page.
    pub const IGNORE_PAT: u64 = 1 << 6;
    /// Bit 7: the entry maps a page, at levels 2 and 3.
    pub const LARGE: u64 = 1 << 7;
    /// Bit 8: accessed.
    pub const ACCESSED: u64 = 1 << 8;
    /// Bit 9: dirty, in an entry that maps a page.
    pub const DIRTY: u64 = 1 << 9;
    /// Bits 51:12: the address.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Bit 57: verify guest paging.
    pub const VERIFY_GUEST_PAGING: u64 = 1 << 57;
    /// Bit 58: paging-write access.
    pub const PAGING_WRITE: u64 = 1 << 58;
    /// Bit 60: supervisor shadow stack.
    pub const SUPERVISOR_SHADOW_STACK: u64 = 1 << 60;
    /// Bit 61: sub-page write permissions, in an entry that maps a 4-KByte page.
    pub const SUB_PAGE_WRITE: u64 = 1 << 61;
    /// Bit 63: suppress #VE, in an entry that maps a page or is not present.
    pub const SUPPRESS_VE: u64 = 1 << 63;
    /// Bits that no entry that maps a page gives a meaning: software's.
    pub const SOFTWARE: u64 = 1 << 11 | 0x1f << 52 | 1 << 59 | 1 << 62;

    /// Bits 2:0 and 10, whatever the controls make of the last.
    #[inline]
    #[must_use]
    pub const fn rights(self) -> Rights {
        Rights::from_bits_truncate(self.0)
    }

    /// Bits 5:3 of an entry that maps a page; `None` for the reserved 2, 3 and 7.
    #[inline]
    #[must_use]
    pub const fn memory_type(self) -> Option<MemoryType> {
        MemoryType::from_bits((self.0 >> Self::MEMORY_TYPE_SHIFT & 7) as u8)
    }

    /// Bit 6 of an entry that maps a page.
    #[inline]
    #[must_use]
    pub const fn pat(self) -> Pat {
        if self.0 & Self::IGNORE_PAT == 0 {
            Pat::Combined
        } else {
            Pat::Ignored
        }
    }

    /// Whether every bit of `mask` is set.
    #[inline]
    #[must_use]
    pub const fn has(self, mask: u64) -> bool {
        self.0 & mask == mask
    }
}

/// Bits that no entry has that references a table.
const NOT_IN_TABLES: u64 = EptEntry::LARGE | EptEntry::IGNORE_PAT | EptEntry::MEMORY_TYPE;

/// What an entry does, apart from its rights. SDM 3C, "EPT Translation Mechanism".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// Not present.
    Absent,
    /// References the next lower structure, at this physical address.
    Table(u64),
    /// Maps the page at this physical address.
    Page(u64),
}

/// [`Use`] or misconfigured, without what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Absent,
    Table,
    Page,
    Misconfigured,
}

/// What a processor, as set up, makes of entries: its physical-address width, capabilities and [`Controls`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryRules {
    controls: Controls,
    execute_only: bool,
    physical_bits: u8,
    leaf_levels: u8,
    /// Bits 51:MAXPHYADDR.
    too_wide: u64,
    /// Bits any of which makes an entry present.
    present: u64,
    /// Of an entry that maps a page: the bits that mean something.
    meaningful: u64,
}

impl EntryRules {
    /// The rules of a processor with `capability` and a MAXPHYADDR of `physical_bits` (32 to 52; others
    /// are taken as the nearest), under `controls`.
    #[must_use]
    pub const fn new(capability: EptVpidCap, physical_bits: u32, controls: Controls) -> Self {
        let physical_bits = if physical_bits < 32 {
            32
        } else if physical_bits > 52 {
            52
        } else {
            physical_bits
        };
        const fn under(controls: Controls, control: Controls, bit: u64) -> u64 {
            if controls.contains(control) { bit } else { 0 }
        }
        let user = Rights::USER_EXECUTE.bits();
        let present =
            Rights::READ_WRITE_EXECUTE.bits() | under(controls, Controls::MODE_BASED_EXECUTE, user);
        let verify = EptEntry::VERIFY_GUEST_PAGING;
        let shadow_stack = EptEntry::SUPERVISOR_SHADOW_STACK;
        let meaningful = present
            | EptEntry::MEMORY_TYPE
            | EptEntry::IGNORE_PAT
            | under(controls, Controls::SUPERVISOR_SHADOW_STACK, shadow_stack)
            | under(
                controls,
                Controls::VIOLATION_EXCEPTION,
                EptEntry::SUPPRESS_VE,
            )
            | under(controls, Controls::PAGING_WRITE, EptEntry::PAGING_WRITE)
            | under(controls, Controls::GUEST_PAGING_VERIFICATION, verify)
            | under(controls, Controls::SUB_PAGE_WRITE, EptEntry::SUB_PAGE_WRITE);
        Self {
            controls,
            execute_only: capability.contains(EptVpidCap::EXECUTE_ONLY),
            physical_bits: physical_bits as u8,
            leaf_levels: capability.leaf_levels(),
            too_wide: EptEntry::ADDRESS & !(1u64 << physical_bits).wrapping_sub(1),
            present,
            meaningful,
        }
    }

    /// The controls.
    #[inline]
    #[must_use]
    pub const fn controls(&self) -> Controls {
        self.controls
    }

    /// MAXPHYADDR.
    #[inline]
    #[must_use]
    pub const fn physical_bits(&self) -> u32 {
        self.physical_bits as u32
    }

    /// Whether execute-only translations are supported.
    #[inline]
    #[must_use]
    pub const fn execute_only(&self) -> bool {
        self.execute_only
    }

    /// Which levels may map pages: bit `level - 1`.
    #[inline]
    #[must_use]
    pub const fn leaf_levels(&self) -> u8 {
        self.leaf_levels
    }

    /// Of an entry at `level` that maps a page: the bits that mean something, apart from address, size,
    /// accessed and dirty.
    #[inline]
    #[must_use]
    pub const fn meaningful(&self, level: u8) -> u64 {
        if level == 1 {
            self.meaningful
        } else {
            self.meaningful & !EptEntry::SUB_PAGE_WRITE
        }
    }

    /// The rights that `entry` grants: without mode-based execute control, bit 10 is none.
    #[inline]
    #[must_use]
    pub const fn rights(&self, entry: EptEntry) -> Rights {
        Rights::from_bits_truncate(entry.0 & self.present)
    }

    /// What `entry` does in a structure at `level` (1: EPT page table, 5: EPT PML5 table).
    ///
    /// # Errors
    ///
    /// A rule that makes it misconfigured. Where several do, one of them.
    #[inline]
    pub const fn classify(&self, entry: EptEntry, level: u8) -> Result<Use, Misconfiguration> {
        let address = entry.0 & EptEntry::ADDRESS;
        match self.kind(entry, level) {
            Kind::Absent => Ok(Use::Absent),
            Kind::Table => Ok(Use::Table(address)),
            Kind::Page => Ok(Use::Page(address)),
            Kind::Misconfigured => self.classify_at_length(entry, level),
        }
    }

    /// [`classify`](Self::classify) in a word. A walk waits for the address in the entry; it has it at once
    /// as long as nobody may write it to memory.
    #[inline(always)]
    pub(crate) const fn kind(&self, entry: EptEntry, level: u8) -> Kind {
        let EptEntry(bits) = entry;
        // What nearly every entry is: readable, with nothing reserved set.
        if bits & Rights::READ.bits() != 0 {
            if level > 1 && bits & (self.too_wide | NOT_IN_TABLES) == 0 {
                return Kind::Table;
            }
            if level == 1 && bits & self.too_wide == 0 && entry.memory_type().is_some() {
                return Kind::Page;
            }
        }
        self.kind_at_length(entry, level)
    }

    /// [`kind`](Self::kind) by every rule.
    #[inline(never)]
    const fn kind_at_length(&self, entry: EptEntry, level: u8) -> Kind {
        match self.classify_at_length(entry, level) {
            Ok(Use::Absent) => Kind::Absent,
            Ok(Use::Table(_)) => Kind::Table,
            Ok(Use::Page(_)) => Kind::Page,
            Err(_) => Kind::Misconfigured,
        }
    }

    /// Every rule.
    #[inline(never)]
    const fn classify_at_length(
        &self,
        entry: EptEntry,
        level: u8,
    ) -> Result<Use, Misconfiguration> {
        let EptEntry(bits) = entry;
        if bits & self.present == 0 {
            return Ok(Use::Absent);
        }
        let large = level > 1 && level <= 3 && bits & EptEntry::LARGE != 0;
        let page = level <= 1 || large && self.leaf_levels >> level.wrapping_sub(1) & 1 != 0;
        let reserved = if !page {
            self.too_wide | NOT_IN_TABLES
        } else if level <= 1 {
            self.too_wide
        } else {
            let size: u64 = if level == 2 { 1 << 21 } else { 1 << 30 };
            self.too_wide | size.wrapping_sub(0x1000)
        };
        if bits & reserved != 0 {
            return Err(Misconfiguration::Reserved {
                bits: bits & reserved,
            });
        }
        if bits & Rights::READ.bits() == 0 {
            if bits & Rights::WRITE.bits() != 0 {
                return Err(Misconfiguration::WriteWithoutRead);
            }
            if !self.execute_only {
                return Err(Misconfiguration::ExecuteOnly);
            }
            if page && bits & self.meaningful & EptEntry::PAGING_WRITE != 0 {
                return Err(Misconfiguration::PagingWriteWithoutRead);
            }
        }
        let address = bits & EptEntry::ADDRESS;
        if !page {
            return Ok(Use::Table(address));
        }
        if entry.memory_type().is_none() {
            let encoding = bits >> EptEntry::MEMORY_TYPE_SHIFT & 7;
            return Err(Misconfiguration::MemoryType(encoding as u8));
        }
        Ok(Use::Page(address))
    }
}

#[cfg(test)]
mod tests;
