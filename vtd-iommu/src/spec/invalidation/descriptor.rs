// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One invalidation descriptor, decoded.

use super::fields::{
    decode_context, decode_iotlb, decode_pasid_cache, decode_pasid_iotlb, encode_context,
    encode_iotlb, encode_wait,
};
use super::layout::{
    ContextLayout, DeviceTlbLayout, InterruptLayout, IotlbLayout, PageGroupResponseLayout,
    PasidCacheLayout, PasidDeviceTlbLayout, PasidIotlbLayout, WaitLayout,
};
use super::{
    AtsRange, ContextScope, DeviceTlb, Drain, InterruptScope, IotlbScope, PasidCacheScope,
    PasidIotlbScope, RawDescriptor,
};
use crate::spec::page_request::{PageGroupResponse, ResponseCode};
use crate::spec::registers::QueueError;
use crate::spec::{Pasid, RequesterId};

/// The type of each descriptor.
pub mod kind {
    /// Context-cache Invalidate.
    pub const CONTEXT: u8 = 1;
    /// IOTLB Invalidate.
    pub const IOTLB: u8 = 2;
    /// Device-TLB Invalidate.
    pub const DEVICE_TLB: u8 = 3;
    /// Interrupt Entry Cache Invalidate.
    pub const INTERRUPT: u8 = 4;
    /// Invalidation Wait.
    pub const WAIT: u8 = 5;
    /// PASID-based-IOTLB Invalidate.
    pub const PASID_IOTLB: u8 = 6;
    /// PASID-cache Invalidate.
    pub const PASID_CACHE: u8 = 7;
    /// PASID-based-Device-TLB Invalidate.
    pub const PASID_DEVICE_TLB: u8 = 8;
    /// Page Group Response.
    pub const PAGE_GROUP_RESPONSE: u8 = 9;
}

/// A status that hardware writes when a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct StatusWrite {
    /// Where: 4-byte aligned.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// An Invalidation Wait: done when all that came before it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Wait {
    /// SW: the status to write.
    pub status: Option<StatusWrite>,
    /// IF: set IWC, and send the invalidation event.
    pub interrupt: bool,
    /// FN: begin nothing that follows before what came before is done.
    pub fence: bool,
    /// PD: drain page requests too (reserved unless ECAP.PDS).
    pub page_drain: bool,
}

/// One invalidation descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Descriptor {
    /// Forget context entries.
    Context(ContextScope),
    /// Forget translations of a domain.
    Iotlb {
        /// Which.
        scope: IotlbScope,
        /// What to drain.
        drain: Drain,
    },
    /// Make a device's TLB forget.
    DeviceTlb {
        /// Whose.
        device: DeviceTlb,
        /// What.
        range: AtsRange,
    },
    /// Forget interrupt-remapping entries.
    Interrupt(InterruptScope),
    /// Wait.
    Wait(Wait),
    /// Forget first-stage translations of a PASID.
    PasidIotlb {
        /// Domain-id.
        domain: u16,
        /// PASID.
        pasid: Pasid,
        /// Which.
        scope: PasidIotlbScope,
    },
    /// Forget PASID table entries.
    PasidCache(PasidCacheScope),
    /// Make a device's TLB forget translations of a PASID.
    PasidDeviceTlb {
        /// Whose.
        device: DeviceTlb,
        /// PASID; `None` for every PASID (G).
        pasid: Option<Pasid>,
        /// What.
        range: AtsRange,
    },
    /// Answer the page requests of a group.
    PageGroupResponse(PageGroupResponse),
}

/// Why words are no descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DescriptorError {
    /// A type that is not defined.
    #[error("{kind:#x} is not a type of invalidation descriptor")]
    Kind {
        /// All seven bits of it.
        kind: u8,
    },
    /// Bits that must be zero.
    #[error("reserved bits are set in a descriptor of type {kind}: {high:#x}, {low:#x}")]
    Reserved {
        /// The type.
        kind: u8,
        /// Those of bits 127:0.
        low: u128,
        /// Those of bits 255:128.
        high: u128,
    },
    /// A granularity that is not defined.
    #[error("{granularity} is no granularity of a descriptor of type {kind}")]
    Granularity {
        /// The type.
        kind: u8,
        /// The field.
        granularity: u8,
    },
}

impl DescriptorError {
    /// What a unit reports: the IQEI of IQERCD_REG.
    #[must_use]
    pub const fn queue_error(self) -> QueueError {
        match self {
            Self::Kind { .. } => QueueError::INVALID_TYPE,
            Self::Reserved { .. } | Self::Granularity { .. } => QueueError::RESERVED_FIELD,
        }
    }
}

/// The error that `reserved` and `high` are, if any is set.
const fn clean(kind: u8, reserved: u128, high: u128) -> Result<(), DescriptorError> {
    if reserved == 0 && high == 0 {
        Ok(())
    } else {
        Err(DescriptorError::Reserved {
            kind,
            low: reserved,
            high,
        })
    }
}

impl Descriptor {
    /// Reads a descriptor. Nothing here depends on what a unit supports: PFSID, PD and the mask limits are
    /// for the unit to judge, as is a descriptor of scalable mode in a queue of 128-bit ones.
    ///
    /// # Errors
    ///
    /// Why a unit of this specification would stop its queue.
    pub fn decode(raw: RawDescriptor) -> Result<Self, DescriptorError> {
        let kind = raw.kind();
        match kind {
            kind::CONTEXT => {
                let word = ContextLayout(raw.low);
                clean(kind, word.reserved(), raw.high)?;
                decode_context(word)
            }
            kind::IOTLB => {
                let word = IotlbLayout(raw.low);
                clean(kind, word.reserved(), raw.high)?;
                decode_iotlb(word)
            }
            kind::DEVICE_TLB => {
                let word = DeviceTlbLayout(raw.low);
                clean(kind, word.reserved(), raw.high)?;
                Ok(Self::DeviceTlb {
                    device: DeviceTlb {
                        source: RequesterId(word.source()),
                        physical_source: RequesterId(
                            word.physical_source_high() << 4
                                | u16::from(word.physical_source_low()),
                        ),
                        max_pending: word.max_pending(),
                    },
                    range: AtsRange::from_fields(word.address(), word.sized()),
                })
            }
            kind::INTERRUPT => {
                let word = InterruptLayout(raw.low);
                clean(kind, word.reserved(), raw.high)?;
                Ok(Self::Interrupt(if word.by_index() {
                    InterruptScope::Index {
                        index: word.index(),
                        order: word.mask(),
                    }
                } else {
                    InterruptScope::Global
                }))
            }
            kind::WAIT => {
                let word = WaitLayout(raw.low);
                clean(kind, word.reserved(), raw.high)?;
                let status = word.status_write().then_some(StatusWrite {
                    address: word.status_address(),
                    data: word.status_data(),
                });
                Ok(Self::Wait(Wait {
                    status,
                    interrupt: word.interrupt(),
                    fence: word.fence(),
                    page_drain: word.page_drain(),
                }))
            }
            kind::PASID_IOTLB => {
                let word = PasidIotlbLayout(raw.low);
                clean(kind, word.reserved(), raw.high)?;
                decode_pasid_iotlb(word)
            }
            kind::PASID_CACHE => {
                let word = PasidCacheLayout(raw.low);
                clean(kind, word.reserved(), raw.high)?;
                decode_pasid_cache(word)
            }
            kind::PASID_DEVICE_TLB => {
                let word = PasidDeviceTlbLayout(raw.low);
                clean(kind, word.reserved(), raw.high)?;
                Ok(Self::PasidDeviceTlb {
                    device: DeviceTlb {
                        source: RequesterId(word.source()),
                        physical_source: RequesterId(
                            word.physical_source_high() << 4
                                | u16::from(word.physical_source_low()),
                        ),
                        max_pending: word.max_pending(),
                    },
                    pasid: (!word.global()).then_some(Pasid::from_field(word.pasid())),
                    range: AtsRange::from_fields(word.address(), word.sized()),
                })
            }
            kind::PAGE_GROUP_RESPONSE => {
                let word = PageGroupResponseLayout(raw.low);
                clean(kind, word.reserved(), raw.high)?;
                Ok(Self::PageGroupResponse(PageGroupResponse {
                    source: RequesterId(word.source()),
                    pasid: word
                        .pasid_present()
                        .then_some(Pasid::from_field(word.pasid())),
                    group: word.group(),
                    last: word.last(),
                    code: ResponseCode(word.code()),
                }))
            }
            kind => Err(DescriptorError::Kind { kind }),
        }
    }

    /// The words. What does not fit into its field is cut off; fields that the scope does not use are 0.
    #[must_use]
    pub fn encode(self) -> RawDescriptor {
        let low = match self {
            Self::Context(scope) => encode_context(scope),
            Self::Iotlb { scope, drain } => encode_iotlb(scope, drain),
            Self::DeviceTlb { device, range } => {
                let (address, sized) = range.fields();
                DeviceTlbLayout(0)
                    .with_kind(kind::DEVICE_TLB)
                    .with_physical_source_low(device.physical_source.0 as u8)
                    .with_physical_source_high(device.physical_source.0 >> 4)
                    .with_max_pending(device.max_pending)
                    .with_source(device.source.0)
                    .with_sized(sized)
                    .with_address(address)
                    .0
            }
            Self::Interrupt(scope) => {
                let word = InterruptLayout(0).with_kind(kind::INTERRUPT);
                match scope {
                    InterruptScope::Global => word.0,
                    InterruptScope::Index { index, order } => {
                        word.with_by_index(true)
                            .with_index(index)
                            .with_mask(order)
                            .0
                    }
                }
            }
            Self::Wait(wait) => encode_wait(wait),
            Self::PasidIotlb {
                domain,
                pasid,
                scope,
            } => {
                let word = PasidIotlbLayout(0)
                    .with_kind(kind::PASID_IOTLB)
                    .with_domain(domain)
                    .with_pasid(pasid.get());
                match scope {
                    PasidIotlbScope::All => word.with_granularity(2).0,
                    PasidIotlbScope::Pages(pages) => {
                        word.with_granularity(3)
                            .with_address(pages.address)
                            .with_mask(pages.order)
                            .with_leaves_only(pages.leaves_only)
                            .0
                    }
                }
            }
            Self::PasidCache(scope) => {
                let word = PasidCacheLayout(0).with_kind(kind::PASID_CACHE);
                match scope {
                    PasidCacheScope::Global => word.with_granularity(3).0,
                    PasidCacheScope::Domain { domain } => {
                        word.with_granularity(0).with_domain(domain).0
                    }
                    PasidCacheScope::Pasid { domain, pasid } => {
                        word.with_granularity(1)
                            .with_domain(domain)
                            .with_pasid(pasid.get())
                            .0
                    }
                }
            }
            Self::PasidDeviceTlb {
                device,
                pasid,
                range,
            } => {
                let (address, sized) = range.fields();
                PasidDeviceTlbLayout(0)
                    .with_kind(kind::PASID_DEVICE_TLB)
                    .with_physical_source_low(device.physical_source.0 as u8)
                    .with_physical_source_high(device.physical_source.0 >> 4)
                    .with_max_pending(device.max_pending)
                    .with_source(device.source.0)
                    .with_global(pasid.is_none())
                    .with_pasid(pasid.map_or(0, Pasid::get))
                    .with_sized(sized)
                    .with_address(address)
                    .0
            }
            Self::PageGroupResponse(response) => {
                PageGroupResponseLayout(0)
                    .with_kind(kind::PAGE_GROUP_RESPONSE)
                    .with_pasid_present(response.pasid.is_some())
                    .with_pasid(response.pasid.map_or(0, Pasid::get))
                    .with_code(response.code.0)
                    .with_source(response.source.0)
                    .with_last(response.last)
                    .with_group(response.group)
                    .0
            }
        };
        RawDescriptor { low, high: 0 }
    }
}
