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
//! use hvkit_vtd_iommu::spec::fault::{FaultReason, FaultRecord};
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
//! /// Lets a device reach 64 KiB of memory while it works, and nothing else ever; the first fault of it.
//! fn lend<R, M, P>(
//!     registers: R,
//!     memory: M,
//!     frames: P,
//!     host_bits: u32,
//!     work: impl FnOnce(),
//! ) -> Result<Option<FaultRecord>, DriverError>
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
//!     work();
//!
//!     let stale = domain.unmap(0x10_0000..0x11_0000).expect("it is mapped");
//!     // Only when this has returned may the memory be anybody else's.
//!     unit.settle(&domain, stale).expect("the unit answers");
//!     Ok(unit.take_faults().records.into_iter().next())
//! }
//!
//! // The machine is memory and an emulated unit; its firmware's table has one unit, for every device.
//! # let unit = Drhd { flags: DrhdFlags::INCLUDE_PCI_ALL, size: 0, segment: 0, base: 0xfed9_0000 };
//! # let table = Builder::new(39, TableFlags::empty()).drhd(unit, &[]).build(Oem::default()).unwrap();
//! let (base, host_bits) = find(&table).expect("a unit");
//! assert_eq!(base, 0xfed9_0000);
//! let machine = Machine::new(host_bits);
//! let fault = lend(&machine, &machine, &machine, host_bits, || {
//!     // The device writes into what it was lent, and then behind it.
//!     assert_eq!(machine.device_writes(0x10_f000), Some(0x1_2340_f000));
//!     assert_eq!(machine.device_writes(0x11_0000), None);
//! })?;
//! let fault = fault.expect("the unit tells of the second");
//! assert_eq!(fault.source().to_string(), "03:00.0");
//! assert_eq!((fault.reason(), fault.address()), (FaultReason::NO_WRITE, Some(0x11_0000)));
//! assert_eq!(machine.device_writes(0x10_f000), None, "the memory was given back");
//! # use hvkit_page_table::{ReadEntry, UpdateEntry, Width};
//! # use hvkit_vtd_iommu::dmar::{Builder, Drhd, DrhdFlags, Oem, TableFlags};
//! # use hvkit_vtd_iommu::emulation::fake::{Journal, Ram};
//! # use hvkit_vtd_iommu::emulation::{self, Access, Memory, Request};
//! # use std::cell::{Cell, RefCell};
//! # struct Machine { ram: Ram, unit: RefCell<emulation::Unit>, frames: Cell<u64> }
//! # impl Machine {
//! #     fn new(bits: u32) -> Self {
//! #         let unit = emulation::Unit::new(emulation::Options::new(bits)).unwrap();
//! #         Machine { ram: Ram::new(1 << 20), unit: RefCell::new(unit), frames: Cell::new(0x1000) }
//! #     }
//! #     fn device_writes(&self, at: u64) -> Option<u64> {
//! #         let nic = RequesterId::new(3, 0, 0).unwrap();
//! #         let request = Request::new(nic, at, Access::Write);
//! #         let mut unit = self.unit.borrow_mut();
//! #         let to = unit.translate(&self.ram, &mut Journal::default(), &request);
//! #         to.ok().filter(|to| to.writes).map(|to| to.address)
//! #     }
//! # }
//! # impl Mmio for Machine {
//! #     fn read32(&self, offset: u32) -> u32 { self.unit.borrow_mut().read32(offset) }
//! #     fn read64(&self, offset: u32) -> u64 { self.unit.borrow_mut().read64(offset) }
//! #     fn write32(&self, offset: u32, value: u32) {
//! #         self.unit.borrow_mut().write32(&self.ram, &mut Journal::default(), offset, value);
//! #     }
//! #     fn write64(&self, offset: u32, value: u64) {
//! #         self.unit.borrow_mut().write64(&self.ram, &mut Journal::default(), offset, value);
//! #     }
//! # }
//! # impl ReadEntry for Machine {
//! #     type Error = std::convert::Infallible;
//! #     fn read(&self, at: u64, width: Width) -> Result<u64, Self::Error> {
//! #         Ok(self.ram.read(at, width).unwrap())
//! #     }
//! # }
//! # impl UpdateEntry for Machine {
//! #     fn compare_exchange(&self, at: u64, width: Width, old: u64, new: u64) -> Result<u64, Self::Error> {
//! #         Ok(self.ram.compare_exchange(at, width, old, new).unwrap())
//! #     }
//! # }
//! # impl OwnEntries for Machine {
//! #     fn write(&self, at: u64, width: Width, entry: u64) {
//! #         Memory::write(&self.ram, at, width, entry).unwrap();
//! #     }
//! # }
//! # impl Frames for Machine {
//! #     fn allocate(&self) -> Option<u64> { Some(self.frames.replace(self.frames.get() + 0x1000)) }
//! #     fn free(&self, _: u64) {}
//! # }
//! # Ok::<(), DriverError>(())
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
//! | registers: every offset read at every width, writes as `tests/emulation` makes them | a model of bytes | `tests/emulation` |
//! | DMAR tables | `iasl` | `tests/iasl.rs` |
//! | bytes of others | no panic: fuzz targets `vtd_*`, and lints | `EVIDENCE.md` |
//!
//! The commands, the tests and `EVIDENCE.md` are in the repository. What QEMU does differently is in its `lab/ledgers`, with who is right.
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
//! - `serde`: the state of an emulated unit as data of serde's, for a VMM's snapshots.
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
