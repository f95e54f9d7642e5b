// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Intel VT-d: the driver of a unit, the emulated unit and the inspector, over one set of types.
//!
//! A hypervisor on bare metal drives a remapping unit; a VMM shows its guest one; somebody with a crash dump wants to
//! know why a device was refused. All three read the same registers, tables and descriptors, so here these are written
//! down once.
//!
//! ```
//! use hvkit_page_table::{Frames, OwnEntries};
//! use hvkit_vtd_iommu::dmar::{Dmar, Structure};
//! use hvkit_vtd_iommu::driver::{Attachment, DriverError, Mmio, Options, Unit};
//! use hvkit_vtd_iommu::spec::RequesterId;
//! use hvkit_vtd_iommu::tables::SecondStageAttributes;
//!
//! /// Where firmware says that the first unit's registers are, and how wide addresses are.
//! fn find(table: &[u8]) -> Option<(u64, u32)> {
//!     let dmar = Dmar::parse(table).ok()?;
//!     let base = dmar.structures().find_map(|structure| match structure {
//!         Ok(Structure::Drhd(unit, _)) => Some(unit.base),
//!         _ => None,
//!     })?;
//!     Some((base, dmar.host_address_bits()))
//! }
//!
//! /// Lets a device reach 64 KiB of memory for a while, and nothing else ever.
//! fn lend<R, M, P>(registers: R, memory: M, frames: P, host_bits: u32) -> Result<(), DriverError>
//! where
//!     R: Mmio,
//!     M: OwnEntries + Clone,
//!     P: Frames + Clone,
//! {
//!     let mut unit = Unit::take(registers, memory, frames, Options::legacy(host_bits))?;
//!     unit.enable()?; // every device is blocked
//!
//!     let nic = RequesterId::new(3, 0, 0).unwrap();
//!     let mut domain = unit.new_domain()?;
//!     unit.attach(&mut domain, Attachment::new(nic))?;
//!     let fresh = domain.map(0x10_0000..0x11_0000, 0x1_2340_0000, SecondStageAttributes::READ_WRITE);
//!     unit.publish(&domain, fresh.expect("aligned, and nothing is there"))?;
//!
//!     // ... the device works ...
//!
//!     let stale = domain.unmap(0x10_0000..0x11_0000).expect("it is mapped");
//!     // Only when this has returned may the memory be anybody else's.
//!     unit.settle(&domain, stale).expect("the unit answers");
//!     for fault in unit.take_faults().records {
//!         // "no write permission", 03:00.0, 0x110000
//!         let _ = (fault.reason(), fault.source(), fault.address());
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # What is here
//!
//! - [`spec`]: every register with what software may do with each of its bits, every invalidation descriptor of both
//!   widths, fault records and each fault reason by its name, page requests and responses; root, context and PASID
//!   entries, interrupt-remapping entries, posted-interrupt descriptors, messages.
//! - [`tables`]: first and second stage as formats for the walker and the mapper of [`hvkit_page_table`].
//! - [`dmar`]: the firmware table, read without copying, and built.
//! - [`driver`]: a unit in our hands. Domains, devices, PASIDs, invalidation, interrupts, faults, page requests.
//! - [`emulation`]: a unit for guests. Registers, tables of both modes and both stages, caches, queue, faults,
//!   interrupt remapping and posting, device-TLBs, page requests, shadows for VFIO, state.
//! - [`inspect`]: tables from a dump, or from live memory, listed and explained.
//!
//! # What is not
//!
//! Nothing here knows a bus, a thread or a clock; nothing prints or decides policy. Enabling ATS, PASID and page requests
//! in a device's configuration space is its driver's work. Performance monitoring and enhanced commands are described in
//! [`spec`] and used nowhere. Memory types of first-stage translation (ECAP.MTS) are neither driven nor emulated.
//!
//! # What was checked against what
//!
//! | what | against | by |
//! |---|---|---|
//! | driver | QEMU 7.2's unit and its `edu` device; QEMU 11.1's for scalable mode | `tests/qtest` |
//! | driver | a unit that times out, refuses, loses device-TLBs | `tests/driver` |
//! | emulated unit: registers, tables, faults, invalidation | QEMU 7.2's unit, 20,000 programs | `cargo xtask oracle vtd` |
//! | emulated unit: interrupts; scalable mode | QEMU 11.1's unit, 15,000 and 3,000 programs | `oracle vtd-interrupts`, `vtd-scalable` |
//! | driver on the emulated unit, with devices at work meanwhile | what the specification permits | `tests/together` |
//! | every entry: all low-bit combinations | the specification's figures, as text | `tests/twins` |
//! | every register offset at every width | a model of bytes | `tests/emulation` |
//! | DMAR tables | `iasl` | `tests/iasl.rs` |
//! | bytes of others | no panic: fuzz targets `vtd_*`, and lints | `EVIDENCE.md` |
//!
//! What QEMU does differently is in `lab/ledgers`, with who is right.
//!
//! # Edition
//!
//! Names follow the Intel Virtualization Technology for Directed I/O Architecture Specification, revision 4.1 (2023) and
//! what public register lists add to it; items cite section titles, which stay when numbers move. Where a descriptor lost
//! a field (private data of page requests), the newest form counts.
//!
//! # Features
//!
//! - `arbitrary`: `Arbitrary` for the words of [`spec`]; needs `std`.
//! - `fake`: memory and a world for tests of the emulated unit.
//! - `vm-memory`: a guest's memory as `vm-memory` has it, and each device's view of it; needs `std`.
#![no_std]
#![forbid(unsafe_code)]
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
#![cfg_attr(docsrs, feature(doc_cfg))]

extern crate alloc;
// `Arbitrary`'s derive counts recursion in a thread-local.
#[cfg(any(test, feature = "arbitrary", feature = "vm-memory"))]
extern crate std;

pub mod dmar;
pub mod driver;
pub mod emulation;
pub mod inspect;
pub mod spec;
pub mod tables;
