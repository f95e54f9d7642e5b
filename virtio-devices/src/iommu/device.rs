// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device: features, configuration, and what its two queues are served by.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::domain::{Domains, Limits, Offered};
use super::endpoint::{Endpoint, Faults, Reserved};
use super::events::Events;
use super::request::{Bypass, Span};
use super::server::Server;
use super::state;
use crate::bytes::{put_at, read_at};
use crate::counters::Counters;
use crate::device::{ActivateError, Activation, Device, StateError};
use crate::features::{DeviceType, Features};
use crate::worker::Worker;

/// Feature bits of the IOMMU device (5.13.3).
pub mod feature {
    use crate::features::Features;

    /// VIRTIO_IOMMU_F_INPUT_RANGE: `input_range` says which addresses can be mapped.
    pub const INPUT_RANGE: Features = Features::from_bits_retain(1 << 0);
    /// VIRTIO_IOMMU_F_DOMAIN_RANGE: `domain_range` says which numbers domains may have.
    pub const DOMAIN_RANGE: Features = Features::from_bits_retain(1 << 1);
    /// VIRTIO_IOMMU_F_MAP_UNMAP: MAP and UNMAP.
    pub const MAP_UNMAP: Features = Features::from_bits_retain(1 << 2);
    /// VIRTIO_IOMMU_F_PROBE: PROBE.
    pub const PROBE: Features = Features::from_bits_retain(1 << 4);
    /// VIRTIO_IOMMU_F_BYPASS_CONFIG: `bypass` says what endpoints in no domain do; domains may bypass.
    pub const BYPASS_CONFIG: Features = Features::from_bits_retain(1 << 6);
}

/// Bytes of the configuration structure (5.13.4).
const CONFIG: usize = 40;
/// Where in it `bypass` is.
const BYPASS: u64 = 36;
/// Bytes of the properties that PROBE returns: `probe_size`.
pub(super) const PROBE_SIZE: u32 = 512;
/// Bytes of one reserved-memory property, its head included.
pub(super) const PROPERTY: usize = 24;
/// Requests, events.
const QUEUES: usize = 2;
/// Descriptors in each queue.
const QUEUE_SIZE: u16 = 256;

/// What devices may do before a driver says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtBoot {
    /// Reach all memory: firmware knows no virtio-iommu.
    Bypass,
    /// Nothing.
    Block,
}

/// An endpoint that cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Its number is another's.
    #[error("there is an endpoint {0:#x} already")]
    Taken(u32),
    /// Its reserved ranges are more than PROBE can tell.
    #[error("{0} reserved ranges do not fit in the properties of an endpoint")]
    TooManyReserved(usize),
}

/// A virtio-iommu.
///
/// ```
/// use std::sync::Arc;
///
/// use hvkit_virtio_devices::iommu::{AtBoot, Iommu, Limits};
/// use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, IommuMemory, Permissions};
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
/// let iommu = Iommu::new(Limits::default(), AtBoot::Block)?;
/// // The device at PCI 00:03.0 sees memory through it. VIOT tells the guest so.
/// let endpoint = iommu.add_endpoint(3 << 3, Vec::new())?;
/// let memory = IommuMemory::new(memory, endpoint, true, ());
/// assert!(!memory.check_range(GuestAddress(0x1000), 16, Permissions::Read)); // nothing is mapped yet
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Iommu {
    limits: Limits,
    domains: Arc<Mutex<Domains>>,
    faults: Arc<Faults>,
    bypass: Bypass,
    counters: [Counters; QUEUES],
}

impl Iommu {
    /// An IOMMU without endpoints.
    ///
    /// # Errors
    ///
    /// The host has no event to give.
    pub fn new(limits: Limits, at_boot: AtBoot) -> io::Result<Self> {
        let bypass = match at_boot {
            AtBoot::Bypass => Bypass::Yes,
            AtBoot::Block => Bypass::No,
        };
        Ok(Self {
            limits,
            domains: Arc::new(Mutex::new(Domains::new(limits, bypass))),
            faults: Arc::new(Faults::new(EventFd::new(EFD_NONBLOCK)?)),
            bypass,
            counters: Default::default(),
        })
    }

    /// Puts a device behind it, as [`Endpoints::add`] does.
    ///
    /// # Errors
    ///
    /// [`EndpointError`]; nothing is added then.
    pub fn add_endpoint(
        &self,
        id: u32,
        reserved: Vec<Reserved>,
    ) -> Result<SharedEndpoint, EndpointError> {
        self.endpoints().add(id, reserved)
    }

    /// By which devices are put behind it once it is a transport's.
    pub fn endpoints(&self) -> Endpoints {
        Endpoints {
            domains: Arc::clone(&self.domains),
            faults: Arc::clone(&self.faults),
        }
    }

    /// The numbers of the queues for requests and for events. Bytes are those of what was read and written.
    pub fn counters(&self) -> &[Counters; QUEUES] {
        &self.counters
    }

    fn config(&self) -> [u8; CONFIG] {
        let Limits {
            page_sizes,
            input: Span { first, last },
            domains: (lowest, highest),
            ..
        } = self.limits;
        let mut bytes = [0; CONFIG];
        let mut put = |at: usize, field: &[u8]| put_at(&mut bytes, at, field);
        put(0, &page_sizes.to_le_bytes());
        put(8, &first.to_le_bytes());
        put(16, &last.to_le_bytes());
        put(24, &lowest.to_le_bytes());
        put(28, &highest.to_le_bytes());
        put(32, &PROBE_SIZE.to_le_bytes());
        put(BYPASS as usize, &[u8::from(self.bypass == Bypass::Yes)]);
        bytes
    }
}

/// The devices behind an [`Iommu`], for who has given that away.
#[derive(Clone, Debug)]
pub struct Endpoints {
    domains: Arc<Mutex<Domains>>,
    faults: Arc<Faults>,
}

impl Endpoints {
    /// Puts a device behind the IOMMU. `id` is what the platform's description calls it: for a PCI function segment
    /// and requester ID.
    ///
    /// # Errors
    ///
    /// [`EndpointError`]; nothing is added then.
    pub fn add(&self, id: u32, reserved: Vec<Reserved>) -> Result<SharedEndpoint, EndpointError> {
        if reserved.len() > PROBE_SIZE as usize / PROPERTY {
            return Err(EndpointError::TooManyReserved(reserved.len()));
        }
        let endpoint = Arc::new(Endpoint::new(id, reserved, Arc::clone(&self.faults)));
        if !lock(&self.domains).add(Arc::clone(&endpoint)) {
            return Err(EndpointError::Taken(id));
        }
        Ok(SharedEndpoint(endpoint))
    }
}

pub(super) fn lock(domains: &Mutex<Domains>) -> MutexGuard<'_, Domains> {
    domains.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<A: GuestAddressSpace + Send + 'static> Device<A> for Iommu {
    fn device_type(&self) -> DeviceType {
        DeviceType::IOMMU
    }

    fn features(&self) -> Features {
        feature::INPUT_RANGE
            | feature::DOMAIN_RANGE
            | feature::MAP_UNMAP
            | feature::PROBE
            | feature::BYPASS_CONFIG
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_at(&self.config(), offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        let byte = BYPASS
            .checked_sub(offset)
            .and_then(|at| usize::try_from(at).ok());
        let bypass = match byte.and_then(|at| data.get(at)) {
            Some(0) => Bypass::No,
            Some(1) => Bypass::Yes,
            _ => return,
        };
        self.bypass = bypass;
        lock(&self.domains).set_at_rest(bypass);
    }

    fn activate(
        &mut self,
        activation: Activation<A>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let Activation {
            memory,
            features,
            queues,
            interrupts,
        } = activation;
        let bypass_domains = if features.contains(feature::BYPASS_CONFIG) {
            Offered::Yes
        } else {
            Offered::No
        };
        let mut workers: Vec<Box<dyn Worker>> = Vec::new();
        for active in queues {
            let (memory, interrupts) = (memory.clone(), Arc::clone(&interrupts));
            let [requests, events] = self.counters.clone();
            workers.push(match active.index {
                0 => {
                    let domains = Arc::clone(&self.domains);
                    Box::new(Server::new(
                        domains,
                        bypass_domains,
                        memory,
                        active,
                        interrupts,
                        requests,
                    ))
                }
                _ => Box::new(Events::new(
                    Arc::clone(&self.faults),
                    memory,
                    active,
                    interrupts,
                    events,
                )),
            });
        }
        if workers.is_empty() {
            return Err(ActivateError::QueueMissing { index: 0 });
        }
        Ok(workers)
    }

    fn counters(&self) -> Vec<Counters> {
        self.counters.to_vec()
    }

    /// All endpoints leave their domains. What `bypass` says stays: devices that are not the driver's go on.
    fn reset(&mut self) {
        lock(&self.domains).reset(self.bypass);
        self.faults.forget();
    }

    /// What is mapped, and for whom.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(state::save(self.bypass, &lock(&self.domains)))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.bypass = state::restore(state, &mut lock(&self.domains), self.bypass)?;
        Ok(())
    }
}

/// An [`Endpoint`] as `vm_memory::IommuMemory` takes it: by value.
#[derive(Clone, Debug)]
pub struct SharedEndpoint(Arc<Endpoint>);

impl std::ops::Deref for SharedEndpoint {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.0
    }
}

impl vm_memory::Iommu for SharedEndpoint {
    type IotlbGuard<'a> = super::Held<'a>;

    fn translate(
        &self,
        iova: vm_memory::GuestAddress,
        length: usize,
        access: vm_memory::Permissions,
    ) -> Result<vm_memory::iommu::IotlbIterator<super::Held<'_>>, vm_memory::iommu::Error> {
        self.0.translate(iova, length, access)
    }
}
