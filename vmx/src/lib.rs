// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), no_std)]
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

mod apic_page;
pub mod bitmaps;
mod cpu;
mod error;
pub mod exit;
mod host_state;
mod invalidation;
mod msr_area;
mod posted;
mod preemption;
mod region;
mod registers;
mod this_processor;

#[cfg(target_arch = "x86_64")]
mod current;
#[cfg(target_arch = "x86_64")]
pub mod guest;
#[cfg(target_arch = "x86_64")]
mod instructions;
#[cfg(target_arch = "x86_64")]
mod root;
#[cfg(target_arch = "x86_64")]
mod switch;
#[cfg(target_arch = "x86_64")]
mod vcpu;

pub use apic_page::{ApicRegister, VirtualApicPage};
pub use cpu::{
    ControlBits, Cpuid, Detected, EnableError, Enabled, FeatureControl, Machine, Unsupported,
    detect,
};
pub use error::{EntryError, VmFail};
pub use exit::Exit;
pub use host_state::{HostState, HostStateError};
pub use invalidation::{InvEpt, InvVpid, InvalidateError};
pub use msr_area::{AreaFull, MsrArea, MsrList};
pub use posted::{Notify, PostedInterrupts};
pub use preemption::PreemptionTimer;
pub use region::{Linear, Once, Physical, VmcsKind, VmcsRegion, VmxonRegion};
pub use registers::{DebugRegisters, FxState, Registers};
pub use this_processor::ThisProcessor;

#[cfg(target_arch = "x86_64")]
pub use current::Current;
#[cfg(target_arch = "x86_64")]
pub use root::{ActiveVmcs, Root};
#[cfg(target_arch = "x86_64")]
pub use vcpu::{Checked, Vcpu};
