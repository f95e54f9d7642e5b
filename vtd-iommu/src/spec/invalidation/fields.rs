// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scopes to and from the fields of their descriptors.

use super::descriptor::{Descriptor, DescriptorError, Wait, kind};
use super::layout::{ContextLayout, IotlbLayout, PasidCacheLayout, PasidIotlbLayout, WaitLayout};
use super::{ContextScope, Drain, IotlbScope, Pages, PasidCacheScope, PasidIotlbScope};
use crate::spec::{Pasid, RequesterId};

pub(super) fn decode_context(word: ContextLayout) -> Result<Descriptor, DescriptorError> {
    let domain = word.domain();
    let scope = match word.granularity() {
        1 => ContextScope::Global,
        2 => ContextScope::Domain { domain },
        3 => ContextScope::Device {
            domain,
            source: RequesterId(word.source()),
            function_mask: word.function_mask(),
        },
        granularity => {
            return Err(DescriptorError::Granularity {
                kind: kind::CONTEXT,
                granularity,
            });
        }
    };
    Ok(Descriptor::Context(scope))
}

pub(super) fn decode_iotlb(word: IotlbLayout) -> Result<Descriptor, DescriptorError> {
    let domain = word.domain();
    let scope = match word.granularity() {
        1 => IotlbScope::Global,
        2 => IotlbScope::Domain { domain },
        3 => IotlbScope::Pages {
            domain,
            pages: Pages {
                address: word.address(),
                order: word.mask(),
                leaves_only: word.leaves_only(),
            },
        },
        granularity => {
            return Err(DescriptorError::Granularity {
                kind: kind::IOTLB,
                granularity,
            });
        }
    };
    let mut drain = Drain::empty();
    drain.set(Drain::READS, word.drain_reads());
    drain.set(Drain::WRITES, word.drain_writes());
    Ok(Descriptor::Iotlb { scope, drain })
}

pub(super) fn decode_pasid_iotlb(word: PasidIotlbLayout) -> Result<Descriptor, DescriptorError> {
    let scope = match word.granularity() {
        2 => PasidIotlbScope::All,
        3 => PasidIotlbScope::Pages(Pages {
            address: word.address(),
            order: word.mask(),
            leaves_only: word.leaves_only(),
        }),
        granularity => {
            return Err(DescriptorError::Granularity {
                kind: kind::PASID_IOTLB,
                granularity,
            });
        }
    };
    Ok(Descriptor::PasidIotlb {
        domain: word.domain(),
        pasid: Pasid::from_field(word.pasid()),
        scope,
    })
}

pub(super) fn decode_pasid_cache(word: PasidCacheLayout) -> Result<Descriptor, DescriptorError> {
    let domain = word.domain();
    let scope = match word.granularity() {
        0 => PasidCacheScope::Domain { domain },
        1 => PasidCacheScope::Pasid {
            domain,
            pasid: Pasid::from_field(word.pasid()),
        },
        3 => PasidCacheScope::Global,
        granularity => {
            return Err(DescriptorError::Granularity {
                kind: kind::PASID_CACHE,
                granularity,
            });
        }
    };
    Ok(Descriptor::PasidCache(scope))
}

pub(super) fn encode_context(scope: ContextScope) -> u128 {
    let word = ContextLayout(0).with_kind(kind::CONTEXT);
    match scope {
        ContextScope::Global => word.with_granularity(1).0,
        ContextScope::Domain { domain } => word.with_granularity(2).with_domain(domain).0,
        ContextScope::Device {
            domain,
            source,
            function_mask,
        } => {
            word.with_granularity(3)
                .with_domain(domain)
                .with_source(source.0)
                .with_function_mask(function_mask)
                .0
        }
    }
}

pub(super) fn encode_iotlb(scope: IotlbScope, drain: Drain) -> u128 {
    let word = IotlbLayout(0)
        .with_kind(kind::IOTLB)
        .with_drain_reads(drain.contains(Drain::READS))
        .with_drain_writes(drain.contains(Drain::WRITES));
    match scope {
        IotlbScope::Global => word.with_granularity(1).0,
        IotlbScope::Domain { domain } => word.with_granularity(2).with_domain(domain).0,
        IotlbScope::Pages { domain, pages } => {
            word.with_granularity(3)
                .with_domain(domain)
                .with_address(pages.address)
                .with_mask(pages.order)
                .with_leaves_only(pages.leaves_only)
                .0
        }
    }
}

pub(super) fn encode_wait(wait: Wait) -> u128 {
    let word = WaitLayout(0)
        .with_kind(kind::WAIT)
        .with_interrupt(wait.interrupt)
        .with_fence(wait.fence)
        .with_page_drain(wait.page_drain);
    match wait.status {
        Some(status) => {
            word.with_status_write(true)
                .with_status_address(status.address)
                .with_status_data(status.data)
                .0
        }
        None => word.0,
    }
}
