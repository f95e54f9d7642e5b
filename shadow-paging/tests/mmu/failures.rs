// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every allocation of a frame and every read of the guest's memory fails once, in turn.

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{Board, Doing, Instruction, Outcome};
use hvkit_shadow_paging::guest::cr0;

use crate::support::{
    DIRECTORY, KERNEL_WRITE, LINEAR, OTHER_ROOT, PAGES, ROOT, TABLE, USED, load, registers, store,
    unstarted,
};

/// One step of the scenario: tried again until it succeeds.
type Step = fn(&mut Board) -> bool;

const SCENARIO: &[Step] = &[
    |b| load(b, LINEAR) == Outcome::Done(0),
    |b| matches!(store(b, LINEAR + 0x1000, 5), Outcome::Done(_)),
    |b| {
        matches!(
            b.edit(TABLE + 16, Width::Eight, (PAGES + 0x1000) | USED),
            Outcome::Done(_)
        )
    },
    |b| b.intercept(Instruction::Invlpg(LINEAR + 0x2000)),
    |b| load(b, LINEAR + 0x2000) == Outcome::Done(5),
    |b| b.intercept(Instruction::Cr3(OTHER_ROOT)),
    |b| load(b, LINEAR + 0x1000) == Outcome::Done(5),
    |b| matches!(b.edit(DIRECTORY + 8, Width::Eight, 0x87), Outcome::Done(_)),
    |b| {
        matches!(
            b.access(LINEAR + 0x20_0000 + PAGES, KERNEL_WRITE, Doing::Store(6)),
            Outcome::Done(_)
        )
    },
    |b| b.intercept(Instruction::Cr0(cr0::PG | cr0::PE)),
    |b| load(b, LINEAR) == Outcome::Done(6),
    |b| b.intercept(Instruction::Cr3(ROOT)),
    |b| matches!(store(b, LINEAR, 7), Outcome::Done(_)),
    |b| b.intercept(Instruction::InvalidateAll),
    |b| load(b, LINEAR) == Outcome::Done(7),
];

/// What a playing came to.
struct Played {
    /// How often a step failed.
    failed: u64,
    /// Allocations and reads there were.
    counts: (u64, u64),
    memory: std::collections::BTreeMap<u64, u64>,
}

/// Plays the scenario; `fail` is called once, at its start.
fn play(fail: impl FnOnce(&Board)) -> Played {
    let mut board = unstarted(64);
    board.start(registers());
    let before = board.host().counts();
    fail(&board);
    let mut failed = 0;
    for (number, step) in SCENARIO.iter().enumerate() {
        let mut tries = 0;
        while !step(&mut board) {
            failed += 1;
            tries += 1;
            assert!(tries < 3, "step {number} does not recover");
            board.audit();
        }
        board.audit();
    }
    let after = board.host().counts();
    Played {
        failed,
        counts: (after.0 - before.0, after.1 - before.1),
        memory: board.host().guest_words(0, 0x20_0000),
    }
}

#[test]
fn every_allocation_of_a_frame() {
    let right = play(|_| ());
    assert_eq!(right.failed, 0);
    assert!(right.counts.0 >= 12, "{:?}", right.counts);
    for n in 0..right.counts.0 {
        let played = play(|board| board.host().fail_allocation(Some(n)));
        // Seen, or made good by tables that were given up.
        assert!(
            played.failed > 0 || played.counts > right.counts,
            "allocation {n}"
        );
        assert_eq!(played.memory, right.memory, "allocation {n}");
    }
}

#[test]
fn every_read_of_guest_memory() {
    let right = play(|_| ());
    assert!(right.counts.1 >= 60, "{:?}", right.counts);
    let mut seen = 0;
    for n in 0..right.counts.1 {
        let played = play(|board| board.host().fail_read(Some(n)));
        assert_eq!(played.memory, right.memory, "read {n}");
        seen += u64::from(played.failed > 0);
    }
    // Of neighbours nothing is said.
    assert!(2 * seen > right.counts.1, "{seen} of {:?}", right.counts);
}

/// A root that cannot be loaded is not half loaded: the old one is in use, and the new one is loaded by the next try.
#[test]
fn a_root_that_cannot_be_loaded_leaves_the_old_one() {
    let mut board = unstarted(64);
    // Nothing is mapped there by the other root.
    board.set(OTHER_ROOT + 8, Width::Eight, 0);
    board.start(registers());
    store(&mut board, LINEAR, 1);
    board.host().fail_allocation(Some(0));
    assert!(!board.intercept(Instruction::Cr3(OTHER_ROOT)));
    assert_eq!(
        load(&mut board, LINEAR),
        Outcome::Done(1),
        "by the old root"
    );
    board.audit();
    assert!(board.intercept(Instruction::Cr3(OTHER_ROOT)));
    let after = load(&mut board, LINEAR);
    assert!(
        !matches!(after, Outcome::Done(_)),
        "by the new root: {after:?}"
    );
    board.audit();
}
