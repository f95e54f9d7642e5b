// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random guests, run twice: by the guest walker alone, and by the shadow MMU under a processor that
//! forgets nothing. Every access must come to the same, and every byte of the guest's tables.

mod many;
mod native;
mod program;
mod tables;

use hvkit_shadow_paging::guest::Layout;
use hvkit_shadow_paging::mmu::{Tuning, Unsync};

use crate::program::{Plan, Play};

const LAYOUTS: [Layout; 4] = [
    Layout::ThirtyTwoBit,
    Layout::Pae,
    Layout::FourLevel,
    Layout::FiveLevel,
];

/// Programs of each layout: `HVKIT_CASES`, or `usual`, which fits CI.
fn cases(usual: u64) -> u64 {
    let asked = std::env::var("HVKIT_CASES").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Plays `count` programs of each layout, or as many as are asked for.
fn play(name: &str, count: u64, plan: Plan) {
    let mut all = Play::default();
    for layout in LAYOUTS {
        for seed in 0..cases(count) {
            all.add(&program::play(layout, seed, &plan));
        }
    }
    println!("{name}: {all:?}");
    assert!(all.done > 0 && all.refused > 0, "both happen: {all:?}");
}

#[test]
fn programs_come_to_the_same() {
    play("all", 80, Plan::default());
}

#[test]
fn without_unsync_tables_too() {
    let tuning = Tuning {
        unsync: Unsync::Never,
        ..Tuning::default()
    };
    let plan = Plan {
        tuning,
        ..Plan::default()
    };
    play("guarded", 40, plan);
}

#[test]
fn with_small_pages_only_and_no_prefetch_too() {
    let tuning = Tuning {
        prefetch: 1,
        largest: 1,
        ..Tuning::default()
    };
    let plan = Plan {
        tuning,
        ..Plan::default()
    };
    play("small", 40, plan);
}

#[test]
fn with_hardly_any_frames_too() {
    let plan = Plan {
        budget: 16,
        ..Plan::default()
    };
    play("16 frames", 40, plan);
}

#[test]
fn while_the_host_moves_logs_and_takes_back() {
    let plan = Plan {
        host: true,
        budget: 24,
        ..Plan::default()
    };
    play("host", 60, plan);
}

#[test]
fn whatever_fails() {
    let plan = Plan {
        failures: true,
        host: true,
        ..Plan::default()
    };
    play("failures", 40, plan);
}
