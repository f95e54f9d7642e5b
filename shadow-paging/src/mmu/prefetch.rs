// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The neighbours of a faulting page: mapped too, where the guest has used them already.

use hvkit_page_table::{Encode, Frames, OwnEntries, ReadEntry};

use super::Mmu;
use super::expect::Expected;
use super::host::{HostMap, HostRights, Machine};
use super::links::Link;
use super::stage::Stage;

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// Fills the empty entries around `link`, a leaf of the lowest level. As a processor's
    /// speculation: what cannot be done is left undone, and no flag is set in the guest's tables.
    pub(super) fn prefetch<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        link: Link,
    ) {
        let count = usize::from(self.tuning.prefetch).next_power_of_two();
        let Some((stage, ..)) = self.stage_of(link) else {
            return;
        };
        let stage = *stage;
        let first = link.index() & !(count - 1);
        let last = (first + count).min(Self::entries(&stage, 1) as usize);
        for index in first..last {
            let neighbour = Link::new(link.page(), index);
            if index == link.index() || !self.is_empty_at(neighbour) {
                continue;
            }
            let Ok(Expected::Page { target, rights }) = self.expected(machine.memory, neighbour)
            else {
                continue;
            };
            let Some(page) = machine.map.backing(target).page(target, 4096) else {
                continue;
            };
            let host = HostRights {
                write: page.rights.write && !self.guards(target),
                ..page.rights
            };
            let Some(attributes) = stage.grant(rights, host, None) else {
                continue;
            };
            if page.host >> stage.shadow().target_bits(1).min(52) != 0
                || self.put_leaf(neighbour, page.host, attributes).is_err()
            {
                return;
            }
        }
    }
}
