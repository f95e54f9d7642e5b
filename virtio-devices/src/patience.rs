// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a bounded wait is over.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use std::time::{Duration, Instant};

/// What stands for a patience that no clock can show the end of: as good as for ever, and still bounded.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// When somebody whose patience begins now loses it. A patience that is longer than the clock goes on counts as a century.
#[must_use]
pub fn end_of(patience: Duration) -> Instant {
    let now = Instant::now();
    let end = now.checked_add(patience);
    // Without even a century left, the clock itself is at its end.
    end.or_else(|| now.checked_add(LONGEST)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patience_ends_after_it_and_one_without_end_ends_too() {
        let before = Instant::now();
        let end = end_of(Duration::from_secs(7));
        let after = Instant::now();
        let seven = Duration::from_secs(7);
        assert!(before + seven <= end && end <= after + seven);
        // `Instant::now() + Duration::MAX` would panic.
        assert!(end_of(Duration::MAX) >= before + LONGEST);
    }
}
