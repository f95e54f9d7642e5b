// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The remapping unit of a machine on real KVM, driven by `hvkit-vtd-iommu`'s own driver through the memory bus, with
//! virtio devices behind it. No guest runs.

mod disk;
mod dma;
mod interrupts;
mod machine;
mod units;
