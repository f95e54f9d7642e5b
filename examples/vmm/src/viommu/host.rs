// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the unit does to the machine apart from memory.

use crate::interrupts::Router;
use hvkit_virtio_devices::pci::MsiMessage;
use hvkit_vtd_iommu::emulation::Host;
use hvkit_vtd_iommu::spec::interrupt::Message;
use std::fmt;
use std::sync::{Arc, Weak};

/// The machine around the unit.
pub struct UnitHost {
    /// Not held: the router asks the unit.
    router: Weak<Router>,
}

impl fmt::Debug for UnitHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnitHost").finish_non_exhaustive()
    }
}

impl UnitHost {
    pub(super) fn new(router: &Arc<Router>) -> Self {
        UnitHost {
            router: Arc::downgrade(router),
        }
    }
}

impl Host for UnitHost {
    fn message(&mut self, message: Message) {
        let Message { address, data } = message;
        if let Some(router) = self.router.upgrade()
            && let Err(error) = router.send(MsiMessage { address, data })
        {
            log::error!("the remapping unit's interrupt was not delivered: {error}");
        }
    }
}
