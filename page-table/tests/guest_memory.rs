// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entries in memory as vm-memory has it: what is found, what is exchanged, what is then marked as written.

use hvkit_page_table::{GuestTables, ReadEntry, UpdateEntry, Width};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

type Memory = GuestMemoryMmap<AtomicBitmap>;

const AT: u64 = 0x2010;
const WIDTHS: [(Width, u64); 2] = [
    (Width::Four, 0x8765_4321),
    (Width::Eight, 0xfedc_ba98_7654_3210),
];

/// Two pages, of which nothing is marked.
fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0x1000), 0x2000)]).unwrap()
}

fn written(memory: &Memory, page: usize) -> bool {
    let region = memory.find_region(GuestAddress(0x1000)).unwrap();
    region.bitmap().dirty_at(page * 0x1000)
}

#[test]
fn an_entry_that_is_as_expected_is_exchanged_and_its_page_marked() {
    for (width, old) in WIDTHS {
        let memory = memory();
        let bytes = width.bytes() as usize;
        memory
            .write_slice(&old.to_le_bytes()[..bytes], GuestAddress(AT))
            .unwrap();
        let region = memory.find_region(GuestAddress(0x1000)).unwrap();
        // The region's own bitmap; its write has marked it.
        (**region).bitmap().reset();
        let tables = GuestTables(&memory);
        assert_eq!(tables.read(AT, width).unwrap(), old);
        // Something else is there: told, left alone, and not marked.
        let found = tables.compare_exchange(AT, width, old ^ 1, 5).unwrap();
        assert_eq!((found, tables.read(AT, width).unwrap()), (old, old));
        assert!(!written(&memory, 0) && !written(&memory, 1));
        let found = tables.compare_exchange(AT, width, old, 0x77).unwrap();
        assert_eq!((found, tables.read(AT, width).unwrap()), (old, 0x77));
        assert!(!written(&memory, 0) && written(&memory, 1));
        // And nothing beside it.
        let mut around = [0u8; 24];
        memory
            .read_slice(&mut around, GuestAddress(AT - 8))
            .unwrap();
        let mut expected = [0u8; 24];
        expected[8] = 0x77;
        assert_eq!(around, expected);
    }
}

#[test]
fn what_is_not_in_memory_is_an_error() {
    let memory = memory();
    let tables = GuestTables(&memory);
    for at in [0, 0xff8, 0x3000, 0x2ffc, u64::MAX - 7] {
        assert!(tables.read(at, Width::Eight).is_err(), "{at:#x}");
        assert!(
            tables.compare_exchange(at, Width::Eight, 0, 1).is_err(),
            "{at:#x}"
        );
    }
    // An entry never lies across two words.
    assert!(tables.read(0x2004, Width::Eight).is_err());
    assert!(tables.read(0x2002, Width::Four).is_err());
    assert!(tables.read(0x2ffc, Width::Four).is_ok());
}
