// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a queue goes on, as SET_VRING_BASE and GET_VRING_BASE say it.
//!
//! ```text
//!   split    0:16                                   next available index:16
//!   packed   used wrap counter:1  used place:15     available wrap counter:1  available place:15
//! ```
//!
//! "Vring descriptor index for split virtqueues", "Vring descriptor indices for packed virtqueues". The latter calls the places
//! "free-running", which fifteen bits and a wrap counter cannot be; QEMU, DPDK and Linux' vhost have them below the queue's size, and
//! so have we.

use crate::queue::{Layout, Position};

/// The wrap counter in a half of a packed queue's.
const WRAP: u16 = 1 << 15;

/// What is said of a queue that goes on at `position`.
pub(super) fn said(layout: Layout, position: Position) -> u32 {
    let available = u32::from(position.available);
    match layout {
        Layout::Split => available,
        Layout::Packed => u32::from(position.used) << 16 | available,
    }
}

/// Where a queue of `size` descriptors goes on by `said`; nothing if it has no such place.
///
/// DPDK's back ends and rust-vmm's front end leave out where the next used descriptor goes: then nothing is in flight.
pub(super) fn position(layout: Layout, size: u16, said: u32) -> Option<Position> {
    // One half each.
    let (available, used) = (said as u16, (said >> 16) as u16);
    let used = match (layout, used) {
        (_, 0) => available,
        (Layout::Split, _) => return None,
        (Layout::Packed, used) => used,
    };
    let position = Position { available, used };
    let is_there = |half: u16| half & !WRAP < size;
    let exists = layout == Layout::Split || is_there(available) && is_there(used);
    exists.then_some(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(available: u16, used: u16) -> Position {
        Position { available, used }
    }

    #[test]
    fn a_packed_queue_has_two_places_with_wrap_counters() {
        let raw = |word| position(Layout::Packed, 256, word);
        // As after a reset: both wrap counters are 1.
        assert_eq!(raw(0x8000_8000), Some(at(0x8000, 0x8000)));
        // Available 5 in a round with wrap counter 1, used 254 in the round before.
        assert_eq!(raw(0x00fe_8005), Some(at(0x8005, 0x00fe)));
        assert_eq!(said(Layout::Packed, at(0x8005, 0x00fe)), 0x00fe_8005);
        assert_eq!(said(Layout::Packed, at(0x00ff, 0x80ff)), 0x80ff_00ff);
        // As DPDK says it.
        assert_eq!(raw(0x0000_8007), Some(at(0x8007, 0x8007)));
        // Places that the queue does not have, with and without a wrap counter.
        for word in [
            0x8000_0100,
            0x8000_8100,
            0x0100_8000,
            0x8100_8000,
            0x7fff,
            0xffff_ffff,
        ] {
            assert_eq!(raw(word), None, "{word:#x}");
        }
        // Any size, and not only powers of two.
        assert_eq!(
            position(Layout::Packed, 3, 0x8002_8002),
            Some(at(0x8002, 0x8002))
        );
        assert_eq!(position(Layout::Packed, 3, 0x8003_8003), None);
    }

    #[test]
    fn a_split_queue_has_an_index_that_counts_on() {
        assert_eq!(
            position(Layout::Split, 16, 0xffff),
            Some(at(0xffff, 0xffff))
        );
        assert_eq!(position(Layout::Split, 16, 0x1_0000), None);
        assert_eq!(said(Layout::Split, at(0xffff, 0xffff)), 0xffff);
    }
}
