// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver of a unit.
//!
//! ```text
//!   Mmio ------- registers                    the machine's: volatile memory, a test socket, an emulated unit
//!   OwnEntries - memory that tables are in    page-table's traits; `Flushed` for units that do not snoop
//!   Frames ----- pages to make them of
//!        |
//!      Unit --- attach, detach ---> Domain --- map, unmap ---> Fresh, Stale
//!        |  ^                                                     |
//!        |  '------------- publish, settle, settle_all, Deferred -'
//!        |--- take_faults, announce
//!        |--- enable_interrupts ---> InterruptTable
//!        |--- enable_page_requests -> PageRequestQueue
//!        '--- remove a device that is unplugged; release the unit itself
//! ```
//!
//! Every wait is bounded by [`Mmio::keep_waiting`]. Everything is blocked until it is attached. What devices may still
//! use is owned by a token: memory goes back to its pool when an invalidation has said that nobody uses it.

mod attach;
mod by_register;
mod command;
mod deferred;
mod domain;
mod entries;
mod error;
mod faults;
mod ids;
mod interrupts;
mod invalidation;
mod memory;
mod mmio;
mod nested;
mod page_requests;
mod place;
mod queue;
mod release;
mod settle;
mod unit;

pub use attach::Reach;
pub use command::Switch;
pub use deferred::{Deferred, Flushed as DeferredFlush, StillOwed};
pub use domain::{Attachment, Domain, DomainError, Fresh, Refused, Stage, StageKind};
pub use error::{Ability, DriverError, Waiting};
pub use faults::{Event, Faults};
pub use interrupts::{Block, DestinationMode, InterruptTable, PairStore};
pub use memory::Flushed;
pub use mmio::{Mmio, Registers, SPINS};
pub use nested::FirstTable;
pub use page_requests::{PageRequestQueue, Polled};
pub use queue::{DescriptorWidth, InvalidationQueue, RingMemory};
pub use unit::{Mode, Options, Probe, Unit, probe};
