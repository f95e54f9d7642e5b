// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A back end carried into a guest: another machine's device, served by a program of *this* machine's guest.
//!
//! ```text
//!   the other machine's VMM                      this VMM                     this guest
//!   VhostUser --- socket --- messages --- Carrier === receive queue ======> program: a back end
//!                                                 <== transmit queue ======     |
//!             memory, files ----------- Shared --- shown in a window <--- reads, writes
//!   its guest <--- call event ------------------- doorbell: KVM's ioeventfd <--- writes
//!   its guest ---- kick event --- Carrier ------- notification: MSI-X ---------> hears
//! ```
//!
//! It is the "vhost-user device backend" that was proposed for the specification and not taken up (S. Hajnoczi,
//! "virtio-vhost-user", virtio-dev, 2018; revised by N. Dragazis, 2020, and U. Arif, 2022), of which drivers have been
//! written. Queue 0 carries messages to the driver, queue 1 from it, one in a chain, without their files. Configuration is
//! `status`, `max_vhost_queues`, `uuid`. The regions of SET_MEM_TABLE lie in the memory window one behind the other, in the
//! message's order, each taking as many bytes as its offset in its file and its length; what is before the offset is not
//! shown. Doorbell *n* writes the call event of queue *n*, notification *n* comes when its kick event is written.
//! Errors (SET_VRING_ERR) and logs have no doorbell here.
//!
//! # Who is believed
//!
//! Nobody. The other machine's VMM is bounded and checked here, as far as its messages concern this VMM: lengths, numbers of
//! files, of regions, of queues; that each region is whole pages of a file in memory that cannot be made shorter
//! (`F_SEAL_SHRINK`), so that an access never faults; that it fits into the window. The rest is for the program in the
//! guest to check, as any back end does: [`BackEnd`](super::BackEnd) is one. The first message that is wrong ends the
//! connection and nothing else.
//!
//! When the connection ends, however it does, both bits of `status` are 0 and the driver is told. The memory stays shown
//! until the driver sets `BACKEND_UP` again or resets the device: a program in the middle of a request is not left with an
//! address where nothing is. What it still writes there nobody reads.

mod carrier;
mod device;
mod link;
mod shared;
mod table;

pub use device::{GuestBackEnd, GuestBackEndError, Options};
pub use link::{PeerError, RegionError};

use std::io;
use std::os::fd::BorrowedFd;

use vmm_sys_util::eventfd::EventFd;

/// What the VMM does for a [`GuestBackEnd`].
pub trait Host: Send + Sync {
    /// Maps `length` bytes of `file` from `offset`, both multiples of 4096, for the guest to read and write. The file is in
    /// memory, has these bytes, and cannot be made shorter.
    fn map(&self, file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<Box<dyn Mapping>>;

    /// From now on, until the result is dropped, a write of the guest's at guest-physical `address` signals `event`, which
    /// is another process's and may be none: then this fails.
    fn ring(&self, address: u64, event: &EventFd) -> io::Result<Held>;
}

/// Memory that a guest can be shown.
pub trait Mapping: Send {
    /// Shows it to the guest at guest-physical `address`, until the result is dropped. Where it is not shown already.
    fn show(&self, address: u64) -> io::Result<Held>;
}

/// Something that lasts until this is dropped.
pub struct Held(Option<Box<dyn FnOnce() + Send>>);

impl Held {
    /// What `undo` ends.
    pub fn new(undo: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(undo)))
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(undo) = self.0.take() {
            undo();
        }
    }
}
