// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt remapping: what the table's memory and the registers hold, word by word, and in which order entries change.

use hvkit_page_table::fake::Store;
use hvkit_page_table::{Frames, ReadEntry, Width};
use hvkit_vtd_iommu::driver::{DestinationMode, DriverError, Mmio, RingMemory, Unit, Waiting};
use hvkit_vtd_iommu::spec::interrupt::Irte;
use hvkit_vtd_iommu::spec::invalidation::{Descriptor, InterruptScope};

use crate::puppet::{Puppet, cap, ecap};

/// Interrupt Remapping Table Address Register.
const IRTA: u32 = 0xb8;
/// Global Status Register, and its IRES and CFIS.
const GSTS: u32 = 0x1c;
const IRES: u32 = 1 << 25;
const CFIS: u32 = 1 << 23;

fn puppet() -> Puppet {
    Puppet::new(
        cap(),
        ecap()
            .with_interrupt_remapping(true)
            .with_max_handle_mask(15),
    )
}

/// The two words of the entry with `index` of the table that the register names.
fn raw(puppet: &Puppet, index: u64) -> [u64; 2] {
    let at = (puppet.read64(IRTA) & !0xfff) + 16 * index;
    [0, 8].map(|i| {
        let Ok(word) = puppet.memory.words().read(at + i, Width::Eight);
        word
    })
}

/// "Interrupt Remapping Table Entry": 128 bits each, 256 of them in a frame. What was in the memory is no entry.
#[test]
fn a_table_of_used_memory_begins_empty_and_ends_where_it_should() {
    let puppet = puppet();
    let mut unit = puppet.legacy();
    let frames: Vec<u64> = (0..3).map(|_| puppet.memory.allocate().unwrap()).collect();
    assert_eq!(frames[2], frames[0] + 0x2000);
    for at in (frames[0]..frames[0] + 0x3000).step_by(8) {
        puppet.memory.tamper(at, Width::Eight, !0);
    }
    let table = RingMemory {
        address: frames[0],
        size: 1,
    };
    let table = unit
        .enable_interrupts(DestinationMode::XApic, Some(table))
        .unwrap();
    for index in 0..512 {
        assert_eq!(raw(&puppet, index), [0, 0], "{index}");
    }
    assert_eq!(raw(&puppet, 512), [!0, !0], "not the table's");
    assert_eq!(table.entry(0), Irte([0, 0]));
}

#[test]
fn remapping_is_on_until_it_is_turned_off() {
    let puppet = puppet();
    let mut unit = puppet.legacy();
    assert_eq!(puppet.read32(GSTS) & IRES, 0);
    let table = unit
        .enable_interrupts(DestinationMode::XApic, None)
        .unwrap();
    assert_eq!(puppet.read32(GSTS) & (IRES | CFIS), IRES);
    let others = puppet.read32(GSTS) & !IRES;
    unit.disable_interrupts(table).unwrap();
    assert_eq!(puppet.read32(GSTS), others);
}

#[test]
fn a_unit_that_stays_on_is_told_of() {
    let puppet = puppet();
    let mut unit = puppet.legacy();
    let table = unit
        .enable_interrupts(DestinationMode::XApic, None)
        .unwrap();
    puppet.deaf_to.set(IRES);
    let off = unit.disable_interrupts(table);
    let on = DriverError::TimedOut(Waiting::InterruptRemapping);
    assert_eq!(off, Err(on));
}

/// A block's entries are neighbours, aligned to their number; each is stored at its own place.
#[test]
fn entries_are_stored_at_their_index() {
    let puppet = puppet();
    let mut unit = puppet.legacy();
    let mut table = unit
        .enable_interrupts(DestinationMode::XApic, None)
        .unwrap();
    let one = table.allocate(1).unwrap();
    let four = table.allocate(4).unwrap();
    assert_eq!((one.first(), one.count()), (0, 1));
    assert_eq!((four.first(), four.count()), (4, 4));
    puppet.forget_asked();
    unit.set_interrupt(&table, four, 6, Irte([0x0200_0031_0001, 0x4_0318]))
        .unwrap();
    let index = InterruptScope::Index { index: 6, order: 0 };
    assert_eq!(puppet.take_asked(), [Descriptor::Interrupt(index)]);
    for other in (0..256).filter(|&other| other != 6) {
        assert_eq!(raw(&puppet, other), [0, 0], "{other}");
    }
    assert_eq!(raw(&puppet, 6), [0x0200_0031_0001, 0x4_0318]);
    assert_eq!(table.entry(6), Irte([0x0200_0031_0001, 0x4_0318]));
    // Before and behind the block.
    for index in [3, 8] {
        let missing = DriverError::NoInterruptEntries { index, count: 1 };
        let refused = unit.set_interrupt(&table, four, index, Irte([1, 0]));
        assert_eq!(refused, Err(missing));
    }
    puppet.forget_asked();
    unit.free_interrupts(&mut table, four).unwrap();
    let block = InterruptScope::Index { index: 4, order: 2 };
    assert_eq!(puppet.take_asked(), [Descriptor::Interrupt(block)]);
    assert_eq!(raw(&puppet, 6), [0, 0]);
}

/// P is in the first word: it is the last to be set and the first to be cleared; where only one word differs it
/// alone is stored.
#[test]
fn no_moment_shows_a_half_of_each() {
    let puppet = puppet();
    let mut unit = puppet.legacy();
    let mut table = unit
        .enable_interrupts(DestinationMode::XApic, None)
        .unwrap();
    let block = table.allocate(2).unwrap();
    let at = (puppet.read64(IRTA) & !0xfff) + 16;
    let stores = |unit: &mut Unit<_, _, _>, words| {
        puppet.memory.checkpoint();
        unit.set_interrupt(&table, block, 1, Irte(words)).unwrap();
        let table = at..at + 16;
        let journal = puppet.memory.journal().into_iter();
        let stores = journal.filter(|store| table.contains(&store.at));
        let stores: Vec<_> = stores.map(|Store { at, entry, .. }| (at, entry)).collect();
        stores
    };
    let (low, high) = (at, at + 8);
    assert_eq!(
        stores(&mut unit, [0x31_0001, 0x4_0318]),
        [(high, 0x4_0318), (low, 0x31_0001)]
    );
    assert_eq!(stores(&mut unit, [0x32_0001, 0x4_0318]), [(low, 0x32_0001)]);
    assert_eq!(stores(&mut unit, [0x32_0001, 0x4_0320]), [(high, 0x4_0320)]);
    assert_eq!(stores(&mut unit, [2, 0]), [(low, 2), (high, 0)]);
}

/// A block of entries has one message: SHV, bit 3 of the address, and the device's own number in the data.
#[test]
fn the_message_of_a_block_names_its_first_entry() {
    let puppet = puppet();
    let mut unit = puppet.legacy();
    let mut table = unit
        .enable_interrupts(DestinationMode::XApic, None)
        .unwrap();
    let words = |block: hvkit_vtd_iommu::driver::Block| {
        let message = block.message();
        (message.address, message.data)
    };
    assert_eq!(words(table.allocate(1).unwrap()), (0xfee0_0010, 0));
    assert_eq!(words(table.allocate(2).unwrap()), (0xfee0_0058, 0));
    assert_eq!(words(table.allocate(1).unwrap()), (0xfee0_0090, 0));
}
