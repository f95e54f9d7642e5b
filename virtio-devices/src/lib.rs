// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio devices and their transports, for any VMM.

pub mod block;
mod bytes;
pub mod device;
#[cfg(feature = "fake")]
pub mod fake;
pub mod features;
pub mod pci;
pub mod queue;
pub mod transport;
pub mod worker;
