// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What QEMU's unit lacks: 57 bits, PASIDs, nesting, posted interrupts, 32-bit destinations, device-TLBs.

use hvkit_page_table::{Cause, Frames, Mapper};
use hvkit_vtd_iommu::driver::{
    Attachment, DestinationMode, DriverError, FirstTable, InterruptTable, Options,
};
use hvkit_vtd_iommu::emulation::fake::Event;
use hvkit_vtd_iommu::emulation::{self, Delivered, Interrupt};
use hvkit_vtd_iommu::spec::fault::FaultReason;
use hvkit_vtd_iommu::spec::interrupt::{
    Irte, Message, PostedDescriptor, SourceCheck, SourceQualifier,
};
use hvkit_vtd_iommu::spec::invalidation::{AtsRange, DeviceTlb};
use hvkit_vtd_iommu::spec::{Pasid, RequesterId};
use hvkit_vtd_iommu::tables::{FirstStage, FirstStageAttributes};

use crate::machine::{DATA, DEVICE, Inside, MEMORY, Machine, OurUnit, map, unmap};

fn scalable() -> emulation::Options {
    emulation::Options::new(46).with_scalable_mode()
}

fn pasid(value: u32) -> Pasid {
    Pasid::new(value).unwrap()
}

#[test]
fn addresses_of_57_bits() {
    let machine = Machine::new(scalable());
    let mut unit = machine.drive(Options::scalable(46));
    assert_eq!(unit.second_stage_levels(), Ok(5));
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    let high = (1 << 57) - 0x2000;
    map(&mut unit, &mut domain, high, DATA, 0x2000);
    machine.write(DEVICE, high + 0x1008, 0x57).unwrap();
    assert_eq!(machine.ram.get(DATA + 0x1008), 0x57);
    unmap(&mut unit, &mut domain, high, 0x1000);
    let refused = machine.write(DEVICE, high, 1).unwrap_err();
    assert_eq!(refused.reason, FaultReason::SM_SECOND_STAGE_NO_PERMISSION);
    machine.write(DEVICE, high + 0x1000, 1).unwrap();
    let beyond = machine.write(DEVICE, 1 << 57, 1).unwrap_err();
    assert_eq!(beyond.reason, FaultReason::SM_ADDRESS_BEYOND_WIDTH);
}

/// The one fault that was recorded since this was last asked.
fn assert_recorded(unit: &mut OurUnit<'_>, reason: FaultReason, process: u32) {
    let faults = unit.take_faults();
    let [record] = faults.records[..] else {
        panic!("{faults:x?}");
    };
    assert_eq!(
        (record.reason(), record.pasid()),
        (reason, Some(pasid(process)))
    );
}

#[test]
fn processes_of_a_device_are_apart() {
    let machine = Machine::new(scalable());
    let mut unit = machine.drive(Options::scalable(46));
    let mut plain = unit.new_domain().unwrap();
    let mut one = unit.new_first_stage_domain(4).unwrap();
    let mut two = unit.new_first_stage_domain(5).unwrap();
    unit.attach(&mut plain, Attachment::new(DEVICE)).unwrap();
    unit.attach(&mut one, Attachment::new(DEVICE).with_pasid(pasid(1)))
        .unwrap();
    unit.attach(&mut two, Attachment::new(DEVICE).with_pasid(pasid(0x7fff)))
        .unwrap();
    let rw = FirstStageAttributes::READ_WRITE;
    map(&mut unit, &mut plain, 0x1000, DATA, 0x1000);
    let fresh = one.map(0x1000..0x3000, DATA + 0x1000, rw).unwrap();
    unit.publish(&one, fresh).unwrap();
    let high = 0x00ff_0000_0000_0000;
    let fresh = two.map(high..high + 0x1000, DATA + 0x3000, rw).unwrap();
    unit.publish(&two, fresh).unwrap();
    machine.write(DEVICE, 0x1000, 10).unwrap();
    machine.write_as(pasid(1), 0x1000, 11).unwrap();
    machine.write_as(pasid(0x7fff), high, 12).unwrap();
    let words = [DATA, DATA + 0x1000, DATA + 0x3000].map(|at| machine.ram.get(at));
    assert_eq!(words, [10, 11, 12]);
    let absent = machine.write_as(pasid(2), 0x1000, 1).unwrap_err();
    assert_eq!(absent.reason, FaultReason::SM_PASID_NOT_PRESENT);
    assert_recorded(&mut unit, absent.reason, 2);

    // One process's page goes: the others' stay.
    machine.write_as(pasid(1), 0x2000, 1).unwrap();
    let stale = one.unmap(0x1000..0x2000).unwrap();
    unit.settle(&one, stale).unwrap();
    let refused = machine.write_as(pasid(1), 0x1000, 1).unwrap_err();
    assert_eq!(refused.reason, FaultReason::SM_FIRST_STAGE_NOT_PRESENT);
    assert_recorded(&mut unit, refused.reason, 1);
    machine.write_as(pasid(1), 0x2000, 1).unwrap();
    machine.write(DEVICE, 0x1000, 10).unwrap();

    unit.detach(&mut one, DEVICE, Some(pasid(1))).unwrap();
    let gone = machine.write_as(pasid(1), 0x2000, 1).unwrap_err();
    assert_eq!(gone.reason, FaultReason::SM_PASID_NOT_PRESENT);
    assert_recorded(&mut unit, gone.reason, 1);
    unit.destroy(one).map_err(|(_, error)| error).unwrap();
    machine.write_as(pasid(0x7fff), high, 12).unwrap();
}

/// Memory as a guest has it: 1 GiB up, so that each of its addresses needs the second stage.
#[derive(Clone, Copy)]
struct GuestMemory<'a>(&'a Machine);

const GUEST: u64 = 0x4000_0000;

mod guest_memory {
    use super::{GUEST, GuestMemory};
    use hvkit_page_table::{Frames, OwnEntries, ReadEntry, UpdateEntry, Width};
    use std::convert::Infallible;

    impl ReadEntry for GuestMemory<'_> {
        type Error = Infallible;

        fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
            ReadEntry::read(self.0, at - GUEST, width)
        }
    }

    impl UpdateEntry for GuestMemory<'_> {
        fn compare_exchange(
            &self,
            at: u64,
            width: Width,
            current: u64,
            new: u64,
        ) -> Result<u64, Infallible> {
            UpdateEntry::compare_exchange(self.0, at - GUEST, width, current, new)
        }
    }

    impl OwnEntries for GuestMemory<'_> {
        fn write(&self, at: u64, width: Width, entry: u64) {
            OwnEntries::write(self.0, at - GUEST, width, entry);
        }
    }

    impl Frames for GuestMemory<'_> {
        fn allocate(&self) -> Option<u64> {
            self.0.allocate().map(|frame| frame + GUEST)
        }

        fn free(&self, frame: u64) {
            self.0.free(frame - GUEST);
        }
    }
}

#[test]
fn a_guests_table_is_walked_through_the_hosts() {
    let machine = Machine::new(scalable());
    let mut unit = machine.drive(Options::scalable(46));
    let mut second = unit.new_domain().unwrap();
    map(&mut unit, &mut second, GUEST, 0, MEMORY);
    // The guest's table is in its own memory, at its own addresses.
    let memory = GuestMemory(&machine);
    let mut guest = Mapper::new(FirstStage::new(4, 46).unwrap(), memory, memory).unwrap();
    let rw = FirstStageAttributes::READ_WRITE;
    guest
        .map(0x7fff_0000_0000..0x7fff_0000_2000, GUEST + DATA, rw)
        .unwrap();
    let first = FirstTable {
        address: guest.root(),
        levels: 4,
    };
    let device = Attachment::new(DEVICE).with_pasid(pasid(9));
    unit.attach_nested(&mut second, device, first).unwrap();
    machine.write_as(pasid(9), 0x7fff_0000_1010, 77).unwrap();
    assert_eq!(machine.ram.get(DATA + 0x1010), 77);

    // The guest takes a page back, and its hypervisor passes the invalidation on.
    let stale = guest.unmap(0x7fff_0000_1000..0x7fff_0000_2000).unwrap();
    machine.write_as(pasid(9), 0x7fff_0000_1010, 78).unwrap();
    let forget = &mut |_: &_| unit.forget_pasid(&second, Some(pasid(9)), None);
    guest.settle(stale, forget).unwrap();
    let refused = machine
        .write_as(pasid(9), 0x7fff_0000_1010, 79)
        .unwrap_err();
    assert_eq!(refused.reason, FaultReason::SM_FIRST_STAGE_NOT_PRESENT);

    // The hypervisor takes memory back: the guest's mapping leads nowhere.
    machine.write_as(pasid(9), 0x7fff_0000_0000, 80).unwrap();
    unmap(&mut unit, &mut second, GUEST + DATA, 0x1000);
    let refused = machine
        .write_as(pasid(9), 0x7fff_0000_0000, 81)
        .unwrap_err();
    assert_eq!(machine.ram.get(DATA), 80, "{refused:?}");
}

fn interrupt(
    machine: &Machine,
    source: RequesterId,
    message: Message,
) -> Result<Delivered, FaultReason> {
    let mut inside = machine.inside.lock().unwrap();
    let Inside { unit, world } = &mut *inside;
    let answer = unit.remap(&machine.ram, world, source, message);
    answer.map_err(|refused| refused.reason)
}

fn interrupts<'a>(unit: &mut OurUnit<'a>, mode: DestinationMode) -> InterruptTable<&'a Machine> {
    let table = unit.enable_interrupts(mode, None).unwrap();
    table.with_pair_store(|machine, at, [low, high]| {
        // One thread here: no moment in between is seen.
        machine.ram.set(at + 8, high);
        machine.ram.set(at, low);
    })
}

#[test]
fn interrupts_follow_their_entry() {
    let machine = Machine::new(emulation::Options::new(46));
    let mut unit = machine.drive(Options::legacy(46));
    let mut table = interrupts(&mut unit, DestinationMode::X2Apic);
    let block = table.allocate(1).unwrap();
    let check = SourceCheck::Requester(DEVICE, SourceQualifier::All);
    let to = |vector, id| Irte::remapped(vector, id).with_source_check(check);
    unit.set_interrupt(&table, block, block.first(), to(0x31, 0x0001_0005))
        .unwrap();
    let arrives = || match interrupt(&machine, DEVICE, block.message()) {
        Ok(Delivered::Remapped(Interrupt {
            vector,
            destination,
            ..
        })) => (vector, destination),
        other => panic!("{other:?}"),
    };
    // All 32 bits of an x2APIC id.
    assert_eq!(arrives(), (0x31, 0x0001_0005));
    unit.set_interrupt(&table, block, block.first(), to(0x32, 0x0002_0006))
        .unwrap();
    assert_eq!(arrives(), (0x32, 0x0002_0006));
    let other = interrupt(&machine, RequesterId(1), block.message());
    assert_eq!(other, Err(FaultReason::INTERRUPT_SOURCE));
    let compatible = interrupt(&machine, DEVICE, Message::compatible(0, 0x41));
    assert_eq!(compatible, Err(FaultReason::COMPATIBILITY_BLOCKED));
    let recorded = unit.take_faults().records.len();
    assert_eq!(recorded, 2);
    unit.mask_interrupt(&table, block, block.first()).unwrap();
    let masked = interrupt(&machine, DEVICE, block.message());
    assert_eq!(masked, Err(FaultReason::INTERRUPT_NOT_PRESENT));
    assert!(
        unit.take_faults().records.is_empty(),
        "masked ones are not recorded"
    );
}

#[test]
fn interrupts_are_posted() {
    let machine = Machine::new(emulation::Options::new(46).with_posted_interrupts());
    let mut unit = machine.drive(Options::legacy(46));
    let mut table = interrupts(&mut unit, DestinationMode::X2Apic);
    let block = table.allocate(1).unwrap();
    let descriptor = machine.allocate().unwrap();
    for word in 0..8 {
        machine.ram.set(descriptor + 8 * word, 0);
    }
    let fresh = PostedDescriptor::default()
        .with_notification_vector(0xf2)
        .with_notification_destination(3);
    machine.ram.set(descriptor + 32, fresh.0[4]);
    // From remapped to posted, which changes both halves.
    let index = block.first();
    unit.set_interrupt(&table, block, index, Irte::remapped(0x31, 1))
        .unwrap();
    interrupt(&machine, DEVICE, block.message()).unwrap();
    let check = SourceCheck::Requester(DEVICE, SourceQualifier::All);
    let posting = Irte::posting(0xa1, descriptor).with_source_check(check);
    unit.set_interrupt(&table, block, index, posting).unwrap();
    let first = interrupt(&machine, DEVICE, block.message()).unwrap();
    let Delivered::Posted {
        notification: Some(told),
    } = first
    else {
        panic!("{first:?}");
    };
    assert_eq!((told.vector, told.destination), (0xf2, 3));
    assert_eq!(
        machine.ram.get(descriptor + 16),
        1 << 0x21,
        "vector 0xa1 is posted"
    );
    // The notification is on its way: no second one.
    let second = interrupt(&machine, DEVICE, block.message()).unwrap();
    assert_eq!(second, Delivered::Posted { notification: None });
}

#[test]
fn device_tlbs_forget_or_are_named() {
    let machine = Machine::new(emulation::Options::new(46).with_device_tlbs());
    let mut unit = machine.drive(Options::legacy(46));
    let tlb = DeviceTlb {
        source: DEVICE,
        physical_source: RequesterId(0),
        max_pending: 0,
    };
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(DEVICE).with_tlb(tlb))
        .unwrap();
    map(&mut unit, &mut domain, 0x20_0000, DATA, 0x20_0000);
    unmap(&mut unit, &mut domain, 0x20_0000, 0x1000);
    let told = machine.inside.lock().unwrap().world.take();
    // All of the large page that was cut.
    let range = AtsRange {
        address: 0x20_0000,
        order: 9,
    };
    assert_eq!(told, [Event::Device(tlb, None, range)]);

    machine.inside.lock().unwrap().world.silent = true;
    let stale = domain.unmap(0x21_0000..0x22_0000).unwrap();
    let owed = unit.settle(&domain, stale).unwrap_err();
    let silent = DriverError::DeviceTlbTimedOut { source_id: DEVICE };
    assert_eq!(owed.cause, Cause::Failed(silent));
    machine.inside.lock().unwrap().world.silent = false;
    unit.settle(&domain, owed.stale).unwrap();
    // And the queue works on.
    for _ in 0..300 {
        unit.forget_everything().unwrap();
    }
}
