// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs of pages in a table that is there: what they store, and what is left to the passes and refused by them.

mod formats;

use formats::{Eights, RWX};
use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::{MapError, Mapper, Stale};

const PAGE: u64 = 0x1000;
const BLOCK: u64 = 0x20_0000;

fn forget(_: &Stale) -> Result<(), ()> {
    Ok(())
}

/// A table with one page, the first of `BLOCK`, and so a leaf table there.
fn mapper(memory: &FakeTables) -> Mapper<Eights, &FakeTables, &FakeTables> {
    let mut mapper = Mapper::new(Eights::four_levels(), memory, memory).unwrap();
    mapper.map(BLOCK..BLOCK + PAGE, 0x7000, RWX).unwrap();
    memory.checkpoint();
    mapper
}

#[test]
fn a_run_is_one_store_a_page_each_way() {
    let memory = FakeTables::new();
    let mut mapper = mapper(&memory);
    let run = BLOCK + 3 * PAGE..BLOCK + 200 * PAGE;
    mapper.map(run.clone(), 0x5_0000, RWX).unwrap();
    assert_eq!(memory.journal().len(), 197);
    for page in 0..512 {
        let address = BLOCK + page * PAGE;
        let expected = match page {
            0 => Some(0x7000),
            3..200 => Some(0x5_0000 + (page - 3) * PAGE),
            _ => None,
        };
        let found = mapper.translate(address).ok().map(|found| found.target);
        assert_eq!(found, expected, "{address:#x}");
    }
    memory.checkpoint();
    let stale = mapper.unmap(run.clone()).unwrap();
    assert_eq!(memory.journal().len(), 197);
    assert!(!stale.tables());
    let spans: Vec<_> = stale.spans().iter().map(|s| (s.start, s.length)).collect();
    assert_eq!(spans, [(run.start, run.end - run.start)]);
    assert!(
        (run.start..run.end)
            .step_by(0x1000)
            .all(|at| mapper.translate(at).is_err())
    );
    assert!(mapper.translate(BLOCK).is_ok());
    mapper.settle(stale, &mut forget).unwrap();
}

#[test]
fn what_a_run_cannot_be_is_refused_before_anything_is_stored() {
    let memory = FakeTables::new();
    let mut mapper = mapper(&memory);
    let far = BLOCK + 100 * PAGE;
    mapper.map(far..far + PAGE, 0x9000, RWX).unwrap();
    memory.checkpoint();
    // A page is there, at the end, in the middle.
    for end in [far + PAGE, far + 9 * PAGE] {
        let refused = mapper.map(far - 4 * PAGE..end, 0x5_0000, RWX);
        assert!(
            matches!(refused, Err(MapError::Overlap { .. })),
            "{refused:?}"
        );
    }
    // The last target is too wide, or there is none.
    for target in [(1 << 46) - PAGE, (1 << 52) - PAGE, u64::MAX - PAGE + 1] {
        let refused = mapper.map(BLOCK + PAGE..BLOCK + 3 * PAGE, target, RWX);
        assert!(
            matches!(refused, Err(MapError::TargetTooWide { .. })),
            "{refused:?}"
        );
    }
    let nothing = mapper.unmap(BLOCK + PAGE..BLOCK + 9 * PAGE);
    assert!(matches!(nothing, Err(MapError::NothingMapped { .. })));
    assert_eq!(memory.journal().len(), 0);
}

#[test]
fn holes_and_borders_are_the_passes() {
    let memory = FakeTables::new();
    let mut mapper = mapper(&memory);
    // Over the border of two tables, one of which is not there yet.
    let across = 2 * BLOCK - 2 * PAGE..2 * BLOCK + 2 * PAGE;
    mapper.map(across.clone(), 0x5_0000, RWX).unwrap();
    assert_eq!(mapper.translate(2 * BLOCK).unwrap().target, 0x5_2000);
    // A hole in the middle is fine.
    let hole = mapper
        .unmap(2 * BLOCK - 2 * PAGE..2 * BLOCK - PAGE)
        .unwrap();
    mapper.settle(hole, &mut forget).unwrap();
    let stale = mapper.unmap(2 * BLOCK - 3 * PAGE..2 * BLOCK).unwrap();
    assert!(
        stale
            .spans()
            .iter()
            .any(|span| span.start == 2 * BLOCK - PAGE)
    );
    mapper.settle(stale, &mut forget).unwrap();
    assert!(mapper.translate(2 * BLOCK - PAGE).is_err());
    assert!(mapper.translate(2 * BLOCK).is_ok());
}
