// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files and numbers as users give them.

use std::fs::File;
use std::io::{Read, stdin};
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The longest file read: a memory image of a small guest. What is larger should be cut first.
const LONGEST: u64 = 1 << 32;

/// The bytes of a file; `-` is the standard input.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let from: Box<dyn Read> = if path == Path::new("-") {
        Box::new(stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
    };
    // One more, by which it is known to be longer.
    from.take(LONGEST.saturating_add(1))
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        bytes.len() as u64 <= LONGEST,
        "{} is longer than 4 GiB",
        path.display()
    );
    Ok(bytes)
}

/// A number: hexadecimal after `0x`, else decimal.
pub(crate) fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("{text} is not a number: {error}"))
}
