// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device's addresses lead to behind an IOMMU of the guest's, in the words of both ends: "IOMMU support".
//!
//! ```text
//!   struct vhost_iotlb_msg:   device address:64   size:64   front end's address:64   access:8   kind:8   0:48
//! ```

use std::ops::Range;

use rangemap::RangeMap;
use vm_memory::Permissions;

use super::message::Payload;

/// VHOST_USER_BACKEND_IOTLB_MSG, a request of the back end's own.
pub(super) const BACKEND_IOTLB: u32 = 1;

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The back end does not know where it leads.
    Miss,
    /// From now on it leads there.
    Update,
    /// From now on it leads nowhere.
    Invalidate,
    /// The back end may not do what it was to do.
    AccessFail,
}

/// A `struct vhost_iotlb_msg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) address: u64,
    pub(super) size: u64,
    /// In the front end's process.
    pub(super) theirs: u64,
    pub(super) access: Permissions,
    pub(super) kind: Kind,
}

impl Message {
    pub(super) fn payload(self) -> Payload {
        let kind: u8 = match self.kind {
            Kind::Miss => 1,
            Kind::Update => 2,
            Kind::Invalidate => 3,
            Kind::AccessFail => 4,
        };
        let words = Payload::of(self.address).u64(self.size).u64(self.theirs);
        words.bytes(&[self.access as u8, kind, 0, 0, 0, 0, 0, 0])
    }

    /// Reads one; nothing if it is none. What fills it up has no meaning.
    pub(super) fn of(payload: &[u8]) -> Option<Self> {
        let (words, []) = payload.as_chunks::<8>() else {
            return None;
        };
        let [address, size, theirs, [access, kind, ..]] = *words else {
            return None;
        };
        Some(Self {
            address: u64::from_ne_bytes(address),
            size: u64::from_ne_bytes(size),
            theirs: u64::from_ne_bytes(theirs),
            access: match access {
                0 => Permissions::No,
                1 => Permissions::Read,
                2 => Permissions::Write,
                3 => Permissions::ReadWrite,
                _ => return None,
            },
            kind: match kind {
                1 => Kind::Miss,
                2 => Kind::Update,
                3 => Kind::Invalidate,
                4 => Kind::AccessFail,
                _ => return None,
            },
        })
    }
}

/// Where a range leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct To {
    /// What to add, around the end, to come to the target: neighbours that go on where the other ends are one.
    distance: u64,
    access: Permissions,
}

/// A range that leads somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) range: Range<u64>,
    /// Where its beginning leads.
    pub(super) target: u64,
    pub(super) access: Permissions,
}

/// Ranges of device addresses, and where they lead.
#[derive(Debug, Default)]
pub(super) struct Ranges(RangeMap<u64, To>);

impl Ranges {
    /// From now on `range` leads to `target`, and to nothing else; nothing is changed if it is empty.
    pub(super) fn map(&mut self, range: Range<u64>, target: u64, access: Permissions) {
        if range.is_empty() {
            return;
        }
        let distance = target.wrapping_sub(range.start);
        self.0.insert(range, To { distance, access });
    }

    /// From now on `range` leads nowhere.
    pub(super) fn unmap(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.0.remove(range);
        }
    }

    /// The range that has `address`.
    pub(super) fn at(&self, address: u64) -> Option<Mapped> {
        self.0.get_key_value(&address).map(mapped)
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = Mapped> + '_ {
        self.0.iter().map(mapped)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

fn mapped((range, to): (&Range<u64>, &To)) -> Mapped {
    Mapped {
        target: range.start.wrapping_add(to.distance),
        range: range.clone(),
        access: to.access,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_three_words_and_two_bytes() {
        let message = Message {
            address: 0x1122_3344_5566_7000,
            size: 0x2000,
            theirs: 0x7fff_0000_0000,
            access: Permissions::Write,
            kind: Kind::Invalidate,
        };
        let mut raw = 0x1122_3344_5566_7000u64.to_ne_bytes().to_vec();
        raw.extend(0x2000u64.to_ne_bytes());
        raw.extend(0x7fff_0000_0000u64.to_ne_bytes());
        raw.extend([2, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(raw.len(), 32);
        assert_eq!(message.payload().as_slice(), raw);
        // Whatever it is filled up with.
        raw[26..].fill(0xff);
        assert_eq!(Message::of(&raw), Some(message));
    }

    #[test]
    fn what_is_no_message() {
        let raw = |access, kind| {
            let mut raw = vec![0; 32];
            raw[24..26].copy_from_slice(&[access, kind]);
            raw
        };
        for kind in 1..=4 {
            assert!(Message::of(&raw(3, kind)).is_some());
        }
        for wrong in [raw(0, 0), raw(0, 5), raw(4, 1), raw(0xff, 2)] {
            assert_eq!(Message::of(&wrong), None);
        }
        for length in [0, 8, 24, 31, 33, 40] {
            let mut raw = raw(3, 1);
            raw.resize(length, 0);
            assert_eq!(Message::of(&raw), None, "{length}");
        }
    }

    #[test]
    fn ranges_lead_where_the_last_word_says() {
        use Permissions::{Read, ReadWrite};
        let mut ranges = Ranges::default();
        ranges.map(0x1000..0x4000, 0x9000, ReadWrite);
        ranges.map(0x2000..0x3000, 0x1000, Read);
        ranges.map(0x5000..0x5000, 0, Read);
        let found = |ranges: &Ranges| -> Vec<_> {
            let all = ranges.all();
            all.map(|m| (m.range.start, m.range.end, m.target, m.access))
                .collect()
        };
        assert_eq!(
            found(&ranges),
            [
                (0x1000, 0x2000, 0x9000, ReadWrite),
                (0x2000, 0x3000, 0x1000, Read),
                (0x3000, 0x4000, 0xb000, ReadWrite),
            ]
        );
        assert_eq!(ranges.at(0x2fff).map(|m| m.target), Some(0x1000));
        assert_eq!(ranges.at(0x4000), None);
        // Below its own address, and the middle of one taken out.
        ranges.unmap(0x1800..0x3800);
        ranges.unmap(7..7);
        assert_eq!(
            found(&ranges),
            [
                (0x1000, 0x1800, 0x9000, ReadWrite),
                (0x3800, 0x4000, 0xb800, ReadWrite),
            ]
        );
        assert_eq!(ranges.len(), 2);
        ranges.clear();
        assert_eq!(ranges.len(), 0);
    }
}
