// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts of devices, as the units let them pass.

use super::{MachineUnit, UnitHost};
use crate::interrupts::{Remapper, Source};
use crate::machine::memory::GuestRam;
use hvkit_page_table::GuestTables;
use hvkit_virtio_devices::pci::MsiMessage;
use hvkit_vtd_iommu::emulation::{Access, Delivered, Request, Unit};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::fault::FaultReason;
use hvkit_vtd_iommu::spec::interrupt::Message;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

/// Where `message` leads, given what the unit makes of it. What is written elsewhere than at 0xfeex_xxxx is no
/// interrupt, and leads nowhere.
pub(super) fn target(
    message: Message,
    delivered: Result<Delivered, FaultReason>,
) -> Option<MsiMessage> {
    if !Message::is_interrupt(message.address) {
        return None;
    }
    let Message { address, data } = match delivered.ok()? {
        Delivered::Unchanged(message) => message,
        Delivered::Remapped(interrupt)
        | Delivered::Posted {
            notification: Some(interrupt),
        } => interrupt.into(),
        Delivered::Posted { notification: None } => return None,
    };
    Some(MsiMessage { address, data })
}

/// The units in front of the router, in the order of their numbers.
#[derive(Debug)]
pub(super) struct UnitRemapper(pub(super) Vec<Arc<MachineUnit>>);

impl UnitRemapper {
    fn of(&self, source: Source) -> Option<&Arc<MachineUnit>> {
        self.0.get(source.unit?.0)
    }
}

/// Where a message leads that no unit turns.
fn unturned(message: MsiMessage) -> Option<MsiMessage> {
    Message::is_interrupt(message.address).then_some(message)
}

impl Remapper for UnitRemapper {
    fn resolve(
        &self,
        source: Source,
        message: MsiMessage,
        then: &mut dyn FnMut(Option<MsiMessage>),
    ) {
        let Some(unit) = self.of(source) else {
            return then(unturned(message));
        };
        let MsiMessage { address, data } = message;
        let message = Message { address, data };
        unit.with(|unit, memory, _| {
            then(target(message, unit.remapped(memory, source.id, message)));
        });
    }

    fn request(&self, source: Source, message: MsiMessage) -> Option<MsiMessage> {
        let Some(unit) = self.of(source) else {
            return unturned(message);
        };
        let MsiMessage { address, data } = message;
        let message = Message { address, data };
        unit.with(|unit, memory, host| {
            if Message::is_interrupt(address) {
                let delivered = unit.remap(memory, host, source.id, message);
                target(message, delivered.map_err(|refused| refused.reason))
            } else {
                write(unit, memory, host, source.id, message);
                None
            }
        })
    }
}

/// A message to memory is a write to memory, and translated like any other.
fn write(
    unit: &mut Unit,
    memory: &GuestTables<'_, GuestRam>,
    host: &mut UnitHost,
    source: RequesterId,
    message: Message,
) {
    let request = Request::new(source, message.address, Access::Write);
    if let Ok(to) = unit.translate(memory, host, &request) {
        let data = message.data.to_le_bytes();
        // Where there is no memory, a write is lost.
        let _ = memory.0.write_slice(&data, GuestAddress(to.address));
    }
}
