// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shadows of second stages: a guest's EPT over the host's, a guest's VT-d tables over the host's.
//!
//! ```text
//!   nested virtualization                     a VT-d unit for a guest that has real devices
//!   L2 --- L1's EPT ---> L1-physical          device --- guest's tables ---> guest-physical
//!                           | host's map                                         | host's map
//!   L2 --- shadow -----> host-physical        device --- shadow -----------> host-physical
//!   an EPT violation: Mmu::fault              cannot be tried again: Mmu::follow
//! ```
//!
//! [`Nested`] is the [`Stage`](crate::mmu::Stage) for any format that implements [`SecondStage`]: `hvkit-ept`'s with
//! feature `ept`, `hvkit-vtd-iommu`'s with feature `vtd`, your own.
//!
//! # A guest's VT-d tables
//!
//! The guest is offered caching mode, so it invalidates after each change, mapping included. Each invalidation is
//! [followed](crate::mmu::Mmu::follow); the guest is told that it is done when the token is settled. So there is no
//! moment at which a page that the guest has unmapped, and may use again, can be reached.
//!
#![cfg_attr(feature = "vtd", doc = "```")]
#![cfg_attr(not(feature = "vtd"), doc = "```ignore")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use hvkit_page_table::{Root, Span, Width, walk};
//! use hvkit_shadow_paging::fake::FakeHost;
//! use hvkit_shadow_paging::mmu::{Flush, Machine, Mmu, Top, Tuning};
//! use hvkit_shadow_paging::nested::Nested;
//! use hvkit_vtd_iommu::tables::SecondStage;
//!
//! let host = FakeHost::new(0x100_0000); // memory, the host's map of it, frames
//! let set = |at: u64, entry| host.store(host.host(at).unwrap(), Width::Eight, entry);
//! // The guest's domain: I/O address 0x5000 is its page 0x9000.
//! (0..3).for_each(|level| set(0x1000 + level * 0x1000, 0x2003 + level * 0x1000));
//! set(0x4000 + 5 * 8, 0x9003);
//!
//! let unit = SecondStage::new(4, 46)?;
//! let mut mmu = Mmu::new(&host, &host, 256, Tuning::DEVICES)?;
//! let view = host.guest();
//! let machine = Machine { memory: &view, map: &host };
//! let mut iotlb = |_: Flush| Ok::<(), core::convert::Infallible>(()); // an invalidation of the real unit
//!
//! // A context entry is valid: the device's domain begins at 0x1000.
//! let (domain, owed) = mmu.open(Nested::new(unit, unit)?, Top::Table(0x1000), machine)?;
//! mmu.settle(owed, &mut iotlb)?;
//! let owed = mmu.follow(&domain, machine, Span::new(0, 1 << 48))?;
//! mmu.settle(owed, &mut iotlb)?;
//! let reached = |at| walk(&unit, &host, Root::Table(domain.root()), at).outcome.ok();
//! assert_eq!(reached(0x5123).map(|there| there.target), host.host(0x9123));
//!
//! // The guest unmaps the page and invalidates it, page-selectively.
//! set(0x4000 + 5 * 8, 0);
//! let owed = mmu.follow(&domain, machine, Span::new(0x5000, 0x1000))?;
//! assert!(reached(0x5123).is_none());
//! mmu.settle(owed, &mut iotlb)?; // Now the guest's wait is done.
//! mmu.close(domain);
//! # Ok(()) }
//! ```
//!
//! What a real unit reports for a DMA that the shadow refuses is the guest's fault or a matter of the host's map:
//! [`Mmu::fault`](crate::mmu::Mmu::fault) tells. Where the host's unit is in caching mode itself, or needs its write buffer
//! flushed, invalidate the span whatever the token says.
//!
//! # L1's EPT
//!
//! An EPT violation of L2 is [`Mmu::fault`](crate::mmu::Mmu::fault) with the accesses of its qualification. Hardware walks ours with
//! accessed and dirty flags enabled exactly where L1's EPTP enables them. There are two ways to see what L1 writes:
//!
//! - L1's own memory is a space of the same MMU ([`Nested::direct`], [`Top::Direct`](crate::mmu::Top)): L1's tables are
//!   guarded.
//! - L1 runs on tables of another kind, with [`Unsync::Always`](crate::mmu::Unsync): what L1 writes is looked at when it
//!   executes INVEPT ([`Mmu::invalidate_all`](crate::mmu::Mmu::invalidate_all)), as a processor may.
//!
#![cfg_attr(feature = "ept", doc = "```")]
#![cfg_attr(not(feature = "ept"), doc = "```ignore")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use hvkit_ept::{Ept, spec::{Controls, EptVpidCap, WalkLength}};
//! use hvkit_page_table::Width;
//! use hvkit_shadow_paging::fake::FakeHost;
//! use hvkit_shadow_paging::mmu::{Flush, Machine, Mmu, Top, Tuning, Unsync, Verdict};
//! use hvkit_shadow_paging::nested::{Grants, Nested, Refused};
//!
//! let host = FakeHost::new(0x100_0000);
//! let set = |at: u64, entry| host.store(host.host(at).unwrap(), Width::Eight, entry);
//! (0..3).for_each(|level| set(0x1000 + level * 0x1000, 0x2007 + level * 0x1000));
//! set(0x4000 + 5 * 8, 0x9035); // L2's page 0x5000 is L1's 0x9000: R, X, write-back
//!
//! let capability = EptVpidCap::from_msr(0x0f01_0673_4141);
//! let ept = Ept::new(capability, 46, WalkLength::Four, Controls::empty())?;
//! let tuning = Tuning { unsync: Unsync::Always, ..Tuning::default() };
//! let mut mmu = Mmu::new(&host, &host, 256, tuning)?;
//! let view = host.guest();
//! let machine = Machine { memory: &view, map: &host };
//! let mut invept = |_: Flush| Ok::<(), core::convert::Infallible>(());
//!
//! // L1 enters L2 with an EPTP; ours for it is at `l2.root()`.
//! let (l2, owed) = mmu.open(Nested::new(ept, ept)?, Top::Table(0x1000), machine)?;
//! mmu.settle(owed, &mut invept)?;
//! let read = mmu.fault(&l2, machine, 0x5123, Grants::READ)?;
//! mmu.settle(read.owed, &mut invept)?;
//! assert!(matches!(read.verdict, Verdict::Repaired(_)));
//! // A write is L1's to hear of: an EPT violation. `GuestSpace::access` of hvkit-ept has its qualification.
//! let write = mmu.fault(&l2, machine, 0x5123, Grants::WRITE)?;
//! let granted = Grants::READ | Grants::EXECUTE | Grants::USER_EXECUTE;
//! assert_eq!(write.verdict, Verdict::Guest(Refused::Rights { granted }));
//! # mmu.settle(write.owed, &mut invept)?;
//! # mmu.close(l2);
//! # Ok(()) }
//! ```

#[cfg(feature = "ept")]
mod ept;
mod format;
mod stage;
#[cfg(feature = "vtd")]
mod vtd;

pub use format::{Grants, SecondStage};
pub use stage::{Nested, Refused, Unsupported};
