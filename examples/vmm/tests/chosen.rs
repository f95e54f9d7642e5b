// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The programs of this folder that have no harness of Rust's run the tests that they are asked for, and no others: what else they counted
//! would stand for tests that failed before and did not run again.

#[path = "support/chosen.rs"]
mod support;

use support::chosen;

#[test]
fn tests_are_chosen_as_the_harness_does() {
    let names = ["a_disk", "a_disk_again", "a_network"];
    let of = |words: &str| {
        let words = words.split_whitespace().map(str::to_owned);
        chosen(words, &names).join(" ")
    };
    for (words, expected) in [
        ("", "a_disk a_disk_again a_network"),
        ("disk", "a_disk a_disk_again"),
        ("--exact a_disk", "a_disk"),
        ("a_disk a_network --exact", "a_disk a_network"),
        ("--exact disk", ""),
        ("network again", "a_disk_again a_network"),
        ("disk --skip again", "a_disk"),
        ("--exact --skip=a_disk", "a_disk_again a_network"),
        (
            "--test-threads 1 --nocapture -q",
            "a_disk a_disk_again a_network",
        ),
        ("--color always network", "a_network"),
    ] {
        assert_eq!(of(words), expected, "{words:?}");
    }
}
