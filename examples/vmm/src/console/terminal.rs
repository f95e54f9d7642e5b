// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The user's terminal while it is the guest's: every key goes through as it is typed.

use rustix::stdio::stdin;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr,
};
use std::io;
use std::sync::OnceLock;

/// The mode that standard input was in when it was first taken over.
static FOUND: OnceLock<Termios> = OnceLock::new();

/// Restores standard input if it was ever taken over, where no destructor will: neither allocates nor locks.
pub(crate) fn restore() {
    if let Some(found) = FOUND.get() {
        // The process is about to end, whether this works or not.
        let _ = tcsetattr(stdin(), OptionalActions::Now, found);
    }
}

/// A terminal in raw mode; dropping it restores the mode found.
#[derive(Debug)]
pub struct RawTerminal {
    found: Termios,
}

impl RawTerminal {
    /// Puts standard input in raw mode; nothing if it is no terminal. Output processing stays on,
    /// so that the VMM's own messages keep their line ends.
    pub fn enter() -> io::Result<Option<Self>> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        let found = tcgetattr(stdin())?;
        FOUND.get_or_init(|| found.clone());
        let mut raw = found.clone();
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
        raw.local_modes.remove(cooked);
        let changed = InputModes::ICRNL | InputModes::IXON | InputModes::ISTRIP;
        raw.input_modes.remove(changed);
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(RawTerminal { found }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(stdin(), OptionalActions::Now, &self.found) {
            log::warn!("cannot restore the terminal: {error}");
        }
    }
}
