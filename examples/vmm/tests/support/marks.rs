// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the laboratory's host and its guests say, line by line.

use std::collections::BTreeMap;

/// What was said under a mark, by word.
pub(crate) fn said<'a>(text: &'a str, mark: &str) -> BTreeMap<&'a str, &'a str> {
    text.lines()
        .filter_map(|line| line.trim_end().strip_prefix(mark))
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .collect()
}
