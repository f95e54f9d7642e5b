// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMCS from text: one field a line, by name or number.
//!
//! The field is the name of its constant in [`crate::fields`] (in either case) or its encoding in hexadecimal;
//! the value is hexadecimal. A colon or an equals sign may stand between; `#` begins a comment.
//! [`crate::dump::Listing`] writes this form.
//!
//! ```
//! use hvkit_vmcs::{fields, store::{Fields, parse_listing}};
//!
//! let vmcs = parse_listing(b"guest_rip = 0xfff0\n0x6800: 80050033 # CR0\n")?;
//! assert_eq!(vmcs.read(fields::GUEST_CR0), Some(0x8005_0033));
//! # Ok::<(), hvkit_vmcs::store::ListingError>(())
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

use super::{FieldsMut, Snapshot};
use crate::{capability::words_of, encoding::Encoding, fields};

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum ListingProblem {
    /// Neither the name nor the encoding of a VMCS field.
    #[error("this is not a VMCS field")]
    UnknownField,
    /// There is no value, or it is not a hexadecimal number.
    #[error("a hexadecimal value should stand here")]
    BadValue,
    /// The value has more bits than the field.
    #[error("the value is too wide for {0}")]
    TooWide(Encoding),
    /// Something follows the value.
    #[error("nothing should follow the value")]
    Trailing,
}

/// Where a listing stops making sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[error("line {line}, byte {offset}: {problem}")]
pub struct ListingError {
    /// The line, from 1.
    pub line: usize,
    /// The byte of the whole text, from 0, where the offending word begins.
    pub offset: usize,
    /// What is wrong.
    #[source]
    pub problem: ListingProblem,
}

/// Reads a listing. Of a field that comes twice, the last value counts.
///
/// # Errors
///
/// [`ListingError`] for the first line that is not of the form; any bytes are accepted as input.
pub fn parse_listing(text: &[u8]) -> Result<Snapshot, ListingError> {
    let mut vmcs = Snapshot::new();
    let mut start = 0_usize;
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let mut words = words_of(line);
        let fail = |at: usize, problem| ListingError {
            line: number.saturating_add(1),
            offset: start.saturating_add(at),
            problem,
        };
        if let Some((at, word)) = words.next() {
            let field = field_of(word).ok_or_else(|| fail(at, ListingProblem::UnknownField))?;
            let (at, word) = words.next().unwrap_or((line.len(), b""));
            let value = crate::capability::hex(word);
            let value = value.ok_or_else(|| fail(at, ListingProblem::BadValue))?;
            let room = if field.is_high() {
                0xffff_ffff
            } else {
                field.width().mask()
            };
            if value & !room != 0 {
                return Err(fail(at, ListingProblem::TooWide(field)));
            }
            if let Some((at, _)) = words.next() {
                return Err(fail(at, ListingProblem::Trailing));
            }
            let unknown = |_| fail(0, ListingProblem::UnknownField);
            vmcs.set(field, value).map_err(unknown)?;
        }
        start = start.saturating_add(line.len()).saturating_add(1);
    }
    Ok(vmcs)
}

fn field_of(word: &[u8]) -> Option<Encoding> {
    if let Some(info) = core::str::from_utf8(word).ok().and_then(fields::find_by_id) {
        return Some(info.encoding);
    }
    let encoding = Encoding(u32::try_from(crate::capability::hex(word)?).ok()?);
    fields::find(encoding).map(|_| encoding)
}
