// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PAE's four PDPTE registers. SDM 3A, "PDPTE Registers".
//!
//! A processor loads them from memory when CR3 is loaded, or CR0 or CR4 changed so that PAE paging
//! begins or changes; from then on memory is not read. A guest that edits its page-directory-pointer
//! table in place sees nothing of it before the next such load.

use hvkit_page_table::{ReadEntry, Width};

use super::entry::PRESENT;
use super::format::GuestFormat;
use super::reserved::Reserved;

/// The four registers, as a processor accepted them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pdptes([u64; 4]);

/// Why the registers cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PdpteError<E> {
    /// A present one has a reserved bit set: the load ends in #GP(0), nothing loaded.
    #[error("PDPTE{index} {entry:#x} is present and has a reserved bit set: {rule}")]
    Reserved {
        /// Which of the four.
        index: u8,
        /// Its value.
        entry: u64,
        /// Why the bit is reserved.
        rule: Reserved,
    },
    /// It could not be read.
    #[error("PDPTE{index} at {at:#x} could not be read: {error:?}")]
    Unreadable {
        /// Which of the four.
        index: u8,
        /// Its physical address.
        at: u64,
        /// The memory's reason.
        error: E,
    },
}

impl Pdptes {
    /// Where CR3 says that they are: bits 31 to 5.
    const TABLE: u64 = 0xffff_ffe0;

    /// Accepts four values as the load of CR3 and VM entry do.
    pub(crate) fn check<E>(values: [u64; 4], format: &GuestFormat) -> Result<Self, PdpteError<E>> {
        for (index, entry) in (0u8..).zip(values) {
            if entry & PRESENT == 0 {
                continue;
            }
            if let Some(rule) = format.pdpte_breaks(entry) {
                return Err(PdpteError::Reserved { index, entry, rule });
            }
        }
        Ok(Self(values))
    }

    /// Reads them from where `cr3` says, and accepts them.
    pub(crate) fn load<M: ReadEntry>(
        memory: &M,
        cr3: u64,
        format: &GuestFormat,
    ) -> Result<Self, PdpteError<M::Error>> {
        let mut values = [0; 4];
        for ((index, at), value) in (0u8..)
            .zip((cr3 & Self::TABLE..).step_by(8))
            .zip(&mut values)
        {
            *value = memory
                .read(at, Width::Eight)
                .map_err(|error| PdpteError::Unreadable { index, at, error })?;
        }
        Self::check(values, format)
    }

    /// The registers' values.
    #[inline]
    #[must_use]
    pub const fn values(&self) -> &[u64; 4] {
        &self.0
    }
}
