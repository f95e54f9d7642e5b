// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The laws of a format, as a check that a format's own tests call.
//!
//! What the mapper relies on and a type cannot say. A format's layout is still to be tested against
//! raw words: these laws hold for any layout that agrees with itself.

use core::ops::BitOr;

use crate::format::{Encode, Entry};

/// Level 1 to 4, as the mapper spells them in bits 3 and 4 of an absent entry.
const CHAIN_BITS: [u64; 4] = [0, 8, 16, 24];

/// A law that a format breaks, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Broken<A> {
    /// `decode(table(frame, level), level)` is not that table, with the marks clear or set.
    #[error("the table {frame:#x} at level {level} is read back from {entry:#x} as something else")]
    Table {
        /// The frame.
        frame: u64,
        /// The level.
        level: u8,
        /// How it was spelled.
        entry: u64,
    },
    /// `decode(leaf(target, attributes, level), level)` is not that leaf, with the marks clear or set.
    #[error(
        "the leaf to {target:#x} at level {level} is read back from {entry:#x} as something else"
    )]
    Leaf {
        /// The target.
        target: u64,
        /// The attributes.
        attributes: A,
        /// The level.
        level: u8,
        /// How it was spelled.
        entry: u64,
    },
    /// A table that the mapper links forbids something.
    #[error("under a table at level {level}, {attributes:?} becomes {folded:?}")]
    Fold {
        /// The level.
        level: u8,
        /// A leaf's attributes.
        attributes: A,
        /// What they become.
        folded: A,
    },
    /// An absent entry with a frame's address in it is not empty.
    #[error("{entry:#x} at level {level} is not empty")]
    Empty {
        /// The entry.
        entry: u64,
        /// The level.
        level: u8,
    },
    /// Bits of `empty()` are among those that hold a frame's address, or bits 3 and 4.
    #[error("the absent entry {empty:#x} uses bits that the mapper keeps a frame's address in")]
    EmptyBits {
        /// `empty()`.
        empty: u64,
    },
    /// [`Format::decode`](crate::Format::decode) reads a table at level 1, or a leaf where the shape has
    /// none.
    #[error("{entry:#x} at level {level} is read as what cannot be there")]
    Misplaced {
        /// The entry.
        entry: u64,
        /// The level.
        level: u8,
    },
    /// A table does not lie in one frame of 4 KiB: no mapper makes it.
    #[error("a table at level {level} has {bytes:#x} bytes, and a frame 0x1000")]
    TableTooLarge {
        /// The level.
        level: u8,
        /// Bytes of a table there.
        bytes: u64,
    },
}

/// The first law that `format` breaks, tried with each of `attributes` that it supports.
///
/// Frames and targets are each address bit alone, and all of them together.
pub fn broken<F: Encode>(
    format: &F,
    attributes: &[F::Attributes],
) -> Option<Broken<F::Attributes>> {
    let shape = format.shape();
    if let Some((level, bytes)) = shape.too_large() {
        return Some(Broken::TableTooLarge { level, bytes });
    }
    let empty = format.empty();
    if empty & addresses(12, format.frame_bits()).fold(24, BitOr::bitor) != 0 {
        return Some(Broken::EmptyBits { empty });
    }
    for level in 1..=shape.levels() {
        for frame in addresses(12, format.frame_bits()) {
            for chain in CHAIN_BITS {
                let entry = empty | frame | chain;
                if format.decode(entry, level) != Entry::Empty {
                    return Some(Broken::Empty { entry, level });
                }
            }
            if level > 1
                && let Some(broken) = table(format, frame, level, attributes)
            {
                return Some(broken);
            }
        }
        if shape.leaf_at(level) {
            for target in addresses(shape.shift(level), format.target_bits(level)) {
                for &attributes in attributes {
                    if format.check(attributes, level).is_ok()
                        && let Some(broken) = leaf(format, target, attributes, level)
                    {
                        return Some(broken);
                    }
                }
            }
        }
        for entry in words() {
            let misplaced = match format.decode(entry, level) {
                Entry::Table { .. } => level == 1,
                Entry::Leaf { .. } => !shape.leaf_at(level),
                Entry::Empty | Entry::Malformed(_) => false,
            };
            if misplaced {
                return Some(Broken::Misplaced { entry, level });
            }
        }
    }
    None
}

/// Each bit from `low` below `high` alone, none, and all.
fn addresses(low: u32, high: u32) -> impl Iterator<Item = u64> {
    let each = (low..high).map(|bit| 1 << bit);
    let all = each.clone().fold(0, BitOr::bitor);
    each.chain([0, all])
}

/// Words that may be anything: each bit alone, beside those that say *present* and *large* in many
/// formats, and all but that bit.
fn words() -> impl Iterator<Item = u64> {
    (0..64).map(|bit| 1u64 << bit).flat_map(|one| {
        let beside = [0, 1, 0x81].map(|low| one | low);
        beside.into_iter().chain([!one])
    })
}

fn table<F: Encode>(
    format: &F,
    frame: u64,
    level: u8,
    leaves: &[F::Attributes],
) -> Option<Broken<F::Attributes>> {
    let entry = format.table(frame, level) & !format.marks().accessed;
    for marks in [0, format.marks().accessed] {
        match format.decode(entry | marks, level) {
            Entry::Table {
                frame: read,
                attributes: above,
            } if read == frame => {
                for &attributes in leaves {
                    let folded = format.fold(above, attributes);
                    if folded != attributes {
                        return Some(Broken::Fold {
                            level,
                            attributes,
                            folded,
                        });
                    }
                }
            }
            _ => {
                return Some(Broken::Table {
                    frame,
                    level,
                    entry: entry | marks,
                });
            }
        }
    }
    None
}

fn leaf<F: Encode>(
    format: &F,
    target: u64,
    attributes: F::Attributes,
    level: u8,
) -> Option<Broken<F::Attributes>> {
    let marks = format.marks();
    let entry = format.leaf(target, attributes, level) & !marks.all();
    [0, marks.accessed, marks.dirty, marks.all()]
        .into_iter()
        .find_map(|marks| {
            let entry = entry | marks;
            (format.decode(entry, level) != Entry::Leaf { target, attributes }).then_some(
                Broken::Leaf {
                    target,
                    attributes,
                    level,
                    entry,
                },
            )
        })
}
