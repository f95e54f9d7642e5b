// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What may stand between those who send messages and the local APICs: remapping units.

use hvkit_virtio_devices::pci::MsiMessage;
use hvkit_vtd_iommu::spec::RequesterId;
use std::fmt;

/// A remapping unit among those of its machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitNumber(pub usize);

impl fmt::Display for UnitNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {}", self.0)
    }
}

/// Who sends a message, and which unit stands in front of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source {
    /// As whom it sends.
    pub id: RequesterId,
    /// The unit; none: its messages go as they are.
    pub unit: Option<UnitNumber>,
}

impl From<RequesterId> for Source {
    /// Behind no unit.
    fn from(id: RequesterId) -> Self {
        Source { id, unit: None }
    }
}

/// The remapping units of a machine, as the router sees them.
///
/// A unit's lock comes before the router's: `then` takes the router's, and so may whatever the unit does with its own
/// lock held.
pub trait Remapper: Send + Sync {
    /// Calls `then`, once, with the message that `message` of `source` is turned into now; with none if it is refused.
    /// Nothing can change that until `then` has returned.
    fn resolve(
        &self,
        source: Source,
        message: MsiMessage,
        then: &mut dyn FnMut(Option<MsiMessage>),
    );

    /// `source` sends `message`: what that is turned into; none if it is refused, and the guest is told.
    fn request(&self, source: Source, message: MsiMessage) -> Option<MsiMessage>;
}
