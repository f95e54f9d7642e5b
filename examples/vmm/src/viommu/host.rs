// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the unit does to the machine apart from memory.

use super::remapper::target;
use super::shadow::{DmaTable, Shadow, pieces};
use crate::interrupts::senders::Leads;
use crate::interrupts::{Router, UnitNumber};
use crate::machine::memory::GuestRam;
use crate::machine::stop::{Stop, StopReason};
use hvkit_virtio_devices::pci::MsiMessage;
use hvkit_vtd_iommu::emulation::{Delivered, Host, Mapping};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::fault::FaultReason;
use hvkit_vtd_iommu::spec::interrupt::Message;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Weak};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// The machine around the unit.
pub struct UnitHost {
    number: UnitNumber,
    /// Not held: the router asks the unit.
    router: Weak<Router>,
    /// Where there is memory.
    ram: Vec<Range<u64>>,
    shadows: Vec<Shadow>,
    stop: Stop,
}

impl fmt::Debug for UnitHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnitHost").finish_non_exhaustive()
    }
}

impl UnitHost {
    pub(super) fn new(
        number: UnitNumber,
        router: &Arc<Router>,
        ram: &GuestRam,
        stop: &Stop,
    ) -> Self {
        let regions = ram.iter().map(|region| {
            let start = region.start_addr().0;
            start..start.saturating_add(region.len())
        });
        UnitHost {
            number,
            router: Arc::downgrade(router),
            ram: regions.collect(),
            shadows: Vec::new(),
            stop: stop.clone(),
        }
    }

    /// From now on `table` is where `source` reaches.
    pub(super) fn add(&mut self, source: RequesterId, name: &str, table: Box<dyn DmaTable>) {
        self.shadows.push(Shadow {
            source,
            name: name.to_owned(),
            table,
            refused: None,
        });
    }

    /// What the host last refused to map for `source`.
    pub(super) fn refusal(&mut self, source: RequesterId) -> io::Result<()> {
        let shadow = self.shadows.iter_mut().find(|s| s.source == source);
        shadow.and_then(|s| s.refused.take()).map_or(Ok(()), Err)
    }
}

impl Host for UnitHost {
    fn message(&mut self, message: Message) {
        let Message { address, data } = message;
        if let Some(router) = self.router.upgrade()
            && let Err(error) = router.send(MsiMessage { address, data })
        {
            // The guest says where it goes.
            log::debug!("the remapping unit's interrupt was not delivered: {error}");
        }
    }

    fn map(&mut self, source: RequesterId, mapping: Mapping) {
        let Some(shadow) = self.shadows.iter_mut().find(|s| s.source == source) else {
            return;
        };
        for piece in pieces(mapping, &self.ram) {
            if let Err(error) = shadow.table.map(piece) {
                // The device's transfers there end at the host. A guest can cause it often; it is said at first.
                if shadow.refused.is_none() {
                    log::warn!("{} does not reach {piece:x?}: {error}", shadow.name);
                }
                shadow.refused = Some(error);
            }
        }
    }

    fn unmap(&mut self, source: RequesterId, mapping: Mapping) {
        let Some(shadow) = self.shadows.iter_mut().find(|s| s.source == source) else {
            return;
        };
        for piece in pieces(mapping, &self.ram) {
            if let Err(error) = shadow.table.unmap(piece) {
                // The guest would give the page to somebody else, so it must not go on.
                log::error!("{} still reaches {piece:x?}: {error}", shadow.name);
                self.stop.ask(StopReason::Unbounded {
                    device: shadow.name.clone(),
                });
            }
        }
    }

    fn interrupts_changed(
        &mut self,
        now: &dyn Fn(RequesterId, Message) -> Result<Delivered, FaultReason>,
    ) {
        if let Some(router) = self.router.upgrade() {
            router.refresh(&|source, MsiMessage { address, data }| {
                if source.unit != Some(self.number) {
                    return Leads::AsBefore;
                }
                let message = Message { address, data };
                Leads::To(target(message, now(source.id, message)))
            });
        }
    }
}
