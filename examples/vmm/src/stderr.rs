// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the user is told, on standard error, if anybody is there.

use std::fmt;
use std::io::Write;

/// Prints `line`. Nobody may be there any more (`vmm ... 2>&1 | head`): the machine goes on all the same, which it would not
/// by the standard library's macros, which panic.
pub(crate) fn line(line: impl fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The same for whole lines.
pub(crate) fn text(text: impl fmt::Display) {
    let _ = write!(std::io::stderr(), "{text}");
}
