// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts of devices and of the I/O APIC: they go where the guest's table says, and what it does not admit is blocked
//! and told.

use hvkit_vmm::config::Vtd;
use hvkit_vmm::machine::address_map::{IO_APIC_BASE, VTD_BASE};
use hvkit_vtd_iommu::driver::{Attachment, DestinationMode, Event};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::interrupt::{Irte, Message, SourceCheck, SourceQualifier};
use tempfile::NamedTempFile;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::disk::*;
use crate::machine::*;

/// Where the disk's data goes.
const BUFFER: u64 = DATA + 0x10_0000;

/// A machine with a disk behind the unit, at device 1.
fn machine(image: &NamedTempFile) -> Option<Machine> {
    let mut machine = Machine::new(Vtd::default())?;
    assert_eq!(machine.translated_disk(image), 1);
    machine.chipset.describe(1).unwrap();
    Some(machine)
}

/// The disk of [`machine`], with its queue and its buffer mapped to themselves.
fn disk<'a>(
    machine: &'a Machine,
    unit: &mut OurUnit<'a>,
    domain: &mut OurDomain<'a>,
) -> Disk<OnBus> {
    unit.attach(domain, Attachment::new(requester(1))).unwrap();
    map(unit, domain, RING, RING, (RING_PAGES + 1) * PAGE);
    map(unit, domain, BUFFER, BUFFER, PAGE);
    let mut disk = Disk::start(machine, machine.driver(1));
    disk.driver.enable_msix();
    disk
}

impl Disk<OnBus> {
    /// What the queue's vector sends.
    pub(crate) fn sends(&mut self, address: u64, data: u32) {
        let table = self.driver.table;
        self.driver.put(table, 16 + 12, 4, 1);
        self.driver.put(table, 16, 4, address & 0xffff_ffff);
        self.driver.put(table, 16 + 4, 4, address >> 32);
        self.driver.put(table, 16 + 8, 4, data.into());
        self.driver.put(table, 16 + 12, 4, 0);
    }

    fn works(&mut self, machine: &Machine) {
        assert_eq!(self.request(machine, READ, 3, BUFFER), 0);
    }
}

/// One fault: its requester, reason and interrupt index.
fn fault(unit: &mut OurUnit<'_>) -> (RequesterId, u8, Option<u16>) {
    let mut records = Vec::new();
    until("no fault was recorded", || {
        records = unit.take_faults().records;
        !records.is_empty()
    });
    let [record] = records[..] else {
        panic!("{records:?}");
    };
    (record.source(), record.reason().0, record.interrupt_index())
}

fn only(source: RequesterId, entry: Irte) -> Irte {
    entry.with_source_check(SourceCheck::Requester(source, SourceQualifier::All))
}

#[test]
fn messages_follow_the_table_from_the_invalidation_on() {
    let image = image();
    let Some(machine) = machine(&image) else {
        return;
    };
    let mut unit = machine.drive(legacy());
    let mut domain = unit.new_domain().unwrap();
    let mut disk = disk(&machine, &mut unit, &mut domain);
    // Remapping is off: the message is the interrupt.
    disk.sends(0xfee0_0000, 0x31);
    disk.works(&machine);
    until("0x31", || machine.requested() == [0x31]);

    let mut table = unit
        .enable_interrupts(DestinationMode::X2Apic, None)
        .unwrap();
    let block = table.allocate(1).unwrap();
    let Message { address, data } = block.message();
    let entry = |vector| only(requester(1), Irte::remapped(vector, 0));
    unit.set_interrupt(&table, block, block.first(), entry(0x41))
        .unwrap();
    disk.sends(address, data);
    disk.works(&machine);
    until("0x41", || machine.requested() == [0x31, 0x41]);
    // Changed: KVM's route goes by the new entry, and not once by the old.
    unit.set_interrupt(&table, block, block.first(), entry(0x52))
        .unwrap();
    disk.works(&machine);
    until("0x52", || machine.requested() == [0x31, 0x41, 0x52]);
    // Taken away: blocked and told, each time.
    for _ in 0..2 {
        unit.set_interrupt(&table, block, block.first(), Irte([0, 0]))
            .unwrap();
        disk.works(&machine);
        let index = Some(block.first());
        assert_eq!(fault(&mut unit), (requester(1), 0x22, index));
    }
    // There again.
    unit.set_interrupt(&table, block, block.first(), entry(0x63))
        .unwrap();
    disk.works(&machine);
    until("0x63", || machine.requested() == [0x31, 0x41, 0x52, 0x63]);
    assert!(unit.take_faults().records.is_empty());
    // Off: what the device sends is no interrupt of the other format; vector 0 is none that an APIC takes.
    unit.disable_interrupts(table).unwrap();
    disk.sends(0xfee0_0000, 0x74);
    disk.works(&machine);
    until("0x74", || machine.requested().ends_with(&[0x63, 0x74]));
}

#[test]
fn rogue_messages_are_blocked_and_told() {
    let image = image();
    let Some(machine) = machine(&image) else {
        return;
    };
    let mut unit = machine.drive(legacy());
    let mut domain = unit.new_domain().unwrap();
    let mut disk = disk(&machine, &mut unit, &mut domain);
    let mut table = unit
        .enable_interrupts(DestinationMode::XApic, None)
        .unwrap();
    // The entry is another's.
    let block = table.allocate(1).unwrap();
    let entry = only(requester(9), Irte::remapped(0x45, 0));
    unit.set_interrupt(&table, block, block.first(), entry)
        .unwrap();
    unit.announce(Event::Fault, Message::compatible(0, 0x77));
    let everything = RING..STATUS + PAGE;
    let remappable = block.message().address;
    let handle = |index: u64| 0xfee0_0010 | index << 5;
    // "Fault Reason Encodings": 25h compatibility format, 26h source, 22h absent, 21h index too large, 20h reserved
    // data bits; a write to memory is one like any other (5).
    for (address, data, reason) in [
        (0xfee0_0000, 0x46, 0x25),
        (0xfee0_000c, 0x146, 0x25),
        (remappable, 0, 0x26),
        (handle(200), 0, 0x22),
        (handle(300), 0, 0x21),
        (remappable | 8, 0x1_0000, 0x20),
        (DATA + 0x30_0000, 0xdead_beef, 5),
        (0x1_fee0_0000, 0x46, 5),
    ] {
        disk.sends(address, data);
        disk.works(&machine);
        let what = format!("{address:#x} {data:#x}");
        let before = machine.everything(everything.clone());
        let (source, found, _) = fault(&mut unit);
        assert_eq!((source, found), (requester(1), reason), "{what}");
        assert!(machine.everything(everything.clone()) == before, "{what}");
        until("the fault's own interrupt", || {
            machine.requested() == [0x77]
        });
    }
    // To memory that is the device's: four bytes, as a bus would write them.
    disk.sends(BUFFER + 0x800, 0x1234_5678);
    disk.works(&machine);
    until("not written", || {
        machine.bytes(BUFFER + 0x800, 4) == 0x1234_5678u32.to_le_bytes()
    });
    // The compatibility format, let through.
    unit.set_compatibility_interrupts(hvkit_vtd_iommu::driver::Switch::On)
        .unwrap();
    disk.sends(0xfee0_0000, 0x46);
    disk.works(&machine);
    until("0x46", || machine.requested() == [0x46, 0x77]);
    assert!(unit.take_faults().records.is_empty());
}

#[test]
fn the_io_apic_asks_for_its_entries() {
    let image = image();
    let Some(mut machine) = machine(&image) else {
        return;
    };
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    machine
        .chipset
        .add_serial(line.try_clone().unwrap())
        .unwrap();
    let pin = |word: u64| {
        for (register, half) in [(0x19u32, word >> 32), (0x18, word & 0xffff_ffff)] {
            let write = |offset, value: u32| {
                let at = IO_APIC_BASE + offset;
                assert!(machine.buses.memory.write(at, &value.to_le_bytes()));
            };
            write(0, register);
            write(0x10, half as u32);
        }
    };
    let mut unit = machine.drive(legacy());
    pin(0x31);
    line.write(1).unwrap();
    until("0x31", || machine.requested() == [0x31]);
    let mut table = unit
        .enable_interrupts(DestinationMode::X2Apic, None)
        .unwrap();
    // As it was: the other format, from bus 255.
    let io_apic = RequesterId(0xff00);
    line.write(1).unwrap();
    let (source, reason, _) = fault(&mut unit);
    assert_eq!((source, reason), (io_apic, 0x25));
    let block = table.allocate(1).unwrap();
    let entry = only(io_apic, Irte::remapped(0x42, 0));
    unit.set_interrupt(&table, block, block.first(), entry)
        .unwrap();
    // Index in bits 63:49, format in bit 48.
    pin(u64::from(block.first()) << 49 | 1 << 48 | 0x04);
    line.write(1).unwrap();
    until("0x42", || machine.requested() == [0x31, 0x42]);
    assert!(unit.take_faults().records.is_empty());
}

#[test]
fn a_unit_without_interrupt_remapping_lets_them_be() {
    let image = image();
    let vtd = Vtd {
        interrupts: false,
        ..Vtd::default()
    };
    let Some(mut machine) = Machine::new(vtd) else {
        return;
    };
    machine.translated_disk(&image);
    machine.chipset.describe(1).unwrap();
    // ECAP: no IR, no EIM. GCMD: neither SIRTP nor IRE does anything.
    let read = |offset: u64| {
        let mut data = [0; 8];
        assert!(machine.buses.memory.read(VTD_BASE + offset, &mut data));
        u64::from_le_bytes(data)
    };
    assert_eq!(read(0x10) & 0x18, 0);
    let mut unit = machine.drive(legacy());
    assert!(
        machine
            .buses
            .memory
            .write(VTD_BASE + 0x18, &0x8300_0000u32.to_le_bytes())
    );
    assert_eq!(read(0x18) >> 32 & 0x0300_0000, 0);
    let mut domain = unit.new_domain().unwrap();
    let mut disk = disk(&machine, &mut unit, &mut domain);
    disk.sends(0xfee0_0000, 0x31);
    disk.works(&machine);
    until("0x31", || machine.requested() == [0x31]);
}
