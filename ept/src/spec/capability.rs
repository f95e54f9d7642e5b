// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! IA32_VMX_EPT_VPID_CAP: what this processor's EPT can do, and the names of what it refuses.

use bitflags::bitflags;

use super::eptp::WalkLength;
use super::memory_type::MemoryType;

bitflags! {
    /// IA32_VMX_EPT_VPID_CAP (MSR 48CH, read-only, 64 bits). SDM 3D, "VPID and EPT Capabilities".
    ///
    /// Bits without a name here are kept: a newer processor's value is a value.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct EptVpidCap: u64 {
        /// Execute-only translations (bits 2:0 of an entry may be 100b).
        const EXECUTE_ONLY = 1 << 0;
        /// A page-walk length of 4.
        const WALK_LENGTH_4 = 1 << 6;
        /// A page-walk length of 5.
        const WALK_LENGTH_5 = 1 << 7;
        /// EPT paging structures may be uncacheable.
        const STRUCTURES_UNCACHEABLE = 1 << 8;
        /// EPT paging structures may be write-back.
        const STRUCTURES_WRITE_BACK = 1 << 14;
        /// An EPT PDE may map a 2-MByte page.
        const PAGE_2M = 1 << 16;
        /// An EPT PDPTE may map a 1-GByte page.
        const PAGE_1G = 1 << 17;
        /// INVEPT.
        const INVEPT = 1 << 20;
        /// Accessed and dirty flags for EPT.
        const ACCESSED_DIRTY = 1 << 21;
        /// Advanced VM-exit information for EPT violations (bits 11:9 of the qualification).
        const ADVANCED_VIOLATION_INFORMATION = 1 << 22;
        /// Supervisor shadow-stack control (bit 7 of the EPTP).
        const SUPERVISOR_SHADOW_STACK = 1 << 23;
        /// INVEPT, single-context.
        const INVEPT_SINGLE_CONTEXT = 1 << 25;
        /// INVEPT, all-context.
        const INVEPT_ALL_CONTEXT = 1 << 26;
        /// INVVPID.
        const INVVPID = 1 << 32;
        /// INVVPID, individual-address.
        const INVVPID_INDIVIDUAL_ADDRESS = 1 << 40;
        /// INVVPID, single-context.
        const INVVPID_SINGLE_CONTEXT = 1 << 41;
        /// INVVPID, all-context.
        const INVVPID_ALL_CONTEXT = 1 << 42;
        /// INVVPID, single-context-retaining-globals.
        const INVVPID_RETAINING_GLOBALS = 1 << 43;
        /// What has no name yet.
        const _ = !0;
    }
}

/// What a processor refuses of an EPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// A page-walk length that the capability register does not list.
    #[error("a page-walk length of {0} is not supported")]
    WalkLength(u8),
    /// A memory type for the EPT paging structures that the capability register does not list.
    #[error("EPT paging structures cannot have memory type {0}")]
    StructureType(u8),
    /// Accessed and dirty flags for EPT.
    #[error("accessed and dirty flags for EPT are not supported")]
    AccessedDirty,
    /// Supervisor shadow-stack control.
    #[error("supervisor shadow-stack control is not supported")]
    SupervisorShadowStack,
    /// A physical-address width that no processor reports: less than 32 or more than 52 bits.
    #[error("a physical-address width of {0} bits")]
    PhysicalBits(u32),
}

impl EptVpidCap {
    /// The value that the MSR holds.
    #[must_use]
    pub const fn from_msr(value: u64) -> Self {
        Self::from_bits_retain(value)
    }

    /// Bits 53:48: the largest HLAT prefix size; 0 without HLAT.
    #[must_use]
    pub const fn max_hlat_prefix(self) -> u8 {
        (self.bits() >> 48 & 0x3f) as u8
    }

    /// Whether a walk of `length` levels is allowed.
    ///
    /// # Errors
    ///
    /// [`Unsupported::WalkLength`].
    pub const fn walk_length(self, length: WalkLength) -> Result<(), Unsupported> {
        let needed = match length {
            WalkLength::Four => Self::WALK_LENGTH_4,
            WalkLength::Five => Self::WALK_LENGTH_5,
        };
        if self.contains(needed) {
            Ok(())
        } else {
            Err(Unsupported::WalkLength(length.levels()))
        }
    }

    /// Whether EPT paging structures may have the type that bits 2:0 of an EPTP encode.
    ///
    /// # Errors
    ///
    /// [`Unsupported::StructureType`].
    pub const fn structure_type(self, encoding: u8) -> Result<(), Unsupported> {
        let allowed = match MemoryType::from_bits(encoding) {
            Some(MemoryType::Uncacheable) => self.contains(Self::STRUCTURES_UNCACHEABLE),
            Some(MemoryType::WriteBack) => self.contains(Self::STRUCTURES_WRITE_BACK),
            _ => false,
        };
        if allowed {
            Ok(())
        } else {
            Err(Unsupported::StructureType(encoding))
        }
    }

    /// The levels at which an entry may map a page: bit `level - 1`.
    #[must_use]
    pub const fn leaf_levels(self) -> u8 {
        1 | (self.contains(Self::PAGE_2M) as u8) << 1 | (self.contains(Self::PAGE_1G) as u8) << 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a Skylake server reports.
    const SKYLAKE: u64 = 0x0f01_0673_4141;

    #[test]
    fn a_real_registers_bits_have_their_names() {
        let cap = EptVpidCap::from_msr(SKYLAKE);
        let named = EptVpidCap::EXECUTE_ONLY
            | EptVpidCap::WALK_LENGTH_4
            | EptVpidCap::STRUCTURES_UNCACHEABLE
            | EptVpidCap::STRUCTURES_WRITE_BACK
            | EptVpidCap::PAGE_2M
            | EptVpidCap::PAGE_1G
            | EptVpidCap::INVEPT
            | EptVpidCap::ACCESSED_DIRTY
            | EptVpidCap::ADVANCED_VIOLATION_INFORMATION
            | EptVpidCap::INVEPT_SINGLE_CONTEXT
            | EptVpidCap::INVEPT_ALL_CONTEXT
            | EptVpidCap::INVVPID
            | EptVpidCap::INVVPID_INDIVIDUAL_ADDRESS
            | EptVpidCap::INVVPID_SINGLE_CONTEXT
            | EptVpidCap::INVVPID_ALL_CONTEXT
            | EptVpidCap::INVVPID_RETAINING_GLOBALS;
        assert_eq!(cap, named);
        assert_eq!(cap.leaf_levels(), 0b111);
        assert_eq!(EptVpidCap::from_msr(1 << 16).leaf_levels(), 0b011);
        assert_eq!(EptVpidCap::from_msr(0).leaf_levels(), 0b001);
        assert_eq!(
            EptVpidCap::from_msr(0x002a_0000_0000_0000).max_hlat_prefix(),
            42
        );
    }

    #[test]
    fn what_is_refused_is_named() {
        let cap = EptVpidCap::from_msr(SKYLAKE);
        assert_eq!(cap.walk_length(WalkLength::Four), Ok(()));
        assert_eq!(
            cap.walk_length(WalkLength::Five),
            Err(Unsupported::WalkLength(5))
        );
        let none = EptVpidCap::from_msr(0);
        assert_eq!(
            none.walk_length(WalkLength::Four),
            Err(Unsupported::WalkLength(4))
        );
        assert_eq!(
            EptVpidCap::from_msr(1 << 7).walk_length(WalkLength::Five),
            Ok(())
        );
        for encoding in 0..=7 {
            let allowed = matches!(encoding, 0 | 6);
            assert_eq!(
                cap.structure_type(encoding).is_ok(),
                allowed,
                "type {encoding}"
            );
            assert_eq!(
                none.structure_type(encoding),
                Err(Unsupported::StructureType(encoding))
            );
        }
        assert_eq!(EptVpidCap::from_msr(1 << 8).structure_type(0), Ok(()));
        assert!(EptVpidCap::from_msr(1 << 8).structure_type(6).is_err());
    }
}
