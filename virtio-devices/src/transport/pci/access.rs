// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Access to the windows through configuration space.
//!
//! "PCI configuration access capability" (4.1.4.9).

use super::layout::{BAR, CFG_DATA};
use super::{VirtioPci, resources};

impl<A> VirtioPci<A> {
    /// What the capability for access by configuration space asks for, if it is a legal access: a base address register that a
    /// capability names, the offset in its window, and how many bytes (4.1.4.9).
    pub(super) fn access(&self) -> Option<(u8, u64, usize)> {
        let mut capability = [0; CFG_DATA as usize];
        self.config.read(self.declared.access, &mut capability);
        let [.., o0, o1, o2, o3, l0, l1, l2, l3] = capability;
        let offset = u32::from_le_bytes([o0, o1, o2, o3]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let bar = capability[4];
        let room = match (bar, &self.resources) {
            (BAR, _) => self.layout.length(),
            (resources::BAR, Some(resources)) => resources.length(),
            _ => 0,
        };
        let legal = matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length)
            && u64::from(offset).saturating_add(length.into()) <= room;
        legal.then_some((bar, u64::from(offset), length as usize))
    }

    pub(super) fn touches_access_data(&self, offset: u16, data: &[u8]) -> bool {
        let start = self.declared.access_data();
        let end = usize::from(offset).saturating_add(data.len());
        offset < start.saturating_add(4) && end > usize::from(start)
    }
}
