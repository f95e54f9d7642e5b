// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device behind an IOMMU of the guest's, as its VMM tells it: "IOMMU support".

use super::BackEnd;
use super::rings::Ring;
use crate::features::Features;
use crate::patience::end_of;
use crate::vhost_user::translation::{Kind, Mapped, Message};

impl BackEnd {
    /// Whether the device's addresses are those of an IOMMU of the guest's.
    pub(super) fn translated(&self) -> bool {
        self.accepted.contains(Features::ACCESS_PLATFORM)
    }

    /// What the VMM says of the device's addresses.
    pub(super) fn translate(&mut self, message: Message) -> Option<()> {
        let Message {
            address,
            size,
            theirs,
            access,
            kind,
        } = message;
        let range = address..address.checked_add(size)?;
        match kind {
            Kind::Update => {
                let target = self.given.as_ref()?.guest_range(theirs, size)?;
                self.translator.update(Mapped {
                    range,
                    target,
                    access,
                });
                // A queue may have waited for that.
                if self.running.is_empty() {
                    self.start()?;
                }
                Some(())
            }
            Kind::Invalidate => {
                let end = end_of(self.patience);
                // While a worker uses it, nobody may be told that it does not.
                self.translator.invalidate(&range, end).then_some(())
            }
            // Those are ours to say.
            Kind::Miss | Kind::AccessFail => None,
        }
    }

    /// Whether all that a queue consists of can be reached; if not, the VMM has been asked for it.
    pub(super) fn foresee(&self, ring: &Ring) -> bool {
        let config = &ring.config;
        let places = [
            config.descriptor_area,
            config.driver_area,
            config.device_area,
        ];
        let mut areas = places.into_iter().zip(config.lengths(self.layout()));
        // What wraps is refused where the queue is made.
        areas.all(|(start, (length, access))| {
            let end = start.saturating_add(length);
            self.translator.foresee(start..end, access)
        })
    }
}
