// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a machine stops, and how a device, a vCPU or the user stops it.
//!
//! Whoever has a [`Stop`] may ask; the first reason stands. The asking thread is not stopped by
//! this: vCPUs look at [`Stop::is_asked`] after each exit, and the machine, which waits on
//! [`Stop::event`], makes those that run the guest leave it.

use crate::wake::Wake;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Why a machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A vCPU met an exception while delivering a double fault.
    TripleFault {
        /// Which vCPU.
        vcpu: u32,
    },
    /// The guest says that it panicked.
    GuestPanic,
    /// The guest did not reset its watchdog in time.
    Watchdog,
    /// The machine was saved.
    Saved,
    /// The user quit from the console.
    Quit,
    /// A signal asked the VMM to end.
    Signal(i32),
    /// A vCPU halted, and the machine has no interrupt controller that could wake it.
    Halted {
        /// Which vCPU.
        vcpu: u32,
    },
    /// KVM could not go on running a vCPU.
    Internal {
        /// Which vCPU.
        vcpu: u32,
        /// What KVM said.
        error: RunError,
    },
    /// The host still lets a device reach memory that the guest took from it.
    Unbounded {
        /// What the user calls it.
        device: String,
    },
    /// A thread of the VMM panicked: a defect of ours.
    Defect {
        /// The thread's name.
        thread: String,
    },
}

/// Why KVM could not go on running a vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunError {
    /// `KVM_RUN` failed with this errno.
    Run(i32),
    /// `KVM_EXIT_INTERNAL_ERROR`. KVM API, "KVM_EXIT_INTERNAL_ERROR".
    Internal {
        /// 1: an instruction that KVM cannot emulate; others are named in the KVM API.
        suberror: u32,
    },
    /// `KVM_EXIT_FAIL_ENTRY`. KVM API, "KVM_EXIT_FAIL_ENTRY".
    FailEntry {
        /// The processor's own reason, vendor-specific.
        hardware_reason: u64,
    },
    /// An exit that this VMM does not know.
    UnknownExit(String),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Run(errno) => {
                write!(f, "KVM_RUN: {}", io::Error::from_raw_os_error(*errno))
            }
            RunError::Internal { suberror: 1 } => {
                f.write_str("KVM cannot emulate an instruction (internal error 1)")
            }
            RunError::Internal { suberror } => write!(f, "KVM internal error {suberror}"),
            RunError::FailEntry { hardware_reason } => {
                write!(f, "the processor refused the entry: {hardware_reason:#x}")
            }
            RunError::UnknownExit(exit) => write!(f, "unexpected exit: {exit}"),
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopReason::PowerOff => f.write_str("the guest powered off"),
            StopReason::Reset => f.write_str("the guest asked for a reset"),
            StopReason::TripleFault { vcpu } => write!(f, "triple fault on vCPU {vcpu}"),
            StopReason::GuestPanic => f.write_str("the guest panicked"),
            StopReason::Watchdog => f.write_str("the guest did not reset its watchdog in time"),
            StopReason::Saved => f.write_str("the machine was saved"),
            StopReason::Quit => f.write_str("quit from the console"),
            StopReason::Signal(signal) => write!(f, "ended by signal {signal}"),
            StopReason::Halted { vcpu } => write!(f, "vCPU {vcpu} halted"),
            StopReason::Internal { vcpu, error } => write!(f, "vCPU {vcpu}: {error}"),
            StopReason::Unbounded { device } => {
                write!(f, "the host does not take {device}'s memory from it")
            }
            StopReason::Defect { thread } => write!(f, "the VMM's thread {thread} panicked"),
        }
    }
}

/// The one place where a machine is asked to stop. Clones ask the same machine.
#[derive(Clone, Debug)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    reason: OnceLock<StopReason>,
    event: Wake,
    /// The signal that told the VMM to end, or 0.
    signal: Arc<AtomicUsize>,
}

impl Stop {
    /// Nobody has asked yet.
    pub fn new() -> io::Result<Self> {
        Ok(Stop {
            shared: Arc::new(Shared {
                reason: OnceLock::new(),
                event: Wake::new()?,
                signal: Arc::default(),
            }),
        })
    }

    /// Asks the machine to stop. Only the first reason is kept.
    pub fn ask(&self, reason: StopReason) {
        if self.shared.reason.set(reason).is_ok() {
            self.shared.event.signal();
        }
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.shared.reason.get().is_some()
    }

    /// The first reason given.
    #[must_use]
    pub fn reason(&self) -> Option<&StopReason> {
        self.shared.reason.get()
    }

    /// Where a signal's handler notes the number of a signal that tells the VMM to end: it can do no more.
    #[must_use]
    pub fn arrived(&self) -> &Arc<AtomicUsize> {
        &self.shared.signal
    }

    /// The signal that arrived last, and that the main thread asks to stop for as soon as it sees it.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        let number = self.shared.signal.load(Ordering::Acquire);
        i32::try_from(number).ok().filter(|&signal| signal != 0)
    }

    /// Readable once somebody asked; not to be cleared, so that every waiter sees it.
    #[must_use]
    pub fn event(&self) -> &Wake {
        &self.shared.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stands() {
        let stop = Stop::new().unwrap();
        let device = stop.clone();
        assert!(!stop.is_asked());
        assert!(!stop.event().clear());
        device.ask(StopReason::PowerOff);
        stop.ask(StopReason::Reset);
        assert_eq!(stop.reason(), Some(&StopReason::PowerOff));
        assert!(stop.event().clear());
    }
}
