// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Capabilities from text.
//!
//! One MSR a line: its name or its index in hexadecimal, then its value in hexadecimal. A colon or an
//! equals sign may stand between. `#` begins a comment. Index and value may carry `0x`.
//!
//! ```text
//! IA32_VMX_BASIC = 0x00da040000000010
//! 0x481: 7f00000016   # pin-based
//! ```
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

use super::{Capabilities, Msr};

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum DumpProblem {
    /// Neither the name nor the index of a VMX capability MSR.
    #[error("this is not a VMX capability MSR")]
    UnknownMsr,
    /// There is no value, or it is not a hexadecimal number of at most 64 bits.
    #[error("a hexadecimal value of at most 64 bits should stand here")]
    BadValue,
    /// Something follows the value.
    #[error("nothing should follow the value")]
    Trailing,
    /// The MSR had a value in an earlier line.
    #[error("the MSR had a value before")]
    Twice,
}

/// Where a dump stops making sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[error("line {line}, byte {offset}: {problem}")]
pub struct DumpError {
    /// The line, from 1.
    pub line: usize,
    /// The byte of the whole text, from 0, where the offending word begins.
    pub offset: usize,
    /// What is wrong.
    #[source]
    pub problem: DumpProblem,
}

/// Reads a dump of VMX capability MSRs. MSRs that the text leaves out count as absent.
///
/// # Errors
///
/// [`DumpError`] for the first line that is not of the form; any bytes are accepted as input.
pub fn parse_dump(text: &[u8]) -> Result<Capabilities, DumpError> {
    let mut values = [None; Msr::ALL.len()];
    let mut start = 0_usize;
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let mut words = words_of(line);
        let fail = |at: usize, problem| DumpError {
            line: number.saturating_add(1),
            offset: start.saturating_add(at),
            problem,
        };
        if let Some((at, word)) = words.next() {
            let slot = slot_of(word).ok_or_else(|| fail(at, DumpProblem::UnknownMsr))?;
            let (value_at, word) = words.next().unwrap_or((line.len(), b""));
            let value = hex(word).ok_or_else(|| fail(value_at, DumpProblem::BadValue))?;
            if let Some((at, _)) = words.next() {
                return Err(fail(at, DumpProblem::Trailing));
            }
            match values.get_mut(slot) {
                Some(place @ None) => *place = Some(value),
                _ => return Err(fail(at, DumpProblem::Twice)),
            }
        }
        start = start.saturating_add(line.len()).saturating_add(1);
    }
    let find = |msr| Msr::ALL.iter().position(|known| *known == msr);
    Ok(Capabilities::from_msrs(|msr| {
        values.get(find(msr)?).copied().flatten()
    }))
}

/// Words of one line with their places; separators and comments are left out.
pub(crate) fn words_of(line: &[u8]) -> Words<'_> {
    Words { line, at: 0 }
}

pub(crate) struct Words<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Words<'a> {
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let separates = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b':' | b'=');
        let rest = self.line.get(self.at..)?;
        let skipped = rest.iter().position(|byte| !separates(byte))?;
        let start = self.at.saturating_add(skipped);
        let word = self.line.get(start..)?;
        if word.first() == Some(&b'#') {
            return None;
        }
        let length = word
            .iter()
            .position(|byte| separates(byte) || *byte == b'#');
        let length = length.unwrap_or(word.len());
        self.at = start.saturating_add(length);
        Some((start, word.get(..length)?))
    }
}

/// A hexadecimal number of 1 to 16 digits, with or without `0x`.
pub(crate) fn hex(word: &[u8]) -> Option<u64> {
    let digits = word
        .strip_prefix(b"0x")
        .or_else(|| word.strip_prefix(b"0X"))
        .unwrap_or(word);
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0, |value: u64, byte| {
        Some(value << 4 | u64::from(char::from(*byte).to_digit(16)?))
    })
}

fn slot_of(word: &[u8]) -> Option<usize> {
    let named = |msr: &Msr| msr.name().is_some_and(|name| name.as_bytes() == word);
    let numbered = |msr: &Msr| hex(word) == Some(u64::from(msr.0));
    Msr::ALL.iter().position(|msr| named(msr) || numbered(msr))
}
