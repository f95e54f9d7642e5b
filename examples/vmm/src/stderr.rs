// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the user is told, on standard error, if anybody is there.
//!
//! Nobody may be there any more (`vmm ... 2>&1 | head`), or somebody who does not read: a terminal that stands still. The
//! machine goes on, and ends, all the same, which it would not by the standard library's macros: they panic or wait.

use crate::unread;
use hvkit_virtio_devices::patience::end_of;
use rustix::event::Timespec;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a message waits for its reader, if the one before it was read.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often it is looked at the clock.
const SLICE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// As long as a message waits after one that was lost.
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Standard error, opened so that writing does not wait, if it could be.
static ANEW: OnceLock<Option<OwnedFd>> = OnceLock::new();
static MESSAGES: Mutex<Messages> = Mutex::new(Messages {
    lost: 0,
    is_torn: false,
});

/// To be called before the process gives up opening files.
pub(crate) fn open() {
    ANEW.get_or_init(|| unread::anew(std::io::stderr()));
}

/// Prints `line`.
pub(crate) fn line(line: impl fmt::Display) {
    text(format_args!("{line}\n"));
}

/// The same for whole lines.
pub(crate) fn text(text: impl fmt::Display) {
    // Before the lock is taken: it may be anything.
    let text = text.to_string();
    let mut messages = MESSAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let file = match ANEW.get() {
        Some(Some(file)) => file.as_fd(),
        _ => rustix::stdio::stderr(),
    };
    messages.tell(&text, file);
}

/// What became of the messages so far.
#[derive(Debug)]
struct Messages {
    /// How many were lost since the last that was read.
    lost: u64,
    /// The last one ends within a line.
    is_torn: bool,
}

impl Messages {
    /// Writes `text` to `file`, or does not, in bounded time. All messages that are lost one after another have waited
    /// once together.
    fn tell(&mut self, text: &str, file: BorrowedFd<'_>) {
        if self.lost > 0 {
            let end = if self.is_torn { "\n" } else { "" };
            let lost = self.lost;
            let note = format!("{end}vmm: {lost} messages are lost here: nobody read them\n");
            if !self.put(note.as_bytes(), file) {
                self.lost = lost.saturating_add(1);
                return;
            }
            self.lost = 0;
        }
        if !self.put(text.as_bytes(), file) {
            self.lost = 1;
        }
    }

    /// Whether `bytes` were written, or nobody is there.
    fn put(&mut self, mut bytes: &[u8], file: BorrowedFd<'_>) -> bool {
        let (slice, until) = match self.lost {
            0 => (SLICE, end_of(PATIENCE)),
            _ => (AT_ONCE, Instant::now()),
        };
        while !bytes.is_empty() {
            match unread::write(file, bytes, &slice) {
                Ok(Some(written)) => {
                    bytes = bytes.get(written..).unwrap_or_default();
                    self.is_torn = !bytes.is_empty();
                }
                Ok(None) if Instant::now() >= until => return false,
                Ok(None) => {}
                Err(_) => return true,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Read};

    #[test]
    fn messages_that_nobody_reads_wait_once_together_and_are_counted() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut messages = Messages {
            lost: 0,
            is_torn: false,
        };
        let began = Instant::now();
        let long = format!("{}\n", "x".repeat(65536));
        messages.tell(&long, writer.as_fd());
        assert!(began.elapsed() >= PATIENCE, "it had time to read");
        for _ in 0..1000 {
            messages.tell("one more\n", writer.as_fd());
        }
        assert!(began.elapsed() < 2 * PATIENCE, "each waited");
        assert_eq!(messages.lost, 1001);
        let mut read = vec![0; 65536];
        reader.read_exact(&mut read).unwrap();
        messages.tell("here again\n", writer.as_fd());
        assert_eq!(messages.lost, 0);
        drop(writer);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        let note = "\nvmm: 1001 messages are lost here: nobody read them\nhere again\n";
        assert_eq!(rest, note);
    }

    #[test]
    fn a_closed_reader_is_no_loss() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut messages = Messages {
            lost: 0,
            is_torn: false,
        };
        messages.tell("nobody\n", writer.as_fd());
        assert_eq!(messages.lost, 0);
    }
}
