// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI: a root bus of up to 32 devices in each segment, and the two ways into configuration space.
//!
//! ```text
//!   ports 0xcf8, 0xcfc -> ConfigPorts --.
//!                                        Root --> PciFunction: configuration space
//!   ECAM window -------> Ecam ---------'   |
//!                                          after each write: which windows decode now?
//!                                          |
//!                                       Decoder --> Bus (register accesses: BarWindow)
//!                                               --> Doorbells (writes that KVM turns into events)
//! ```
//!
//! The bus is written as firmware would leave it: [`assign`] gives each BAR an address, and decoding
//! is off until the guest's driver switches it on.
//!
//! PCI Local Bus Specification 3.0 and PCI Express Base Specification 5.0; sections are cited by
//! title.

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

pub mod address;
pub mod assign;
pub mod decode;
pub mod doorbells;
pub mod ecam;
#[cfg(test)]
pub(crate) mod fake;
pub mod host_bridge;
pub mod intx;
pub mod ports;
pub mod root;

pub use address::{ConfigAddress, FunctionAddress};
pub use assign::AssignError;
pub use doorbells::{Doorbells, KvmDoorbells};
pub use ecam::Ecam;
pub use host_bridge::HostBridge;
pub use ports::ConfigPorts;
pub use root::{Function, Root, RootError};
