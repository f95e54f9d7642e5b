// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What may stand between those who send messages and the local APICs: a remapping unit.

use hvkit_virtio_devices::pci::MsiMessage;
use hvkit_vtd_iommu::spec::RequesterId;

/// A remapping unit, as the router sees it.
///
/// The unit's lock comes before the router's: `then` takes the router's, and so may whatever the unit does with its own
/// lock held.
pub trait Remapper: Send + Sync {
    /// Calls `then`, once, with the message that `message` of `source` is turned into now; with none if it is refused.
    /// Nothing can change that until `then` has returned.
    fn resolve(
        &self,
        source: RequesterId,
        message: MsiMessage,
        then: &mut dyn FnMut(Option<MsiMessage>),
    );

    /// `source` sends `message`: what that is turned into; none if it is refused, and the guest is told.
    fn request(&self, source: RequesterId, message: MsiMessage) -> Option<MsiMessage>;
}
