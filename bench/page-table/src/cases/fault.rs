// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages faulted in one by one, by one thread and by two.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use hvkit_page_table::{Frames, Mapper, PhysicalWindow};

use super::START;
use crate::arena::{self, Pages};
use crate::ept::{Ept, RWX_WB};
use crate::harness::{Aim, Case, Report, Role, compare, time};
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

/// Runs `work` on two threads that start together; nanoseconds of processor time of the longer.
///
/// Not the time that passes: that is a matter of what else runs on the machine. What the threads cost
/// each other, by lines that both write, counts.
fn together(work: impl Fn(u64) + Sync) -> f64 {
    let barrier = Barrier::new(2);
    let times = std::thread::scope(|scope| {
        let threads = [0, 1].map(|n| {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                barrier.wait();
                time(|| work(n))
            })
        });
        threads.map(|thread| thread.join().expect("no panic"))
    });
    times[0].max(times[1])
}

/// The limit: one exchange a page, of leaf entries side by side, and nothing else.
fn exchange(pages: std::ops::Range<u64>) {
    let base = arena::base() as *const AtomicU64;
    for page in pages {
        // SAFETY: inside the arena, which this case has to itself.
        let slot = unsafe { &*base.add(page as usize) };
        let leaf = page << 12 | 0x37;
        let done = slot.compare_exchange(0, leaf, Ordering::AcqRel, Ordering::Acquire);
        done.expect("nobody else is here");
    }
}

/// The pages of thread `n` of two.
fn half(n: u64) -> std::ops::Range<u64> {
    n * PAGES / 2..(n + 1) * PAGES / 2
}

/// Makes the slots of [`exchange`] empty.
fn clear() {
    arena::reset(Pages::Resident);
    // SAFETY: inside the arena, which this case has to itself.
    unsafe { std::ptr::write_bytes(arena::base() as *mut u64, 0, PAGES as usize) };
}

/// How faults scale.
pub fn threads(rounds: usize) -> Report {
    arena::prepare(16 << 20, Pages::Resident);
    let limit_one = || {
        clear();
        time(|| exchange(0..PAGES))
    };
    let limit_two = || {
        clear();
        together(|n| exchange(half(n)))
    };
    let one = || {
        let mapper = fresh();
        time(|| fault_in(&mapper, 0..PAGES))
    };
    let two = || {
        let mapper = fresh();
        together(|n| fault_in(&mapper, half(n)))
    };
    let same = || {
        let mapper = fresh();
        together(|n| fault_in(&mapper, (n..PAGES).step_by(2)))
    };
    let case = |name: &str, role, run| Case {
        name: name.to_owned(),
        role,
        run,
    };
    let cases = vec![
        case(
            "one exchange a page, one thread",
            Role::Limit,
            Box::new(limit_one) as _,
        ),
        case(
            "one exchange a page, two threads",
            Role::Limit,
            Box::new(limit_two),
        ),
        case(ONE, Role::Ours, Box::new(one)),
        case(TWO, Role::Ours, Box::new(two)),
        case(SAME, Role::Ours, Box::new(same)),
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
