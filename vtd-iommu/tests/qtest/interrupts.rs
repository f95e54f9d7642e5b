// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt remapping, seen from where the interrupts go.
//!
//! The halted processor takes an NMI: its handler, put into memory here, counts. So an entry that delivers NMIs
//! shows in memory that `edu`'s message was remapped and reached the processor that the entry names. QEMU 7.2
//! remaps but records no interrupt faults, so most of this needs QEMU 11.

use std::time::{Duration, Instant};

use hvkit_vtd_iommu::driver::{
    Ability, Block, DestinationMode, DriverError, InterruptTable, Switch, Waiting,
};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::fault::FaultReason;
use hvkit_vtd_iommu::spec::interrupt::{Delivery, Irte, Message, SourceCheck, SourceQualifier};

use crate::machine::{EDU, Lab, LabUnit, NO_QEMU_11, assert_no_fault, refused, the_fault};

/// Where the handler counts.
const COUNTER: u64 = 0x500;
/// Real mode: vector 2 of the table at 0 leads to 0000:0600.
const VECTOR_2: u64 = 2 * 4;
const HANDLER: u64 = 0x600;
/// inc dword [0x500]; iret.
const COUNT: [u8; 6] = [0x66, 0xff, 0x06, 0x00, 0x05, 0xcf];

struct Counter<'a>(&'a Lab);

impl<'a> Counter<'a> {
    fn new(lab: &'a Lab) -> Self {
        lab.poke(HANDLER, &COUNT);
        lab.poke(VECTOR_2, &(HANDLER as u32).to_le_bytes());
        lab.poke(COUNTER, &[0; 4]);
        Self(lab)
    }

    fn now(&self) -> u32 {
        let bytes = self.0.peek(COUNTER, 4);
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    /// Waits until the handler has run `count` times; how often it has by then.
    fn wait_for(&self, count: u32) -> u32 {
        let start = Instant::now();
        while self.now() < count && start.elapsed() < Duration::from_secs(10) {}
        self.now()
    }
}

/// Gives `edu` a message and lets it send it when it raises its interrupt.
fn program(lab: &Lab, message: Message) {
    let mut at = (lab.edu_config_read(0x34) & 0xfc) as u8;
    for _ in 0..48 {
        let header = lab.edu_config_read(at);
        if header & 0xff == 5 {
            lab.edu_config_write(at + 4, message.address as u32);
            lab.edu_config_write(at + 8, (message.address >> 32) as u32);
            lab.edu_config_write(at + 12, message.data);
            lab.edu_config_write(at, header | 1 << 16);
            return;
        }
        at = (header >> 8 & 0xfc) as u8;
    }
    panic!("edu has no MSI capability");
}

/// To the processor with id 0, as an NMI, if `edu` asks.
fn nmi() -> Irte {
    Irte::remapped(0, 0)
        .with_dlm(Delivery::NMI.0.into())
        .with_source_check(SourceCheck::Requester(EDU, SourceQualifier::All))
}

fn prepared(lab: &Lab) -> (LabUnit<'_>, InterruptTable<&Lab>, Block) {
    let mut unit = lab.legacy();
    let mut table = unit
        .enable_interrupts(DestinationMode::XApic, None)
        .unwrap();
    // Not the first: a message that says nothing would be that.
    table.allocate(4).unwrap();
    let block = table.allocate(1).unwrap();
    program(lab, block.message());
    (unit, table, block)
}

#[test]
fn a_message_goes_where_its_entry_says() {
    let lab = Lab::newer("aw-bits=48,intremap=on");
    lab_kit::skip_newer_if!(lab.is_none().then(|| NO_QEMU_11.to_owned()));
    let lab = lab.unwrap();
    let (mut unit, table, block) = prepared(&lab);
    let counter = Counter::new(&lab);
    let index = block.first();
    // Absent: a fault that names the entry.
    lab.raise();
    let fault = the_fault(&mut unit);
    assert_eq!(fault.reason(), FaultReason::INTERRUPT_NOT_PRESENT);
    assert_eq!(
        (fault.interrupt_index(), fault.source()),
        (Some(index), EDU)
    );
    assert_eq!(counter.now(), 0);

    unit.set_interrupt(&table, block, index, nmi()).unwrap();
    assert_eq!(table.entry(index), nmi());
    for count in 1..=3 {
        lab.raise();
        assert_eq!(counter.wait_for(count), count);
    }
    assert_no_fault(&mut unit);

    // Masked: nothing arrives, and nothing is recorded.
    unit.mask_interrupt(&table, block, index).unwrap();
    lab.raise();
    assert_no_fault(&mut unit);
    unit.set_interrupt(&table, block, index, nmi()).unwrap();
    lab.raise();
    assert_eq!(counter.wait_for(4), 4);
}

#[test]
fn an_entry_is_for_its_device_only() {
    let lab = Lab::newer("aw-bits=48,intremap=on");
    lab_kit::skip_newer_if!(lab.is_none().then(|| NO_QEMU_11.to_owned()));
    let lab = lab.unwrap();
    let (mut unit, table, block) = prepared(&lab);
    let counter = Counter::new(&lab);
    let index = block.first();
    let other = SourceCheck::Requester(RequesterId(0x20), SourceQualifier::All);
    let buses = SourceCheck::Buses {
        first: 1,
        last: 255,
    };
    for check in [other, buses] {
        let entry = nmi().with_source_check(check);
        unit.mask_interrupt(&table, block, index).unwrap();
        unit.set_interrupt(&table, block, index, entry).unwrap();
        lab.raise();
        let fault = the_fault(&mut unit);
        assert_eq!(fault.reason(), FaultReason::INTERRUPT_SOURCE, "{check:?}");
    }
    assert_eq!(counter.now(), 0);
    // All but the three lowest bits are 0x18's, so function 5 of it may.
    let lenient = SourceCheck::Requester(RequesterId(0x1d), SourceQualifier::IgnoreBits20);
    let entry = nmi().with_source_check(lenient);
    unit.mask_interrupt(&table, block, index).unwrap();
    unit.set_interrupt(&table, block, index, entry).unwrap();
    lab.raise();
    assert_eq!(counter.wait_for(1), 1);
}

#[test]
fn messages_that_name_no_entry_are_faults() {
    let lab = Lab::newer("aw-bits=48,intremap=on");
    lab_kit::skip_newer_if!(lab.is_none().then(|| NO_QEMU_11.to_owned()));
    let lab = lab.unwrap();
    let (mut unit, table, block) = prepared(&lab);
    for (message, reason) in [
        // The table has 256 entries.
        (Message::remappable(0x100), FaultReason::INTERRUPT_INDEX),
        (
            Message::remappable_block(0xf0, 0x10),
            FaultReason::INTERRUPT_INDEX,
        ),
    ] {
        program(&lab, message);
        lab.raise();
        assert_eq!(the_fault(&mut unit).reason(), reason, "{message:x?}");
    }
    // A reserved bit in the entry.
    program(&lab, block.message());
    let reserved = Irte([nmi().0[0] | 1 << 12, nmi().0[1]]);
    unit.set_interrupt(&table, block, block.first(), reserved)
        .unwrap();
    lab.raise();
    assert_eq!(
        the_fault(&mut unit).reason(),
        FaultReason::INTERRUPT_ENTRY_RESERVED
    );
}

#[test]
fn a_block_is_named_by_handle_and_data() {
    let lab = Lab::newer("aw-bits=48,intremap=on");
    lab_kit::skip_newer_if!(lab.is_none().then(|| NO_QEMU_11.to_owned()));
    let lab = lab.unwrap();
    let mut unit = lab.legacy();
    let mut table = unit
        .enable_interrupts(DestinationMode::XApic, None)
        .unwrap();
    let block = table.allocate(8).unwrap();
    assert_eq!(block.first() % 8, 0);
    let counter = Counter::new(&lab);
    unit.set_interrupt(&table, block, block.first() + 5, nmi())
        .unwrap();
    let Message { address, data } = block.message();
    program(
        &lab,
        Message {
            address,
            data: data + 5,
        },
    );
    lab.raise();
    assert_eq!(counter.wait_for(1), 1);
    // Freed: absent.
    unit.free_interrupts(&mut table, block).unwrap();
    lab.raise();
    assert_eq!(
        the_fault(&mut unit).reason(),
        FaultReason::INTERRUPT_NOT_PRESENT
    );
    let error = refused(unit.set_interrupt(&table, block, block.first(), nmi()));
    let index = block.first();
    assert_eq!(error, DriverError::NoInterruptEntries { index, count: 1 });
}

#[test]
fn an_entry_changes_in_one_store_or_not_at_all() {
    let lab = Lab::newer("aw-bits=48,intremap=on");
    lab_kit::skip_newer_if!(lab.is_none().then(|| NO_QEMU_11.to_owned()));
    let lab = lab.unwrap();
    let (mut unit, table, block) = prepared(&lab);
    let index = block.first();
    unit.set_interrupt(&table, block, index, nmi()).unwrap();
    // Vector and destination are in one word, the source in the other.
    let moved = nmi().with_vector(0x55).with_destination(0x300);
    unit.set_interrupt(&table, block, index, moved).unwrap();
    let both = nmi().with_source_check(SourceCheck::Anyone);
    assert_eq!(
        refused(unit.set_interrupt(&table, block, index, both)),
        DriverError::NotInOneStore { index }
    );
    assert_eq!(
        table.entry(index),
        moved,
        "a refused change changes nothing"
    );
    // With a store of 16 bytes there is nothing to refuse.
    let table = table.with_pair_store(|lab, at, words| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        lab.poke(at, &bytes);
    });
    unit.set_interrupt(&table, block, index, both).unwrap();
    assert_eq!(table.entry(index), both);
    let posted = Irte::posting(0x41, 0x1000);
    assert_eq!(
        refused(unit.set_interrupt(&table, block, index, posted)),
        DriverError::Unsupported(Ability::PostedInterrupts)
    );
    let outside = refused(unit.set_interrupt(&table, block, index + 1, both));
    assert_eq!(
        outside,
        DriverError::NoInterruptEntries {
            index: index + 1,
            count: 1
        }
    );
}

#[test]
fn a_unit_that_does_not_answer_is_not_waited_for_forever() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let (mut unit, table, _block) = prepared(&lab);
    // QEMU never lets compatibility-format interrupts through by command.
    assert_eq!(
        refused(unit.set_compatibility_interrupts(Switch::On)),
        DriverError::TimedOut(Waiting::CompatibilityInterrupts)
    );
    // Off, every message is taken as it is.
    unit.disable_interrupts(table).unwrap();
    let counter = Counter::new(&lab);
    let data = u32::from(Delivery::NMI.0) << 8;
    program(
        &lab,
        Message {
            data,
            ..Message::compatible(0, 0)
        },
    );
    lab.raise();
    assert_eq!(counter.wait_for(1), 1);
}

#[test]
fn extended_interrupt_mode_is_the_units_choice() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on,eim=off");
    let mut unit = lab.legacy();
    assert_eq!(
        refused(
            unit.enable_interrupts(DestinationMode::X2Apic, None)
                .map(drop)
        ),
        DriverError::Unsupported(Ability::ExtendedInterruptMode)
    );
}
