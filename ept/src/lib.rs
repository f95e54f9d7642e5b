// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Intel extended page tables: build them, walk them, know what exits they cause and what to invalidate.
//!
//! This crate owns the format and its rules. It does not own memory, frames or the processor: they are
//! parameters, so it runs, and is tested, on any machine. Tables are made and walked by
//! [`hvkit_page_table`], which knows ranges, the order of stores, and the token for what hardware may
//! still hold.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use hvkit_ept::builder::{Policy, Region, build};
//! use hvkit_ept::spec::{Accesses, Controls, EptVpidCap, MemoryType, PageRights, WalkLength};
//! use hvkit_ept::{Access, Ept, EptFault, GuestSpace};
//! use hvkit_page_table::Stale;
//! use hvkit_page_table::fake::FakeTables;
//!
//! // IA32_VMX_EPT_VPID_CAP says what the processor can do; CPUID says how wide its addresses are.
//! let capability = EptVpidCap::from_msr(0x0f01_0673_4141);
//! let ept = Ept::new(capability, 46, WalkLength::Four, Controls::ACCESSED_DIRTY)?;
//!
//! // A guest: memory below a hole for devices, firmware below 1 MiB, a device passed through.
//! let map = [
//!     Region::ram(0, 0xa_0000, 0x1_0000_0000),
//!     Region::rom(0xf_0000, 0x1_0000, 0x2_0000_0000),
//!     Region::ram(0x10_0000, 0xbff0_0000, 0x1_0010_0000),
//!     Region::device(0xfeb0_0000, 0x4000, 0xd000_0000),
//! ];
//! // Bare metal gives physical memory here; this fake remembers every store.
//! let memory = FakeTables::new();
//! let mut mapper = build(ept, &memory, &memory, &map, Policy::default())?;
//! let eptp = ept.eptp(mapper.root(), MemoryType::WriteBack)?; // for the VMCS
//! assert_eq!(eptp.0 & 0xfff, 0x5e);
//!
//! // Where does an address lead, and with which page size?
//! let found = mapper.translate(0x4000_1234)?;
//! assert_eq!((found.target, found.level), (0x1_4000_1234, 3)); // a 1-GByte page
//!
//! // What would the processor do with a write to firmware?
//! let space = GuestSpace::new(&ept, &memory, mapper.root());
//! let write = Access::translation(Accesses::WRITE, PageRights::PAGING_OFF);
//! match space.access(0xf_fff0, write) {
//!     Err(EptFault::Violation { qualification, .. }) => assert_eq!(qualification.bits(), 0x7aa),
//!     other => panic!("{other:?}"),
//! }
//!
//! // Take a megabyte away. What hardware may still hold of it comes back as a token.
//! let stale = mapper.unmap(0x4000_0000..0x4010_0000)?;
//! // On a processor this is INVEPT, on every core that ran the guest. Then frames are freed.
//! let mut invept = |stale: &Stale| -> Result<(), u8> {
//!     assert!(stale.spans()[0].contains(0x4000_0000));
//!     Ok(())
//! };
//! mapper.settle(stale, &mut invept)?;
//! assert!(mapper.translate(0x4000_1234).is_err());
//! # Ok(()) }
//! ```
//!
//! # Where is what
//!
//! | module | answers |
//! |---|---|
//! | [`spec`] | what the manual's words mean: entries, EPTPs, the capability register, exit qualifications |
//! | [`Ept`], [`Attributes`] | how a table is read and written: the format that the mapper and the walker take |
//! | [`builder`] | a guest's memory map as an EPT |
//! | [`access`] | one guest-physical access: granted, or the exit a processor would make |
//! | [`nested_walk`] | a linear address through the guest's tables and EPT, with the exact fault |
//! | [`marks`] | the accessed and dirty flags an access sets |
//! | [`dirty`] | which pages a guest wrote: flags, page-modification logging, write-protection |
//! | [`mtrr`] | memory types from MTRRs |
//! | [`spp`] | sub-page write permissions |
//!
//! # What is not here
//!
//! INVEPT and VMFUNC themselves (`hvkit-vmx`), the VMCS fields that switch all this on (`hvkit-vmcs`), the
//! guest's own paging modes (`hvkit-shadow-paging`), the information area of virtualization exceptions.
//!
//! # The manual
//!
//! "SDM" is the Intel 64 and IA-32 Architectures Software Developer's Manual, combined volumes,
//! order number 325462, edition 092. Items name its sections by title. Where the manual leaves a choice,
//! this crate says which it made:
//!
//! - Flags of the guest's entries are set when its walk has ended without a page fault, from the root
//!   down; a processor may set accessed flags earlier.
//! - Of a violation under 4-level EPT by an address wider than 48 bits, which uses no entry, bits 6:3 of
//!   the qualification are clear, and it is not convertible to #VE.
//! - An access that guest-paging verification refuses as well as the rights reports the rights alone.
//!
//! # What was checked against what
//!
//! | what | against what | how many | command |
//! |---|---|---|---|
//! | accesses under EPT: translation, exit, qualification, flags, the log | Bochs 2.7, as the processor | 10,000 (1,931 explained in the ledger) | `cargo xtask oracle ept` |
//! | what an entry is: every combination of its low 13 bits, five levels, 32 processors | the manual, written down a second time | 13 million words | `cargo test -p hvkit-ept every_entry` |
//! | accesses and two-dimensional walks over random tables, every flag in memory | the same model | 3,000 each run, `HVKIT_CASES` for more | `cargo test -p hvkit-ept --test against_model` |
//! | exits and qualifications | raw numbers worked out by hand | | `cargo test -p hvkit-ept --test exits` |
//! | walks of any memory | no panic, an end | | `cargo xtask fuzz ept_walk` |
//!
//! The commands and the ledger (`lab/ledgers/ept.md`) are in the repository.
//!
//! Bochs 2.7 has neither 5-level EPT nor sub-pages nor mode-based execute control (3.0 has that): those stand on our own model.
//!
//! # Features
//!
//! `arbitrary` makes entries, qualifications, MTRRs and memory maps from a fuzzer's bytes, and needs `std`.
#![no_std]
#![forbid(unsafe_code)]
// Tables, registers and logs here may be an adversary's: what reads them is total.
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

#[cfg(any(feature = "arbitrary", test))]
extern crate std;

pub mod access;
mod attributes;
pub mod builder;
pub mod dirty;
mod format;
pub mod marks;
pub mod mtrr;
pub mod nested_walk;
pub mod spec;
pub mod spp;

pub use access::{Access, EptFault, GuestSpace};
pub use attributes::Attributes;
pub use format::{Ept, Rule};
