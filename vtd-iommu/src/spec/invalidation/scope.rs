// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an invalidation is to forget: pages, sizes, scopes.

use bitflags::bitflags;

use crate::spec::{Pasid, RequesterId};

/// Pages of an address space, aligned to their number: ADDR, AM and IH of a page-selective invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Pages {
    /// ADDR, 4-KiB aligned. Its lowest `order` page-number bits are ignored by hardware.
    pub address: u64,
    /// AM: 2^order pages of 4 KiB. At most CAP.MAMV.
    pub order: u8,
    /// IH: only leaf entries changed, so paging-structure caches may stay.
    pub leaves_only: bool,
}

/// The address bits below 2^order pages of 4 KiB.
const fn within(order: u32) -> u64 {
    match 1u64.checked_shl(order.saturating_add(12)) {
        Some(size) => size.wrapping_sub(1),
        None => u64::MAX,
    }
}

impl Pages {
    /// The smallest aligned power of two of pages that holds each byte from `start` to `last`.
    #[must_use]
    pub const fn covering(start: u64, last: u64, leaves_only: bool) -> Self {
        let differ = (start ^ last) >> 12;
        let order = u64::BITS.wrapping_sub(differ.leading_zeros());
        Self {
            address: start & !within(order),
            order: order as u8,
            leaves_only,
        }
    }

    /// The first address it names.
    #[must_use]
    pub const fn first(self) -> u64 {
        self.address & !within(self.order as u32)
    }

    /// The last address it names.
    #[must_use]
    pub const fn last(self) -> u64 {
        self.address | within(self.order as u32)
    }
}

/// A size and place as ATS spells them: ADDR and S of a device-TLB invalidation.
///
/// With S clear, one page. With S set, the lowest zero bit of the page number tells the size: the number of
/// ones below it, plus one, is the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct AtsRange {
    /// First address, aligned to its size.
    pub address: u64,
    /// 2^order pages of 4 KiB; 52 is everything.
    pub order: u8,
}

impl AtsRange {
    /// The whole address space.
    pub const ALL: Self = Self {
        address: 0,
        order: 52,
    };

    /// From the fields.
    #[must_use]
    pub const fn from_fields(address: u64, sized: bool) -> Self {
        let page = address >> 12;
        if !sized {
            return Self {
                address: page << 12,
                order: 0,
            };
        }
        let ones = page.trailing_ones();
        if ones >= 51 {
            return Self::ALL;
        }
        let order = ones.wrapping_add(1);
        Self {
            address: page >> order << order << 12,
            order: order as u8,
        }
    }

    /// As the fields: address and S. An order beyond 52 is 52.
    #[must_use]
    pub const fn fields(self) -> (u64, bool) {
        match self.order {
            0 => (self.address & !0xfff, false),
            // The whole space: all ones below the highest bit.
            52.. => (!0xfff & !(1 << 63), true),
            order => {
                let aligned = self.address & !within(order as u32);
                // Ones up to the highest bit of a page number within the range, which is 0.
                (aligned | within(order as u32) >> 1 & !0xfff, true)
            }
        }
    }

    /// The last address it names.
    #[must_use]
    pub const fn last(self) -> u64 {
        self.address | within(self.order as u32)
    }
}

/// Which context entries to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum ContextScope {
    /// All.
    Global,
    /// Those of a domain.
    Domain {
        /// Domain-id.
        domain: u16,
    },
    /// Those of a device and domain.
    Device {
        /// The domain-id that the entry had.
        domain: u16,
        /// Source-id.
        source: RequesterId,
        /// How many bits of the function number are ignored, the highest first: 0 to 3.
        function_mask: u8,
    },
}

/// Which second-stage translations to forget. In scalable mode, those of every stage with that domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum IotlbScope {
    /// All.
    Global,
    /// Those of a domain.
    Domain {
        /// Domain-id.
        domain: u16,
    },
    /// Some pages of a domain.
    Pages {
        /// Domain-id.
        domain: u16,
        /// Which.
        pages: Pages,
    },
}

/// Which first-stage translations of a PASID to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum PasidIotlbScope {
    /// All.
    All,
    /// Some pages.
    Pages(Pages),
}

/// Which PASID table entries to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum PasidCacheScope {
    /// All.
    Global,
    /// Those of a domain.
    Domain {
        /// Domain-id.
        domain: u16,
    },
    /// That of a PASID, if it has the domain.
    Pasid {
        /// Domain-id.
        domain: u16,
        /// PASID.
        pasid: Pasid,
    },
}

/// Which interrupt-remapping entries to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum InterruptScope {
    /// All.
    Global,
    /// 2^order entries.
    Index {
        /// IIDX, whose lowest `order` bits are ignored.
        index: u16,
        /// IM. At most ECAP.MHMV.
        order: u8,
    },
}

/// Whose device-TLB is to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct DeviceTlb {
    /// Source-id.
    pub source: RequesterId,
    /// PFSID: source-id of the physical function, for a virtual one (reserved unless ECAP.DIT).
    pub physical_source: RequesterId,
    /// MIP: how many invalidations may be pending at the device; 0 is 32.
    pub max_pending: u8,
}

bitflags! {
    /// Which requests must have reached memory before an IOTLB invalidation is done.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Drain: u8 {
        /// DW: writes.
        const WRITES = 1 << 0;
        /// DR: reads.
        const READS = 1 << 1;
    }
}

#[cfg(feature = "arbitrary")]
impl<'a> arbitrary::Arbitrary<'a> for Drain {
    fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self::from_bits_truncate(u.arbitrary()?))
    }
}
