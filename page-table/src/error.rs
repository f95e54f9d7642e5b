// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why an operation on a table was refused. Nothing was changed then, and no frame is lost.

use crate::format::Format;

/// Why a range operation was refused. `A` is the format's attributes, `R` its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError<A, R> {
    /// A range of no bytes.
    #[error("the range at {start:#x} is empty")]
    EmptyRange {
        /// Where it was to start.
        start: u64,
    },
    /// An address or a length that is not a multiple of the page size.
    #[error("{value:#x} is not a multiple of {granule:#x}")]
    Unaligned {
        /// The address or length.
        value: u64,
        /// Bytes of the smallest page.
        granule: u64,
    },
    /// A range that ends above the table's reach, wraps, or crosses the non-canonical hole.
    #[error(
        "{length:#x} bytes at {start:#x} are not inside the {bits} bits that the table translates"
    )]
    OutOfReach {
        /// First address.
        start: u64,
        /// Bytes.
        length: u64,
        /// Address bits that the table translates.
        bits: u32,
    },
    /// A target that the format's entries cannot hold.
    #[error("target {target:#x} is wider than the {bits} bits an entry holds")]
    TargetTooWide {
        /// The last byte of the target.
        target: u64,
        /// Physical-address bits of a leaf.
        bits: u32,
    },
    /// Something is mapped here already. `remap` is the leave to replace it.
    #[error("{address:#x} is mapped already, by the level {level} entry {entry:#x}")]
    Overlap {
        /// The first mapped address found.
        address: u64,
        /// Level of the entry.
        level: u8,
        /// The entry.
        entry: u64,
    },
    /// Nothing is mapped anywhere in the range.
    #[error("nothing is mapped in {length:#x} bytes at {start:#x}")]
    NothingMapped {
        /// First address.
        start: u64,
        /// Bytes.
        length: u64,
    },
    /// Attributes that the hardware does not support.
    #[error("{attributes:?} cannot be given to a leaf at level {level}: {rule:?}")]
    Unsupported {
        /// The attributes asked for.
        attributes: A,
        /// Level of the leaf that needs them.
        level: u8,
        /// The format's rule.
        rule: R,
    },
    /// A page size that the shape or the policy does not have.
    #[error("there are no leaves at level {level}")]
    NoSuchLevel {
        /// The level asked for.
        level: u8,
    },
    /// A fault-in range that is not inside one table.
    #[error("{length:#x} bytes at {start:#x} are in more than one level {level} table")]
    Straddles {
        /// First address.
        start: u64,
        /// Bytes.
        length: u64,
        /// Level of the leaves that fit.
        level: u8,
    },
    /// The pool has no frame left.
    #[error("no frame left for a table")]
    OutOfFrames,
    /// The pool returned a frame that no table can be in. It was given back.
    #[error("frame {frame:#x} from the pool is unaligned or wider than {bits} bits")]
    BadFrame {
        /// The frame.
        frame: u64,
        /// Physical-address bits of a table entry.
        bits: u32,
    },
    /// A table of this shape does not lie in one frame of 4 KiB. Such tables can be walked, not made.
    #[error("a table at level {level} has {bytes:#x} bytes, and a frame 0x1000")]
    TableTooLarge {
        /// The lowest level of which this is so.
        level: u8,
        /// Bytes of a table there.
        bytes: u64,
    },
    /// An entry of our own table that is malformed: it was not written by this crate.
    #[error("level {level} entry {entry:#x} for {address:#x} is corrupt")]
    Corrupt {
        /// First address that the entry translates.
        address: u64,
        /// Level of the entry.
        level: u8,
        /// The entry.
        entry: u64,
        /// The rule it breaks; `None` for a table below the lowest level.
        rule: Option<R>,
    },
}

/// [`MapError`] for the format `F`.
pub type Refused<F> = MapError<<F as Format>::Attributes, <F as Format>::Rule>;
