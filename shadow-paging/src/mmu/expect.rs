// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a shadow entry may be, by the guest's tables and the host's map as they are now.

use hvkit_page_table::{Entry, Format, Frames, OwnEntries, ReadEntry};

use super::Mmu;
use super::entry::Slot;
use super::host::HostMap;
use super::key::{Base, Key, coverage, parts_of_root};
use super::links::Link;
use super::row::{Near, Row};
use super::stage::{Meaning, Rights, Stage, Table};

/// What the guest's side of a shadow entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The entry must be empty.
    Nothing,
    /// A link to the table in this role.
    Child(Key),
    /// A leaf, or a link to a table of smaller ones.
    Page { target: u64, rights: Rights },
}

/// A guest's entry behind a shadow entry, and how many bytes above what it maps the other begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    pub(super) entry: u64,
    inside: u64,
}

/// An entry of the guest's that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unread<E> {
    pub(super) level: u8,
    pub(super) at: u64,
    pub(super) error: E,
}

/// Why an entry may not be as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The guest's entry translates nothing, or is to be marked first.
    NothingExpected,
    /// It leads to a table in another role.
    OtherTable,
    /// It maps another page than guest and host say, or a larger one than the host has.
    OtherTarget,
    /// It grants what guest or host forbid.
    TooMuch,
    /// It can be used to write a guarded table.
    WritesGuarded,
    /// Our own tables are damaged.
    Malformed,
}

impl<S: Stage> Row<'_, S> {
    /// What entry `index` may be.
    pub(super) fn expected<M: ReadEntry>(
        &self,
        memory: &M,
        index: usize,
    ) -> Result<Expected, Unread<M::Error>> {
        let (key, stage) = (self.key, self.stage);
        let shadow = stage.shadow().shape();
        match (&key.base, stage.guest()) {
            (Base::Direct(start), _) => Ok(Expected::Page {
                target: start.wrapping_add((index as u64) << shadow.shift(key.level)),
                rights: key.rights,
            }),
            (Base::Above(_), Some(guest)) if index as u64 >= parts_of_root(guest, shadow) => {
                Ok(Expected::Nothing)
            }
            (Base::Above(frame), _) => Ok(Expected::Child(Key {
                base: Base::Table(*frame),
                level: key.level.saturating_sub(1),
                part: index as u8,
                ..*key
            })),
            (Base::Registers(entries), _) => {
                let entry = entries.get(index).copied().unwrap_or(0);
                Ok(below(stage, key, entry, 0))
            }
            (Base::Table(_), _) => Ok(self
                .behind(memory, index)?
                .map_or(Expected::Nothing, |behind| self.by(behind))),
        }
    }

    /// The guest's entry in memory behind entry `index`, if there is one.
    #[inline(always)]
    pub(super) fn behind<M: ReadEntry>(
        &self,
        memory: &M,
        index: usize,
    ) -> Result<Option<Behind>, Unread<M::Error>> {
        let Some(guest) = self.stage.guest() else {
            return Ok(None);
        };
        let width = guest.width();
        let (at, inside) = if let Some(first) = self.first_behind {
            (guest.slot_at(first, index as u64), 0)
        } else if let Some(origin) = self.key.origin(guest, self.stage.shadow(), index) {
            (origin.at, origin.inside)
        } else {
            return Ok(None);
        };
        match memory.read(at, width) {
            Ok(entry) => Ok(Some(Behind { entry, inside })),
            Err(error) => Err(Unread {
                level: self.key.level,
                at,
                error,
            }),
        }
    }

    /// What an entry may be that has this one behind it.
    #[inline(always)]
    pub(super) fn by(&self, behind: Behind) -> Expected {
        below(self.stage, self.key, behind.entry, behind.inside)
    }
}

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// What the entry at `link` may be.
    pub(super) fn expected<M: ReadEntry>(
        &self,
        memory: &M,
        link: Link,
    ) -> Result<Expected, Unread<M::Error>> {
        match self.row(link.page()) {
            Some(row) => row.expected(memory, link.index()),
            None => Ok(Expected::Nothing),
        }
    }

    /// What is wrong with an entry of the table, which is `slot` where `expected` may be.
    pub(super) fn wrong<B: HostMap>(
        &self,
        row: &Row<'_, S>,
        map: &Near<'_, B>,
        slot: &Slot<S>,
        expected: Expected,
    ) -> Option<Wrong> {
        let (stage, level) = (row.stage, row.key.level);
        match (*slot, expected) {
            (Entry::Empty, _) => None,
            (Entry::Malformed(_), _) => Some(Wrong::Malformed),
            (_, Expected::Nothing) => Some(Wrong::NothingExpected),
            (Entry::Table { frame, .. }, expected) => {
                let child = self.pages.at_frame(frame);
                let child = child.and_then(|child| self.pages.get(child))?;
                let right = match expected {
                    Expected::Child(key) => child.key == key,
                    Expected::Page { target, rights } => {
                        let there = child.key;
                        let key = Key {
                            base: Base::Direct(target),
                            level: level.saturating_sub(1),
                            part: 0,
                            stage: row.key.stage,
                            rights: there.rights,
                        };
                        there == key && stage.includes(rights, there.rights)
                    }
                    Expected::Nothing => false,
                };
                (!right).then_some(Wrong::OtherTable)
            }
            (Entry::Leaf { .. }, Expected::Child(_)) => Some(Wrong::OtherTable),
            (
                Entry::Leaf { target, attributes },
                Expected::Page {
                    target: guest,
                    rights,
                },
            ) => {
                let size = stage.shadow().shape().size(level);
                let Some(page) = map.backing(guest).page(guest, size) else {
                    return Some(Wrong::OtherTarget);
                };
                if page.host != target {
                    return Some(Wrong::OtherTarget);
                }
                // What it would be if it were made now, mostly.
                let most = stage.grant(rights, page.rights, None);
                if most != Some(attributes) && !stage.admits(attributes, rights, page.rights) {
                    return Some(Wrong::TooMuch);
                }
                // Looked up last, and seldom: most leaves cannot write.
                let guarded = || {
                    if size == 4096 {
                        self.guards(guest)
                    } else {
                        self.guards_in(guest, size)
                    }
                };
                let writes = stage.protect(attributes) != Some(attributes);
                (writes && guarded()).then_some(Wrong::WritesGuarded)
            }
        }
    }

    /// Whether no leaf may write the guest's frame at `frame`.
    pub(super) fn guards(&self, frame: u64) -> bool {
        self.pages.guarded(frame)
    }

    /// Whether the guest's memory of `length` bytes (a power of two) at `start` has a table that must not
    /// be written.
    pub(super) fn guards_in(&self, start: u64, length: u64) -> bool {
        !self.unguarded() && self.pages.tables_in(start, length)
    }
}

/// What a guest's entry says for a shadow entry that begins `inside` bytes above it.
#[inline]
fn below<S: Stage>(stage: &S, key: &Key, entry: u64, inside: u64) -> Expected {
    match stage.meaning(entry, key.level, key.rights) {
        Meaning::Nothing => Expected::Nothing,
        Meaning::Table(Table { frame, above }) => {
            let level = key.level.saturating_sub(1);
            let part = inside >> coverage(stage.shadow().shape(), level);
            Expected::Child(Key {
                base: Base::Table(frame),
                level,
                part: part as u8,
                stage: key.stage,
                rights: above,
            })
        }
        Meaning::Page { target, rights } => Expected::Page {
            target: target.wrapping_add(inside),
            rights,
        },
    }
}
