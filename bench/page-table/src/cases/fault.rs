// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages faulted in one by one, by one thread and by two.

use std::sync::Barrier;
use std::time::Instant;

use hvkit_page_table::{Frames, Mapper, PhysicalWindow};

use super::START;
use crate::arena::{self, Pages};
use crate::ept::{Ept, RWX_WB};
use crate::harness::{Aim, Case, Report, Role, compare, elapsed};
use crate::tables::window;

const PAGES: u64 = 1 << 18;
const ONE: &str = "hvkit-page-table, one thread";
const TWO: &str = "hvkit-page-table, two threads";
const SAME: &str = "hvkit-page-table, two threads, same tables";

/// The arena as a pool for threads.
struct Shared;

impl Frames for Shared {
    fn allocate(&self) -> Option<u64> {
        Some(arena::allocate_shared() as u64)
    }

    fn free(&self, _: u64) {
        // Who loses a race frees a table: rare enough to leave it.
    }
}

fn fault_in(mapper: &Mapper<Ept, PhysicalWindow, Shared>, pages: impl Iterator<Item = u64>) {
    for page in pages {
        let at = START + page * 4096;
        mapper
            .fault_in(at..at + 4096, at + (1 << 40), RWX_WB)
            .expect("mapped");
    }
}

fn fresh() -> Mapper<Ept, PhysicalWindow, Shared> {
    arena::reset(Pages::Resident);
    Mapper::new(Ept, window(), Shared).expect("a root")
}

/// Runs `work` on two threads that start together; nanoseconds from the first start to the last end.
fn together(work: impl Fn(u64) + Sync) -> f64 {
    let barrier = Barrier::new(2);
    let times = std::thread::scope(|scope| {
        let threads = [0, 1].map(|n| {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                barrier.wait();
                let start = Instant::now();
                work(n);
                (start, Instant::now())
            })
        });
        threads.map(|thread| thread.join().expect("no panic"))
    });
    let start = times[0].0.min(times[1].0);
    let end = times[0].1.max(times[1].1);
    (end - start).as_nanos() as f64
}

/// How faults scale.
pub fn threads(rounds: usize) -> Report {
    arena::prepare(16 << 20, Pages::Resident);
    let one = || {
        let mapper = fresh();
        elapsed(|| fault_in(&mapper, 0..PAGES))
    };
    let two = || {
        let mapper = fresh();
        together(|n| fault_in(&mapper, n * PAGES / 2..(n + 1) * PAGES / 2))
    };
    let same = || {
        let mapper = fresh();
        together(|n| fault_in(&mapper, (n..PAGES).step_by(2)))
    };
    let case = |name: &str, run| Case {
        name: name.to_owned(),
        role: Role::Ours,
        run,
    };
    let cases = vec![
        case(ONE, Box::new(one) as _),
        case(TWO, Box::new(two)),
        case(SAME, Box::new(same)),
    ];
    let aims = [Aim {
        case: TWO,
        limit: Some(ONE),
        at_most: 1.0 / 1.8,
    }];
    compare(
        "fault in 1 GiB page by page",
        "page",
        PAGES as f64,
        rounds,
        cases,
        &aims,
    )
}
