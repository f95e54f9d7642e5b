// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What disks hold and what guests say.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

pub(crate) const MIB: usize = 1 << 20;

/// No two sectors alike, and not zero.
pub(crate) fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let words = (0..length as u32 / 4).map(|i| i.wrapping_mul(2_654_435_761) ^ seed);
    words.flat_map(u32::to_le_bytes).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a guest said, by word.
pub(crate) fn said(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.trim_end().strip_prefix("@test "))
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .collect()
}
