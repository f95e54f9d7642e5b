// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Domains: whose mappings are whose. Requests are decided here, and endpoints are told.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::endpoint::Endpoint;
use super::request::{Bypass, MapFlags, Request, Span, Status};

/// What a domain maps in one stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mapping {
    pub(super) span: Span,
    pub(super) target: u64,
    pub(super) flags: MapFlags,
}

/// What the driver may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Page sizes: the lowest bit is the granularity of mappings, in bytes.
    pub page_sizes: u64,
    /// Addresses that can be mapped. The last address of the 64-bit space cannot.
    pub input: Span,
    /// Numbers that domains may have.
    pub domains: (u32, u32),
    /// Mappings in all domains together: the host's memory is not the guest's to spend.
    pub mappings: usize,
}

impl Default for Limits {
    /// 4-KiB pages, 48-bit addresses, any domain number, a million mappings.
    fn default() -> Self {
        Self {
            page_sizes: !0xfff,
            input: Span {
                first: 0,
                last: (1 << 48) - 1,
            },
            domains: (0, u32::MAX),
            mappings: 1 << 20,
        }
    }
}

impl Limits {
    /// Bytes to which mappings are aligned.
    fn granule(&self) -> u64 {
        self.page_sizes & self.page_sizes.wrapping_neg()
    }
}

/// A domain that exists: it has an endpoint.
#[derive(Debug)]
struct Domain {
    bypass: Bypass,
    endpoints: Vec<u32>,
    /// By first address.
    mappings: BTreeMap<u64, Mapping>,
}

/// All domains and endpoints of one IOMMU.
#[derive(Debug)]
pub(super) struct Domains {
    limits: Limits,
    endpoints: BTreeMap<u32, Arc<Endpoint>>,
    domains: BTreeMap<u32, Domain>,
    /// Which domain an endpoint is in.
    attached: BTreeMap<u32, u32>,
    mappings: usize,
    /// What endpoints in no domain do.
    at_rest: Bypass,
}

impl Domains {
    pub(super) fn new(limits: Limits, at_rest: Bypass) -> Self {
        Self {
            limits,
            endpoints: BTreeMap::new(),
            domains: BTreeMap::new(),
            attached: BTreeMap::new(),
            mappings: 0,
            at_rest,
        }
    }

    /// Adds an endpoint. Returns whether its number is free.
    pub(super) fn add(&mut self, endpoint: Arc<Endpoint>) -> bool {
        if self.endpoints.contains_key(&endpoint.id()) {
            return false;
        }
        self.rest(&endpoint);
        self.endpoints.insert(endpoint.id(), endpoint);
        true
    }

    pub(super) fn endpoint(&self, id: u32) -> Option<&Arc<Endpoint>> {
        self.endpoints.get(&id)
    }

    /// Changes what endpoints in no domain do.
    pub(super) fn set_at_rest(&mut self, bypass: Bypass) {
        self.at_rest = bypass;
        for (id, endpoint) in &self.endpoints {
            if !self.attached.contains_key(id) {
                self.rest(endpoint);
            }
        }
    }

    /// As after a reset of the device: no domains.
    pub(super) fn reset(&mut self, at_rest: Bypass) {
        self.domains.clear();
        self.attached.clear();
        self.mappings = 0;
        self.set_at_rest(at_rest);
    }

    /// The requests that lead from no domains to these.
    pub(super) fn requests(&self) -> impl Iterator<Item = Request> {
        self.domains.iter().flat_map(|(&domain, of)| {
            let bypass = of.bypass;
            let attached = of.endpoints.iter().map(move |&endpoint| Request::Attach {
                domain,
                endpoint,
                bypass,
            });
            let mapped = of.mappings.values().map(move |mapping| Request::Map {
                domain,
                span: mapping.span,
                target: mapping.target,
                flags: mapping.flags,
            });
            attached.chain(mapped)
        })
    }

    fn rest(&self, endpoint: &Endpoint) {
        match self.at_rest {
            Bypass::Yes => endpoint.bypass(),
            Bypass::No => endpoint.block(),
        }
    }

    /// Does what `request` asks, or changes nothing. PROBE is the device's to answer.
    pub(super) fn serve(&mut self, request: Request, bypass_domains: Offered) -> Status {
        let served = match request {
            Request::Attach {
                domain,
                endpoint,
                bypass,
            } => {
                if bypass == Bypass::Yes && bypass_domains == Offered::No {
                    Err(Status::INVALID)
                } else {
                    self.attach(domain, endpoint, bypass)
                }
            }
            Request::Detach { domain, endpoint } => self.detach(domain, endpoint),
            Request::Map {
                domain,
                span,
                target,
                flags,
            } => self.map(
                domain,
                Mapping {
                    span,
                    target,
                    flags,
                },
            ),
            Request::Unmap { domain, span } => self.unmap(domain, span),
            Request::Probe { endpoint } => match self.endpoints.get(&endpoint) {
                Some(_) => Ok(()),
                None => Err(Status::NO_ENTRY),
            },
        };
        served.err().unwrap_or(Status::OK)
    }

    /// "ATTACH request" (5.13.6.3).
    fn attach(&mut self, id: u32, endpoint: u32, bypass: Bypass) -> Result<(), Status> {
        let (lowest, highest) = self.limits.domains;
        if !(lowest..=highest).contains(&id) {
            return Err(Status::RANGE);
        }
        let Some(device) = self.endpoints.get(&endpoint).cloned() else {
            return Err(Status::NO_ENTRY);
        };
        if let Some(domain) = self.domains.get(&id) {
            let free = |mapping: &Mapping| {
                let reserved = device.reserved().iter();
                reserved
                    .copied()
                    .all(|reserved| !overlap(reserved.span(), mapping.span))
            };
            if domain.bypass != bypass {
                return Err(Status::INVALID);
            }
            // "If properties of the endpoint [...] are compatible with properties of other endpoints already attached"
            // (5.13.6.3.2): they are not if a mapping of theirs is where this one may have none.
            if !domain.mappings.values().all(free) {
                return Err(Status::UNSUPPORTED);
            }
            if self.attached.get(&endpoint) == Some(&id) {
                return Ok(());
            }
        }
        self.leave(endpoint);
        let domain = self.domains.entry(id).or_insert_with(|| Domain {
            bypass,
            endpoints: Vec::new(),
            mappings: BTreeMap::new(),
        });
        domain.endpoints.push(endpoint);
        self.attached.insert(endpoint, id);
        match bypass {
            Bypass::Yes => device.bypass(),
            Bypass::No => device.attach(domain.mappings.values()),
        }
        Ok(())
    }

    /// "DETACH request" (5.13.6.4).
    fn detach(&mut self, domain: u32, endpoint: u32) -> Result<(), Status> {
        let Some(device) = self.endpoints.get(&endpoint).cloned() else {
            return Err(Status::NO_ENTRY);
        };
        if self.attached.get(&endpoint) != Some(&domain) {
            return Err(Status::INVALID);
        }
        self.leave(endpoint);
        self.rest(&device);
        Ok(())
    }

    /// Takes an endpoint out of its domain, which ends with its last one.
    fn leave(&mut self, endpoint: u32) {
        let Some(id) = self.attached.remove(&endpoint) else {
            return;
        };
        if let Some(domain) = self.domains.get_mut(&id) {
            domain.endpoints.retain(|other| *other != endpoint);
            if domain.endpoints.is_empty() {
                self.mappings = self.mappings.saturating_sub(domain.mappings.len());
                self.domains.remove(&id);
            }
        }
    }

    /// "MAP request" (5.13.6.5).
    fn map(&mut self, id: u32, mapping: Mapping) -> Result<(), Status> {
        let Mapping { span, target, .. } = mapping;
        let low = self.limits.granule().wrapping_sub(1);
        let domain = self.domains.get_mut(&id).ok_or(Status::NO_ENTRY)?;
        if (span.first | span.last.wrapping_add(1) | target) & low != 0 {
            return Err(Status::RANGE);
        }
        let within = self.limits.input.first <= span.first && span.last <= self.limits.input.last;
        // The sum: a target that wraps leads nowhere. A request's span ends where it begins, or later.
        let end = target.checked_add(span.last.wrapping_sub(span.first));
        if !within || span.last == u64::MAX || end.is_none() {
            return Err(Status::RANGE);
        }
        let devices = || {
            domain
                .endpoints
                .iter()
                .filter_map(|id| self.endpoints.get(id))
        };
        let reserved = devices().flat_map(|device| device.reserved().iter().copied());
        if domain.bypass == Bypass::Yes
            || touched(&domain.mappings, span).next().is_some()
            || reserved
                .into_iter()
                .any(|reserved| overlap(reserved.span(), span))
        {
            return Err(Status::INVALID);
        }
        if self.mappings >= self.limits.mappings {
            return Err(Status::NO_MEMORY);
        }
        devices().for_each(|device| device.map(&mapping));
        domain.mappings.insert(span.first, mapping);
        self.mappings = self.mappings.saturating_add(1);
        Ok(())
    }

    /// "UNMAP request" (5.13.6.6).
    fn unmap(&mut self, id: u32, span: Span) -> Result<(), Status> {
        let domain = self.domains.get_mut(&id).ok_or(Status::NO_ENTRY)?;
        if domain.bypass == Bypass::Yes {
            return Err(Status::INVALID);
        }
        let inside =
            |mapping: &Mapping| span.first <= mapping.span.first && mapping.span.last <= span.last;
        // A mapping goes whole or stays.
        if !touched(&domain.mappings, span).all(inside) {
            return Err(Status::RANGE);
        }
        let gone: Vec<u64> = touched(&domain.mappings, span)
            .map(|mapping| mapping.span.first)
            .collect();
        let devices = domain
            .endpoints
            .iter()
            .filter_map(|id| self.endpoints.get(id));
        devices.for_each(|device| device.unmap(span));
        for first in &gone {
            domain.mappings.remove(first);
        }
        self.mappings = self.mappings.saturating_sub(gone.len());
        Ok(())
    }
}

/// Whether the driver has accepted a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offered {
    Yes,
    No,
}

fn overlap(one: Span, other: Span) -> bool {
    one.first <= other.last && other.first <= one.last
}

/// The mappings that `span` touches: one that begins before it, and all that begin in it.
fn touched(mappings: &BTreeMap<u64, Mapping>, span: Span) -> impl Iterator<Item = &Mapping> {
    let before = mappings.range(..span.first).next_back();
    let before = before
        .map(|(_, mapping)| mapping)
        .filter(move |mapping| overlap(mapping.span, span));
    before.into_iter().chain(
        mappings
            .range(span.first..=span.last)
            .map(|(_, mapping)| mapping),
    )
}
