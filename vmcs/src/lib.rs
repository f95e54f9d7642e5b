// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMCS as data: every field and control of Intel VMX, what a processor can do, and whether a VM entry succeeds.
//!
//! A VM entry that fails says "error 7", "error 8" or "exit 33", and nothing else. This crate says why: which rules of
//! the manual the VMCS breaks, with the values it found and what would be allowed, all of them at once.
//!
//! ```
//! use hvkit_vmcs::capability::presets;
//! use hvkit_vmcs::check::{Checker, Violation};
//! use hvkit_vmcs::store::{FieldsMut, parse_listing};
//!
//! // A VMCS from somewhere: the current one, KVM's VMCS12, or a listing in a bug report.
//! let processor = presets::core_i7_5600u();
//! let mut vmcs = hvkit_vmcs::seed::Seed::LongMode.vmcs(&processor);
//! let report = parse_listing(b"guest_rflags = 0x2\ninjected_event = 0x800000d1")?;
//! for difference in hvkit_vmcs::diff::differences(&vmcs.clone(), &report) {
//!     if let Some(value) = difference.after {
//!         vmcs.set(difference.field.encoding, value)?;
//!     }
//! }
//!
//! let mut said = String::new();
//! let verdict = Checker::new(&processor).check(&vmcs, &mut |violation: &Violation| {
//!     said += &violation.to_string();
//! });
//! assert_eq!(
//!     verdict.outcome().to_string(),
//!     "exit reason 33, VM-entry failure due to invalid guest state, qualification 0"
//! );
//! assert_eq!(
//!     said,
//!     "guest.rflags.if: Guest RFLAGS is 0x2. RFLAGS.IF must be 1 if an external interrupt is injected. \
//!      [Checks on Guest RIP, RFLAGS, and SSP]"
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is here
//!
//! - [`fields`]: every field, typed by width and access, with the condition under which it exists and its place in KVM's
//!   VMCS12. [`encoding`] is the rule behind their numbers.
//! - [`controls`]: every control, and [`controls::adjust`], which chooses settings a processor accepts.
//! - [`capability`]: the `IA32_VMX_*` MSRs as a value, from RDMSR, from KVM, from text; [`Processor`] adds what else the
//!   checks need. [`capability::presets`] has a few.
//! - [`store`]: where fields are kept. The array [`Vmcs`], KVM's [`store::Vmcs12`], memory images, listings; one trait to
//!   add your own, such as the current VMCS.
//! - [`check`]: the rules of the manual's chapter "VM Entries" as data, the checker, its verdict, and
//!   [`check::Checker::explain`] from a failure to its causes. No allocation.
//! - [`exit`], [`event`]: exit reasons, qualifications, instruction information, events and states, decoded into types.
//!   Unknown values are values.
//! - [`dump`], [`diff`]: text to read, listings to keep, and what changed. [`seed`]: VMCSs that enter.
//!
//! # What is not
//!
//! Nothing here executes an instruction: `hvkit-vmx` does. Nothing prints, allocates or decides policy. Rules that look
//! at memory (the virtual-APIC page, PDPTEs, the linked VMCS, the MSR-load area) are undecided until the caller gives
//! [`check::PhysicalMemory`]. Checks of secure arbitration mode (SEAM) and of an executive VMCS other than the link
//! pointer's are not made. Processors without Intel 64 architecture are not described.
//!
//! # What was checked against what
//!
//! | what | against | by |
//! |---|---|---|
//! | verdict, error number and exit reason of VM entries | Bochs 2.7, 10,000 generated VMCSs | `cargo xtask oracle vm-entry` |
//! | each rule: broken alone, held at its boundary | the manual's sentences, as cases | `tests` of [`check`] |
//! | exits, qualifications, instruction information | exits that Bochs logged; raw words from the manual's tables | `tests/bochs_exits.rs` |
//! | all 65,536 encodings; VMCS12 offsets | the appendix as a list; KVM's layout | `tests` of [`fields`] and [`store`] |
//! | logs of KVM and Xen | logs in bug reports | `tests/logged.rs` |
//! | bytes of others | no panic: fuzz targets `vmcs_bytes`, `vmcs_check`, `vmcs_exit`, and lints | `EVIDENCE.md` |
//!
//! The commands, the tests and `EVIDENCE.md` are in the repository. What Bochs does differently is in its
//! `lab/ledgers/vm-entry.md`, with who is right.
//!
//! # Edition
//!
//! "SDM" is the Intel 64 and IA-32 Architectures Software Developer's Manual, combined volumes, order number 325462,
//! edition 092. Names are its names; items cite section titles, which stay when numbers move. The list of fields was made from
//! the appendix as it was in 2025, of which nothing is left out: tertiary controls, secondary VM-exit controls, FRED, CET,
//! HLAT, IPI virtualization, PASID translation, APIC-timer virtualization and user interrupts are there.
//!
//! # Features
//!
//! - `serde`: `Serialize` for stores, rules, violations and decoded exits.
//! - `arbitrary`: `Arbitrary` for VMCSs, processors and moments; needs `std`.
//!
//! Without them the crate is `no_std` without `alloc`.
#![cfg_attr(not(any(test, feature = "arbitrary")), no_std)]
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

pub mod capability;
pub mod check;
pub mod controls;
pub mod diff;
pub mod dump;
pub mod encoding;
pub mod event;
pub mod exit;
pub mod field;
pub mod fields;
pub mod seed;
pub mod store;

pub use capability::{Capabilities, Processor};
pub use encoding::Encoding;
pub use field::Field;
pub use store::{Snapshot, Vmcs};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
