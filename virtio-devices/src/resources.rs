// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device may have beside queues and configuration: doorbells, notifications, memory.
//!
//! ```text
//!   driver -- writes doorbell n ----> whoever the device joined it to
//!   driver <- notification n -------- Interrupts::notification, by the vector that the driver chose for n
//!   driver -- reads and writes -----> memory that the device shows
//! ```
//!
//! They are the "additional device resources" of the proposal for a "vhost-user device backend" (S. Hajnoczi,
//! virtio-dev, 2018; N. Dragazis, 2020); shared memory became the specification's "Shared Memory Regions" (2.10).
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

/// Where the driver finds what a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Guest-physical address of doorbell 0; they are [`DOORBELL_STRIDE`] bytes apart.
    pub doorbells: u64,
    /// Guest-physical address of the memory's first byte.
    pub memory: u64,
}

/// Bytes between two doorbells.
pub const DOORBELL_STRIDE: u64 = 4;

/// The most doorbells, and the most notifications, that a device can have.
pub const MOST: u16 = 1024;

/// What one device has. Called by its transport, with that's locks held: it must not call back.
pub trait Resources: Send {
    /// How many doorbells; at most [`MOST`]. The same for the life of the device.
    fn doorbells(&self) -> u16;

    /// How many notifications; at most [`MOST`]. The same for the life of the device.
    fn notifications(&self) -> u16;

    /// Bytes of memory; a multiple of 4096. The same for the life of the device.
    fn memory(&self) -> u64;

    /// The driver finds them at `place` from now on. What is not shown there reads as 0 and takes no writes.
    fn placed(&mut self, place: Place);

    /// The driver is about to find them nowhere: nothing may be shown when this returns.
    fn removed(&mut self);
}
