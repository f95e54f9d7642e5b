// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sub-page permission table: a radix tree of its own, which says which 128-byte pieces of a
//! write-protected 4-KByte page can be written all the same.
//!
//! ```text
//!   SPPTP --> SPPL4 table --> SPPL3 table --> SPPL2 table --> SPPL1 table: 512 vectors, one a page
//!             bits 47:39      bits 38:30      bits 29:21      bits 20:12      sub-page: bits 11:7
//! ```

use hvkit_page_table::{
    Entry, Fault, Format, Frames, OwnEntries, ReadEntry, Root, Shape, Upper, Walk, translate, walk,
};

use crate::spec::{SppEntry, SppFault, SppVector};

/// The sub-page permission table as a format. Its "leaf" is a page's [`SppVector`]; the target is
/// meaningless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SppFormat {
    shape: Shape,
    physical_bits: u32,
}

const SHAPE: Shape = match Shape::nines(4, 0b1, Upper::Zero) {
    Ok(shape) => shape,
    Err(_) => panic!("four levels of nine bits are a shape"),
};

impl SppFormat {
    /// For a processor with `physical_bits` of physical address.
    #[must_use]
    pub const fn new(physical_bits: u32) -> Self {
        Self {
            shape: SHAPE,
            physical_bits,
        }
    }
}

impl Format for SppFormat {
    type Attributes = SppVector;
    type Rule = SppFault;

    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn decode(&self, entry: u64, level: u8) -> Entry<SppVector, SppFault> {
        if level <= 1 {
            return match SppVector(entry).check() {
                Ok(vector) => Entry::Leaf {
                    target: 0,
                    attributes: vector,
                },
                Err(fault) => Entry::Malformed(fault),
            };
        }
        match SppEntry(entry).next(self.physical_bits) {
            Ok(frame) => Entry::Table {
                frame,
                attributes: SppVector(0),
            },
            Err(SppFault::Miss) => Entry::Empty,
            Err(fault) => Entry::Malformed(fault),
        }
    }

    fn fold(&self, _above: SppVector, here: SppVector) -> SppVector {
        here
    }
}

/// Why a sub-page permission table has no vector for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SppError<E> {
    /// What the processor reports as an SPP-related event.
    #[error(transparent)]
    Event(#[from] SppFault),
    /// An entry could not be read.
    #[error("the entry at {at:#x} could not be read: {error:?}")]
    Unreadable {
        /// Its physical address.
        at: u64,
        /// The memory's reason.
        error: E,
    },
}

/// The vector for the page of `guest_physical`, in the table at `root` (the SPPTP).
///
/// # Errors
///
/// The event that the processor would report, or the memory's own error.
pub fn vector<M: ReadEntry>(
    format: &SppFormat,
    memory: &M,
    root: u64,
    guest_physical: u64,
) -> Result<SppVector, SppError<M::Error>> {
    match translate(format, memory, Root::Table(root), guest_physical) {
        Ok(found) => Ok(found.attributes),
        Err(Fault::Malformed { rule, .. }) => Err(SppError::Event(rule)),
        Err(Fault::Unreadable { at, error, .. }) => Err(SppError::Unreadable { at, error }),
        Err(_) => Err(SppError::Event(SppFault::Miss)),
    }
}

/// Why a vector was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetVectorError {
    /// Reserved bits in the vector, or in the table.
    #[error(transparent)]
    Fault(#[from] SppFault),
    /// Bits above 47 in the address: the table does not reach it.
    #[error("{0:#x} is wider than the 48 bits of a sub-page permission table")]
    OutOfReach(u64),
    /// The pool has no frame left. Tables linked so far stay, and deny every write.
    #[error("no frame left for a table")]
    OutOfFrames,
    /// The pool returned a frame that no table can be in. It was given back; tables linked so far stay, and deny every
    /// write.
    #[error("frame {frame:#x} from the pool is unaligned or wider than {bits} bits")]
    BadFrame {
        /// The frame.
        frame: u64,
        /// Bits of a physical address.
        bits: u32,
    },
}

/// Sets the vector for the page of `guest_physical`, adding tables that deny every write.
///
/// Taking permissions away owes the processor an INVEPT, as for an EPT entry; giving them does not.
/// Not for several threads at once.
///
/// # Errors
///
/// [`SetVectorError`]; the vector is then as it was.
pub fn set_vector<M: OwnEntries, P: Frames>(
    format: &SppFormat,
    memory: &M,
    frames: &P,
    root: u64,
    guest_physical: u64,
    vector: SppVector,
) -> Result<(), SetVectorError> {
    vector.check()?;
    let width = format.shape.width();
    // Each turn but the last links one table: at most three.
    for _ in 0..format.shape.levels() {
        let seen: Walk<SppVector, SppFault, _> =
            walk(format, memory, Root::Table(root), guest_physical);
        let Some(at) = seen.steps().last().and_then(|step| step.at) else {
            return Err(SetVectorError::OutOfReach(guest_physical));
        };
        match seen.outcome {
            Ok(_) | Err(Fault::Malformed { level: 1, .. }) => {
                memory.write(at, width, vector.0);
                return Ok(());
            }
            Err(Fault::Malformed { rule, .. }) => return Err(rule.into()),
            Err(_) => {
                let frame = frames.allocate().ok_or(SetVectorError::OutOfFrames)?;
                let entry = SppEntry::table(frame);
                if entry.next(format.physical_bits) != Ok(frame) {
                    frames.free(frame);
                    let bits = format.physical_bits;
                    return Err(SetVectorError::BadFrame { frame, bits });
                }
                memory.fill(frame, width, 512, |_| 0);
                memory.write(at, width, entry.0);
            }
        }
    }
    Err(SppFault::Miss.into())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use hvkit_page_table::Width;
    use hvkit_page_table::fake::{FakeGuest, FakeTables, Unreadable};

    use super::*;

    const FORMAT: SppFormat = SppFormat::new(46);
    const PAGE: u64 = 3 << 39 | 5 << 30 | 7 << 21 | 9 << 12;

    fn by_hand() -> FakeGuest {
        let memory = FakeGuest::new(0x8000);
        memory.set(0x1000 + 3 * 8, Width::Eight, 0x2001);
        memory.set(0x2000 + 5 * 8, Width::Eight, 0x3001);
        memory.set(0x3000 + 7 * 8, Width::Eight, 0x4001);
        memory.set(0x4000 + 9 * 8, Width::Eight, 0x4000_0000_0000_0001);
        memory
    }

    #[test]
    fn a_vector_is_found_by_hand_written_words() {
        let memory = by_hand();
        let found = vector(&FORMAT, &memory, 0x1000, PAGE + 0xabc);
        assert_eq!(found, Ok(SppVector(0x4000_0000_0000_0001)));
        assert_eq!(
            vector(&FORMAT, &memory, 0x1000, PAGE + 0x1000),
            Ok(SppVector(0))
        );
        let miss = Err(SppError::Event(SppFault::Miss));
        assert_eq!(vector(&FORMAT, &memory, 0x1000, PAGE + (1 << 21)), miss);
        assert_eq!(vector(&FORMAT, &memory, 0x1000, 1 << 48 | PAGE), miss);
        for (at, bits) in [
            (0x1018, 0x2003),
            (0x2028, 0x3801),
            (0x3038, 1 << 46 | 0x4001),
        ] {
            let memory = by_hand();
            memory.set(at, Width::Eight, bits);
            let rule = SppFault::Misconfiguration {
                bits: bits & (0xffe | 1 << 46),
            };
            assert_eq!(
                vector(&FORMAT, &memory, 0x1000, PAGE),
                Err(SppError::Event(rule))
            );
        }
        memory.set(0x4048, Width::Eight, 2);
        let odd = SppFault::Misconfiguration { bits: 2 };
        assert_eq!(
            vector(&FORMAT, &memory, 0x1000, PAGE),
            Err(SppError::Event(odd))
        );
        memory.set(0x3038, Width::Eight, 0x9001);
        let unreadable = SppError::Unreadable {
            at: 0x9048,
            error: Unreadable { at: 0x9048 },
        };
        assert_eq!(vector(&FORMAT, &memory, 0x1000, PAGE), Err(unreadable));
    }

    #[test]
    fn tables_are_linked_when_they_deny_everything() {
        let memory = FakeTables::new();
        let root = memory.allocate().unwrap();
        memory.fill(root, Width::Eight, 512, |_| 0);
        memory.checkpoint();
        let set = |page, bits| set_vector(&FORMAT, &memory, &memory, root, page, SppVector(bits));
        assert_eq!(set(PAGE, 0x14), Ok(()));
        assert_eq!(memory.in_use(), 4);
        // Before: a miss. After: the vector. In between: a miss, or a vector that denies everything.
        memory.each_moment(|_, words| {
            let found = vector(&FORMAT, words, root, PAGE);
            let denies = matches!(
                found,
                Err(SppError::Event(SppFault::Miss)) | Ok(SppVector(0 | 0x14))
            );
            assert!(denies, "{found:?}");
        });
        assert_eq!(vector(&FORMAT, &memory, root, PAGE), Ok(SppVector(0x14)));
        assert_eq!(set(PAGE + 0x1000, 1), Ok(()));
        assert_eq!(memory.in_use(), 4);
        assert_eq!(vector(&FORMAT, &memory, root, PAGE), Ok(SppVector(0x14)));
    }

    /// A pool with one frame, in which no table can be.
    struct Odd<'a>(u64, &'a Cell<u32>);

    impl Frames for Odd<'_> {
        fn allocate(&self) -> Option<u64> {
            Some(self.0)
        }

        fn free(&self, frame: u64) {
            assert_eq!(frame, self.0);
            self.1.set(self.1.get() + 1);
        }
    }

    #[test]
    fn a_frame_that_no_entry_can_name_is_given_back_unwritten() {
        let memory = FakeTables::new();
        let root = memory.allocate().unwrap();
        memory.fill(root, Width::Eight, 512, |_| 0);
        memory.checkpoint();
        for frame in [1 << 46, root + 0x800, 1 << 52 | 0x1000] {
            let given = Cell::new(0);
            let vector = SppVector(1);
            let set = set_vector(&FORMAT, &memory, &Odd(frame, &given), root, PAGE, vector);
            assert_eq!(set, Err(SetVectorError::BadFrame { frame, bits: 46 }));
            assert_eq!(given.get(), 1);
        }
        assert_eq!(memory.journal(), []);
    }

    #[test]
    fn what_cannot_be_set_is_refused() {
        let memory = FakeTables::new();
        let root = memory.allocate().unwrap();
        memory.fill(root, Width::Eight, 512, |_| 0);
        let set = |page, bits| set_vector(&FORMAT, &memory, &memory, root, page, SppVector(bits));
        let odd = SppFault::Misconfiguration { bits: 0x8 };
        assert_eq!(set(PAGE, 0xc), Err(SetVectorError::Fault(odd)));
        assert_eq!(set(1 << 48, 1), Err(SetVectorError::OutOfReach(1 << 48)));
        memory.limit(2);
        assert_eq!(set(PAGE, 1), Err(SetVectorError::OutOfFrames));
        assert_eq!(
            vector(&FORMAT, &memory, root, PAGE),
            Err(SppError::Event(SppFault::Miss))
        );
        memory.unlimit();
        memory.tamper(root, Width::Eight, 0x11);
        let reserved = SppFault::Misconfiguration { bits: 0x10 };
        assert_eq!(set(0x1000, 1), Err(SetVectorError::Fault(reserved)));
        // A vector with reserved bits is one that set_vector may mend.
        assert_eq!(set(PAGE, 1), Ok(()));
        let walk = walk(&FORMAT, &memory, Root::Table(root), PAGE);
        memory.tamper(walk.steps()[3].at.unwrap(), Width::Eight, 2);
        assert_eq!(set(PAGE, 4), Ok(()));
        assert_eq!(vector(&FORMAT, &memory, root, PAGE), Ok(SppVector(4)));
    }
}
