// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Invalidation descriptors, 128 and 256 bits: what each asks for, and how it is spelled.
//!
//! VT-d, "Invalidation of Translation Caches", "Queued Invalidation Interface".
//!
//! ```
//! use hvkit_vtd_iommu::spec::invalidation::{Descriptor, Drain, IotlbScope, RawDescriptor};
//!
//! let words = [0x0000_0000_0007_0022, 0];
//! let descriptor = Descriptor::decode(RawDescriptor::from_narrow(words)).unwrap();
//! assert_eq!(
//!     descriptor,
//!     Descriptor::Iotlb { scope: IotlbScope::Domain { domain: 7 }, drain: Drain::empty() }
//! );
//! assert_eq!(descriptor.encode().narrow(), words);
//! ```

mod descriptor;
mod fields;
pub mod layout;
mod raw;
mod scope;
#[cfg(test)]
mod tests;

pub use descriptor::{Descriptor, DescriptorError, StatusWrite, Wait, kind};
pub use raw::RawDescriptor;
pub use scope::{
    AtsRange, ContextScope, DeviceTlb, Drain, InterruptScope, IotlbScope, Pages, PasidCacheScope,
    PasidIotlbScope,
};
