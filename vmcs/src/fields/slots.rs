// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A place for each field: from an encoding to a small number without holes, almost.

use super::PARTS;
use crate::encoding::Encoding;

/// Where the slots of one width and class begin, and which indices have a field.
#[derive(Clone, Copy)]
struct Group {
    first_slot: u16,
    declared: u64,
}

/// Slots are numbered by width and class, then by index, so that a constant encoding becomes a
/// constant slot and neighbouring fields share cache lines.
#[expect(
    clippy::indexing_slicing,
    reason = "a constant: what is out of range stops the compiler"
)]
const GROUPS: [Group; 16] = {
    let mut groups = [Group {
        first_slot: 0,
        declared: 0,
    }; 16];
    let mut part = 0;
    while part < PARTS.len() {
        let mut at = 0;
        while at < PARTS[part].len() {
            let encoding = PARTS[part][at].encoding;
            groups[group(encoding)].declared |= 1 << encoding.index();
            at += 1;
        }
        part += 1;
    }
    let mut at = 1;
    while at < 16 {
        let before = groups[at - 1];
        groups[at].first_slot = before.first_slot + (64 - before.declared.leading_zeros()) as u16;
        at += 1;
    }
    groups
};

/// How many slots a store with one place per field needs: a few more than there are fields, as the
/// manual's numbering has holes.
pub(crate) const SLOTS: usize =
    GROUPS[15].first_slot as usize + (64 - GROUPS[15].declared.leading_zeros()) as usize;

const fn group(encoding: Encoding) -> usize {
    (encoding.width() as usize) << 2 | encoding.class() as usize
}

impl Group {
    /// The slot of a field, if it is one of this group's.
    #[inline(always)]
    const fn slot(self, encoding: Encoding) -> Option<usize> {
        let index = encoding.index();
        if encoding.is_well_formed() && index < 64 && self.declared >> index & 1 != 0 {
            // The last slot of all is far below what 16 bits hold.
            Some(self.first_slot.wrapping_add(index) as usize)
        } else {
            None
        }
    }
}

/// The slot of a field, for either access type; `None` where the manual defines no field.
#[inline(always)]
pub(crate) fn slot(encoding: Encoding) -> Option<usize> {
    GROUPS.get(group(encoding))?.slot(encoding)
}

/// From a slot to the position in [`ALL`](super::ALL).
#[expect(
    clippy::indexing_slicing,
    reason = "a constant: what is out of range stops the compiler"
)]
pub(super) const POSITIONS: [u8; SLOTS] = {
    let mut positions = [u8::MAX; SLOTS];
    let (mut part, mut position) = (0, 0);
    while part < PARTS.len() {
        let mut at = 0;
        while at < PARTS[part].len() {
            let encoding = PARTS[part][at].encoding;
            match GROUPS[group(encoding)].slot(encoding) {
                Some(slot) => positions[slot] = position,
                None => panic!("a declared field has a slot"),
            }
            position += 1;
            at += 1;
        }
        part += 1;
    }
    positions
};
