// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bits of a guest's entries. SDM 3A, "Formats of CR3 and Paging-Structure Entries".

/// P.
pub(crate) const PRESENT: u64 = 1 << 0;
/// R/W.
pub(crate) const WRITABLE: u64 = 1 << 1;
/// U/S.
pub(crate) const USER: u64 = 1 << 2;
/// PWT and PCD.
pub(crate) const CACHE: u64 = 0b11 << 3;
/// A.
pub(crate) const ACCESSED: u64 = 1 << 5;
/// D.
pub(crate) const DIRTY: u64 = 1 << 6;
/// PS, above level 1.
pub(crate) const PAGE_SIZE: u64 = 1 << 7;
/// PAT, at level 1.
pub(crate) const SMALL_PAT: u64 = 1 << 7;
/// G.
pub(crate) const GLOBAL: u64 = 1 << 8;
/// PAT, of a large page.
pub(crate) const LARGE_PAT: u64 = 1 << 12;
/// The protection key's lowest bit.
pub(crate) const KEY_SHIFT: u32 = 59;
/// The protection key.
pub(crate) const KEY: u64 = 0xf << KEY_SHIFT;
/// XD.
pub(crate) const EXECUTE_DISABLE: u64 = 1 << 63;
