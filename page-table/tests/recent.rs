// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Single pages go where their leaf table is now, not where it was when it was last used.

mod formats;

use formats::{Eights, RWX};
use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::{Mapper, Stale};

const PAGE: u64 = 0x1000;
const BLOCK: u64 = 0x20_0000;

fn forget(_: &Stale) -> Result<(), ()> {
    Ok(())
}

/// What takes a leaf table away under the page at `BLOCK`, which was mapped by itself.
type Away = fn(&mut Mapper<Eights, &FakeTables, &FakeTables>) -> Stale;

#[test]
fn a_page_is_not_mapped_in_a_table_that_was_unlinked() {
    let ways: [(&str, Away); 2] = [
        ("unmapped as a range", |mapper| {
            mapper.unmap(BLOCK..2 * BLOCK).unwrap()
        }),
        ("emptied and merged", |mapper| {
            let stale = mapper.unmap(BLOCK..BLOCK + PAGE).unwrap();
            mapper.settle(stale, &mut forget).unwrap();
            mapper.merge(BLOCK..2 * BLOCK).unwrap()
        }),
    ];
    for (way, away) in ways {
        let memory = FakeTables::new();
        let mut mapper = Mapper::new(Eights::four_levels(), &memory, &memory).unwrap();
        mapper.map(BLOCK..BLOCK + PAGE, 0x7000, RWX).unwrap();
        // Now its table is remembered: the second page is mapped without a walk.
        mapper
            .map(BLOCK + PAGE..BLOCK + 2 * PAGE, 0x8000, RWX)
            .unwrap();
        let second = mapper.unmap(BLOCK + PAGE..BLOCK + 2 * PAGE).unwrap();
        mapper.settle(second, &mut forget).unwrap();
        let old = mapper.walk(BLOCK).steps()[3].at;
        let stale = away(&mut mapper);
        assert!(stale.tables(), "{way}: the table is unlinked");
        // Hardware may still read the old table: nothing may be written in it, and nothing found there.
        mapper.map(BLOCK..BLOCK + PAGE, 0x9000, RWX).unwrap();
        assert_eq!(mapper.translate(BLOCK).unwrap().target, 0x9000, "{way}");
        assert_ne!(mapper.walk(BLOCK).steps()[3].at, old, "{way}: a new table");
        mapper.settle(stale, &mut forget).unwrap();
        assert_eq!(
            mapper.translate(BLOCK).unwrap().target,
            0x9000,
            "{way}, settled"
        );
    }
}

#[test]
fn pages_that_share_a_slot_do_not_share_a_table() {
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::four_levels(), &memory, &memory).unwrap();
    // 64 blocks, more than are remembered, and one at the far end of the same pattern of bits.
    let blocks: Vec<u64> = (0..64).chain([(1 << 27) - 64]).collect();
    let page = |index: usize, turn: u64| {
        let at = blocks[index] * BLOCK + turn * PAGE;
        (at, (2 * index as u64 + turn) * PAGE)
    };
    for turn in 0..2 {
        for index in 0..blocks.len() {
            let (at, target) = page(index, turn);
            mapper.map(at..at + PAGE, target, RWX).unwrap();
        }
    }
    for index in 0..blocks.len() {
        for turn in 0..2 {
            let (at, target) = page(index, turn);
            assert_eq!(mapper.translate(at).unwrap().target, target);
            let stale = mapper.unmap(at..at + PAGE).unwrap();
            mapper.settle(stale, &mut forget).unwrap();
            assert!(mapper.translate(at).is_err());
        }
    }
}

#[test]
fn an_address_out_of_reach_is_refused_though_its_low_bits_are_remembered() {
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::four_levels(), &memory, &memory).unwrap();
    mapper.map(0..PAGE, 0x7000, RWX).unwrap();
    mapper.map(PAGE..2 * PAGE, 0x8000, RWX).unwrap();
    let beyond = (1 << 48) + 2 * PAGE;
    assert!(mapper.map(beyond..beyond + PAGE, 0x9000, RWX).is_err());
    assert!(mapper.unmap(beyond - PAGE..beyond).is_err());
    assert_eq!(mapper.translate(PAGE).unwrap().target, 0x8000);
}
