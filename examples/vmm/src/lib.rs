// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reference VMM: hvkit's crates wired together over KVM and VFIO.
//!
//! ```no_run
//! use hvkit_vmm::config::Config;
//! use hvkit_vmm::machine::stop::StopReason;
//! use hvkit_vmm::machine::{Machine, MachineError};
//!
//! fn main() -> Result<(), MachineError> {
//!     let config = Config {
//!         initramfs: Some("initramfs.cpio".into()),
//!         cpus: 2,
//!         ..Config::new("vmlinux".into())
//!     };
//!     let outcome = Machine::new(&config)?.run()?;
//!     assert_eq!(outcome.reason, StopReason::PowerOff);
//!     Ok(())
//! }
//! ```
//!
//! ```text
//!   cli --> Config --> Machine --> vCPU threads --> exits --> Bus --> devices
//!                        |                                             |
//!                        '--- main thread: console, signals <-- Stop <-'
//! ```
//!
//! The manuals: Intel SDM (order number 325462, edition 092), AMD APM volume 3 (24594), ACPI 6.5, PCI Local
//! Bus 3.0, PCI Express 5.0, the Linux/x86 boot protocol 2.15, Xen's x86/HVM direct boot ABI, and
//! the kernel's KVM API. Items cite sections by title.

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

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod chipset;
pub mod cli;
pub mod config;
pub mod confine;
mod connect;
pub mod console;
pub mod dirty_log;
pub mod exit_status;
pub mod hello;
pub mod interrupts;
pub mod machine;
pub mod output_file;
pub mod passthrough;
pub mod pci;
pub mod peer;
pub mod served;
pub mod snapshot;
mod stderr;
mod unread;
pub mod vfio_user;
pub mod viommu;
pub mod wake;
