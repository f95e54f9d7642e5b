// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The neighbours of a faulting page: mapped too, where the guest has used them already.

use hvkit_page_table::{Encode, Frames, OwnEntries, ReadEntry};

use super::Mmu;
use super::entry::Attributes;
use super::expect::Expected;
use super::host::HostMap;
use super::links::Link;
use super::row::{Near, Row};
use super::stage::Stage;

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// Fills the empty entries around `link`, a leaf of the lowest level. As a processor's
    /// speculation: what cannot be done is left undone, and no flag is set in the guest's tables.
    pub(super) fn prefetch<M: ReadEntry, B: HostMap>(
        &mut self,
        memory: &M,
        near: &Near<'_, B>,
        link: Link,
    ) {
        let count = usize::from(self.tuning.prefetch).next_power_of_two();
        let first = link.index() & !(count - 1);
        let mut next = first;
        while let Some(row) = self.row(link.page()).map(Row::beside)
            && let last = (first + count).min(Self::entries(row.stage, 1) as usize)
            && let Some((index, host, attributes)) = self.next_ready(&row, memory, near, next..last)
        {
            if self
                .put_leaf(Link::new(link.page(), index), host, attributes)
                .is_err()
            {
                return;
            }
            next = index + 1;
        }
    }

    /// The first of `indices` that is empty and need not be: its host page and attributes.
    fn next_ready<M: ReadEntry, B: HostMap>(
        &self,
        row: &Row<'_, S>,
        memory: &M,
        near: &Near<'_, B>,
        indices: core::ops::Range<usize>,
    ) -> Option<(usize, u64, Attributes<S>)> {
        indices.into_iter().find_map(|index| {
            if self.word(row, index) != row.empty {
                return None;
            }
            let Ok(Expected::Page { target, rights }) = row.expected(memory, index) else {
                return None;
            };
            let page = near.backing(target).page(target, 4096)?;
            if page.host >> row.stage.shadow().target_bits(1).min(52) != 0 {
                return None;
            }
            let attributes = self.usual(row.stage, rights, page.rights, target)?;
            Some((index, page.host, attributes))
        })
    }
}
