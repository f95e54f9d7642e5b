// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices that another process serves, by vhost-user: block devices, network cards, file systems.
//!
//! ```text
//!   driver --- queues in guest memory --------------+
//!     |                                             |  shared memory
//!   transport --- VhostUser --- Unix socket ---- back end
//!     |              |   features, memory, where queues are, configuration
//!     |           Relay (its worker): interrupts, the back end's end
//!     '--- kick: an event that the back end has itself
//! ```
//!
//! The other process has all of [`SharedMemory`] for reading and writing, and serves the queues by itself. What it is
//! not believed: each answer has the length that was asked for, the files that were asked for, and a time to come in;
//! then it is checked. The first that is wrong ends the connection.
//!
//! A back end that is lost does not take the driver with it. What it had begun and everything later is answered with an
//! error: EIO from a disk, ENOTCONN from a file system; a network card's link goes down. What it had begun is known
//! where the back end notes it in shared memory, where the queue is in order, and otherwise by our own account of both
//! rings, which is exact or void and knows which. Where nobody knows, the driver sees DEVICE_NEEDS_RESET, and after its
//! reset those errors.
//!
//! With [`Options::with_reconnection`] it waits instead, and goes on with the next back end at that socket that offers what the
//! driver was told: at each queue's used index, with the notes of what is in flight where the first kept some. Without notes,
//! and out of order, what was in flight cannot be said to another without doing some of it twice: a disk's driver gets
//! errors for that, and for nothing later; where nobody knows what it was, DEVICE_NEEDS_RESET as above. A network card goes on as long as
//! its rings show no frame out of turn. Its link is down meanwhile.
//!
//! Behind an IOMMU of the guest's ([`Options::with_translations`]) the back end is told where the device's addresses lead
//! ([`AddressSpace`]), and of each change before the guest goes on. It is trusted with that: all of the memory stays mapped in its
//! process, so the IOMMU bounds a driver that errs, and not a back end that means ill.
//!
//! Queues are split, or with [`Options::with_packed_rings`] as the driver chooses. Of a packed queue nothing tells what was in flight
//! but the back end's notes: without them, a driver whose back end is lost is to reset the device, and another back end cannot be
//! waited for.
//!
//! A device is saved only while it is paused, which has the back end finish what it has begun; a file system cannot be saved.
//!
//! ```no_run
//! use std::os::unix::net::UnixStream;
//! use hvkit_virtio_devices::vhost_user::{Options, SharedMemory, VhostUser};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let memory = vm_memory::GuestMemoryMmap::<()>::new();
//! let memory = SharedMemory::of(&memory)?; // every region mapped from a file, shared
//! let disk = VhostUser::new(UnixStream::connect("/tmp/disk")?, Options::block(), memory)?;
//! # drop(disk);
//! # Ok(())
//! # }
//! ```
//!
//! [`BackEnd`] is the other half: it serves any device of this crate to the VMM of another process. [`GuestBackEnd`] carries
//! that half into a guest, so that another machine serves the device.
//!
//! "The protocol" is QEMU's documentation "Vhost-user Protocol" (version 1); its sections are cited by title.
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

mod address_space;
pub mod back_end;
mod base;
pub mod channel;
mod device;
mod error;
mod front_end;
pub(crate) mod in_flight;
mod kind;
mod ledger;
mod memory;
mod message;
mod own;
mod queues;
mod reconnection;
mod relay;
mod stand_in;
pub mod to_guest;
mod translation;

pub use address_space::AddressSpace;
pub use back_end::BackEnd;
pub use device::{Options, VhostUser};
pub use error::{BackEndError, TranslationError, VhostUserError};
pub use memory::SharedMemory;
pub use message::Request;
pub use reconnection::{Link, Reconnection};
pub use to_guest::GuestBackEnd;
