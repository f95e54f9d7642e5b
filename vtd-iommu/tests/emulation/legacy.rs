// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Legacy mode: each thing that can be wrong has its reason, by number.

use hvkit_vtd_iommu::emulation::{Access, Caching, Options, Request};
use hvkit_vtd_iommu::spec::RequesterId;

use super::machine::*;

fn plain() -> Options {
    Options::new(39).with_caching(Caching::Never)
}

/// What a read of page 1 comes to after `word` was put at `at`.
fn with(at: u64, word: u64) -> Result<u64, u8> {
    let mut machine = Machine::legacy(plain());
    machine.ram.set(at, word);
    machine.read(0x1008)
}

#[test]
fn what_is_mapped_is_reached() {
    let mut machine = Machine::legacy(plain());
    assert_eq!(machine.read(0x1008), Ok(DATA + 0x1008));
    assert_eq!(machine.write(0x8ff8), Ok(DATA + 0x8ff8));
    // 2 MiB and 1 GiB.
    machine.ram.set(MIDDLE + 8, 0x4000_0000 | 0x83);
    machine.ram.set(TOP + 8, 0x80_0000_0000 >> 1 | 0x83);
    assert_eq!(machine.read(0x21_2345), Ok(0x4001_2345));
    assert_eq!(machine.read(0x4123_4567), Ok(0x40_0123_4567));
}

#[test]
fn without_translation_everything_is_where_it_is() {
    let mut machine = Machine::new(plain());
    assert_eq!(machine.read(0x1234_5678_9abc), Ok(0x1234_5678_9abc));
}

#[test]
fn roots() {
    assert_eq!(with(ROOT, 0), Err(1));
    assert_eq!(with(ROOT, CONTEXT | 3), Err(0xa));
    assert_eq!(with(ROOT, CONTEXT | 1 << 39 | 1), Err(0xa));
    assert_eq!(with(ROOT + 8, 1), Err(0xa));
    // A root table, or a context table, where no memory is.
    let mut machine = Machine::legacy(plain());
    machine.turn_on(0x10_0000);
    assert_eq!(machine.read(0x1008), Err(8));
    assert_eq!(with(ROOT, 0x10_0001), Err(9));
}

#[test]
fn contexts() {
    assert_eq!(with(ENTRY, 0), Err(2));
    for reserved in [4, 11, 39, 63] {
        assert_eq!(with(ENTRY, TOP | 1 | 1 << reserved), Err(0xb));
    }
    for reserved in [7, 24, 63] {
        assert_eq!(with(ENTRY + 8, 0x0701 | 1 << reserved), Err(0xb));
    }
    // Bits 70:67 are software's.
    assert_eq!(with(ENTRY + 8, 0x0779), Ok(DATA + 0x1008));
    // Widths of 57 bits, and reserved ones.
    for width in [0, 3, 4, 7] {
        assert_eq!(with(ENTRY + 8, 0x0700 | width), Err(3));
    }
    // TT: no device TLBs here, a reserved value, pass-through.
    assert_eq!(with(ENTRY, TOP | 5), Err(3));
    assert_eq!(with(ENTRY, TOP | 0xd), Err(3));
    assert_eq!(with(ENTRY, TOP | 9), Ok(0x1008));
    // The table of the second stage is where no memory is.
    assert_eq!(with(ENTRY, 0x10_0001), Err(3));
}

#[test]
fn pages() {
    assert_eq!(with(TOP, 0), Err(6));
    assert_eq!(with(LEAVES + 8, (DATA + 0x1000) | 2), Err(6));
    assert_eq!(with(MIDDLE, LEAVES | 2), Err(6));
    assert_eq!(with(TOP, 0x10_0003), Err(7));
    assert_eq!(with(LEAVES + 8, (DATA + 0x1000) | 3 | 1 << 39), Err(0xc));
    assert_eq!(with(MIDDLE, 0x1083), Err(0xc));
    assert_eq!(with(MIDDLE, LEAVES | 3 | 1 << 11), Err(0xc));
    // SNP of a page is defined here; an entry that is not present has no reserved bits.
    assert_eq!(with(LEAVES + 8, (DATA + 0x1000) | 0x803), Ok(DATA + 0x1008));
    assert_eq!(with(LEAVES + 8, !3), Err(6));
    let mut machine = Machine::legacy(plain());
    machine.ram.set(LEAVES + 8, (DATA + 0x1000) | 1);
    assert_eq!(machine.write(0x1000), Err(5));
    assert_eq!(machine.dma(0x1000, Access::Atomic), Err(5));
    machine.ram.set(LEAVES + 8, (DATA + 0x1000) | 2);
    assert_eq!(machine.dma(0x1000, Access::Atomic), Err(6));
    // CAP.ZLR: a read of no bytes may go where only writes may.
    assert_eq!(
        machine.dma(0x1000, Access::ZeroLengthRead),
        Ok(DATA + 0x1000)
    );
    let no_zlr = plain();
    let capability = no_zlr.capability.with_zero_length_read(false);
    let mut machine = Machine::legacy(Options {
        capability,
        ..no_zlr
    });
    machine.ram.set(LEAVES + 8, (DATA + 0x1000) | 2);
    assert_eq!(machine.dma(0x1000, Access::ZeroLengthRead), Err(6));
}

#[test]
fn addresses() {
    let mut machine = Machine::legacy(plain());
    assert_eq!(machine.read(1 << 39), Err(4));
    assert_eq!(machine.read(u64::MAX), Err(4));
    assert_eq!(machine.read((1 << 39) - 8), Err(6));
    // The interrupt addresses are no memory.
    assert_eq!(machine.read(0xfee0_0000), Err(0xe));
    machine.ram.set(TOP + 3 * 8, 0xc000_0083);
    assert_eq!(machine.read(0xfedf_fff8), Ok(0xfedf_fff8));
    // Nor may a page lead there, whatever the size of the page.
    machine.ram.set(TOP + 8, 0xc000_0083);
    assert_eq!(machine.read(0x4000_0000), Ok(0xc000_0000));
    assert_eq!(machine.read(0x7ee0_0000), Err(0xe));
}

#[test]
fn a_page_that_reaches_the_interrupts_is_not_kept_whole() {
    let mut machine = Machine::legacy(Options::new(39));
    machine.ram.set(TOP + 8, 0xc000_0083);
    assert_eq!(machine.read(0x4000_0000), Ok(0xc000_0000));
    assert_eq!(machine.read(0x7ee0_0000), Err(0xe));
}

#[test]
fn another_requester_is_another_matter() {
    let mut machine = Machine::legacy(plain());
    let other = Request::new(RequesterId(0x19), 0x1000, Access::Read);
    assert_eq!(machine.request(other).unwrap_err().reason.0, 2);
    let bus = Request::new(RequesterId(0x118), 0x1000, Access::Read);
    assert_eq!(machine.request(bus).unwrap_err().reason.0, 1);
    // PASIDs are of scalable mode.
    assert_eq!(machine.dma_with(1, 0x1000, Access::Read), Err(0x31));
}
