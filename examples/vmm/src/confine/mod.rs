// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMM confined: what a guest that took over one of its threads could still do.
//!
//! ```text
//!   Machine::new   opens every file, device and socket             nothing is confined yet
//!                  the nursery starts ----------------------+      (it starts threads for those that may not)
//!   Machine::run   limits: no core file, few files          |
//!                  Landlock: no path, no TCP, no abstract   |      inherited by every thread started later
//!                  vCPU threads: filter                     +----> device threads: Landlock, filter
//!                  main thread: filter
//! ```
//!
//! A filter lists the system calls that a kind of thread makes, with arguments where they matter, and ends the process
//! at any other, saying which ([`alarm`]). No thread may open a file, start a program, become another user, trace
//! another process, or make memory executable; vCPU threads, which face the guest, cannot start threads either.
//! Everything is opened before, so no list of paths is needed: Landlock refuses all of them.

pub mod alarm;
pub mod calls;
mod files;
mod filter;
mod limits;
mod nursery;

pub use files::{Coverage, refuse_all, refuse_all_but_removal};
pub use limits::bound;
pub use nursery::{Nursery, Starter};

use crate::config::Confinement;
use filter::Filters;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The kinds of threads, by what they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The main thread while the guest runs, and afterwards.
    Main,
    /// Runs a vCPU.
    Vcpu,
    /// Serves a device: files, taps, terminals that are open already.
    Device,
    /// Serves a device that makes connections: local sockets.
    Sockets,
    /// Waits for one thing, a watchdog that nobody feeds, and ends the machine.
    Watch,
    /// Answers at a local socket that was opened before.
    Control,
    /// Waits for events that become interrupts.
    Interrupts,
    /// Starts threads.
    Nursery,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 8] = [
        Kind::Main,
        Kind::Vcpu,
        Kind::Device,
        Kind::Sockets,
        Kind::Watch,
        Kind::Control,
        Kind::Interrupts,
        Kind::Nursery,
    ];

    /// Whether threads of this kind start before the process gives up its files, and so have to do that themselves.
    fn is_early(self) -> bool {
        matches!(
            self,
            Kind::Watch | Kind::Control | Kind::Interrupts | Kind::Nursery
        )
    }

    /// The kind of a device's thread of that name.
    #[must_use]
    pub fn of_device(name: &str) -> Kind {
        // One that finds its back end again connects to it.
        let again = name.starts_with("vhost-") && name.ends_with("-again");
        if name.starts_with("vsock") || name == "vhost-guest" || again {
            Kind::Sockets
        } else {
            Kind::Device
        }
    }
}

/// A thread or the process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A filter.
    #[error("cannot filter system calls: {0}; --confine off does without")]
    Filter(#[from] seccompiler::Error),
    /// A filter's program: a defect of the lists.
    #[error("cannot compile a filter of system calls: {0}")]
    Compile(#[from] seccompiler::BackendError),
    /// Landlock, where there is one.
    #[error("cannot give up the file system: {0}; --confine off does without")]
    Files(#[from] landlock::RulesetError),
    /// A limit, a signal's handler, the first thread.
    #[error("cannot {action}: {source}; --confine off does without")]
    Host {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Confines threads, or does not: as the user chose.
#[derive(Clone, Debug)]
pub struct Confiner {
    filters: Option<Arc<Filters>>,
}

impl Confiner {
    /// As `chosen`. Nothing is confined by this yet.
    pub fn new(chosen: Confinement) -> Result<Self, ConfineError> {
        let filters = match chosen {
            Confinement::Off => None,
            Confinement::On => {
                alarm::install().map_err(|source| ConfineError::Host {
                    action: "catch forbidden system calls",
                    source,
                })?;
                Some(Arc::new(Filters::compile()?))
            }
        };
        Ok(Confiner { filters })
    }

    /// Confines nothing.
    #[must_use]
    pub fn off() -> Self {
        Confiner { filters: None }
    }

    /// Whether it confines.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.filters.is_some()
    }

    /// Bounds the process, and takes the file system and the network from this thread and those it starts from now on; but
    /// for removing files from the folders `made_in`, where the VMM made some. Of all threads only the main one makes that
    /// call.
    pub fn give_up_files(&self, made_in: &[PathBuf]) -> Result<(), ConfineError> {
        if !self.is_on() {
            log::warn!("the VMM is not confined: --confine off");
            return Ok(());
        }
        // The library that reads clocks looks for the kernel's fast way at its first use, in a file.
        let _ = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        bound().map_err(|source| ConfineError::Host {
            action: "lower a limit",
            source,
        })?;
        match refuse_all_but_removal(made_in)? {
            Coverage::All => {
                log::info!("confined: no files (Landlock), no other system calls (seccomp)");
            }
            Coverage::Part => log::info!(
                "confined: no files (this kernel's Landlock is older: not all that the newest refuses), no other system calls"
            ),
            Coverage::None => log::warn!(
                "this kernel has no Landlock, or it is off: only filters of system calls confine the VMM"
            ),
        }
        Ok(())
    }

    /// Confines the calling thread, for ever, to what a thread of this kind does.
    pub fn enter(&self, kind: Kind) -> Result<(), ConfineError> {
        match &self.filters {
            Some(filters) => {
                if kind.is_early() {
                    refuse_all()?;
                }
                filters.apply(kind)
            }
            None => Ok(()),
        }
    }
}
