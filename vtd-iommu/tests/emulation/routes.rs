// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts that go past the unit: what a VMM is told so that they lead where the table says.

use hvkit_vtd_iommu::emulation::fake::Ram;
use hvkit_vtd_iommu::emulation::{Delivered, Host, Interrupt, Options, Unit};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::fault::FaultReason;
use hvkit_vtd_iommu::spec::interrupt::{Delivery, Message};

use super::machine::*;

const TABLE: u64 = 0x8000;
/// Entry 5.
const REQUEST: Message = Message {
    address: 0xfee0_00b0,
    data: 0,
};

/// A VMM with one route, which looks it up whenever it is told to.
#[derive(Default)]
struct Routes {
    asked: Vec<Result<Message, FaultReason>>,
}

impl Host for Routes {
    fn interrupts_changed(
        &mut self,
        now: &dyn Fn(RequesterId, Message) -> Result<Delivered, FaultReason>,
    ) {
        let led = now(DEVICE, REQUEST).map(|delivered| match delivered {
            Delivered::Unchanged(message) => message,
            Delivered::Remapped(interrupt) => interrupt.into(),
            Delivered::Posted { .. } => panic!("nothing is posted here"),
        });
        self.asked.push(led);
    }
}

struct Bench {
    unit: Unit,
    ram: Ram,
    routes: Routes,
}

impl Bench {
    fn write64(&mut self, offset: u32, value: u64) {
        let Self { unit, ram, routes } = self;
        unit.write64(&*ram, routes, offset, value);
    }

    fn write32(&mut self, offset: u32, value: u32) {
        let Self { unit, ram, routes } = self;
        unit.write32(&*ram, routes, offset, value);
    }

    fn told(&mut self) -> Vec<Result<Message, FaultReason>> {
        std::mem::take(&mut self.routes.asked)
    }
}

#[test]
fn a_route_follows_the_table_and_its_invalidations() {
    let mut bench = Bench {
        unit: Unit::new(Options::new(39)).unwrap(),
        ram: Ram::new(1 << 20),
        routes: Routes::default(),
    };
    bench.ram.set_all(TABLE + 5 * 16, &[0x0300_0041_0001, 0]);
    bench.write64(0xb8, TABLE | 7);
    assert!(bench.told().is_empty());
    // SIRTP: remapping is off, and the message goes as it is.
    bench.write32(0x18, 1 << 24);
    assert_eq!(bench.told(), [Ok(REQUEST)]);
    bench.write32(0x18, 1 << 25);
    let first = Message {
        address: 0xfee0_3000,
        data: 0x41,
    };
    assert_eq!(bench.told(), [Ok(first)]);

    // An entry that is changed leads elsewhere from its invalidation on; before the wait says so.
    bench.write64(0x90, QUEUE);
    bench.write32(0x18, 1 << 25 | 1 << 26);
    assert!(bench.told().is_empty());
    bench.ram.set(TABLE + 5 * 16, 0x0200_0052_0001);
    bench.ram.set_all(QUEUE, &[0x5_0000_0014, 0]);
    bench.write64(0x88, 0x10);
    let second = Message {
        address: 0xfee0_2000,
        data: 0x52,
    };
    assert_eq!(bench.told(), [Ok(second)]);
    // Taken away: it leads nowhere. Asking recorded nothing.
    bench.ram.set(TABLE + 5 * 16, 0);
    bench.ram.set_all(QUEUE + 16, &[0x4, 0]);
    bench.write64(0x88, 0x20);
    assert_eq!(bench.told(), [Err(FaultReason::INTERRUPT_NOT_PRESENT)]);
    assert_eq!(bench.unit.read32(0x34), 0);
    // Off again.
    bench.write32(0x18, 1 << 26);
    assert_eq!(bench.told(), [Ok(REQUEST)]);
}

#[test]
fn the_compatibility_format_is_let_through_and_blocked() {
    let mut bench = Bench {
        unit: Unit::new(Options::new(39)).unwrap(),
        ram: Ram::new(1 << 20),
        routes: Routes::default(),
    };
    bench.write32(0x18, 1 << 25);
    bench.told();
    bench.write32(0x18, 1 << 25 | 1 << 23);
    assert_eq!(bench.told().len(), 1);
    bench.write32(0x18, 1 << 25 | 1 << 23);
    assert!(bench.told().is_empty(), "nothing was switched");
}

#[test]
fn an_interrupt_is_written_as_a_local_apic_reads_it() {
    let plain = Interrupt {
        vector: 0x31,
        delivery: Delivery::FIXED,
        destination: 3,
        logical: false,
        redirection_hint: false,
        level_triggered: false,
    };
    let raw = |interrupt: Interrupt| {
        let Message { address, data } = interrupt.into();
        (address, data)
    };
    assert_eq!(raw(plain), (0xfee0_3000, 0x31));
    // SDM 3A, "Message Address Register Format": RH bit 3, DM bit 2; "Message Data Register Format": delivery in
    // 10:8, level 14, trigger mode 15.
    let other = Interrupt {
        delivery: Delivery::LOWEST_PRIORITY,
        logical: true,
        redirection_hint: true,
        level_triggered: true,
        ..plain
    };
    assert_eq!(raw(other), (0xfee0_300c, 0xc131));
    // Beyond 8 bits of destination.
    let far = Interrupt {
        destination: 0x1234_5678,
        ..plain
    };
    assert_eq!(raw(far), (0x1234_5600_fee7_8000, 0x31));
}
