// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is kept until it is invalidated, and what each invalidation ends.

use hvkit_vtd_iommu::emulation::{Access, Caching, Options, Request};
use hvkit_vtd_iommu::spec::RequesterId;

use super::machine::*;

fn kept() -> Machine {
    let mut machine = Machine::legacy(Options::new(39));
    machine.queue_on(0);
    for page in 1..9 {
        assert_eq!(machine.read(page << 12), Ok(DATA + (page << 12)));
    }
    machine
}

#[test]
fn a_unit_that_keeps_nothing_sees_every_change() {
    let mut machine = Machine::legacy(Options::new(39).with_caching(Caching::Never));
    assert_eq!(machine.read(0x1000), Ok(DATA + 0x1000));
    machine.ram.set(LEAVES + 8, 0);
    assert_eq!(machine.read(0x1000), Err(6));
    machine.ram.set(ENTRY, 0);
    assert_eq!(machine.read(0x2000), Err(2));
}

#[test]
fn pages_are_kept_until_they_are_invalidated() {
    let mut machine = kept();
    for page in 1..9 {
        machine.ram.set(LEAVES + 8 * page, 0);
    }
    assert_eq!(machine.read(0x1000), Ok(DATA + 0x1000));
    // Another domain's, and another page's, leave it.
    machine.submit(&[[0x8_0032, 0x1000], [0x8_0022, 0], [0x7_0032, 0x9000]]);
    assert_eq!(machine.read(0x1000), Ok(DATA + 0x1000));
    machine.submit(&[[0x7_0032, 0x1000]]);
    assert_eq!(machine.read(0x1000), Err(6));
    // AM 1: pages 2 and 3.
    machine.submit(&[[0x7_0032, 0x2001]]);
    let hits: Vec<bool> = (1..9)
        .map(|page| machine.read(page << 12).is_ok())
        .collect();
    assert_eq!(hits, [false, false, false, true, true, true, true, true]);
    // So many pages that the whole domain goes.
    machine.submit(&[[0x7_0032, 0x4000_0000 | 18]]);
    assert!((1..9).all(|page| machine.read(page << 12).is_err()));
}

#[test]
fn domains_and_everything() {
    for invalidation in [[0x7_0022, 0], [0x12, 0]] {
        let mut machine = kept();
        machine.ram.set(LEAVES + 8, 0);
        machine.submit(&[invalidation]);
        assert_eq!(machine.read(0x1000), Err(6));
        assert_eq!(machine.read(0x2000), Ok(DATA + 0x2000));
    }
}

#[test]
fn leaf_tables_are_kept_unless_the_hint_is_clear() {
    let mut machine = kept();
    machine.ram.set(0x8008, 0x9_9003);
    machine.ram.set(MIDDLE, 0x8003);
    // IH: only leaves changed, so the old leaf table may be used, and is.
    machine.submit(&[[0x7_0032, 0x1040]]);
    assert_eq!(machine.read(0x1000), Ok(DATA + 0x1000));
    machine.submit(&[[0x7_0032, 0x1000]]);
    assert_eq!(machine.read(0x1000), Ok(0x9_9000));
}

#[test]
fn large_pages_go_by_any_address_in_them() {
    let mut machine = kept();
    machine.ram.set(MIDDLE + 8, 0x83);
    machine.ram.set(TOP + 8, 0x83);
    for base in [0x20_0000, 0x4000_0000] {
        assert_eq!(machine.read(base + 0x1_2000), Ok(0x1_2000));
        assert_eq!(machine.read(base + 0x3008), Ok(0x3008));
    }
    machine.ram.set(MIDDLE + 8, 0);
    machine.ram.set(TOP + 8, 0);
    for base in [0x20_0000, 0x4000_0000] {
        assert_eq!(machine.read(base), Ok(0));
        machine.submit(&[[0x7_0032, base + 0x5000]]);
        assert_eq!(machine.read(base), Err(6));
    }
}

#[test]
fn a_right_that_is_not_kept_is_looked_for() {
    let mut machine = Machine::legacy(Options::new(39));
    machine.ram.set(LEAVES + 8, (DATA + 0x1000) | 1);
    assert_eq!(machine.read(0x1000), Ok(DATA + 0x1000));
    assert_eq!(machine.write(0x1000), Err(5));
    machine.ram.set(LEAVES + 8, (DATA + 0x1000) | 3);
    assert_eq!(machine.write(0x1000), Ok(DATA + 0x1000));
}

#[test]
fn contexts_are_kept_and_forgotten_by_device_domain_and_all() {
    for (invalidation, forgets) in [
        ([0x11, 0], true),
        ([0x7_0021, 0], true),
        ([0x8_0021, 0], false),
        ([0x18_0007_0031, 0], true),
        ([0x20_0007_0031, 0], false),
        // FM 1 leaves bit 2 of the function out, FM 3 all of it.
        ([0x1_001c_0007_0031, 0], true),
        ([0x1_0019_0007_0031, 0], false),
        ([0x3_001f_0007_0031, 0], true),
    ] {
        let mut machine = kept();
        machine.ram.set(ENTRY, 0);
        machine.submit(&[invalidation, [0x12, 0]]);
        let expected = if forgets { Err(2) } else { Ok(DATA + 0x1000) };
        assert_eq!(machine.read(0x1000), expected, "{invalidation:x?}");
    }
}

#[test]
fn another_table_with_another_domain_shows_after_both_invalidations() {
    let mut machine = kept();
    machine.ram.set_all(ENTRY, &[0x8001, 0x0901]);
    machine.ram.set(0x8000, MIDDLE | 1);
    assert_eq!(machine.write(0x1000), Ok(DATA + 0x1000));
    machine.submit(&[[0x18_0007_0031, 0], [0x7_0022, 0]]);
    assert_eq!(machine.read(0x1000), Ok(DATA + 0x1000));
    assert_eq!(machine.write(0x1000), Err(5));
}

#[test]
fn numbers_of_spaces_run_out_without_harm() {
    let mut machine = kept();
    // 2^19 invalidations of a domain that is in use each time.
    for round in 0..(1u64 << 19) + 10 {
        let page = round & 1;
        machine.ram.set(LEAVES + 8, (DATA + (page << 12)) | 3);
        machine.write32(0x18, 0x8000_0000);
        machine.write64(0x508, 0xa000_0007_0000_0000);
        assert_eq!(machine.read(0x1000), Ok(DATA + (page << 12)));
    }
}

/// Devices of which nothing is kept find nothing of what others have left, wherever that was.
#[test]
fn what_is_forgotten_is_not_found_by_who_keeps_nothing() {
    let mut machine = Machine::legacy(Options::new(39));
    machine.queue_on(0);
    // 4,096 pages by way of one leaf table: as many as the unit keeps.
    for page in 0..512 {
        machine.ram.set(LEAVES + 8 * page, DATA | 3);
    }
    for table in 0..8 {
        machine.ram.set(MIDDLE + 8 * table, LEAVES | 3);
    }
    for page in 0..4096 {
        assert_eq!(machine.read(page << 12), Ok(DATA));
    }
    for block in 0..64 {
        // AM 6, IH.
        machine.submit(&[[0x7_0032, block << 18 | 0x46]]);
    }
    // Pass-through, in another domain; and tables of a domain-id that this unit has not.
    machine.ram.set_all(ENTRY + 16, &[9, 0x0801]);
    for _ in 0..3 {
        let request = Request::new(RequesterId(0x19), 0x8, Access::Read);
        assert_eq!(machine.request(request).unwrap().address, 0x8);
        let request = Request::new(RequesterId(0x19), 0, Access::Read);
        assert_eq!(machine.request(request).unwrap().address, 0);
    }
}

#[test]
fn a_domain_beyond_the_units_is_walked_for_each_time() {
    let mut options = Options::new(39);
    options.capability = options.capability.with_nd(0);
    let mut machine = Machine::legacy(options);
    machine.queue_on(0);
    for page in 1..9 {
        assert_eq!(machine.read(page << 12), Ok(DATA + (page << 12)));
    }
    machine.submit(&[[0x7_0032, 0x3 | 0x40], [0x7_0032, 0x8000]]);
    machine.ram.set(ENTRY + 16, 0xa001);
    machine.ram.set(ENTRY + 24, 0x1001);
    machine.ram.set(0xa000, 0xb003);
    machine.ram.set(0xb000, 0xc003);
    machine.ram.set(0xc000, 0x5_5003);
    for _ in 0..3 {
        let request = Request::new(RequesterId(0x19), 0x10, Access::Read);
        assert_eq!(machine.request(request).unwrap().address, 0x5_5010);
    }
    machine.ram.set(0xc000, 0);
    let request = Request::new(RequesterId(0x19), 0x10, Access::Read);
    assert!(machine.request(request).is_err());
}
