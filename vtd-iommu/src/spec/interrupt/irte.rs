// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An entry of the interrupt-remapping table, for remapped and for posted interrupts.

use crate::spec::RequesterId;
use crate::spec::word::word;

/// How a processor takes an interrupt: DLM of an entry, the delivery mode of a message.
///
/// A newtype: a guest may write the reserved values too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Delivery(pub u8);

impl Delivery {
    /// Fixed.
    pub const FIXED: Self = Self(0);
    /// Lowest priority.
    pub const LOWEST_PRIORITY: Self = Self(1);
    /// SMI.
    pub const SMI: Self = Self(2);
    /// NMI.
    pub const NMI: Self = Self(4);
    /// INIT.
    pub const INIT: Self = Self(5);
    /// ExtINT.
    pub const EXT_INT: Self = Self(7);
}

/// Which bits of a requester's identity SQ leaves out of the comparison with SID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceQualifier {
    /// 00: all 16 bits are compared.
    All,
    /// 01: all but bit 2.
    IgnoreBit2,
    /// 10: all but bits 2:1.
    IgnoreBits21,
    /// 11: all but bits 2:0.
    IgnoreBits20,
}

impl SourceQualifier {
    /// From the low two bits.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::All,
            1 => Self::IgnoreBit2,
            2 => Self::IgnoreBits21,
            _ => Self::IgnoreBits20,
        }
    }

    /// One bit for each that is compared.
    #[inline]
    #[must_use]
    pub const fn mask(self) -> u16 {
        match self {
            Self::All => 0xffff,
            Self::IgnoreBit2 => 0xfffb,
            Self::IgnoreBits21 => 0xfff9,
            Self::IgnoreBits20 => 0xfff8,
        }
    }
}

/// SVT with SID and SQ: who may use an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceCheck {
    /// SVT 00: anyone.
    Anyone,
    /// SVT 01: the requester, as far as the qualifier compares.
    Requester(RequesterId, SourceQualifier),
    /// SVT 10: any requester on these buses.
    Buses {
        /// Bits 15:8 of SID.
        first: u8,
        /// Bits 7:0 of SID.
        last: u8,
    },
    /// SVT 11, which is reserved.
    Reserved,
}

impl SourceCheck {
    /// Whether `source` passes. Nobody passes a reserved check.
    #[inline]
    #[must_use]
    pub const fn admits(self, source: RequesterId) -> bool {
        match self {
            Self::Anyone => true,
            Self::Requester(expected, qualifier) => (source.0 ^ expected.0) & qualifier.mask() == 0,
            Self::Buses { first, last } => first <= source.bus() && source.bus() <= last,
            Self::Reserved => false,
        }
    }
}

/// An interrupt-remapping table entry: 16 bytes. Of a remapped interrupt if IM is clear, else of a posted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Irte(pub [u64; 2]);

word! {
    impl Irte: [u64; 2] {
        /// P.
        set [0; 0:0] present, with_present;
        /// FPD: faults through this entry are not recorded.
        set [0; 1:1] fault_processing_disabled, with_fault_processing_disabled;
        /// DM, remapped: the destination is logical.
        set [0; 2:2] logical, with_logical;
        /// RH, remapped: the redirection hint.
        set [0; 3:3] redirection_hint, with_redirection_hint;
        /// TM, remapped: level-triggered.
        set [0; 4:4] level_triggered, with_level_triggered;
        /// DLM, remapped, as bits. [`delivery`](Self::delivery) is the same, typed.
        u64 [0; 7:5] dlm, with_dlm;
        /// AVAIL: software's.
        u64 [0; 11:8] software, with_software;
        /// URG, posted: the notification is sent even if it is suppressed.
        set [0; 14:14] urgent, with_urgent;
        /// IM: the entry is of a posted interrupt.
        set [0; 15:15] posted, with_posted;
        /// V: the vector; of a posted interrupt, the one that is posted.
        u64 [0; 23:16] vector, with_vector;
        /// DST, remapped: all 32 bits are an x2APIC destination; an xAPIC destination is in bits 15:8.
        u64 [0; 63:32] destination, with_destination;
        /// SID.
        u64 [1; 15:0] sid, with_sid;
        /// SQ, as bits.
        u64 [1; 17:16] sq, with_sq;
        /// SVT, as bits. [`source_check`](Self::source_check) is the three together.
        u64 [1; 19:18] svt, with_svt;
    }
}

/// PDAL: bits 63:38 of the first word are address bits 31:6.
const DESCRIPTOR_LOW: u64 = !0 << 38;
/// PDAH: bits 127:96 are address bits 63:32.
const DESCRIPTOR_HIGH: u64 = !0 << 32;

impl Irte {
    /// Bytes of an entry.
    pub const SIZE: u64 = 16;

    /// A present entry that sends `vector` to `destination` (as DST has it), fixed, edge-triggered, physical.
    #[must_use]
    pub const fn remapped(vector: u8, destination: u32) -> Self {
        Self([1, 0])
            .with_vector(vector as u64)
            .with_destination(destination as u64)
    }

    /// A present entry that posts `vector` into the descriptor at `descriptor`, which is 64-byte aligned.
    #[must_use]
    pub const fn posting(vector: u8, descriptor: u64) -> Self {
        let low = descriptor << 32 & DESCRIPTOR_LOW;
        Self([low | 1, descriptor & DESCRIPTOR_HIGH])
            .with_posted()
            .with_vector(vector as u64)
    }

    /// The same, for requests that pass `check` only.
    #[must_use]
    pub const fn with_source_check(self, check: SourceCheck) -> Self {
        match check {
            SourceCheck::Anyone => self.with_svt(0),
            SourceCheck::Requester(source, qualifier) => self
                .with_svt(1)
                .with_sq(qualifier as u64)
                .with_sid(source.0 as u64),
            SourceCheck::Buses { first, last } => {
                self.with_svt(2).with_sid((first as u64) << 8 | last as u64)
            }
            SourceCheck::Reserved => self.with_svt(3),
        }
    }

    /// SVT, SQ and SID together.
    #[inline]
    #[must_use]
    pub const fn source_check(self) -> SourceCheck {
        let sid = self.sid() as u16;
        match self.svt() {
            0 => SourceCheck::Anyone,
            1 => SourceCheck::Requester(RequesterId(sid), SourceQualifier::from_bits(self.sq())),
            2 => SourceCheck::Buses {
                first: (sid >> 8) as u8,
                last: sid as u8,
            },
            _ => SourceCheck::Reserved,
        }
    }

    /// DLM.
    #[inline]
    #[must_use]
    pub const fn delivery(self) -> Delivery {
        Delivery(self.dlm() as u8)
    }

    /// PDAH and PDAL, posted: where the posted-interrupt descriptor is.
    #[inline]
    #[must_use]
    pub const fn descriptor(self) -> u64 {
        self.0[1] & DESCRIPTOR_HIGH | (self.0[0] & DESCRIPTOR_LOW) >> 32
    }

    /// The reserved bits that are set, in the figure that IM selects.
    #[inline]
    #[must_use]
    pub const fn reserved(self) -> [u64; 2] {
        let [first, second] = self.0;
        if self.posted() {
            [first & 0x3f_ff00_30fc, second & 0xfff0_0000]
        } else {
            [first & 0xff00_7000, second & !0xf_ffff]
        }
    }

    /// The bits of DST that are set and reserved while IRTA.EIME is clear, remapped: an xAPIC id is in its bits 15:8.
    #[inline]
    #[must_use]
    pub const fn reserved_destination(self) -> u64 {
        if self.posted() {
            0
        } else {
            self.destination() & !0xff00
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remapped_entry_as_in_the_figure() {
        let entry = Irte([0xdddd_cccc_00fe_0a3f, 0x000d_1234]);
        assert!(entry.present() && entry.fault_processing_disabled());
        assert!(entry.logical() && entry.redirection_hint() && entry.level_triggered());
        assert_eq!(
            (entry.delivery(), entry.software()),
            (Delivery::LOWEST_PRIORITY, 10)
        );
        assert!(!entry.posted());
        assert_eq!((entry.vector(), entry.destination()), (0xfe, 0xdddd_cccc));
        assert_eq!((entry.svt(), entry.sq(), entry.sid()), (3, 1, 0x1234));
        assert_eq!(entry.reserved(), [0, 0]);
        assert_eq!(Irte([0xff00_7000, !0]).reserved(), [0xff00_7000, !0xf_ffff]);
        assert_eq!(Irte::remapped(0x31, 0x200).0, [0x200_0031_0001, 0]);
    }

    #[test]
    fn a_posted_entry_as_in_the_figure() {
        let entry = Irte([0x89ab_cdc0_0042_c001, 0x0123_4567_0004_0008]);
        assert!(entry.posted() && entry.urgent());
        assert_eq!(
            (entry.vector(), entry.descriptor()),
            (0x42, 0x123_4567_89ab_cdc0)
        );
        assert_eq!(entry.reserved(), [0, 0]);
        assert_eq!(Irte([!0, !0]).reserved(), [0x3f_ff00_30fc, 0xfff0_0000]);
        let made = Irte::posting(0x42, 0x123_4567_89ab_cdc0);
        assert_eq!(made.0, [0x89ab_cdc0_0042_8001, 0x0123_4567_0000_0000]);
    }

    #[test]
    fn who_may_use_an_entry() {
        let check = |high: u64| Irte([1, high]).source_check();
        assert!(check(0x1234).admits(RequesterId(0)));
        let exact = check(0x4_1234);
        assert!(exact.admits(RequesterId(0x1234)) && !exact.admits(RequesterId(0x1230)));
        let not_bit_2 = check(0x5_1234);
        assert!(not_bit_2.admits(RequesterId(0x1230)) && !not_bit_2.admits(RequesterId(0x1236)));
        let not_21 = check(0x6_1234);
        assert!(not_21.admits(RequesterId(0x1232)) && !not_21.admits(RequesterId(0x1235)));
        let not_20 = check(0x7_1234);
        assert!(not_20.admits(RequesterId(0x1237)) && !not_20.admits(RequesterId(0x123c)));
        let buses = check(0x8_0305);
        assert!(buses.admits(RequesterId(0x0300)) && buses.admits(RequesterId(0x05ff)));
        assert!(!buses.admits(RequesterId(0x0600)) && !buses.admits(RequesterId(0x02ff)));
        assert!(!check(0xc_1234).admits(RequesterId(0x1234)));
        for high in [0, 0x5_1234, 0x8_0305, 0xc_0000] {
            let entry = Irte([1, high]);
            let again = Irte([1, 0]).with_source_check(entry.source_check());
            assert_eq!(again, entry);
        }
    }
}
