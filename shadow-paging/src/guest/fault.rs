// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why an access does not go through.

use super::error_code::ErrorCode;
use super::reserved::Reserved;
use super::rights::Refusal;

/// What led to a page fault, beyond what the error code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Cause {
    /// An entry has P clear.
    #[error("the level-{level} entry {entry:#x} is not present")]
    NotPresent {
        /// Level of its table, 1 the lowest.
        level: u8,
        /// The entry; for an address that has no PDPTE register, 0.
        entry: u64,
    },
    /// An entry has a reserved bit set.
    #[error("the level-{level} entry {entry:#x} has a reserved bit set: {rule}")]
    Reserved {
        /// Level of its table, 1 the lowest.
        level: u8,
        /// The entry.
        entry: u64,
        /// Why the bit is reserved.
        rule: Reserved,
    },
    /// The address is translated, the access not allowed.
    #[error(transparent)]
    Refused(Refusal),
}

/// Why an access does not go through. `E` is the memory's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestFault<E> {
    /// #PF: inject it with `code`, and `linear` in CR2.
    #[error("#PF({code:?}) at {linear:#x}: {cause}")]
    Page {
        /// The linear address, for CR2.
        linear: u64,
        /// The error code.
        code: ErrorCode,
        /// What led to it.
        cause: Cause,
    },
    /// Not canonical: #GP(0), or #SS(0) if the access was made through SS; CR2 stays as it is.
    #[error("linear address {linear:#x} is not canonical")]
    NonCanonical {
        /// The linear address.
        linear: u64,
    },
    /// Wider than the 32 bits of a linear address outside IA-32e mode. No processor forms one:
    /// base and offset are added modulo 2^32.
    #[error("linear address {linear:#x} is wider than 32 bits")]
    TooWide {
        /// The linear address.
        linear: u64,
    },
    /// An entry could not be read or updated: outside memory, or a fault of a stage below.
    #[error("the level-{level} entry at {at:#x} could not be accessed: {error:?}")]
    Memory {
        /// Level of its table, 1 the lowest.
        level: u8,
        /// Physical address of the entry.
        at: u64,
        /// The memory's reason.
        error: E,
    },
    /// Someone else kept changing the entries while accessed and dirty flags were to be set.
    ///
    /// Nothing wrong was stored. Run the guest's instruction again.
    #[error("the entries of {linear:#x} kept changing")]
    Contended {
        /// The linear address.
        linear: u64,
    },
}
