// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest tried with memory and MSRs that are not its own. The first attempts are kept one by one, and printed in the end: the
//! serial line is the guest's until then.

use hvkit_shadow_paging::guest::ErrorCode;
use hvkit_vmcs::event::{Event, EventKind};
use hvkit_vmcs::exit::EptViolation;
use hvkit_vmx::Current;
use hvkit_vmx::exit::{Delivery, Guest, combine};
use payload_rt::println;

use crate::run::Next;

/// How many are kept one by one.
const KEPT: usize = 64;

/// How the guest met the memory.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// An access under EPT.
    Violation(EptViolation),
    /// An access under shadow paging.
    PageFault(ErrorCode),
    /// Page tables of its own, there.
    PageTables,
    /// RDMSR or WRMSR of one that is not the guest's: its number stands for the address.
    Msr,
}

/// Gives the guest a general-protection exception; during the delivery of another event, what a processor makes of both: a guest whose
/// handlers lie where it may not read would come here for ever.
pub fn refuse(guest: &mut Guest<'_, Current<'_>>) -> Next {
    let fault = Event::new(EventKind::HARDWARE_EXCEPTION, 13).with_error_code();
    match guest.original_event().map(|first| combine(first, fault)) {
        None | Some(Delivery::Second) => guest.fault(),
        Some(Delivery::DoubleFault) => guest.inject(Delivery::DOUBLE_FAULT, 0),
        Some(Delivery::TripleFault) => return Next::Give("the guest shut down"),
    }
    Next::Go
}

#[derive(Clone, Copy)]
struct Access {
    physical: u64,
    how: How,
    rip: u64,
}

impl Access {
    /// Whether it would change something, or run it, or make the processor do so.
    const fn is_refused(&self) -> bool {
        match self.how {
            How::Violation(how) => how.is_write() || how.is_fetch(),
            How::PageFault(code) => {
                code.contains(ErrorCode::WRITE) || code.contains(ErrorCode::FETCH)
            }
            How::PageTables | How::Msr => true,
        }
    }
}

/// Attempts, counted.
pub struct Isolation {
    kept: [Option<Access>; KEPT],
    reads: u64,
    refused: u64,
}

impl Isolation {
    pub const fn new() -> Self {
        Self {
            kept: [None; KEPT],
            reads: 0,
            refused: 0,
        }
    }

    /// The guest meets memory that is not its own. Whether the access is refused; otherwise the page is to read as nothing.
    pub fn meets(&mut self, physical: u64, how: How, rip: u64) -> bool {
        let access = Access { physical, how, rip };
        if let Some(free) = self.kept.iter_mut().find(|a| a.is_none()) {
            *free = Some(access);
        }
        let refused = access.is_refused();
        if refused {
            self.refused += 1;
        } else {
            self.reads += 1;
        }
        refused
    }

    /// Prints the attempts.
    pub fn print(&self) {
        for access in self.kept.iter().flatten() {
            let what = if access.is_refused() {
                "refused"
            } else {
                "reads nothing"
            };
            let Access { physical, how, rip } = access;
            println!("isolation: {physical:#x} {what}: {how:x?} at RIP {rip:#x}");
        }
        let Self { reads, refused, .. } = self;
        println!("isolation: {reads} pages read as nothing, {refused} attempts refused");
    }
}
