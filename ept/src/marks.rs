// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accessed and dirty flags that an access sets: first found, as data, then stored.
//!
//! A walk changes nothing. Whoever plays the processor stores the [`Updates`] it found, each by one
//! compare-exchange, and walks again if an entry changed in between.

use hvkit_page_table::{MAX_LEVELS, UpdateEntry, Width};

/// One entry, guest's or EPT's, whose flags an access sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Host-physical address of the entry.
    pub at: u64,
    /// How wide it is.
    pub width: Width,
    /// The entry as the walk saw it.
    pub entry: u64,
    /// The flags to set: none of them is in `entry`.
    pub set: u64,
    /// The guest-physical page that page-modification logging records, if the EPT dirty flag is
    /// among them.
    pub logged: Option<u64>,
}

/// What becomes of the marks that a walk finds.
pub(crate) trait Note {
    /// Whether it matters which there are: if not, no path has to be kept.
    const KEEPS: bool;

    /// One was found.
    fn note(&mut self, mark: Mark);
}

/// They are forgotten.
pub(crate) struct Forget;

impl Note for Forget {
    const KEEPS: bool = false;

    #[inline]
    fn note(&mut self, _: Mark) {}
}

impl Note for &mut Updates {
    const KEEPS: bool = true;

    fn note(&mut self, mark: Mark) {
        self.add(mark);
    }
}

/// The most entries one access can mark: those of each guest entry's own path through EPT, the guest's,
/// and those of the last path.
const MOST: usize = MAX_LEVELS * MAX_LEVELS + 2 * MAX_LEVELS;

/// Every flag that one access sets, each entry once, in the order the walk met them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Updates {
    marks: [Mark; MOST],
    used: usize,
}

/// Why updates were not (all) stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError<E> {
    /// Someone changed an entry since the walk. Walk again; the flags stored so far are right or, as a
    /// processor's may be, early.
    #[error("the entry at {at:#x} is {found:#x} now")]
    Changed {
        /// Host-physical address of the entry.
        at: u64,
        /// What is there.
        found: u64,
    },
    /// The memory refused.
    #[error("the entry at {at:#x} could not be changed: {error:?}")]
    Memory {
        /// Host-physical address of the entry.
        at: u64,
        /// The memory's reason.
        error: E,
    },
}

impl Updates {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        // All zeros: as quick as clearing memory can be.
        let none = Mark {
            at: 0,
            width: Width::Four,
            entry: 0,
            set: 0,
            logged: None,
        };
        Self {
            marks: [none; MOST],
            used: 0,
        }
    }

    /// Adds a mark, or its flags to the one for the same entry.
    pub(crate) fn add(&mut self, mark: Mark) {
        let known = self
            .marks
            .iter_mut()
            .take(self.used)
            .find(|known| known.at == mark.at);
        if let Some(known) = known {
            known.set |= mark.set;
            known.logged = known.logged.or(mark.logged);
        } else if let Some(slot) = self.marks.get_mut(self.used) {
            *slot = mark;
            self.used = self.used.saturating_add(1);
        }
    }

    /// The marks.
    #[must_use]
    pub fn marks(&self) -> &[Mark] {
        self.marks.get(..self.used).unwrap_or(&self.marks)
    }

    /// The guest-physical pages that page-modification logging records, in order.
    pub fn logged(&self) -> impl Iterator<Item = u64> + '_ {
        self.marks().iter().filter_map(|mark| mark.logged)
    }

    /// Stores the flags.
    ///
    /// # Errors
    ///
    /// The first entry that could not be marked; later ones are not touched.
    pub fn apply<M: UpdateEntry>(&self, memory: &M) -> Result<(), UpdateError<M::Error>> {
        for &Mark {
            at,
            width,
            entry,
            set,
            ..
        } in self.marks()
        {
            let found = memory
                .compare_exchange(at, width, entry, entry | set)
                .map_err(|error| UpdateError::Memory { at, error })?;
            if found != entry {
                return Err(UpdateError::Changed { at, found });
            }
        }
        Ok(())
    }
}

impl Default for Updates {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use hvkit_page_table::ReadEntry;
    use hvkit_page_table::fake::FakeGuest;

    use super::*;

    fn mark(at: u64, entry: u64, set: u64) -> Mark {
        Mark {
            at,
            width: Width::Eight,
            entry,
            set,
            logged: None,
        }
    }

    #[test]
    fn an_entry_is_marked_once_with_all_its_flags() {
        let mut updates = Updates::new();
        updates.add(mark(0x100, 7, 0x100));
        updates.add(mark(0x108, 7, 0x100));
        updates.add(Mark {
            logged: Some(0x5000),
            ..mark(0x100, 7, 0x300)
        });
        let first = Mark {
            logged: Some(0x5000),
            ..mark(0x100, 7, 0x300)
        };
        assert_eq!(updates.marks(), [first, mark(0x108, 7, 0x100)]);
        assert!(updates.logged().eq([0x5000]));

        let memory = FakeGuest::new(0x1000);
        memory.set(0x100, Width::Eight, 7);
        memory.set(0x108, Width::Eight, 7);
        assert_eq!(updates.apply(&memory), Ok(()));
        assert_eq!(memory.read(0x100, Width::Eight), Ok(0x307));
        assert_eq!(memory.read(0x108, Width::Eight), Ok(0x107));
    }

    #[test]
    fn an_entry_that_changed_is_left_alone() {
        let mut updates = Updates::default();
        updates.add(mark(0x100, 7, 0x100));
        updates.add(mark(0x2000, 7, 0x100));
        let memory = FakeGuest::new(0x1000);
        memory.set(0x100, Width::Eight, 0x15007);
        let changed = UpdateError::Changed {
            at: 0x100,
            found: 0x15007,
        };
        assert_eq!(updates.apply(&memory), Err(changed));
        assert_eq!(memory.read(0x100, Width::Eight), Ok(0x15007));
        memory.set(0x100, Width::Eight, 7);
        assert!(matches!(
            updates.apply(&memory),
            Err(UpdateError::Memory { at: 0x2000, .. })
        ));
    }

    #[test]
    fn more_marks_than_any_access_makes_are_dropped_not_fatal() {
        let mut updates = Updates::new();
        for i in 0..100 {
            updates.add(mark(i * 8, 1, 2));
        }
        assert_eq!(updates.marks().len(), 35);
    }
}
