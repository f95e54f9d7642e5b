// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errant DMA: a fault with the right reason, and nothing else of memory changes.

use hvkit_vtd_iommu::emulation::{Access, Memory, Options, Request};
use hvkit_vtd_iommu::spec::RequesterId;

use hvkit_page_table::Width;

use super::machine::*;

/// A device that writes `length` bytes of 8 at a time. What was refused first, and how many words were written.
fn write(
    machine: &mut Machine,
    source: RequesterId,
    address: u64,
    length: u64,
) -> (Option<u8>, u64) {
    let (mut refused, mut written) = (None, 0);
    for offset in (0..length).step_by(8) {
        let Some(at) = address.checked_add(offset) else {
            // A device does not wrap; if it did, it would begin at 0.
            break;
        };
        match machine.request(Request::new(source, at, Access::Write)) {
            Ok(to) => {
                machine.ram.write(to.address, Width::Eight, !0).unwrap();
                written += 1;
            }
            Err(why) => {
                refused.get_or_insert(why.reason.0);
            }
        }
    }
    (refused, written)
}

#[test]
fn each_kind_of_errant_write_changes_nothing() {
    let cases: [(&str, u64, u64, u8); 8] = [
        ("unmapped", 0x10_0000, 64, 5),
        ("read-only", 0x2000, 64, 5),
        ("beyond the width", 1 << 39, 64, 4),
        ("the interrupt window", 0xfee0_1000, 8, 0xe),
        ("a page that leads to the interrupts", 0x7ee0_0000, 8, 0xe),
        ("the end of the address space", u64::MAX - 7, 16, 4),
        ("reserved bits", 0x3000, 64, 0xc),
        ("a table that is nowhere", 0x8000_0000, 64, 7),
    ];
    for (what, address, length, reason) in cases {
        let mut machine = Machine::legacy(Options::new(39));
        machine.ram.set(LEAVES + 16, (DATA + 0x2000) | 1);
        machine.ram.set(LEAVES + 24, (DATA + 0x3000) | 3 | 1 << 51);
        machine.ram.set(TOP + 8, 0xc000_0083);
        machine.ram.set(TOP + 16, 0x10_0003);
        let before = machine.ram.hash();
        let done = write(&mut machine, DEVICE, address, length);
        assert_eq!(done, (Some(reason), 0), "{what}");
        assert_eq!(machine.ram.hash(), before, "{what}");
    }
}

#[test]
fn the_wrong_requester_reaches_nothing() {
    let mut machine = Machine::legacy(Options::new(39));
    let before = machine.ram.hash();
    for (source, reason) in [(0x19, 2), (0x118, 1)] {
        let done = write(&mut machine, RequesterId(source), 0x1000, 64);
        assert_eq!(done, (Some(reason), 0));
    }
    assert_eq!(machine.ram.hash(), before);
}

#[test]
fn after_unmap_and_wait_it_is_over() {
    let mut machine = Machine::legacy(Options::new(39));
    machine.queue_on(0);
    assert_eq!(write(&mut machine, DEVICE, 0x1000, 8), (None, 1));
    machine.ram.set(LEAVES + 8, 0);
    machine.submit(&[[0x7_0032, 0x1000], [0x1_0000_0025, STATUS]]);
    assert_eq!(machine.ram.get(STATUS), 1);
    let before = machine.ram.hash();
    assert_eq!(write(&mut machine, DEVICE, 0x1000, 64), (Some(5), 0));
    assert_eq!(machine.ram.hash(), before);
}

#[test]
fn after_a_domain_switch_the_old_pages_are_gone() {
    let mut machine = Machine::legacy(Options::new(39));
    machine.queue_on(0);
    assert_eq!(write(&mut machine, DEVICE, 0x1000, 8), (None, 1));
    machine.ram.set_all(ENTRY, &[0x8001, 0x0901]);
    machine.submit(&[[0x18_0007_0031, 0], [0x7_0022, 0]]);
    let before = machine.ram.hash();
    assert_eq!(write(&mut machine, DEVICE, 0x1000, 64), (Some(5), 0));
    assert_eq!(machine.ram.hash(), before);
}

#[test]
fn what_straddles_into_a_hole_stops_at_it() {
    let mut machine = Machine::legacy(Options::new(39));
    let hole = machine.ram.get(DATA + 0x9000);
    let done = write(&mut machine, DEVICE, 0x8fc0, 128);
    assert_eq!(done, (Some(5), 8));
    assert_eq!(machine.ram.get(DATA + 0x8ff8), !0);
    assert_eq!(machine.ram.get(DATA + 0x9000), hole);
}
