// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accessed and dirty flags: which are set, when, and under whose eyes.

use std::cell::Cell;

use hvkit_page_table::{ReadEntry, UpdateEntry, Width};
use hvkit_shadow_paging::guest::{Access, GuestFault, Kind, Layout, Privilege, probe, translate};

use crate::support::{Memory, Refused, mode, registers};

const READ: Access = Access::new(Kind::Read, Privilege::Supervisor);
const WRITE: Access = Access::new(Kind::Write, Privilege::Supervisor);
const FETCH: Access = Access::new(Kind::Fetch, Privilege::Supervisor);

/// Linear address 0 to physical 0x7000, nothing accessed yet.
fn four_levels() -> Memory {
    Memory::new(&[
        (0x1000, 0x2003),
        (0x2000, 0x3003),
        (0x3000, 0x4003),
        (0x4000, 0x7003),
    ])
}

fn words(memory: &Memory, at: [u64; 4]) -> [u64; 4] {
    at.map(|at| memory.get(at))
}

const PATH: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];

#[test]
fn reads_and_fetches_set_a_and_writes_set_d_in_the_last_entry_only() {
    let mode = mode(&registers(Layout::FourLevel));
    for access in [READ, FETCH] {
        let memory = four_levels();
        assert_eq!(
            translate(&mode, &memory, 0x123, access).unwrap().physical,
            0x7123
        );
        assert_eq!(words(&memory, PATH), [0x2023, 0x3023, 0x4023, 0x7023]);
    }
    let memory = four_levels();
    translate(&mode, &memory, 0, WRITE).unwrap();
    assert_eq!(words(&memory, PATH), [0x2023, 0x3023, 0x4023, 0x7063]);
    // All set: nothing is stored again, so the tables may lie in read-only memory.
    let memory = Memory {
        read_only: true,
        ..memory
    };
    translate(&mode, &memory, 0, WRITE).unwrap();
    assert_eq!(memory.updates.borrow().len(), 4);
}

#[test]
fn large_pages_and_four_byte_entries_are_marked_where_they_end() {
    let memory = Memory::new(&[(0x1000, 0x2003), (0x2000, 0x4000_0083)]);
    let long = mode(&registers(Layout::FourLevel));
    assert_eq!(translate(&long, &memory, 5, WRITE).unwrap().size, 1 << 30);
    assert_eq!(
        (memory.get(0x1000), memory.get(0x2000)),
        (0x2023, 0x4000_00e3)
    );

    let memory = Memory::new(&[(0x1000, 0x0040_0083), (0x1004, 0x2003), (0x2000, 0x7003)]);
    let thirty_two = mode(&registers(Layout::ThirtyTwoBit));
    assert_eq!(
        translate(&thirty_two, &memory, 5, WRITE).unwrap().physical,
        0x0040_0005
    );
    assert_eq!(
        translate(&thirty_two, &memory, 0x0040_0005, READ)
            .unwrap()
            .physical,
        0x7005
    );
    assert_eq!(
        (memory.get(0x1000), memory.get(0x1004), memory.get(0x2000)),
        (0x0040_00e3, 0x2023, 0x7023)
    );

    // The PDPTE is in a register: it has no flags, and memory at its address is not touched.
    let memory = Memory::new(&[(0x2000, 0x3003), (0x3000, 0x7003)]);
    let pae = mode(&registers(Layout::Pae));
    translate(&pae, &memory, 0, WRITE).unwrap();
    assert_eq!((memory.get(0x2000), memory.get(0x3000)), (0x3023, 0x7063));
}

#[test]
fn a_fault_and_a_probe_set_nothing() {
    let mode = mode(&registers(Layout::FourLevel));
    let user = Access::new(Kind::Read, Privilege::User);
    let memory = four_levels();
    translate(&mode, &memory, 0, user).unwrap_err();
    translate(&mode, &memory, 0x8000_0000_0000, READ).unwrap_err();
    memory.set(0x4000, 0x7001);
    translate(&mode, &memory, 0, WRITE).unwrap_err();
    probe(&mode, &memory, 0, READ).unwrap();
    assert!(memory.updates.borrow().is_empty());
}

#[test]
fn a_table_that_cannot_be_written_is_named() {
    let mode = mode(&registers(Layout::FourLevel));
    let memory = Memory {
        read_only: true,
        ..four_levels()
    };
    memory.set(0x1000, 0x2023);
    assert_eq!(
        translate(&mode, &memory, 0, READ),
        Err(GuestFault::Memory {
            level: 3,
            at: 0x2000,
            error: Refused(0x2000)
        })
    );
}

/// Before update number `at`, someone else stores `then`.
struct Interfering<'a> {
    memory: &'a Memory,
    updates: Cell<u32>,
    interfere: &'a dyn Fn(u32, &Memory),
}

impl ReadEntry for Interfering<'_> {
    type Error = Refused;

    fn read(&self, at: u64, width: Width) -> Result<u64, Refused> {
        self.memory.read(at, width)
    }
}

impl UpdateEntry for Interfering<'_> {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Refused> {
        (self.interfere)(self.updates.get(), self.memory);
        self.updates.set(self.updates.get() + 1);
        self.memory.compare_exchange(at, width, current, new)
    }
}

#[test]
fn an_entry_that_changes_meanwhile_is_walked_anew() {
    let mode = mode(&registers(Layout::FourLevel));
    let memory = four_levels();
    let unmap = |n, memory: &Memory| {
        if n == 3 {
            memory.set(0x4000, 0x7002);
        }
    };
    let guest = Interfering {
        memory: &memory,
        updates: Cell::new(0),
        interfere: &unmap,
    };
    let fault = translate(&mode, &guest, 0, WRITE).unwrap_err();
    assert!(matches!(fault, GuestFault::Page { .. }), "{fault:?}");
    assert_eq!(
        memory.get(0x4000),
        0x7002,
        "a page that is gone is not marked"
    );

    let memory = four_levels();
    let remap = |n, memory: &Memory| {
        if n == 3 {
            memory.set(0x4000, 0x9003);
        }
    };
    let guest = Interfering {
        memory: &memory,
        updates: Cell::new(0),
        interfere: &remap,
    };
    assert_eq!(translate(&mode, &guest, 0, WRITE).unwrap().physical, 0x9000);
    assert_eq!(memory.get(0x4000), 0x9063);
}

#[test]
fn an_adversary_cannot_keep_us() {
    let mode = mode(&registers(Layout::FourLevel));
    let memory = four_levels();
    let flip = |n: u32, memory: &Memory| memory.set(0x1000, 0x2003 | u64::from(n % 2 + 1) << 9);
    let guest = Interfering {
        memory: &memory,
        updates: Cell::new(0),
        interfere: &flip,
    };
    assert_eq!(
        translate(&mode, &guest, 0, READ),
        Err(GuestFault::Contended { linear: 0 })
    );
    assert_eq!(guest.updates.get(), 16);
    assert_eq!(memory.get(0x4000), 0x7003);
}
