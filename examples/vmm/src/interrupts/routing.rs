// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The routing table, as data.
//!
//! ```text
//!   GSI  0        PIC 0             I/O APIC pin 2   the PC's timer
//!   GSI  1        PIC 1             I/O APIC pin 1
//!   GSI  2        (cascade: nobody)
//!   GSI  3 .. 15  PIC 3 .. 15       I/O APIC pin 3 .. 15
//!   GSI 16 .. 23                    I/O APIC pin 16 .. 23
//!   GSI 24 ..                       messages
//! ```

use crate::machine::address_map::IO_APIC_PINS;
use hvkit_virtio_devices::pci::MsiMessage;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use std::collections::BTreeMap;
use std::fmt;

/// A global system interrupt: the number by which KVM knows a source of interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(pub u32);

impl fmt::Display for Gsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GSI {}", self.0)
    }
}

/// Where a route ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An input of the pair of 8259s, 0 to 15.
    Pic(u8),
    /// An input of the I/O APIC.
    IoApic(u8),
    /// A message.
    Message(MsiMessage),
}

/// From a source to one of its targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The source.
    pub gsi: Gsi,
    /// The target.
    pub target: Target,
}

/// Inputs of both PICs.
const PIC_PINS: u8 = 16;
const TIMER: u8 = 0;
const CASCADE: u8 = 2;
/// The first source that is nobody's pin.
pub const FIRST_MESSAGE: Gsi = Gsi(IO_APIC_PINS);

/// Whose pins there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pins {
    /// Those of KVM's controllers.
    #[default]
    Kernel,
    /// None that KVM knows: the I/O APIC is ours.
    Ours,
}

/// The pins' routes, always there, and those of messages, which come and go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutingTable {
    pins: Pins,
    messages: BTreeMap<Gsi, MsiMessage>,
}

impl RoutingTable {
    /// A table without messages.
    #[must_use]
    pub fn new(pins: Pins) -> Self {
        RoutingTable {
            pins,
            messages: BTreeMap::new(),
        }
    }

    /// Whether `gsi` is routed to a message.
    #[must_use]
    pub fn contains(&self, gsi: Gsi) -> bool {
        self.messages.contains_key(&gsi)
    }

    /// Routes `gsi` to `message`, or nowhere. Whether that is a change.
    pub fn change(&mut self, gsi: Gsi, message: Option<MsiMessage>) -> bool {
        match message {
            Some(message) => self.set(gsi, message) != Some(message),
            None => self.clear(gsi).is_some(),
        }
    }

    /// Routes `gsi` to `message`. Says what it was routed to before.
    pub fn set(&mut self, gsi: Gsi, message: MsiMessage) -> Option<MsiMessage> {
        self.messages.insert(gsi, message)
    }

    /// Ends the route of `gsi`.
    pub fn clear(&mut self, gsi: Gsi) -> Option<MsiMessage> {
        self.messages.remove(&gsi)
    }

    /// All routes, in the order of their sources.
    pub fn routes(&self) -> impl Iterator<Item = Route> + '_ {
        let messages = self.messages.iter().map(|(&gsi, &message)| Route {
            gsi,
            target: Target::Message(message),
        });
        let pins = match self.pins {
            Pins::Kernel => Some(pins()),
            Pins::Ours => None,
        };
        pins.into_iter().flatten().chain(messages)
    }
}

/// The routes of a PC's pins.
pub fn pins() -> impl Iterator<Item = Route> {
    let pin = |pin: u8| {
        let pic = (pin < PIC_PINS && pin != CASCADE).then_some(Target::Pic(pin));
        let io_apic = match pin {
            TIMER => Some(CASCADE),
            CASCADE => None,
            pin => Some(pin),
        };
        let gsi = Gsi(pin.into());
        pic.into_iter()
            .chain(io_apic.map(Target::IoApic))
            .map(move |target| Route { gsi, target })
    };
    (0..=u8::MAX)
        .take_while(|&p| u32::from(p) < IO_APIC_PINS)
        .flat_map(pin)
}

impl From<Route> for kvm_irq_routing_entry {
    /// As `KVM_SET_GSI_ROUTING` takes it.
    fn from(route: Route) -> Self {
        let irqchip = |irqchip, pin| {
            let mut u = kvm_irq_routing_entry__bindgen_ty_1::default();
            u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
            (KVM_IRQ_ROUTING_IRQCHIP, u)
        };
        let (type_, u) = match route.target {
            Target::Pic(pin @ 0..8) => irqchip(KVM_IRQCHIP_PIC_MASTER, pin.into()),
            Target::Pic(pin) => irqchip(KVM_IRQCHIP_PIC_SLAVE, u32::from(pin).saturating_sub(8)),
            Target::IoApic(pin) => irqchip(KVM_IRQCHIP_IOAPIC, pin.into()),
            Target::Message(MsiMessage { address, data }) => {
                let mut u = kvm_irq_routing_entry__bindgen_ty_1::default();
                u.msi = kvm_irq_routing_msi {
                    address_lo: (address & 0xffff_ffff) as u32,
                    address_hi: (address >> 32) as u32,
                    data,
                    ..Default::default()
                };
                (KVM_IRQ_ROUTING_MSI, u)
            }
        };
        kvm_irq_routing_entry {
            gsi: route.gsi.0,
            type_,
            u,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_wired_as_on_a_pc() {
        let of = |gsi: u32| {
            pins()
                .filter(|r| r.gsi.0 == gsi)
                .map(|r| r.target)
                .collect::<Vec<_>>()
        };
        assert_eq!(of(0), [Target::Pic(0), Target::IoApic(2)]);
        assert_eq!(of(1), [Target::Pic(1), Target::IoApic(1)]);
        assert!(of(2).is_empty());
        assert_eq!(of(4), [Target::Pic(4), Target::IoApic(4)]);
        assert_eq!(of(15), [Target::Pic(15), Target::IoApic(15)]);
        assert_eq!(of(16), [Target::IoApic(16)]);
        assert_eq!(of(23), [Target::IoApic(23)]);
        assert_eq!(pins().count(), 38);
    }

    #[test]
    fn messages_follow_the_pins_and_go_again() {
        let mut table = RoutingTable::default();
        let message = |data| MsiMessage {
            address: 0xfee0_1000,
            data,
        };
        assert_eq!(table.set(Gsi(25), message(1)), None);
        assert_eq!(table.set(Gsi(24), message(2)), None);
        assert_eq!(table.set(Gsi(25), message(3)), Some(message(1)));
        let routes: Vec<_> = table.routes().skip(38).collect();
        let route = |gsi, data| Route {
            gsi: Gsi(gsi),
            target: Target::Message(message(data)),
        };
        assert_eq!(routes, [route(24, 2), route(25, 3)]);
        assert_eq!(table.clear(Gsi(24)), Some(message(2)));
        assert_eq!(table.clear(Gsi(24)), None);
        assert_eq!(table.routes().count(), 39);
    }
}
