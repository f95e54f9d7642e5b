// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An IOMMU of virtio's own: virtio-iommu. Feature `iommu`.
//!
//! ```text
//!   driver                     Iommu (a Device)                 other devices
//!   ATTACH, MAP, UNMAP ------> request --> domain ------------> Endpoint: vm_memory::Iommu
//!   PROBE <------------------- properties                          | refused
//!   fault reports <----------- events <----------------------------'
//! ```
//!
//! "IOMMU Device" (5.13).
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

mod device;
mod domain;
mod endpoint;
mod events;
mod request;
mod server;
mod state;

#[cfg(test)]
mod tests;

pub use device::{AtBoot, EndpointError, Endpoints, Iommu, SharedEndpoint, feature};
pub use domain::Limits;
pub use endpoint::{Endpoint, Held, Reserved};
pub use request::{MapFlags, Span, Status};
