// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a device cannot be put on PCI.

use crate::pci::bar::BarError;
use crate::pci::config::CapabilityError;
use crate::pci::msix;

/// Why a device cannot be put on PCI.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// More queues than the transport has notification addresses and vectors for.
    #[error("{count} queues; this transport has room for {max}")]
    Queues {
        /// The device's.
        count: usize,
        /// The transport's.
        max: u16,
    },
    /// A queue that no driver could use.
    #[error("queue {index} of at most {size} descriptors")]
    QueueSize {
        /// Which one.
        index: usize,
        /// What the device offers.
        size: u16,
    },
    /// The host has no event file descriptor left.
    #[error("no event for a queue")]
    Event(#[source] std::io::Error),
    /// The vectors do not fit.
    #[error(transparent)]
    Vectors(#[from] msix::CountError),
    /// The window does not fit.
    #[error(transparent)]
    Window(#[from] BarError),
    /// The capabilities do not fit.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
}
