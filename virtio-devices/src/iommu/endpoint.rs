// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One device behind the IOMMU, as its own accesses see it: [`vm_memory::Iommu`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use vm_memory::iommu::{Error, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, Iommu, Iotlb, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::domain::Mapping;
use super::request::{MapFlags, Span};

/// Faults that wait for the driver to look; later ones are counted only.
const MOST_FAULTS: usize = 64;

/// A range of addresses that no mapping may use: what PROBE tells of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reserved {
    /// Accesses to it go nowhere.
    Region(Span),
    /// Writes to it are messages of interrupts, and are not translated.
    Messages(Span),
}

impl Reserved {
    pub(super) fn span(self) -> Span {
        match self {
            Self::Region(span) | Self::Messages(span) => span,
        }
    }
}

/// An access that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fault {
    pub(super) endpoint: u32,
    pub(super) reason: Reason,
    pub(super) access: MapFlags,
    pub(super) address: u64,
}

/// Why it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(super) enum Reason {
    /// The endpoint is in no domain.
    Domain = 1,
    /// No mapping, or one without this access.
    Mapping = 2,
}

/// Faults on their way to the driver.
#[derive(Debug)]
pub(super) struct Faults {
    waiting: Mutex<VecDeque<Fault>>,
    /// Readable when there are some.
    pub(super) kick: EventFd,
}

impl Faults {
    pub(super) fn new(kick: EventFd) -> Self {
        let waiting = Mutex::default();
        Self { waiting, kick }
    }

    fn report(&self, fault: Fault) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MOST_FAULTS {
            waiting.push_back(fault);
        }
        drop(waiting);
        // Full means that it was kicked.
        let _ = self.kick.write(1);
    }

    pub(super) fn first(&self) -> Option<Fault> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.front().copied()
    }

    /// Takes the one that [`first`](Self::first) showed.
    pub(super) fn told(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.pop_front();
    }

    pub(super) fn forget(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.clear();
    }
}

/// What an endpoint's addresses mean just now.
#[derive(Debug, Default)]
struct View {
    iotlb: Iotlb,
    attached: bool,
}

/// A device behind the IOMMU. Give it to `vm_memory::IommuMemory`, and that to the device.
///
/// An access holds the mappings still for as long as it translates; one that has its slices may still use them
/// for a moment after UNMAP is answered, as with every `vm_memory::Iommu`.
#[derive(Debug)]
pub struct Endpoint {
    id: u32,
    reserved: Vec<Reserved>,
    view: RwLock<View>,
    faults: Arc<Faults>,
}

/// Keeps an endpoint's mappings still.
#[derive(Debug)]
pub struct Held<'a>(RwLockReadGuard<'a, View>);

impl std::ops::Deref for Held<'_> {
    type Target = Iotlb;

    fn deref(&self) -> &Iotlb {
        &self.0.iotlb
    }
}

impl Endpoint {
    pub(super) fn new(id: u32, reserved: Vec<Reserved>, faults: Arc<Faults>) -> Self {
        let view = RwLock::default();
        Self {
            id,
            reserved,
            view,
            faults,
        }
    }

    /// Its number: for a PCI function the segment and requester ID.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What no mapping may use.
    pub fn reserved(&self) -> &[Reserved] {
        &self.reserved
    }

    fn change(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.view.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// It is in no domain: every access is refused.
    pub(super) fn block(&self) {
        self.change(|view| *view = View::default());
    }

    /// Every address leads to itself.
    pub(super) fn bypass(&self) {
        self.change(|view| {
            *view = View {
                iotlb: Iotlb::new(),
                attached: true,
            };
            let zero = GuestAddress(0);
            // The last byte of the space cannot be in a range of the Iotlb, and is nobody's memory.
            let mapped = view
                .iotlb
                .set_mapping(zero, zero, usize::MAX, Permissions::ReadWrite);
            debug_assert!(mapped.is_ok());
        });
    }

    /// It is in a domain that has these mappings.
    pub(super) fn attach<'a>(&self, mappings: impl Iterator<Item = &'a Mapping>) {
        self.change(|view| {
            *view = View {
                iotlb: Iotlb::new(),
                attached: true,
            };
            mappings.for_each(|mapping| add(&mut view.iotlb, mapping));
        });
    }

    pub(super) fn map(&self, mapping: &Mapping) {
        self.change(|view| add(&mut view.iotlb, mapping));
    }

    /// When this returns, no translation through `span` begins.
    pub(super) fn unmap(&self, span: Span) {
        self.change(|view| {
            view.iotlb
                .invalidate_mapping(GuestAddress(span.first), length(span));
        });
    }
}

/// Bytes of a span. The last byte of the space is never one of a mapping, and does not count: the Iotlb adds
/// first address and length without a look.
fn length(span: Span) -> usize {
    let end = span.last.saturating_add(1);
    usize::try_from(end.saturating_sub(span.first)).unwrap_or(usize::MAX)
}

fn add(iotlb: &mut Iotlb, mapping: &Mapping) {
    let both = MapFlags::READ | MapFlags::WRITE;
    let permissions = if mapping.flags.contains(both) {
        Permissions::ReadWrite
    } else if mapping.flags.contains(MapFlags::WRITE) {
        Permissions::Write
    } else if mapping.flags.contains(MapFlags::READ) {
        Permissions::Read
    } else {
        Permissions::No
    };
    let (from, to) = (
        GuestAddress(mapping.span.first),
        GuestAddress(mapping.target),
    );
    let mapped = iotlb.set_mapping(from, to, length(mapping.span), permissions);
    debug_assert!(mapped.is_ok());
}

impl Iommu for Endpoint {
    type IotlbGuard<'a> = Held<'a>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Held<'_>>, Error> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let attached = view.attached;
        // The Iotlb adds without a look.
        let fits = u64::try_from(length).is_ok_and(|length| iova.0.checked_add(length).is_some());
        let address = if fits {
            match Iotlb::lookup(Held(view), iova, length, access) {
                Ok(found) => return Ok(found),
                Err(fails) => {
                    let places = fails.misses.iter().chain(&fails.access_fails);
                    places.map(|place| place.base.0).min().unwrap_or(iova.0)
                }
            }
        } else {
            iova.0
        };
        let reason = if attached {
            Reason::Mapping
        } else {
            Reason::Domain
        };
        let access = match access {
            Permissions::No => MapFlags::empty(),
            Permissions::Read => MapFlags::READ,
            Permissions::Write => MapFlags::WRITE,
            Permissions::ReadWrite => MapFlags::READ | MapFlags::WRITE,
        };
        self.faults.report(Fault {
            endpoint: self.id,
            reason,
            access,
            address,
        });
        Err(Error::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason: format!("endpoint {:#x} may not {access:?} at {address:#x}", self.id),
        })
    }
}
