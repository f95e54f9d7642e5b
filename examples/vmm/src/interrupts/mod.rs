// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts: how an event becomes an interrupt of the guest, whose controllers KVM emulates.
//!
//! ```text
//!   Line        ---.                             .--> PIC and I/O APIC pins, as on a PC
//!                   eventfd --irqfd--> GSI --route
//!   MsiVectors  ---'                    |        '--> message to a local APIC
//!                                       |
//!   Pin  ---.                           |
//!            SharedLine: level ---------'
//!   Pin  ---'
//! ```
//!
//! Where a remapping unit stands between, each message is what it turns it into: [`senders`]. And since KVM's I/O APIC
//! knows nothing of remapping, a machine with interrupt remapping has one of our own: [`io_apic`].
//!
//! KVM replaces its routing table as a whole, so one [`Router`] owns it and all senders of a
//! machine share that.
//!
//! KVM API, "KVM_SET_GSI_ROUTING" and "KVM_IRQFD".

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

#[cfg(test)]
pub(crate) mod fake;
pub mod io_apic;
pub mod level_event;
pub mod line;
pub mod msi;
pub mod pin;
pub mod remapper;
pub mod router;
pub mod routing;
pub mod senders;
pub mod split;
pub mod watcher;

pub use io_apic::IoApic;
pub use level_event::LevelEvent;
pub use line::Line;
pub use msi::KvmMsiVectors;
pub use pin::{Pin, SharedLine};
pub use remapper::{Remapper, Source, UnitNumber};
pub use router::{InterruptError, Kernel, Router};
pub use routing::{Gsi, Pins, Route, Target};
pub use split::SplitKernel;
pub use watcher::Watcher;
