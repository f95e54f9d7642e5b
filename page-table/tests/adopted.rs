// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables that an earlier owner made, otherwise than this crate would.

mod formats;

use formats::{Eights, R, RW};
use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::{Mapper, OwnEntries, Sizes, Stale, Width};

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
