// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A bare-metal hypervisor, each file one step. In reading order:
//!
//! | file | step |
//! |---|---|
//! | `main.rs` | what it was asked for |
//! | `memory.rs` | what lies where, and frames for tables |
//! | `root_operation.rs` | into VMX operation |
//! | `controls.rs` | what shall exit |
//! | `guest_state.rs` | what the guest begins with |
//! | `run.rs` | check, enter, count, ask the policy, again |
//! | `paging_ept.rs` | what memory the guest has: under EPT |
//! | `paging_shadow.rs`, `paging_shadow/` | and without |
//! | `isolation.rs` | what it tried with memory that is not its own |
//! | `failure.rs` | an entry that failed, explained |
//! | `host_faults.rs` | a fault of this program's own, and an NMI that comes while it runs |
//! | `tour.rs`, `tour/` | a guest that exits in every way; entries that fail on purpose |
//! | `linux.rs`, `linux/` | Debian's kernel as a guest, devices passed through |
//! | `reach.rs`, `reach/` | a guest that has all of Linux's rights and tries to reach this program |
//!
//! `cargo xtask type1` builds it, runs it in Bochs, and reads what it printed.
#![no_std]
#![no_main]

extern crate alloc;

mod controls;
mod failure;
mod guest_state;
mod host_faults;
mod isolation;
mod linux;
mod memory;
mod paging_ept;
mod paging_shadow;
mod reach;
mod root_operation;
mod run;
mod tour;

use lab_cases::type1 as order;
use payload_rt::{input, println};

payload_rt::entry!(main);

fn main() {
    println!("type1: a hypervisor of hvkit");
    let [asked, ..] = *input(8) else { return };
    let result = match asked {
        order::TOUR => root_operation::within(tour::run),
        order::LINUX => linux::run(),
        order::REACH => reach::run(),
        order::FAULT => root_operation::within(tour::fault),
        other => return println!("type1: nothing is known of {other:#x}"),
    };
    match result {
        Ok(()) => {}
        Err(error) => println!("type1: {error}"),
    }
}
