// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every combination of the low bits of every table entry, against the specification's figures read as text.
//!
//! Each harness is a function of plain integers that panics where an entry type and its figure differ. Here it is
//! called with every combination; a prover may call it with any (`cargo kani --tests`).

mod entries;
mod figure;
mod irte;
mod stages;

/// What may stand above the low twelve bits: nothing, everything, and the bits at which meanings change.
const UPPER: [u64; 14] = [
    0,
    !0xfff,
    1 << 12,
    1 << 13,
    1 << 20,
    1 << 21,
    1 << 29,
    1 << 45,
    1 << 46,
    1 << 51,
    1 << 52,
    1 << 61,
    1 << 62,
    1 << 63,
];

/// Calls `harness` with every combination of the low twelve bits under each of [`UPPER`].
fn each_word(mut harness: impl FnMut(u64)) {
    for upper in UPPER {
        for low in 0..=0xfff {
            harness(upper | low);
        }
    }
}
