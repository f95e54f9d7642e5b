// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt remapping: table entries, the posted-interrupt descriptor, and what devices and chipsets send.
//! "Interrupt Remapping Table Entry", "Posted Interrupt Descriptor", "Interrupt Request Formats".

mod descriptor;
mod irte;
mod message;

pub use descriptor::PostedDescriptor;
pub use irte::{Delivery, Irte, SourceCheck, SourceQualifier};
pub use message::{Message, Remappable};
