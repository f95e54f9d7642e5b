// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which bits of an entry are reserved, and why.

/// Why a set bit is reserved. SDM 3A: the tables "Format of ..." and "Reserved bits" of each paging mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Reserved {
    /// An address bit at or above MAXPHYADDR (of a 4 MiB page: of the 40 that it can have).
    #[error("an address bit above the physical-address width")]
    Address,
    /// An address bit below the size of the page.
    #[error("an address bit below the size of the page")]
    Alignment,
    /// PS where no page can be: a PML5E or PML4E, or a PDPTE of a processor without 1 GiB pages.
    #[error("PS where no page can be mapped")]
    PageSize,
    /// XD while `IA32_EFER.NXE` is clear.
    #[error("XD while IA32_EFER.NXE is clear")]
    ExecuteDisable,
    /// PAT on a processor without a page attribute table.
    #[error("PAT without a page attribute table")]
    Pat,
    /// A bit of a PDPTE register that must be 0.
    #[error("a bit of a PDPTE that must be 0")]
    Pdpte,
}

/// The reserved bits of one kind of entry, by rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct ReservedBits {
    pub(crate) address: u64,
    pub(crate) alignment: u64,
    pub(crate) page_size: u64,
    pub(crate) execute_disable: u64,
    pub(crate) pat: u64,
    pub(crate) pdpte: u64,
}

impl ReservedBits {
    /// All of them.
    #[inline]
    pub(crate) const fn all(&self) -> u64 {
        self.address
            | self.alignment
            | self.page_size
            | self.execute_disable
            | self.pat
            | self.pdpte
    }

    /// The rule that `entry` breaks, if it breaks one.
    #[inline]
    pub(crate) fn broken_by(&self, entry: u64) -> Option<Reserved> {
        [
            (self.page_size, Reserved::PageSize),
            (self.pdpte, Reserved::Pdpte),
            (self.alignment, Reserved::Alignment),
            (self.pat, Reserved::Pat),
            (self.execute_disable, Reserved::ExecuteDisable),
            (self.address, Reserved::Address),
        ]
        .into_iter()
        .find_map(|(bits, rule)| (entry & bits != 0).then_some(rule))
    }
}
