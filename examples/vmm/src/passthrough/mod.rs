// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A PCI function of the host, given to the guest by VFIO.
//!
//! ```text
//!                     host::find: is it a PCI function, behind an IOMMU, bound to vfio-pci?
//!                          |
//!   guest                  v                                       host
//!   configuration --> Assigned --- view: a space of our own ------ (command, reset and vendor's
//!                        |                                          capabilities reach the function)
//!   BAR, whole pages ----|-------- Slots: KVM memory slots ------- its registers, no exit
//!   BAR, other bytes ----|-------- bar_read, bar_write ----------- its registers
//!   MSI-X table ---------|-------- Msix: never the function's own
//!   interrupts <--- irqfd ---------------- eventfd --------------- VFIO
//!   memory <------------------- the host's IOMMU <---------------- its DMA
//! ```
//!
//! Everything that a guest can reach is here over [`PhysicalFunction`]; VFIO implements it in [`vfio`],
//! and the tests implement it by a device made of bytes.
//!
//! What is isolated, and what is not, is in the README of this package.
//!
//! Linux, "VFIO - Virtual Function I/O" and `include/uapi/linux/vfio.h`; PCI Local Bus 3.0; PCI Express
//! Base 5.0.
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

pub mod assigned;
mod bars;
mod capabilities;
pub mod dirty;
mod error;
#[cfg(test)]
mod fake;
mod gone;
pub mod hardware;
pub mod host;
mod interrupts;
mod iommu;
pub mod pages;
pub mod reclaim;
pub mod selection;
pub mod slots;
pub mod space;
#[cfg(test)]
mod tests;
pub mod vfio;
mod view;

pub use assigned::Assigned;
pub use error::PassthroughError;
pub use hardware::PhysicalFunction;
pub use host::{HostError, HostFunction};
pub(crate) use iommu::size;
pub use reclaim::Reclaim;
pub use selection::{Interface, Selected, select};
pub use slots::{KvmSlots, Slots};
pub use view::{ViewError, Windows};
