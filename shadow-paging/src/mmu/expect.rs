// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a shadow entry may be, by the guest's tables and the host's map as they are now.

use hvkit_page_table::{Encode, Entry, Format, Frames, OwnEntries, ReadEntry, Width};

use super::Mmu;
use super::entry::Slot;
use super::host::{HostMap, HostRights, Machine};
use super::key::{Base, Key, coverage, parts_of_root};
use super::links::Link;
use super::pages::Sync;
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

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// What the entry at `link` may be.
    pub(super) fn expected<M: ReadEntry>(
        &self,
        memory: &M,
        link: Link,
    ) -> Result<Expected, Unread<M::Error>> {
        let Some((key, stage)) = self.pages.get(link.page()).and_then(|page| {
            let stage = self.stages.get(usize::from(page.key.stage))?;
            Some((page.key, stage))
        }) else {
            return Ok(Expected::Nothing);
        };
        let (shadow, index) = (stage.shadow().shape(), link.index() as u64);
        match (key.base, stage.guest()) {
            (Base::Direct(start), _) => Ok(Expected::Page {
                target: start + (index << shadow.shift(key.level)),
                rights: key.rights,
            }),
            (Base::Above(_), Some(guest)) if index >= parts_of_root(guest, shadow) => {
                Ok(Expected::Nothing)
            }
            (Base::Above(frame), _) => Ok(Expected::Child(Key {
                base: Base::Table(frame),
                level: key.level - 1,
                part: index as u8,
                ..key
            })),
            (Base::Registers(entries), _) => {
                let entry = entries.get(link.index()).copied().unwrap_or(0);
                Ok(below(stage, &key, entry, 0))
            }
            (Base::Table(_), Some(guest)) => {
                let Some(origin) = key.origin(guest, stage.shadow(), link.index()) else {
                    return Ok(Expected::Nothing);
                };
                let entry = memory.read(origin.at, guest.width());
                let entry = entry.map_err(|error| Unread {
                    level: key.level,
                    at: origin.at,
                    error,
                })?;
                Ok(below(stage, &key, entry, origin.inside))
            }
            (Base::Table(_), None) => Ok(Expected::Nothing),
        }
    }

    /// What is wrong with the entry at `link`, which is `slot` where `expected` may be.
    pub(super) fn wrong<M, B: HostMap>(
        &self,
        machine: Machine<'_, M, B>,
        link: Link,
        slot: &Slot<S>,
        expected: Expected,
    ) -> Option<Wrong> {
        let (stage, level, _) = self.stage_of(link)?;
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
                        let number = self.pages.get(link.page())?.key.stage;
                        let there = child.key;
                        let key = Key {
                            base: Base::Direct(target),
                            level: level - 1,
                            part: 0,
                            stage: number,
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
                let Some(page) = machine.map.backing(guest).page(guest, size) else {
                    return Some(Wrong::OtherTarget);
                };
                if page.host != target {
                    return Some(Wrong::OtherTarget);
                }
                if !stage.admits(attributes, rights, page.rights) {
                    return Some(Wrong::TooMuch);
                }
                let guarded = if size == 4096 {
                    self.guards(guest)
                } else {
                    self.guards_in(guest, size)
                };
                let read_only = HostRights {
                    write: false,
                    ..page.rights
                };
                (guarded && !stage.admits(attributes, rights, read_only))
                    .then_some(Wrong::WritesGuarded)
            }
        }
    }

    /// Whether no leaf may write the guest's frame at `frame`.
    pub(super) fn guards(&self, frame: u64) -> bool {
        self.pages.of_guest_table(frame).any(|id| {
            self.pages
                .get(id)
                .is_some_and(|page| page.sync != Sync::Unsync)
        })
    }

    /// Whether the guest's memory of `length` bytes (a power of two) at `start` has a table that must not
    /// be written.
    pub(super) fn guards_in(&self, start: u64, length: u64) -> bool {
        !self.unguarded() && self.pages.tables_in(start, length)
    }

    /// Every index of a table's entries that are not empty.
    pub(super) fn filled(&self, id: u32) -> impl Iterator<Item = Link> {
        let page = self.pages.get(id);
        let stage = page.and_then(|page| self.stages.get(usize::from(page.key.stage)));
        let count = page.zip(stage).map_or(0, |(page, stage)| {
            stage.shadow().shape().entries(page.key.level)
        });
        (0..count as usize).filter_map(move |index| {
            let (page, stage) = (page?, stage?);
            let at = stage.shadow().shape().slot_at(page.frame, index as u64);
            let word = self.tables.load(at, Width::Eight);
            let empty = word == stage.shadow().empty();
            (!empty).then(|| Link::new(id, index))
        })
    }
}

/// What a guest's entry says for a shadow entry that begins `inside` bytes above it.
fn below<S: Stage>(stage: &S, key: &Key, entry: u64, inside: u64) -> Expected {
    match stage.meaning(entry, key.level, key.rights) {
        Meaning::Nothing => Expected::Nothing,
        Meaning::Table(Table { frame, above }) => {
            let level = key.level - 1;
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
            target: target + inside,
            rights,
        },
    }
}
