// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The extended-page-table pointer, and the list of them that EPTP switching reads.
//!
//! ```text
//!  63      M M-1             12 11    8  7   6  5        3 2         0
//! | reserved | root >> 12      | resvd |SSS|A/D| levels-1 | mem. type |
//! ```

use super::capability::{EptVpidCap, Unsupported};
use super::entry::Controls;
use super::memory_type::MemoryType;

/// How many levels an EPT has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum WalkLength {
    /// 4-level EPT: 48-bit guest-physical addresses.
    #[default]
    Four,
    /// 5-level EPT: every guest-physical address there is.
    Five,
}

impl WalkLength {
    /// 4 or 5.
    #[inline]
    #[must_use]
    pub const fn levels(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Five => 5,
        }
    }
}

/// An EPTP, as the VMCS field 201AH, an EPTP list or an INVEPT descriptor holds it. Not proven valid;
/// see [`check`](Self::check). SDM 3C, "Extended-Page-Table Pointer (EPTP)".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[repr(transparent)]
pub struct Eptp(pub u64);

/// Why VM entry refuses an EPTP, and EPTP switching exits on one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EptpError {
    /// Something the capability register does not list.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Bits 5:3 name a walk that no processor has.
    #[error("bits 5:3 are {0}, where 3 and 4 are defined")]
    WalkLength(u8),
    /// Reserved bits that are set: among 11:8, or at or above the physical-address width.
    #[error("reserved bits {0:#x} are set")]
    Reserved(u64),
    /// A root that is not 4-KByte aligned.
    #[error("root {0:#x} is not 4-KByte aligned")]
    Unaligned(u64),
    /// EPTP switching to another walk length: bits 5:3 must stay.
    #[error("a walk of {new} levels where the current one has {current}")]
    OtherWalkLength {
        /// Levels of the EPTP in use.
        current: u8,
        /// Levels of the one to switch to.
        new: u8,
    },
}

impl Eptp {
    /// Bit 6: accessed and dirty flags for EPT are enabled.
    pub const ACCESSED_DIRTY: u64 = 1 << 6;
    /// Bit 7: access rights for supervisor shadow-stack pages are enforced.
    pub const SUPERVISOR_SHADOW_STACK: u64 = 1 << 7;

    /// An EPTP for the root table at physical address `root`.
    ///
    /// Of `controls`, those that live in the EPTP count: [`Controls::ACCESSED_DIRTY`] and
    /// [`Controls::SUPERVISOR_SHADOW_STACK`].
    ///
    /// # Errors
    ///
    /// [`EptpError`] as VM entry would; `physical_bits` is the processor's MAXPHYADDR.
    pub fn new(
        root: u64,
        length: WalkLength,
        structures: MemoryType,
        controls: Controls,
        capability: EptVpidCap,
        physical_bits: u32,
    ) -> Result<Self, EptpError> {
        if root & 0xfff != 0 {
            return Err(EptpError::Unaligned(root));
        }
        let mut bits =
            root | u64::from(structures.bits()) | u64::from(length.levels().saturating_sub(1)) << 3;
        if controls.contains(Controls::ACCESSED_DIRTY) {
            bits |= Self::ACCESSED_DIRTY;
        }
        if controls.contains(Controls::SUPERVISOR_SHADOW_STACK) {
            bits |= Self::SUPERVISOR_SHADOW_STACK;
        }
        let eptp = Self(bits);
        eptp.check(capability, physical_bits)?;
        Ok(eptp)
    }

    /// Physical address of the root table: bits 51:12.
    #[inline]
    #[must_use]
    pub const fn root(self) -> u64 {
        self.0 & 0x000f_ffff_ffff_f000
    }

    /// Encoding of the memory type for EPT paging structures: bits 2:0.
    #[inline]
    #[must_use]
    pub const fn structure_type(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// Levels, from bits 5:3.
    ///
    /// # Errors
    ///
    /// [`EptpError::WalkLength`] with bits 5:3.
    pub const fn walk_length(self) -> Result<WalkLength, EptpError> {
        match (self.0 >> 3 & 7) as u8 {
            3 => Ok(WalkLength::Four),
            4 => Ok(WalkLength::Five),
            other => Err(EptpError::WalkLength(other)),
        }
    }

    /// The controls that live in the EPTP: bits 6 and 7.
    #[must_use]
    pub fn controls(self) -> Controls {
        let mut controls = Controls::empty();
        controls.set(Controls::ACCESSED_DIRTY, self.0 & Self::ACCESSED_DIRTY != 0);
        let shadow_stack = self.0 & Self::SUPERVISOR_SHADOW_STACK != 0;
        controls.set(Controls::SUPERVISOR_SHADOW_STACK, shadow_stack);
        controls
    }

    /// The checks that VM entry makes while "enable EPT" is 1. SDM 3C, "VM-Execution Control Fields" of
    /// the checks on VMX controls.
    ///
    /// # Errors
    ///
    /// The first check that fails, in the manual's order.
    pub fn check(self, capability: EptVpidCap, physical_bits: u32) -> Result<(), EptpError> {
        capability.structure_type(self.structure_type())?;
        capability.walk_length(self.walk_length()?)?;
        if self.0 & Self::ACCESSED_DIRTY != 0 && !capability.contains(EptVpidCap::ACCESSED_DIRTY) {
            return Err(Unsupported::AccessedDirty.into());
        }
        if self.0 & Self::SUPERVISOR_SHADOW_STACK != 0
            && !capability.contains(EptVpidCap::SUPERVISOR_SHADOW_STACK)
        {
            return Err(Unsupported::SupervisorShadowStack.into());
        }
        let above = u64::MAX.checked_shl(physical_bits).unwrap_or(0);
        match self.0 & (above | 0xf00) {
            0 => Ok(()),
            reserved => Err(EptpError::Reserved(reserved)),
        }
    }

    /// Whether EPTP switching (VM function 0) may go from `self` to `new`: valid, and of the same walk
    /// length. SDM 3C, "EPTP Switching".
    ///
    /// # Errors
    ///
    /// Why the processor would exit instead.
    pub fn check_switch(
        self,
        new: Self,
        capability: EptVpidCap,
        physical_bits: u32,
    ) -> Result<(), EptpError> {
        new.check(capability, physical_bits)?;
        let (current, length) = (self.walk_length()?, new.walk_length()?);
        if current != length {
            let (current, new) = (current.levels(), length.levels());
            return Err(EptpError::OtherWalkLength { current, new });
        }
        Ok(())
    }
}

/// The page that the EPTP-list address field names: 512 EPTPs for VM function 0. SDM 3C, "EPTP Switching".
///
/// An entry of 0 is not a valid EPTP: switching to it exits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct EptpList([u64; Self::ENTRIES]);

const _: () = assert!(size_of::<EptpList>() == 4096);

impl EptpList {
    /// Entries of a list.
    pub const ENTRIES: usize = 512;

    /// A list to none of whose entries can be switched.
    #[must_use]
    pub const fn new() -> Self {
        Self([0; Self::ENTRIES])
    }

    /// The entry at `index` (the guest's ECX); `None` from 512 up, where VMFUNC exits.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<Eptp> {
        self.0.get(usize::try_from(index).ok()?).copied().map(Eptp)
    }

    /// Puts `eptp` at `index`, and returns what was there; `None`, and nothing done, from 512 up.
    pub fn set(&mut self, index: u32, eptp: Eptp) -> Option<Eptp> {
        let slot = self.0.get_mut(usize::try_from(index).ok()?)?;
        Some(Eptp(core::mem::replace(slot, eptp.0)))
    }

    /// The words as the processor reads them.
    #[must_use]
    pub const fn words(&self) -> &[u64; Self::ENTRIES] {
        &self.0
    }
}

impl Default for EptpList {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: EptVpidCap = EptVpidCap::from_msr(0x0f01_06f3_41c1);

    fn new(root: u64, length: WalkLength, t: MemoryType, c: Controls) -> Result<u64, EptpError> {
        Eptp::new(root, length, t, c, ALL, 46).map(|eptp| eptp.0)
    }

    #[test]
    fn raw_words_from_the_figure() {
        use MemoryType::{Uncacheable, WriteBack};
        let none = Controls::empty();
        assert_eq!(
            new(0x1234_5000, WalkLength::Four, WriteBack, none),
            Ok(0x1234_501e)
        );
        assert_eq!(
            new(0x1234_5000, WalkLength::Four, Uncacheable, none),
            Ok(0x1234_5018)
        );
        assert_eq!(
            new(0x1234_5000, WalkLength::Five, WriteBack, none),
            Ok(0x1234_5026)
        );
        let ad = Controls::ACCESSED_DIRTY;
        assert_eq!(new(0x1000, WalkLength::Four, WriteBack, ad), Ok(0x105e));
        let sss = Controls::SUPERVISOR_SHADOW_STACK;
        assert_eq!(new(0x1000, WalkLength::Four, WriteBack, sss), Ok(0x109e));
        // Controls that live in the VMCS leave no trace.
        let vmcs = Controls::all() - ad - sss;
        assert_eq!(new(0x1000, WalkLength::Four, WriteBack, vmcs), Ok(0x101e));

        let eptp = Eptp(0x3fff_ffff_f0de);
        assert_eq!((eptp.root(), eptp.structure_type()), (0x3fff_ffff_f000, 6));
        assert_eq!(eptp.walk_length(), Ok(WalkLength::Four));
        assert_eq!(eptp.controls(), ad | sss);
        assert_eq!(eptp.check(ALL, 46), Ok(()));
    }

    #[test]
    fn each_refusal_is_named() {
        let check = |bits, cap| Eptp(bits).check(EptVpidCap::from_msr(cap), 46);
        let all = ALL.bits();
        assert_eq!(
            check(0x101d, all),
            Err(Unsupported::StructureType(5).into())
        );
        assert_eq!(
            check(0x101e, all & !(1 << 14)),
            Err(Unsupported::StructureType(6).into())
        );
        assert_eq!(
            check(0x101e, all & !(1 << 6)),
            Err(Unsupported::WalkLength(4).into())
        );
        assert_eq!(
            check(0x1026, all & !(1 << 7)),
            Err(Unsupported::WalkLength(5).into())
        );
        for length in [0u64, 1, 2, 5, 6, 7] {
            assert_eq!(
                check(0x1006 | length << 3, all),
                Err(EptpError::WalkLength(length as u8))
            );
        }
        assert_eq!(
            check(0x105e, all & !(1 << 21)),
            Err(Unsupported::AccessedDirty.into())
        );
        let sss = Err(Unsupported::SupervisorShadowStack.into());
        assert_eq!(check(0x109e, all & !(1 << 23)), sss);
        // What is not asked for need not be supported.
        assert_eq!(check(0x101e, all & !(1 << 21 | 1 << 23)), Ok(()));
        assert_eq!(check(0x105e, all & !(1 << 23)), Ok(()));
        assert_eq!(check(0x109e, all & !(1 << 21)), Ok(()));
        for bit in (8..12).chain(46..64) {
            let reserved = Err(EptpError::Reserved(1 << bit));
            assert_eq!(check(0x101e | 1 << bit, all), reserved);
        }
        let unaligned = new(
            0x1800,
            WalkLength::Four,
            MemoryType::WriteBack,
            Controls::empty(),
        );
        assert_eq!(unaligned, Err(EptpError::Unaligned(0x1800)));
        let wide = new(
            1 << 46,
            WalkLength::Four,
            MemoryType::WriteBack,
            Controls::empty(),
        );
        assert_eq!(wide, Err(EptpError::Reserved(1 << 46)));
        // A width of 64 or more reserves nothing, and does not panic.
        assert_eq!(Eptp(u64::MAX << 12 | 0x1e).check(ALL, 64), Ok(()));
    }

    #[test]
    fn switching_keeps_the_walk_length() {
        let four = Eptp(0x101e);
        assert_eq!(four.check_switch(Eptp(0x205e), ALL, 46), Ok(()));
        let other = EptpError::OtherWalkLength { current: 4, new: 5 };
        assert_eq!(four.check_switch(Eptp(0x2026), ALL, 46), Err(other));
        assert_eq!(
            four.check_switch(Eptp(0), ALL, 46),
            Err(EptpError::WalkLength(0))
        );
    }

    #[test]
    fn a_list_has_512_entries() {
        let mut list = EptpList::new();
        assert_eq!(list.set(511, Eptp(0x101e)), Some(Eptp(0)));
        assert_eq!(list.set(512, Eptp(0x101e)), None);
        assert_eq!((list.get(511), list.get(512)), (Some(Eptp(0x101e)), None));
        assert_eq!(list.get(u32::MAX), None);
        assert_eq!((list.words()[511], list.words()[510]), (0x101e, 0));
        assert_eq!(list, {
            let mut other = EptpList::default();
            other.set(511, Eptp(0x101e));
            other
        });
    }
}
