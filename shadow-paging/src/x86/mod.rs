// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shadows of x86 page tables: what a hypervisor without EPT runs a guest on.
//!
//! ```text
//!  exit handler --- #PF, MOV CR, INVLPG ... ---> Vcpu: the guest's registers, its mode
//!                                                  |
//!                                                  v
//!                                    Mmu<Linear>: shadow tables in the layout that the mode needs
//!                                                  |
//!  VM entry <---- Hardware: CR3, CR0, CR4, EFER <--'
//! ```

mod attributes;
mod format;
mod hardware;
mod invpcid;
mod linear;
mod tags;
mod transition;
mod vcpu;

pub use attributes::ShadowAttributes;
pub use format::{ShadowFormat, ShadowLayout, ShadowRule};
pub use hardware::{Hardware, Processor};
pub use invpcid::InvalidateKind;
pub use linear::{Linear, Unsupported};
pub use vcpu::{Control, ControlError, PageFault, Vcpu};
