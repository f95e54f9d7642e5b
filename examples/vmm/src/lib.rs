// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reference VMM: hvkit's crates wired together over KVM and VFIO.

pub mod acpi;
pub mod bus;
pub mod chipset;
pub mod console;
pub mod hello;
pub mod interrupts;
pub mod machine;
pub mod pci;
pub mod wake;
