// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the real processor must be set up while the guest runs on its shadow.

use super::format::{ShadowFormat, ShadowLayout};
use crate::guest::{Features, Registers, cr0, cr4, efer};

/// What the real processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Processor {
    /// MAXPHYADDR, 32 to 52: of host-physical addresses.
    pub physical_address_bits: u8,
    /// 1 GiB pages.
    pub gib_pages: bool,
    /// 5-level paging (CPUID 07H.0:ECX\[16\]), without which a guest cannot have it.
    pub five_level_paging: bool,
}

impl Processor {
    /// The largest level of pages in its tables.
    pub(crate) const fn largest(self) -> u8 {
        if self.gib_pages { 3 } else { 2 }
    }

    /// One like the guest's own, with 5-level paging, of which a guest's features say nothing.
    #[must_use]
    pub const fn like(guest: &Features) -> Self {
        Self {
            physical_address_bits: guest.physical_address_bits,
            gib_pages: guest.gib_pages,
            five_level_paging: true,
        }
    }
}

/// Control-register bits of the real processor. Bits outside the masks are the guest's and the
/// hypervisor's to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hardware {
    /// CR3: the shadow's root. Below 4 GiB in the PAE layout.
    pub cr3: u64,
    /// CR0 within [`CR0_MASK`](Self::CR0_MASK).
    pub cr0: u64,
    /// CR4 within [`CR4_MASK`](Self::CR4_MASK).
    pub cr4: u64,
    /// `IA32_EFER` within [`EFER_MASK`](Self::EFER_MASK).
    pub efer: u64,
    /// Which paging that is.
    pub layout: ShadowLayout,
}

impl Hardware {
    /// PE, WP and PG: always set, whatever the guest has.
    pub const CR0_MASK: u64 = cr0::PE | cr0::WP | cr0::PG;
    /// PAE, LA57, SMEP, SMAP; and what shadows cannot have: PCIDE (tags are not told apart), PKE, CET
    /// and PKS.
    pub const CR4_MASK: u64 =
        cr4::PAE | cr4::LA57 | cr4::SMEP | cr4::SMAP | cr4::PCIDE | cr4::PKE | cr4::CET | cr4::PKS;
    /// Bits of CR0 whose change the MMU must be told of: the guest/host mask. Those of [`CR0_MASK`](Self::CR0_MASK), and CD
    /// and NW, which load PDPTE registers.
    pub const CR0_EXITS: u64 = Self::CR0_MASK | cr0::CD | cr0::NW;
    /// Bits of CR4 whose change the MMU must be told of: the guest/host mask. Those of [`CR4_MASK`](Self::CR4_MASK), and PSE
    /// and PGE: the one says what a guest's entries mean, and with either one changed the guest's TLB is empty.
    pub const CR4_EXITS: u64 = Self::CR4_MASK | cr4::PSE | cr4::PGE;
    /// LME, LMA and NXE.
    pub const EFER_MASK: u64 = efer::LME | LMA | efer::NXE;

    pub(crate) fn of(format: &ShadowFormat, root: u64, guest: &Registers) -> Self {
        let long = match format.layout() {
            ShadowLayout::Pae => 0,
            ShadowLayout::FourLevel | ShadowLayout::FiveLevel => efer::LME | LMA,
        };
        let la57 = match format.layout() {
            ShadowLayout::FiveLevel => cr4::LA57,
            ShadowLayout::Pae | ShadowLayout::FourLevel => 0,
        };
        // Without paging, neither says anything; with our tables they would.
        let kept = if guest.cr0 & cr0::PG != 0 {
            guest.cr4 & (cr4::SMEP | cr4::SMAP)
        } else {
            0
        };
        Self {
            cr3: root,
            cr0: Self::CR0_MASK,
            cr4: cr4::PAE | la57 | kept,
            efer: efer::NXE | long,
            layout: format.layout(),
        }
    }
}

/// EFER.LMA: set while long mode is in use.
const LMA: u64 = 1 << 10;
