// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A token that is dropped unsettled is said in a warning, in debug builds: what is lost with it.
//!
//! A binary of its own: a program has one logger.
#![cfg(debug_assertions)]

mod formats;

use std::sync::Mutex;

use formats::{Eights, RW};
use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::{Mapper, Sizes, Stale};
use log::{Level, LevelFilter, Log, Metadata, Record};

const PAGE: u64 = 0x1000;

/// Remembers.
struct Said(Mutex<Vec<(Level, String)>>);

static SAID: Said = Said(Mutex::new(Vec::new()));

impl Log for Said {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = (record.level(), record.args().to_string());
        self.0.lock().unwrap().push(line);
    }

    fn flush(&self) {}
}

#[test]
fn a_lost_token_says_what_is_lost() {
    log::set_logger(&SAID).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::tiny(), &memory, &memory)
        .unwrap()
        .with_sizes(Sizes::SMALLEST);
    mapper.map(0..64 * PAGE, 0x10_0000, RW).unwrap();
    let (root, take) = (mapper.root(), || {
        std::mem::take(&mut *SAID.0.lock().unwrap())
    });
    // Three tables of four pages each, of which none is a neighbour of another; and a page.
    let mut stale = mapper.nothing_stale();
    for table in [0, 2, 4] {
        let first = table * 4 * PAGE;
        let more = mapper.unmap(first..first + 4 * PAGE).unwrap();
        mapper.merge_stale(&mut stale, more).unwrap();
    }
    drop(stale);
    drop(mapper.unmap(63 * PAGE..64 * PAGE).unwrap());
    let [(warned, tables), (Level::Warn, page)] = &take()[..] else {
        panic!("two warnings");
    };
    assert_eq!(*warned, Level::Warn);
    let beginning = format!("a stale token of the table at {root:#x} was dropped unsettled: ");
    assert!(
        tables.starts_with(&format!("{beginning}3 subtrees")),
        "{tables}"
    );
    assert!(
        page.starts_with(&format!("{beginning}0 subtrees")),
        "{page}"
    );
    assert!(page.contains("3f000"), "{page}");
    // What is settled, and what owes nothing, is no loss.
    let stale = mapper.unmap(16 * PAGE..32 * PAGE).unwrap();
    mapper
        .settle(stale, &mut |_: &Stale| Ok::<(), ()>(()))
        .unwrap();
    drop(mapper.nothing_stale());
    assert_eq!(take(), []);
}
