// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is written, and where to.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

/// Where the answer goes.
pub(crate) struct Page<'a>(&'a mut dyn Write);

impl<'a> Page<'a> {
    pub(crate) fn new(to: &'a mut dyn Write) -> Self {
        Self(to)
    }

    /// For people, who may be at a terminal: see [`plain`].
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        self.0.write_all(plain(text).as_bytes())
    }

    /// The same with the end of the line.
    pub(crate) fn line(&mut self, line: impl Display) -> io::Result<()> {
        self.text(&format!("{line}\n"))
    }

    /// For programs.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        Ok(writeln!(self.0, "{text}")?)
    }

    /// A picture, which is as it should be.
    pub(crate) fn svg(&mut self, picture: &str) -> io::Result<()> {
        self.0.write_all(picture.as_bytes())
    }
}

/// `text` with U+FFFD where a character would control a terminal, but for ends of lines and tabs: files may have any.
#[must_use]
pub fn plain(text: &str) -> String {
    let plain = |character: char| match character {
        '\n' | '\t' => character,
        character if character.is_control() => '\u{fffd}',
        character => character,
    };
    text.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_does_not_speak_to_the_terminal() {
        let said = "a\tb\u{1b}]0;title\u{7}\u{9b}2J\r\u{7f}\n";
        let shown = "a\tb\u{fffd}]0;title\u{fffd}\u{fffd}2J\u{fffd}\u{fffd}\n";
        assert_eq!(plain(said), shown);
        let mut written = Vec::new();
        Page::new(&mut written).line(said.trim_end()).unwrap();
        assert_eq!(written, shown.as_bytes());
    }
}
