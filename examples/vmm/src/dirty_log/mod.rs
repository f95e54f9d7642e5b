// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages of the guest's memory were written since somebody asked last: `--dirty-log`.
//!
//! ```text
//!   start     ok
//!   pages     all=65536 processors=812 vmm=unknown disk=65536 disk.by=container
//!   stop      ok
//! ```
//!
//! Each [`Writer`] tells of what it may have written, rather too much than too little. What the VMM's own devices write,
//! and those of other processes, is in none: their accesses go without a log, on or off.
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

mod pages;
mod processors;

pub use pages::Pages;
pub use processors::Processors;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Who knows what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// KVM's log of its memory slots.
    Kvm,
    /// The kernel, by VFIO's container. Of a device whose IOMMU does not tell, all that is mapped for it.
    Container,
    /// The guest's own remapping unit: what it let the device write.
    Unit,
    /// Nobody, for this reason: all of the memory counts.
    Nobody(String),
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            By::Kvm => f.write_str("kvm"),
            By::Container => f.write_str("container"),
            By::Unit => f.write_str("unit"),
            By::Nobody(why) => write!(f, "\"none: {why}\""),
        }
    }
}

/// Who writes the guest's memory.
pub trait Writer: Send {
    /// How the user calls it: the processors, or devices that reach the same memory.
    fn names(&self) -> Vec<String>;

    /// From now on there is a log.
    ///
    /// # Errors
    ///
    /// The host has none.
    fn start(&mut self) -> io::Result<()>;

    /// Adds what may have been written since the start, or since this was asked last.
    ///
    /// # Errors
    ///
    /// Nothing can be told of that time. The log goes on.
    fn pages(&mut self, pages: &mut Pages) -> io::Result<By>;

    /// There is no log any more.
    ///
    /// # Errors
    ///
    /// It goes on, and costs what it costs.
    fn stop(&mut self) -> io::Result<()>;
}

/// A log of all that write.
pub struct DirtyLog {
    writers: Vec<Box<dyn Writer>>,
    /// Where the pages go, bit by bit.
    bitmap: Option<File>,
    /// What was written and not yet told; none while there is no log.
    untold: Option<Pages>,
    /// None of the memory's.
    none: Pages,
}

impl fmt::Debug for DirtyLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyLog")
            .field("writers", &self.writers.len())
            .field("runs", &self.untold.is_some())
            .finish_non_exhaustive()
    }
}

impl DirtyLog {
    /// A log of those who write a memory of which `none` is written, which does not run yet; `bitmap` is written at every
    /// question.
    #[must_use]
    pub fn new(none: Pages, writers: Vec<Box<dyn Writer>>, bitmap: Option<File>) -> Self {
        DirtyLog {
            writers,
            bitmap,
            untold: None,
            none,
        }
    }

    /// The answer to a line.
    pub fn obey(&mut self, line: &str) -> String {
        let answer = match (line, &self.untold) {
            ("start", None) => self.start(),
            ("start", Some(_)) => Err("the log runs already".to_owned()),
            ("pages", Some(_)) => self.pages(),
            ("stop", Some(_)) => self.stop(),
            ("pages" | "stop", None) => Err("the log does not run: start it".to_owned()),
            _ => Err(format!(
                "unknown command '{line}' (known: start, pages, stop)"
            )),
        };
        answer.unwrap_or_else(|why| format!("error: {why}"))
    }

    fn start(&mut self) -> Result<String, String> {
        for index in 0..self.writers.len() {
            let (before, this) = self.writers.split_at_mut(index);
            let Some(writer) = this.first_mut() else {
                continue;
            };
            if let Err(error) = writer.start() {
                for writer in before {
                    // As good as it gets: a log that nobody reads.
                    let _ = writer.stop();
                }
                return Err(format!("{}: {error}", writer.names().join(", ")));
            }
        }
        self.untold = Some(self.none.clone());
        Ok("ok".to_owned())
    }

    fn pages(&mut self) -> Result<String, String> {
        let mut words = Vec::new();
        let mut all = self.untold.take().unwrap_or_else(|| self.none.clone());
        for writer in &mut self.writers {
            let mut pages = self.none.clone();
            let by = writer.pages(&mut pages).unwrap_or_else(|error| {
                pages.add_all();
                By::Nobody(error.to_string())
            });
            if matches!(by, By::Nobody(_)) {
                pages.add_all();
            }
            all.join(&pages);
            let count = pages.count();
            for name in writer.names() {
                words.push(match &by {
                    By::Kvm => format!("{name}={count} vmm=unknown"),
                    by => format!("{name}={count} {name}.by={by}"),
                });
            }
        }
        let written = self.bitmap.as_ref().map_or(Ok(()), |file| {
            all.bytes()
                .try_for_each(|(at, bytes)| file.write_all_at(&bytes, at))
        });
        if let Err(error) = written {
            // The next question has them too.
            self.untold = Some(all);
            return Err(format!("cannot write the bitmap: {error}"));
        }
        self.untold = Some(self.none.clone());
        Ok(format!("all={} {}", all.count(), words.join(" ")))
    }

    fn stop(&mut self) -> Result<String, String> {
        self.untold = None;
        let mut stopped = Ok("ok".to_owned());
        for writer in &mut self.writers {
            if let Err(error) = writer.stop() {
                stopped = Err(format!("{}: {error}", writer.names().join(", ")));
            }
        }
        stopped
    }
}

#[cfg(test)]
mod tests;
