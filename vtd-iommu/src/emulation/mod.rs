// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An emulated remapping unit, for VMMs: registers in front, tables in guest memory behind, faults and interrupts out.
//!
//! ```text
//!             write, read            translate                  remap
//!   driver ------------------> Unit <----------- devices ------------------> interrupts
//!                               |  \
//!        tables, queues  <------'   '------> Host: messages, device TLBs, shadows
//!        Memory
//! ```
//!
//! The unit knows no bus, no thread and no clock. All that a register write starts is done when the write returns.
//!
//! ```
//! use hvkit_vtd_iommu::emulation::fake::Ram;
//! use hvkit_vtd_iommu::emulation::{Access, Nobody, Options, Request, Unit};
//! use hvkit_vtd_iommu::spec::RequesterId;
//! use hvkit_vtd_iommu::spec::context::{AddressWidth, ContextEntry, TranslationType};
//! use hvkit_vtd_iommu::spec::registers::{FSTS, GCMD, GSTS, RTADDR};
//!
//! let memory = Ram::new(1 << 20);
//! let mut unit = Unit::new(Options::new(48)).unwrap();
//!
//! // What a driver does: tables for device 00:03.0 ...
//! let context = ContextEntry::new(TranslationType::Untranslated, 1, AddressWidth::BITS_39, 0x3000);
//! memory.set(0x1000, 0x2001); // root[0]
//! memory.set(0x2000 + 0x18 * 16, context.0[0]);
//! memory.set(0x2008 + 0x18 * 16, context.0[1]);
//! memory.set(0x3000, 0x4003);
//! memory.set(0x4000, 0x5003);
//! memory.set(0x5008, 0x8_7003); // 0x1000 leads to 0x8_7000
//! // ... and translation on.
//! unit.write64(&memory, &mut Nobody, RTADDR.offset(), 0x1000);
//! unit.write32(&memory, &mut Nobody, GCMD.offset(), 1 << 30);
//! unit.write32(&memory, &mut Nobody, GCMD.offset(), 1 << 31);
//! assert!(unit.register(GSTS).translation());
//!
//! // What a device does.
//! let device = RequesterId(0x18);
//! let read = Request::new(device, 0x1234, Access::Read);
//! assert_eq!(unit.translate(&memory, &mut Nobody, &read).unwrap().address, 0x8_7234);
//!
//! // Where it may not be: a fault, and a record of it.
//! let astray = Request::new(device, 0x5000, Access::Write);
//! let refused = unit.translate(&memory, &mut Nobody, &astray).unwrap_err();
//! assert_eq!(refused.reason.0, 5); // no write permission
//! assert!(unit.register(FSTS).pending());
//! ```

mod caches;
mod device;
#[cfg(feature = "vm-memory")]
mod device_memory;
mod device_tlb;
#[cfg(any(feature = "fake", test))]
#[cfg_attr(
    not(test),
    expect(
        clippy::arithmetic_side_effects,
        clippy::panic,
        reason = "memory of tests, with a test's own addresses"
    )
)]
pub mod fake;
mod faults;
mod host;
mod interrupts;
#[cfg(feature = "vm-memory")]
mod kept;
mod memory;
mod notify;
mod options;
mod queue;
mod registers;
mod request;
mod stages;
mod state;
mod translate;
mod unit;
#[cfg(feature = "vm-memory")]
mod vm_memory;

#[cfg(feature = "vm-memory")]
pub use self::device_memory::DeviceMemory;
#[cfg(feature = "vm-memory")]
pub use self::vm_memory::{DeviceIommu, SharedUnit};
pub use device_tlb::{Queued, Wanted};
pub use host::{Host, NoAnswer, Nobody};
pub use interrupts::{Delivered, Interrupt};
pub use memory::Memory;
pub use notify::{Coverage, Mapping};
pub use options::{Caching, Options, OptionsError, WINDOW};
pub use request::{Access, Fate, Fetch, Privilege, Process, Refused, Request, Translated};
pub use state::{State, StateError};
pub use unit::Unit;
