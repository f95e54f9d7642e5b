// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The neighbours of a faulting page: mapped too, where the guest has used them already.

use core::ops::Range;

use hvkit_page_table::{Frames, OwnEntries, ReadEntry};

use super::Mmu;
use super::entry::{NewLeaf, fits};
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
        let first = link.index() & !count.wrapping_sub(1);
        let mut rest = first..first.saturating_add(count);
        while let Some(row) = self.row(link.page()).map(Row::beside)
            && let Some((index, new)) = self.next_ready(&row, memory, near, &mut rest)
        {
            let neighbour = Link::new(link.page(), index);
            if self.insert_if_room(neighbour, new).is_err() {
                return;
            }
        }
    }

    /// The next of `indices` whose entry is empty and need not be, and what goes there.
    #[inline]
    fn next_ready<M: ReadEntry, B: HostMap>(
        &self,
        row: &Row<'_, S>,
        memory: &M,
        near: &Near<'_, B>,
        indices: &mut Range<usize>,
    ) -> Option<(usize, NewLeaf)> {
        let (stage, count) = (row.stage, Self::entries(row.stage, row.key.level) as usize);
        indices.find_map(|index| {
            if index >= count || self.word(row, index) != row.empty {
                return None;
            }
            let Ok(Expected::Page { target, rights }) = row.expected(memory, index) else {
                return None;
            };
            let page = near.backing(target).page(target, 4096)?;
            let attributes = self.usual(stage, rights, page.rights, target)?;
            fits(stage, 1, page.host)
                .then(|| (index, NewLeaf::of(row, index, page.host, attributes)))
        })
    }
}
