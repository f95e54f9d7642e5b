// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables that an earlier owner made, otherwise than this crate would; tables of a shape that it cannot make.

mod formats;

use formats::{Eights, Fours, R, RW};
use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::law::{Broken, broken};
use hvkit_page_table::{Frames, MapError, Mapper, OwnEntries, Shape, Sizes, Stale, Upper, Width};

const PAGE: u64 = 0x1000;

fn forget(_: &Stale) -> Result<(), ()> {
    Ok(())
}

/// What an entry that leads to a table withholds is in no leaf: a larger leaf in the table's place would grant it.
#[test]
fn a_merge_keeps_a_table_whose_upper_entry_withholds_a_right() {
    // The entry at the root, which is for 16 pages, and the one below it, which is for four.
    for (step, pages) in [(0, 16), (1, 4)] {
        let memory = FakeTables::new();
        let mut earlier = Mapper::new(Eights::tiny(), &memory, &memory)
            .unwrap()
            .with_sizes(Sizes::SMALLEST);
        earlier.map(0..64 * PAGE, 0x10_0000, RW).unwrap();
        let at = earlier.walk(0).steps()[step].at.unwrap();
        let read_only = memory.load(at, Width::Eight) & !2;
        memory.tamper(at, Width::Eight, read_only);
        let mut mapper = Mapper::adopt(Eights::tiny(), &memory, &memory, earlier.root());
        let view = |mapper: &Mapper<Eights, _, _>| {
            let each = (0..64).map(|page| mapper.translate(page * PAGE).unwrap());
            each.map(|there| (there.target, there.attributes))
                .collect::<Vec<_>>()
        };
        let before = view(&mapper);
        let restricted = before.iter().filter(|(_, rights)| *rights == R).count();
        assert_eq!(restricted, pages);
        let stale = mapper.merge(0..64 * PAGE).unwrap();
        mapper.settle(stale, &mut forget).unwrap();
        assert_eq!(view(&mapper), before, "step {step}");
        // What is below the restriction merges, and so does what is beside it.
        let level = |page: u64| mapper.translate(page * PAGE).unwrap().level;
        let below = if step == 0 { 2 } else { 1 };
        assert_eq!(
            [0, pages as u64, 16].map(level),
            [below, if step == 0 { 3 } else { 2 }, 3]
        );
    }
}

/// A frame is 4 KiB. What is larger would be written over its neighbours.
#[test]
fn a_table_that_no_frame_holds_is_neither_made_nor_added_to() {
    let shape = |bits: &[u8], width| Shape::new(12, bits, 1, width, Upper::Zero).unwrap();
    for (shape, level, bytes) in [
        (shape(&[12, 12], Width::Eight), 1, 0x8000),
        (shape(&[9, 10], Width::Eight), 2, 0x2000),
        (shape(&[9, 10, 9, 9], Width::Eight), 2, 0x2000),
        (shape(&[10, 11], Width::Four), 2, 0x2000),
    ] {
        let memory = FakeTables::new();
        let refused = Err(MapError::TableTooLarge { level, bytes });
        let made = Mapper::new(Eights::with(shape), &memory, &memory).map(|_| ());
        assert_eq!(made, refused);
        assert_eq!((memory.in_use(), memory.journal().len()), (0, 0));

        let root = memory.allocate().unwrap();
        memory.fill(root, Width::Eight, 512, |_| 0);
        memory.checkpoint();
        let mut mapper = Mapper::adopt(Eights::with(shape), &memory, &memory, root);
        assert_eq!(mapper.map(0..PAGE, 0x10_0000, RW), refused);
        assert_eq!(mapper.fault_in(0..PAGE, 0x10_0000, RW).map(|_| ()), refused);
        assert_eq!((memory.in_use(), memory.journal().len()), (1, 0));

        let law = Broken::TableTooLarge { level, bytes };
        assert_eq!(broken(&Eights::with(shape), &[RW]), Some(law));
    }
    let memory = FakeTables::new();
    let full = shape(&[9, 1, 9], Width::Eight);
    assert!(Mapper::new(Eights::with(full), &memory, &memory).is_ok());
    assert!(Mapper::new(Fours::new(), &memory, &memory).is_ok());
}
