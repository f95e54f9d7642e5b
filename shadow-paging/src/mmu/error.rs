// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a step was not taken. What had been shadowed before is still right.

use super::owed::Owed;

/// The heap has no memory left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory left for what the MMU remembers")]
pub struct OutOfMemory;

/// What kept the MMU from a step. `E` is the error of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause<E> {
    /// The pool or the budget has no frame for another shadow table.
    ///
    /// If the token that came with it is not empty, settle it and try again: it holds frames.
    #[error("no frame left for a shadow table")]
    OutOfFrames,
    /// The pool returned a frame that the format cannot hold. It was given back.
    #[error("frame {frame:#x} from the pool is unaligned, or no table can be there")]
    BadFrame {
        /// The frame.
        frame: u64,
    },
    /// See [`OutOfMemory`].
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// An entry of the guest's tables could not be read or updated.
    #[error("the guest's level-{level} entry at {at:#x} could not be accessed: {error:?}")]
    Memory {
        /// Level of its table.
        level: u8,
        /// Guest-physical address.
        at: u64,
        /// The memory's reason.
        error: E,
    },
    /// A table of the guest's lies where the map says there is no memory, so it cannot be guarded.
    #[error("the guest's table at {frame:#x} is not in memory")]
    TableOutsideMemory {
        /// Guest-physical address of the table.
        frame: u64,
    },
    /// The guest maps a page more often than can be followed ([`Mmu::follow`](super::Mmu::follow)): 16384
    /// times.
    #[error("host page {host:#x} is mapped too often")]
    Crowded {
        /// Host-physical address.
        host: u64,
    },
    /// Someone else kept changing the guest's entries while its flags were to be set. Let the guest
    /// run its instruction again.
    #[error("the guest's entries kept changing")]
    Contended,
    /// The space is another MMU's.
    #[error("the space was opened by another MMU")]
    Foreign,
    /// This MMU [guards](super::Unsync) the guest's tables, so the pages that they lie in could not be written
    /// by the device that is [followed](super::Mmu::follow) for, which has no fault to wait for.
    #[error("an MMU that guards tables cannot be followed by devices: it needs Unsync::Always")]
    Guarding,
}

/// A step that was not taken, with the flush that is owed all the same.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct Failed<E> {
    /// Why.
    pub cause: Cause<E>,
    /// What was changed on the way, to be settled. Most often empty.
    pub owed: Owed,
}

/// Why an MMU cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NewError {
    /// A budget below one path of tables, or beyond what can be numbered.
    #[error("a budget of {pages} shadow tables, where 16 to 2^22 - 1 are possible")]
    Budget {
        /// The budget asked for.
        pages: u32,
    },
}
