// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory types from MTRRs: from the registers' values to ranges of one type each.
//!
//! EPT has MTRRs no say (SDM 3C, "EPT and Memory Typing"), so who maps memory with EPT must say what they
//! would have said: the host's of host-physical addresses, or a guest's of guest-physical ones.
//!
//! ```text
//!   0          1 MiB                                             MAXPHYADDR
//!   |fixed: 88 ranges|          default type                      |
//!                     |--- variable ---|      |-- variable --|
//!                              |-- variable --|      where two overlap: MTRR precedences
//! ```
//!
//! SDM 3A, "Memory Type Range Registers (MTRRs)".

use crate::spec::MemoryType;

/// IA32_MTRR_DEF_TYPE bit 11: MTRRs are enabled.
pub const DEF_TYPE_ENABLE: u64 = 1 << 11;
/// IA32_MTRR_DEF_TYPE bit 10: the fixed ranges are.
pub const DEF_TYPE_FIXED_ENABLE: u64 = 1 << 10;
/// IA32_MTRR_PHYSMASKn bit 11: the range is valid.
pub const MASK_VALID: u64 = 1 << 11;

/// One variable range: IA32_MTRR_PHYSBASEn and IA32_MTRR_PHYSMASKn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Variable {
    /// IA32_MTRR_PHYSBASEn: type in bits 7:0, base from bit 12 up.
    pub base: u64,
    /// IA32_MTRR_PHYSMASKn: valid in bit 11, mask from bit 12 up.
    pub mask: u64,
}

/// The registers' values. Fixed ranges in the order of their addresses: IA32_MTRR_FIX64K_00000,
/// FIX16K_80000, FIX16K_A0000, FIX4K_C0000 to FIX4K_F8000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtrrs<'a> {
    default: MemoryType,
    enabled: bool,
    fixed: Option<[u64; FIXED]>,
    variable: &'a [Variable],
    physical_bits: u32,
}

/// Fixed-range registers: eight ranges each.
pub const FIXED: usize = 11;

/// Values that WRMSR would refuse, or that make no range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MtrrError {
    /// A reserved memory type.
    #[error("memory type {encoding} in register value {value:#x}")]
    Type {
        /// The encoding.
        encoding: u8,
        /// The register's value.
        value: u64,
    },
    /// Reserved bits.
    #[error("reserved bits {bits:#x} in register value {value:#x}")]
    Reserved {
        /// Those that are set.
        bits: u64,
        /// The register's value.
        value: u64,
    },
    /// A mask with holes: hardware would take many separate ranges for one. Firmware that does so is in
    /// error.
    #[error("the mask {mask:#x} is not contiguous")]
    Discontiguous {
        /// IA32_MTRR_PHYSMASKn.
        mask: u64,
    },
    /// A physical-address width of less than 32 or more than 52 bits.
    #[error("a physical-address width of {0} bits")]
    PhysicalBits(u32),
}

/// What MTRRs say of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// This type.
    Type(MemoryType),
    /// Variable ranges overlap in a way that the manual leaves undefined ("MTRR Precedences").
    Undefined,
}

impl Effect {
    /// The type; where it is undefined, uncacheable, which is always safe.
    #[must_use]
    pub const fn or_uncacheable(self) -> MemoryType {
        match self {
            Self::Type(memory_type) => memory_type,
            Self::Undefined => MemoryType::Uncacheable,
        }
    }
}

/// Addresses of which MTRRs say one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What they say.
    pub effect: Effect,
}

const MIB: u64 = 1 << 20;

impl<'a> Mtrrs<'a> {
    /// From the registers, on a processor with `physical_bits` of physical address.
    ///
    /// `fixed` is read only where IA32_MTRR_DEF_TYPE enables it, variable ranges only where they are
    /// valid.
    ///
    /// # Errors
    ///
    /// The first value that a processor would not hold, or that makes no range.
    pub fn new(
        def_type: u64,
        fixed: &[u64; FIXED],
        variable: &'a [Variable],
        physical_bits: u32,
    ) -> Result<Self, MtrrError> {
        if !(32..=52).contains(&physical_bits) {
            return Err(MtrrError::PhysicalBits(physical_bits));
        }
        let known = DEF_TYPE_ENABLE | DEF_TYPE_FIXED_ENABLE | 0xff;
        let default = checked(def_type, known)?;
        let use_fixed = def_type & DEF_TYPE_FIXED_ENABLE != 0;
        for &value in fixed.iter().filter(|_| use_fixed) {
            for encoding in value.to_le_bytes() {
                let bad = MtrrError::Type { encoding, value };
                MemoryType::from_bits(encoding).ok_or(bad)?;
            }
        }
        let address = address_bits(physical_bits);
        for &Variable { base, mask } in variable.iter().filter(|v| v.mask & MASK_VALID != 0) {
            checked(base, address | 0xff)?;
            let reserved = mask & !(address | MASK_VALID);
            if reserved != 0 {
                return Err(MtrrError::Reserved {
                    bits: reserved,
                    value: mask,
                });
            }
            let holes = !mask & address;
            if holes & holes.wrapping_add(0x1000) & address != 0 {
                return Err(MtrrError::Discontiguous { mask });
            }
        }
        Ok(Self {
            default,
            enabled: def_type & DEF_TYPE_ENABLE != 0,
            fixed: use_fixed.then_some(*fixed),
            variable,
            physical_bits,
        })
    }

    /// What they say of `address`. SDM 3A, "MTRR Precedences".
    #[must_use]
    pub fn effect(&self, address: u64) -> Effect {
        if !self.enabled {
            return Effect::Type(MemoryType::Uncacheable);
        }
        if let Some((memory_type, _)) = self.fixed_range(address) {
            return Effect::Type(memory_type);
        }
        let mut found: Option<MemoryType> = None;
        let mut undefined = false;
        for (range, memory_type) in self.ranges_of_variables() {
            if !range.contains(&address) {
                continue;
            }
            use MemoryType::{Uncacheable, WriteBack, WriteThrough};
            found = Some(match (found, memory_type) {
                (None, one) => one,
                (Some(one), other) if one == other => one,
                (Some(Uncacheable), _) | (_, Uncacheable) => return Effect::Type(Uncacheable),
                (Some(WriteBack | WriteThrough), WriteBack | WriteThrough) => WriteThrough,
                (Some(one), _) => {
                    undefined = true;
                    one
                }
            });
            // Only another range that is uncacheable can still settle it: look on.
        }
        match found {
            _ if undefined => Effect::Undefined,
            Some(memory_type) => Effect::Type(memory_type),
            None => Effect::Type(self.default),
        }
    }

    /// The addresses from `start` on of which they say one thing; `None` at or above the physical-address
    /// width.
    #[must_use]
    pub fn run(&self, start: u64) -> Option<Run> {
        let effect = self.effect(start);
        let mut end = self.next_edge(start)?;
        while self.effect(end) == effect {
            match self.next_edge(end) {
                Some(next) => end = next,
                None => break,
            }
        }
        Some(Run { start, end, effect })
    }

    /// The whole physical-address space in runs, lowest first: at most one more than twice the number of
    /// ranges.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        core::iter::successors(self.run(0), |run| self.run(run.end))
    }

    /// The lowest address above `address` where some range begins or ends, or the space does.
    fn next_edge(&self, address: u64) -> Option<u64> {
        let top = 1u64 << self.physical_bits;
        if address >= top {
            return None;
        }
        let mut edge = top;
        if !self.enabled {
            return Some(edge);
        }
        if let Some((_, end)) = self.fixed_range(address) {
            // Variable ranges have no say here.
            return Some(end);
        }
        for (range, _) in self.ranges_of_variables() {
            for end in [range.start, range.end] {
                if end > address && end < edge {
                    edge = end;
                }
            }
        }
        Some(edge)
    }

    /// The fixed range that `address` is in: its type and end.
    fn fixed_range(&self, address: u64) -> Option<(MemoryType, u64)> {
        let fixed = self.fixed.as_ref().filter(|_| address < MIB)?;
        let (register, shift) = match address {
            0..0x8_0000 => (0, 16),
            // Two registers of 128 KiB, then eight of 32 KiB.
            0x8_0000..0xc_0000 => ((address >> 17).wrapping_sub(3), 14),
            _ => ((address >> 15).wrapping_sub(21), 12),
        };
        let value = fixed.get(usize::try_from(register).ok()?)?;
        let byte = (value >> ((address >> shift & 7) << 3)) as u8;
        let end = (address >> shift).saturating_add(1) << shift;
        Some((MemoryType::from_bits(byte)?, end))
    }

    /// Valid variable ranges with their types.
    fn ranges_of_variables(
        &self,
    ) -> impl Iterator<Item = (core::ops::Range<u64>, MemoryType)> + use<'a> {
        let address = address_bits(self.physical_bits);
        let valid = self.variable.iter().filter(|v| v.mask & MASK_VALID != 0);
        valid.filter_map(move |v| {
            let mask = v.mask & address;
            let start = v.base & mask;
            let length = (!mask & address).saturating_add(0x1000);
            let end = start.saturating_add(length);
            Some((start..end, MemoryType::from_bits(v.base as u8)?))
        })
    }
}

/// The bits of a page's address, of 12 to 63.
fn address_bits(physical_bits: u32) -> u64 {
    let behind = 1u64.checked_shl(physical_bits).unwrap_or(0);
    behind.wrapping_sub(0x1000)
}

/// The type in bits 7:0 of a register that has only the bits `known`.
fn checked(value: u64, known: u64) -> Result<MemoryType, MtrrError> {
    if value & !known != 0 {
        return Err(MtrrError::Reserved {
            bits: value & !known,
            value,
        });
    }
    let encoding = value as u8;
    MemoryType::from_bits(encoding).ok_or(MtrrError::Type { encoding, value })
}

#[cfg(test)]
mod tests;
