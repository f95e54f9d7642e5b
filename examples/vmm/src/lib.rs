// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reference VMM: hvkit's crates wired together over KVM and VFIO.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod chipset;
pub mod cli;
pub mod config;
pub mod console;
pub mod exit_status;
pub mod hello;
pub mod interrupts;
pub mod machine;
pub mod pci;
pub mod wake;
