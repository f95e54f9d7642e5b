// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Watched requesters: a shadow that follows the guest's tables, with no moment at which what is unmapped is mapped.

use hvkit_vtd_iommu::emulation::fake::Event;
use hvkit_vtd_iommu::emulation::{Coverage, Mapping, Options};

use super::machine::*;

fn page(first: u64, target: u64) -> Mapping {
    Mapping {
        first,
        last: first + 0xfff,
        target,
        reads: true,
        writes: true,
    }
}

fn watched() -> Machine {
    let mut machine = Machine::legacy(Options::new(39).with_caching_mode());
    machine.queue_on(0);
    let covered = machine
        .unit
        .watch(&machine.ram, &mut machine.host, DEVICE, 64);
    assert_eq!(covered, Coverage::Whole);
    let all: Vec<_> = (1..9)
        .map(|n| Event::Map(DEVICE, page(n << 12, DATA + (n << 12))))
        .collect();
    assert_eq!(machine.host.take(), all);
    machine
}

#[test]
fn a_page_follows_its_invalidation() {
    let mut machine = watched();
    machine.ram.set(LEAVES + 8, 0);
    machine.ram.set(LEAVES + 8 * 20, 0xb003);
    assert!(machine.host.take().is_empty());
    machine.submit(&[[0x7_0032, 0x1000]]);
    let gone = Event::Unmap(DEVICE, page(0x1000, DATA + 0x1000));
    assert_eq!(machine.host.take(), [gone]);
    // Mapping is told as well: that is what caching mode is for.
    machine.submit(&[[0x7_0032, 0x1_4000]]);
    assert_eq!(
        machine.host.take(),
        [Event::Map(DEVICE, page(0x1_4000, 0xb000))]
    );
    // A page that leads elsewhere: unmapped first.
    machine.ram.set(LEAVES + 16, 0xc003);
    machine.submit(&[[0x7_0022, 0]]);
    assert_eq!(
        machine.host.take(),
        [
            Event::Unmap(DEVICE, page(0x2000, DATA + 0x2000)),
            Event::Map(DEVICE, page(0x2000, 0xc000)),
        ]
    );
    // Nothing changed: nothing is told.
    machine.submit(&[[0x12, 0]]);
    assert!(machine.host.take().is_empty());
}

#[test]
fn the_shadow_is_right_before_the_wait_says_so() {
    // The status of the wait lies in the page that is taken back: had it been written first, the order would show in
    // a world that looks. So the world looks.
    struct Watching<'a> {
        ram: &'a hvkit_vtd_iommu::emulation::fake::Ram,
        unmapped: u32,
    }
    impl hvkit_vtd_iommu::emulation::Host for Watching<'_> {
        fn unmap(&mut self, _: hvkit_vtd_iommu::spec::RequesterId, _: Mapping) {
            assert_eq!(self.ram.get(STATUS), 0, "the guest was told too early");
            self.unmapped += 1;
        }
    }
    let mut machine = watched();
    machine.ram.set(LEAVES + 8, 0);
    let ram = &machine.ram;
    ram.set_all(QUEUE, &[0x7_0032, 0x1000, 0x1_0000_0025, STATUS]);
    let mut host = Watching { ram, unmapped: 0 };
    machine.unit.write64(ram, &mut host, 0x88, 0x20);
    assert_eq!((host.unmapped, ram.get(STATUS)), (1, 1));
}

#[test]
fn a_unit_that_others_wait_for_looks_at_one_table_at_a_time() {
    let mut machine = watched();
    for page in 1..4 {
        machine.ram.set(LEAVES + 8 * page, 0);
        let at = QUEUE + 16 * (page - 1);
        machine.ram.set_all(at, &[0x7_0032, page << 12]);
    }
    machine
        .ram
        .set_all(QUEUE + 48, &[0x1_0000_0025, STATUS, 0x7_0032, 0x4000]);
    let (unit, ram, host) = (&mut machine.unit, &machine.ram, &mut machine.host);
    unit.write_some(ram, host, 0x88, &0x50u64.to_le_bytes());
    let gone = |n: u64| Event::Unmap(DEVICE, page(n << 12, DATA + (n << 12)));
    for done in 1..4u64 {
        assert!(unit.is_behind());
        assert_eq!((unit.read64(0x80), ram.get(STATUS)), (done << 4, 0));
        assert_eq!(host.take(), [gone(done)]);
        unit.go_on(ram, host);
    }
    // The wait is quick, and so it comes with what follows it.
    assert_eq!((unit.read64(0x80), ram.get(STATUS)), (0x50, 1));
    assert!(!unit.is_behind());
    unit.go_on(ram, host);
    assert!(host.take().is_empty());
    assert_eq!(unit.read64(0x80), 0x50);
    // What was left is done with the next write, and an error keeps it from being done.
    ram.set_all(QUEUE + 0x50, &[0x7_0032, 0x4000, 0x7_0032, 0x5000, 0xf, 0]);
    unit.write_some(ram, host, 0x88, &0x80u64.to_le_bytes());
    assert_eq!(unit.read64(0x80), 0x60);
    unit.write64(ram, host, 0x88, 0x80);
    assert!(!unit.is_behind());
    assert_eq!((unit.read64(0x80), unit.read32(0x34) & 0x10), (0x70, 0x10));
}

#[test]
fn large_pages_replace_small_ones_and_back() {
    let mut machine = watched();
    machine.ram.set(MIDDLE, 0x20_0083);
    machine.submit(&[[0x7_0032, 0x3000]]);
    let events = machine.host.take();
    assert_eq!(events.len(), 9);
    let large = Mapping {
        first: 0,
        last: 0x1f_ffff,
        target: 0x20_0000,
        reads: true,
        writes: true,
    };
    assert_eq!(events[8], Event::Map(DEVICE, large));
    machine.ram.set(MIDDLE, LEAVES | 3);
    machine.submit(&[[0x7_0032, 0x3000]]);
    let events = machine.host.take();
    assert_eq!(events[0], Event::Unmap(DEVICE, large));
    assert_eq!(events.len(), 9);
}

#[test]
fn contexts_roots_and_translation_itself() {
    let mut machine = watched();
    machine.ram.set(ENTRY, 0);
    machine.submit(&[[0x11, 0]]);
    let events = machine.host.take();
    assert!(events.len() == 8 && events.iter().all(|e| matches!(e, Event::Unmap(..))));
    // Pass-through: everything.
    machine.ram.set(ENTRY, TOP | 9);
    machine.submit(&[[0x11, 0]]);
    assert_eq!(machine.host.take(), [Event::Map(DEVICE, Mapping::IDENTITY)]);
    machine.ram.set(ENTRY, TOP | 1);
    machine.submit(&[[0x11, 0]]);
    let events = machine.host.take();
    assert_eq!(events[0], Event::Unmap(DEVICE, Mapping::IDENTITY));
    assert_eq!(events.len(), 9);
    // Translation off.
    machine.write32(0x18, 1 << 26);
    let events = machine.host.take();
    assert_eq!(events.last(), Some(&Event::Map(DEVICE, Mapping::IDENTITY)));
    machine.unit.unwatch(&mut machine.host, DEVICE);
    assert_eq!(
        machine.host.take(),
        [Event::Unmap(DEVICE, Mapping::IDENTITY)]
    );
    assert_eq!(machine.unit.coverage(DEVICE), None);
}

#[test]
fn a_guest_cannot_make_it_remember_more_than_the_limit() {
    let mut machine = Machine::legacy(Options::new(39).with_caching_mode());
    // Every table is the same: 2^27 pages.
    for at in (LEAVES..LEAVES + 0x1000).step_by(8) {
        machine.ram.set(at, DATA | 3);
    }
    for table in [TOP, MIDDLE] {
        for at in (table..table + 0x1000).step_by(8) {
            machine
                .ram
                .set(at, if table == TOP { MIDDLE } else { LEAVES } | 3);
        }
    }
    let covered = machine
        .unit
        .watch(&machine.ram, &mut machine.host, DEVICE, 100);
    assert_eq!(covered, Coverage::Limited);
    assert_eq!(machine.host.take().len(), 100);
    // One page is looked at, all of it: of the others that says nothing.
    machine.write64(0x500, 0);
    machine.write64(0x508, 0xb000_0007_0000_0000);
    assert_eq!(machine.unit.coverage(DEVICE), Some(Coverage::Limited));
    assert!(machine.host.take().is_empty());
    // And a table of nothing but holes and errors ends too.
    for at in (LEAVES..LEAVES + 0x1000).step_by(8) {
        machine.ram.set(at, !0);
    }
    machine.write64(0x508, 0x9000_0000_0000_0000);
    assert_eq!(machine.unit.coverage(DEVICE), Some(Coverage::Limited));
    assert_eq!(machine.host.take().len(), 100);
    // With nothing left it is whole again.
    machine.ram.set(ENTRY, 0);
    machine.write64(0x28, 0xa000_0000_0000_0000);
    machine.write64(0x508, 0x9000_0000_0000_0000);
    assert_eq!(machine.unit.coverage(DEVICE), Some(Coverage::Whole));
}
