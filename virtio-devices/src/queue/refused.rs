// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Chains that are refused: made out of the way of those that are not.

use super::chain::{ChainError, MOST_BYTES, Segment};
use super::words::Fault;

/// Why a chain was refused; in a box, because what is returned beside it is small and returned often.
pub(super) type Refused = Box<ChainError>;

#[cold]
#[inline(never)]
pub(super) fn too_long(size: usize) -> Refused {
    // It was made from 16 bits.
    let size = size as u16;
    Box::new(ChainError::TooLong { size })
}

#[cold]
#[inline(never)]
pub(super) fn wraps(address: u64, length: u32) -> Refused {
    Box::new(ChainError::Wraps { address, length })
}

#[cold]
#[inline(never)]
pub(super) fn too_big(segments: &[Segment]) -> Refused {
    let mut bytes = 0u64;
    for segment in segments {
        bytes = bytes.saturating_add(segment.length.into());
        if bytes > MOST_BYTES {
            break;
        }
    }
    Box::new(ChainError::TooBig { bytes })
}

#[cold]
#[inline(never)]
pub(super) fn readable_after_writable(index: u16) -> Refused {
    Box::new(ChainError::ReadableAfterWritable { index })
}

#[cold]
#[inline(never)]
pub(super) fn not_negotiated(index: u16) -> Refused {
    Box::new(ChainError::IndirectNotNegotiated { index })
}

#[cold]
#[inline(never)]
pub(super) fn nested(index: u16) -> Refused {
    Box::new(ChainError::IndirectNested { index })
}

#[cold]
#[inline(never)]
pub(super) fn indirect_next(index: u16) -> Refused {
    Box::new(ChainError::IndirectNext { index })
}

#[cold]
#[inline(never)]
pub(super) fn indirect_length(length: u32) -> Refused {
    Box::new(ChainError::IndirectLength { length })
}

#[cold]
#[inline(never)]
pub(super) fn unreadable(index: u16, entries: u32, fault: Fault) -> Refused {
    let Fault { source, .. } = fault;
    Box::new(match u32::from(index) < entries {
        true => ChainError::Unreadable { index, source },
        false => ChainError::Index { index, entries },
    })
}
