// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a process may use, as the kernel tells: proc(5), "/proc/pid/limits".

use std::fs;

/// The row of core files.
pub(crate) const CORE: &str = "Max core file size";
/// The row of open files.
pub(crate) const FILES: &str = "Max open files";

/// The limit and what it may be raised to; the largest number: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// The row `what` of a process.
pub(crate) fn limit(process: u32, what: &str) -> Limit {
    let text = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let row = text.lines().find_map(|line| line.strip_prefix(what));
    let mut words = row.unwrap_or_else(|| panic!("{text}")).split_whitespace();
    let mut number = || match words.next().unwrap() {
        "unlimited" => u64::MAX,
        number => number.parse().unwrap(),
    };
    Limit {
        soft: number(),
        hard: number(),
    }
}
