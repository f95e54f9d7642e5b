// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why bits of an entry are reserved.

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
