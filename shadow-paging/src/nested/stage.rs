// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A second stage over a second stage, as the engine sees it.

use hvkit_page_table::{Entry, Fault, Format, Root, Shape, UpdateEntry, walk};

use super::format::{Grants, SecondStage};
use crate::guest::marks::{Unmarked, Use, mark};
use crate::mmu::{HostRights, Meaning, Path, Rights, Stage, Stopped, Table, Top};

/// A guest's tables of format `F`, or none at all, on shadow tables of format `F`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nested<F> {
    guest: Option<F>,
    shadow: F,
    /// Granted above the root, and everywhere where there are no tables.
    all: Rights,
}

/// Formats that cannot be put upon each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// The shadow needs as many levels as the guest's tables, or one more.
    #[error("a guest's tables of {guest} levels on {shadow} levels")]
    Levels {
        /// The guest's.
        guest: u8,
        /// The shadow's.
        shadow: u8,
    },
    /// The guest tells fetches from user addresses from others (mode-based execute control), and the shadow
    /// cannot.
    #[error("mode-based execute control in the guest's tables alone")]
    UserExecute,
    /// Hardware would count the reads of page walks as [writes](SecondStage::walks_write) by one of the two, and by the other
    /// not: violations that the guest's tables do not say, or dirty flags that are missing. Enable accessed and dirty flags of
    /// the shadow where the guest enables its own, and there alone.
    #[error("a page walk's reads are writes by the tables of one side alone")]
    WalksWrite,
}

/// Why a guest's tables refuse an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused<R> {
    /// The address is wider than the tables.
    Beyond,
    /// An entry is not present.
    Absent {
        /// Level of its table.
        level: u8,
        /// The entry.
        entry: u64,
    },
    /// The entries of the path grant less than the access needs.
    Rights {
        /// What all of them grant.
        granted: Grants,
    },
    /// An entry breaks a rule.
    Malformed {
        /// Level of its table.
        level: u8,
        /// The entry.
        entry: u64,
        /// The rule.
        rule: R,
    },
}

/// Granted if each entry has it; the rest is the last entry's.
const GRANTS: u16 = Grants::ALL.0 as u16;
/// The page is marked dirty, or nobody keeps such a mark.
const WRITTEN: u16 = 1 << 4;
const OTHER_SHIFT: u32 = 5;

/// How often entries may change under us: see the guest's walk.
const ATTEMPTS: u32 = 16;

const fn granted(rights: Rights) -> Grants {
    Grants((rights.0 & GRANTS) as u8)
}

impl<F: SecondStage> Nested<F> {
    /// The guest's tables of `guest`'s format on tables of `shadow`'s, which is what hardware walks.
    ///
    /// # Errors
    ///
    /// See [`Unsupported`].
    pub fn new(guest: F, shadow: F) -> Result<Self, Unsupported> {
        let levels = (guest.shape().levels(), shadow.shape().levels());
        if levels.1 != levels.0 && levels.1.checked_sub(1) != Some(levels.0) {
            let (guest, shadow) = levels;
            return Err(Unsupported::Levels { guest, shadow });
        }
        if guest.tells_user_execute() && !shadow.tells_user_execute() {
            return Err(Unsupported::UserExecute);
        }
        if guest.walks_write() != shadow.walks_write() {
            return Err(Unsupported::WalksWrite);
        }
        Ok(Self {
            guest: Some(guest),
            shadow,
            all: Rights(GRANTS),
        })
    }

    /// Guest-physical addresses as they are, with `attributes`: what runs on the host's map alone. The address is
    /// [`Top::Direct`].
    #[must_use]
    pub fn direct(shadow: F, attributes: F::Attributes) -> Self {
        let all = Rights(rights_of(&shadow, attributes).0 | WRITTEN);
        Self {
            guest: None,
            shadow,
            all,
        }
    }

    fn page(format: &F, attributes: F::Attributes, entry: u64) -> Rights {
        let dirty = format.marks().dirty;
        let written = if entry & dirty == dirty { WRITTEN } else { 0 };
        Rights(rights_of(format, attributes).0 | written)
    }
}

fn rights_of<F: SecondStage>(format: &F, attributes: F::Attributes) -> Rights {
    let other = format.other(attributes) << OTHER_SHIFT;
    Rights(u16::from(format.grants(attributes).0) | other)
}

fn table_rights<F: SecondStage>(format: &F, attributes: F::Attributes) -> Rights {
    Rights(u16::from(format.grants(attributes).0))
}

impl<F: SecondStage> Stage for Nested<F> {
    type Shadow = F;
    type Access = Grants;
    type Refusal = Refused<F::Rule>;

    #[inline]
    fn shadow(&self) -> &F {
        &self.shadow
    }

    #[inline]
    fn guest(&self) -> Option<&Shape> {
        self.guest.as_ref().map(Format::shape)
    }

    fn all(&self) -> Rights {
        self.all
    }

    fn resolve<M: UpdateEntry>(
        &self,
        top: &Top,
        memory: &M,
        address: u64,
        access: Grants,
    ) -> Result<Path, Stopped<Self::Refusal, M::Error>> {
        let (Some(format), Top::Table(root)) = (&self.guest, top) else {
            let shape = self.shadow.shape();
            if shape.strip(address).is_none() {
                return Err(Stopped::Refused(Refused::Beyond));
            }
            return Ok(Path {
                tables: [Table::default(); 5],
                target: address,
                level: shape.levels(),
                shift: shape.address_bits(),
                rights: self.all,
            });
        };
        for _ in 0..ATTEMPTS {
            let walk = walk(format, memory, Root::Table(*root), address);
            let there = match walk.outcome {
                Ok(there) => there,
                Err(fault) => return Err(stopped(fault)),
            };
            let granted = format.grants(there.attributes);
            if !granted.contains(access) {
                return Err(Stopped::Refused(Refused::Rights { granted }));
            }
            let (marks, width) = (format.marks(), format.shape().width());
            let (page_use, set) = if self.writes(access) {
                (Use::Write, marks.all())
            } else {
                (Use::Read, 0)
            };
            match mark(memory, walk.steps(), marks, width, page_use) {
                Ok(()) => {
                    let last = walk.steps().last().map_or(0, |step| step.entry) | set;
                    let of = |attributes| table_rights(format, attributes);
                    return Ok(Path {
                        tables: Path::of_steps(walk.steps(), self.all, of),
                        target: there.target,
                        level: there.level,
                        shift: format.shape().shift(there.level),
                        rights: Self::page(format, there.attributes, last),
                    });
                }
                Err(Unmarked::Changed) => {}
                Err(Unmarked::Memory { level, at, error }) => {
                    return Err(Stopped::Memory { level, at, error });
                }
            }
        }
        Err(Stopped::Contended)
    }

    fn meaning(&self, entry: u64, level: u8, above: Rights) -> Meaning {
        let Some(format) = &self.guest else {
            return Meaning::Nothing;
        };
        let accessed = format.marks().accessed;
        if entry & accessed != accessed {
            return Meaning::Nothing;
        }
        match format.decode(entry, level) {
            Entry::Table { frame, attributes } => Meaning::Table(Table {
                frame,
                above: Rights(above.0 & table_rights(format, attributes).0),
            }),
            Entry::Leaf { target, attributes } => {
                let here = Self::page(format, attributes, entry).0;
                let rights = Rights(here & (above.0 | !GRANTS));
                Meaning::Page { target, rights }
            }
            Entry::Empty | Entry::Malformed(_) => Meaning::Nothing,
        }
    }

    fn grant(
        &self,
        rights: Rights,
        host: HostRights,
        access: Option<Grants>,
    ) -> Option<F::Attributes> {
        let execute = Grants::EXECUTE | Grants::USER_EXECUTE;
        let withheld = Grants::WRITE.when(!host.write || rights.0 & WRITTEN == 0)
            | execute.when(!host.execute);
        let allowed = granted(rights).without(withheld);
        allowed
            .contains(access.unwrap_or_default())
            .then(|| self.shadow.spelled(allowed, rights.0 >> OTHER_SHIFT))
            .flatten()
    }

    fn admits(&self, attributes: F::Attributes, rights: Rights, host: HostRights) -> bool {
        self.grant(rights, host, None).is_some_and(|most| {
            let shadow = &self.shadow;
            shadow.grants(most).contains(shadow.grants(attributes))
                && shadow.other(most) == shadow.other(attributes)
        })
    }

    #[inline]
    fn includes(&self, now: Rights, then: Rights) -> bool {
        now == then || now.0 == then.0 | WRITTEN
    }

    fn protect(&self, attributes: F::Attributes) -> Option<F::Attributes> {
        let shadow = &self.shadow;
        let grants = shadow.grants(attributes);
        if !grants.contains(Grants::WRITE) {
            return Some(attributes);
        }
        shadow.spelled(grants.without(Grants::WRITE), shadow.other(attributes))
    }

    #[inline]
    fn writes(&self, access: Grants) -> bool {
        access.contains(Grants::WRITE)
    }
}

/// What stopped the walk: the guest's business or not.
fn stopped<R, E>(fault: Fault<R, E>) -> Stopped<Refused<R>, E> {
    match fault {
        Fault::NotPresent { level, entry } => Stopped::Refused(Refused::Absent { level, entry }),
        Fault::Malformed { level, entry, rule } => {
            Stopped::Refused(Refused::Malformed { level, entry, rule })
        }
        Fault::Unreadable { level, at, error } => Stopped::Memory { level, at, error },
        _ => Stopped::Refused(Refused::Beyond),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory that cannot be read is not the guest's fault: nothing is reflected.
    #[test]
    fn what_stops_a_walk_is_told_apart() {
        type Stops = Stopped<Refused<u8>, u16>;
        let stopped = |fault: Fault<u8, u16>| -> Stops { stopped(fault) };
        let (level, entry, at) = (2, 0x77, 0x1008);
        assert!(matches!(
            stopped(Fault::Unreadable {
                level,
                at,
                error: 5
            }),
            Stopped::Memory {
                level: 2,
                at: 0x1008,
                error: 5
            }
        ));
        assert!(matches!(
            stopped(Fault::NotPresent { level, entry }),
            Stopped::Refused(Refused::Absent {
                level: 2,
                entry: 0x77
            })
        ));
        assert!(matches!(
            stopped(Fault::Malformed {
                level,
                entry,
                rule: 9
            }),
            Stopped::Refused(Refused::Malformed {
                level: 2,
                entry: 0x77,
                rule: 9
            })
        ));
    }
}
