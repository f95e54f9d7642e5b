// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The posted-interrupt descriptor, which a unit and a hypervisor share.

use crate::spec::word::word;

/// A posted-interrupt descriptor: 64 bytes, 64-byte aligned. "Posted Interrupt Descriptor".
///
/// In memory both sides change it with atomic operations; this is one value of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct PostedDescriptor(pub [u64; 8]);

word! {
    impl PostedDescriptor: [u64; 8] {
        /// ON (bit 256): a notification is on its way.
        set [4; 0:0] outstanding, with_outstanding;
        /// SN (bit 257): no notifications for requests that are not urgent.
        set [4; 1:1] suppressed, with_suppressed;
        /// NV (bits 279:272): the vector of the notification.
        u64 [4; 23:16] notification_vector, with_notification_vector;
        /// NDST (bits 319:288): where the notification goes: an x2APIC destination, or an xAPIC one in bits 15:8.
        u64 [4; 63:32] notification_destination, with_notification_destination;
    }
}

impl PostedDescriptor {
    /// Bytes of a descriptor.
    pub const SIZE: u64 = 64;
    /// Offset of the word with ON, SN, NV and NDST.
    pub const CONTROL_OFFSET: u64 = 32;
    /// ON in that word.
    pub const OUTSTANDING: u64 = 1;
    /// SN in that word.
    pub const SUPPRESSED: u64 = 2;

    /// Where the request bit of `vector` is: the byte offset of its word in the descriptor, and the bit.
    #[inline]
    #[must_use]
    pub const fn request(vector: u8) -> (u64, u64) {
        (vector as u64 >> 6 << 3, bit_of(vector))
    }

    /// PIR: whether `vector` is posted.
    #[must_use]
    pub const fn is_posted(self, vector: u8) -> bool {
        let [first, second, third, fourth, ..] = self.0;
        let word = match vector >> 6 {
            0 => first,
            1 => second,
            2 => third,
            _ => fourth,
        };
        word & bit_of(vector) != 0
    }

    /// The same with `vector` posted.
    #[must_use]
    pub const fn with_posted(mut self, vector: u8) -> Self {
        let [first, second, third, fourth, ..] = &mut self.0;
        let word = match vector >> 6 {
            0 => first,
            1 => second,
            2 => third,
            _ => fourth,
        };
        *word |= bit_of(vector);
        self
    }

    /// The reserved bits that are set.
    #[must_use]
    pub const fn reserved(self) -> [u64; 4] {
        [self.0[4] & 0xff00_fffc, self.0[5], self.0[6], self.0[7]]
    }
}

/// The bit of `vector` in its word of requests.
const fn bit_of(vector: u8) -> u64 {
    1u64.wrapping_shl(vector as u32 & 63)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_figure() {
        let descriptor = PostedDescriptor([0, 0, 1 << 0x21, 0, 0xaabb_ccdd_00f2_0003, 0, 0, 0]);
        assert!(descriptor.outstanding() && descriptor.suppressed());
        assert_eq!(descriptor.notification_vector(), 0xf2);
        assert_eq!(descriptor.notification_destination(), 0xaabb_ccdd);
        assert!(descriptor.is_posted(0xa1) && !descriptor.is_posted(0xa0));
        assert_eq!(PostedDescriptor::request(0xa1), (16, 1 << 0x21));
        assert_eq!(descriptor.reserved(), [0; 4]);
        assert_eq!(PostedDescriptor::default().with_posted(255).0[3], 1 << 63);
        assert_eq!(
            PostedDescriptor([u64::MAX; 8]).reserved(),
            [0xff00_fffc, u64::MAX, u64::MAX, u64::MAX]
        );
    }
}
