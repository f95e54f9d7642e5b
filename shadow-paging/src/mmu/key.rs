// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Roles: by what a shadow table is found again.
//!
//! A guest's table has a shadow for each way it is used: at which level, under which rights, in which
//! mode, and, where the guest's tables have more entries than ours, for each part.
//!
//! ```text
//!  32-bit guest          shadow (PAE)
//!  CR3 ----------------> Above(CR3)         4 entries, one for each part of the directory
//!  directory, 1024       Table, level 2     parts 0 to 3, two entries for each of the guest's
//!  page table, 1024      Table, level 1     parts 0 and 1
//!  4 MiB page            leaves of 2 MiB, or Direct tables of 4 KiB leaves where the host wants them
//! ```

use hvkit_page_table::{Encode, Format, Shape};

use super::index::mix;
use super::stage::{Path, Rights, Stage, Top};

/// What a shadow table is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Base {
    /// The guest's table at this frame.
    Table(u64),
    /// Guest-physical memory from this address on, which one large page maps, or no table at all.
    Direct(u64),
    /// The parts of the guest's root table at this frame.
    Above(u64),
    /// Root entries in registers.
    Registers([u64; 4]),
}

/// A shadow table's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) base: Base,
    /// The shadow table's level.
    pub(crate) level: u8,
    /// Which part of the guest's table.
    pub(crate) part: u8,
    /// Number of the stage.
    pub(crate) stage: u8,
    /// What is granted above it.
    pub(crate) rights: Rights,
}

impl Base {
    /// Depends on the frame alone: all roles of a table are near each other in the index.
    pub(crate) fn hash(&self) -> u64 {
        match *self {
            Self::Table(frame) => mix(frame),
            Self::Direct(start) => mix(start | 1),
            Self::Above(frame) => mix(frame | 2),
            Self::Registers(entries) => entries
                .iter()
                .fold(3, |hash: u64, &entry| mix(hash.rotate_left(7) ^ entry)),
        }
    }
}

/// log2 of the bytes that a table at `level` covers.
pub(crate) const fn coverage(shape: &Shape, level: u8) -> u32 {
    let index_bits = shape.entries(level).trailing_zeros();
    shape.shift(level).saturating_add(index_bits)
}

/// How many parts of the guest's root the shadow's root, one level higher, leads to.
pub(crate) const fn parts_of_root(guest: &Shape, shadow: &Shape) -> u64 {
    let (root, entry) = (
        coverage(guest, guest.levels()),
        shadow.shift(shadow.levels()),
    );
    1 << root.saturating_sub(entry)
}

/// The root's key.
pub(crate) fn root_key<S: Stage>(stage: &S, number: u8, top: &Top) -> Key {
    let levels = stage.shadow().shape().levels();
    let base = match *top {
        Top::Table(frame) if stage.guest().is_some_and(|shape| shape.levels() < levels) => {
            Base::Above(frame)
        }
        Top::Table(frame) => Base::Table(frame),
        Top::Registers(entries) => Base::Registers(entries),
        Top::Direct => Base::Direct(0),
    };
    Key {
        base,
        level: levels,
        part: 0,
        stage: number,
        rights: stage.all(),
    }
}

/// The key of the shadow table at `level`, below the root's, on `path` for `address`.
pub(crate) fn key_on_path<S: Stage>(
    stage: &S,
    number: u8,
    path: &Path,
    address: u64,
    level: u8,
) -> Key {
    let shadow = coverage(stage.shadow().shape(), level);
    let table = path.tables.get(usize::from(level).wrapping_sub(1));
    match (stage.guest(), table) {
        (Some(shape), Some(table)) if level >= path.level => {
            let parts = 1u64 << coverage(shape, level).saturating_sub(shadow);
            Key {
                base: Base::Table(table.frame),
                level,
                part: (address >> shadow & parts.wrapping_sub(1)) as u8,
                stage: number,
                rights: table.above,
            }
        }
        _ => Key {
            base: Base::Direct(path.target >> shadow << shadow),
            level,
            part: 0,
            stage: number,
            rights: path.rights,
        },
    }
}

/// Where a shadow table's entry has its guest entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Guest-physical address of the guest's entry.
    pub(crate) at: u64,
    /// Bytes between what the guest's entry maps first and what the shadow's does.
    pub(crate) inside: u64,
}

impl Key {
    /// The guest's entry behind entry `index`, if the table shadows one of the guest's in memory.
    pub(crate) fn origin<F: Format>(
        &self,
        guest: &Shape,
        shadow: &F,
        index: usize,
    ) -> Option<Origin> {
        let Base::Table(frame) = self.base else {
            return None;
        };
        let shape = shadow.shape();
        let offset = u64::from(self.part) << coverage(shape, self.level)
            | (index as u64) << shape.shift(self.level);
        Some(Origin {
            at: guest.slot_at(frame, offset >> guest.shift(self.level)),
            inside: offset & guest.below(self.level),
        })
    }

    /// Where the guest's entry behind the first one is, if there is one for each, side by side.
    #[inline]
    pub(crate) fn first_behind(&self, guest: &Shape, shadow: &Shape) -> Option<u64> {
        let Base::Table(frame) = self.base else {
            return None;
        };
        let index = u64::from(self.part).saturating_mul(shadow.entries(self.level));
        (guest.shift(self.level) == shadow.shift(self.level)).then(|| guest.slot_at(frame, index))
    }

    /// The entries of this table whose guest entries have a byte in `length` bytes at `at`.
    pub(crate) fn entries_behind<F: Encode>(
        &self,
        guest: &Shape,
        shadow: &F,
        at: u64,
        length: u64,
    ) -> core::ops::Range<usize> {
        let (Base::Table(frame), Some(last)) = (self.base, length.checked_sub(1)) else {
            return 0..0;
        };
        let shape = shadow.shape();
        let end = frame.saturating_add(0xfff);
        let (from, to) = (at.max(frame), at.saturating_add(last).min(end));
        if from > to {
            return 0..0;
        }
        let slot = |at: u64| at.saturating_sub(frame) >> guest.width().bytes().trailing_zeros();
        let part = u64::from(self.part) << coverage(shape, self.level);
        // Addresses under the first entry written and past the last, from the table's first on.
        let low = slot(from) << guest.shift(self.level);
        let high = slot(to).saturating_add(1) << guest.shift(self.level);
        let count = shape.entries(self.level);
        let index = |address: u64| {
            (address.saturating_sub(part) >> shape.shift(self.level)).min(count) as usize
        };
        index(low)..index(high)
    }
}
