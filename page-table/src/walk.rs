// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one walk, for every format.
//!
//! ```text
//!  address   | index 4 | index 3 | index 2 | index 1 | offset |      (levels and widths: the Shape)
//!                 |         |         |         |         '---------------------------.
//!   root          |         |         |         |                                     |
//!    |      level 4    level 3    level 2    level 1                                  |
//!    |      .------.   .------.   .------.   .------.                                 |
//!    '----> |      | ,>|      | ,>|      | ,>| Leaf | -- target --> page at target + offset
//!           | Table|'  | Table|'  | Table|'  |      |
//!           |      |   |      |   | Leaf | -- target of a larger page, larger offset
//!           '------'   '------'   '------'   '------'
//!  fold:     rights ->  rights ->  rights ->  rights of the translation
//!
//!  Each entry read is a Step. A walk ends after at most `levels` of them, at
//!     Leaf       a Translation
//!     Empty      Fault::NotPresent       Malformed  Fault::Malformed, with the rule
//!     no memory  Fault::Unreadable       a table where only a page can be  Fault::TooDeep
//! ```
//!
//! The tables may be anyone's. Tables that loop, point outside memory or set reserved bits end in a
//! fault; nothing here panics, allocates or trusts a loaded value.
//!
//! A walk sets no accessed or dirty bits. Who must (an x86 or EPT processor model) has the path in
//! [`Walk::steps`] and [`UpdateEntry`](crate::UpdateEntry) to do it with.

use crate::format::{Entry, Format};
use crate::memory::ReadEntry;
use crate::shape::{Cut, MAX_LEVELS};

/// Where a walk begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root<'a, A> {
    /// The root table's physical address.
    Table(u64),
    /// The root's entries are in registers: PAE's PDPTEs.
    Registers(&'a [u64]),
    /// A table further down, known from an earlier walk (a paging-structure cache).
    Inner {
        /// Its physical address.
        table: u64,
        /// Its level.
        level: u8,
        /// The attributes folded from the entries above it.
        attributes: A,
    },
}

/// One entry that a walk read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<A> {
    /// Level of the table the entry is in.
    pub level: u8,
    /// The entry's physical address; `None` for one in a register.
    pub at: Option<u64>,
    /// The entry.
    pub entry: u64,
    /// Attributes folded down to this entry and including it; `None` if it is empty or malformed.
    pub attributes: Option<A>,
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation<A> {
    /// The physical address of the byte asked for.
    pub target: u64,
    /// Level of the leaf; [`Shape::size`](crate::Shape::size) of it is the page's size.
    pub level: u8,
    /// Attributes folded over the whole path.
    pub attributes: A,
}

/// Why an address leads nowhere. `R` is the format's rule, `E` the memory's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault<R, E> {
    /// The address is wider than the table's reach, or not canonical.
    #[error("address {address:#x} is not one that the table translates")]
    Address {
        /// The address.
        address: u64,
    },
    /// The root is in registers, and has no such entry.
    #[error("the root has no entry {index}")]
    NoRootEntry {
        /// The index asked for.
        index: u64,
    },
    /// An empty entry.
    #[error("level {level} entry {entry:#x} is not present")]
    NotPresent {
        /// Level of the table.
        level: u8,
        /// The entry.
        entry: u64,
    },
    /// An entry that breaks a rule of the format.
    #[error("level {level} entry {entry:#x} is malformed: {rule:?}")]
    Malformed {
        /// Level of the table.
        level: u8,
        /// The entry.
        entry: u64,
        /// The rule.
        rule: R,
    },
    /// The format read a table in an entry of the lowest level: the format's own mistake.
    #[error("level {level} entry {entry:#x} leads to a table below the lowest level")]
    TooDeep {
        /// Level of the table.
        level: u8,
        /// The entry.
        entry: u64,
    },
    /// An entry that could not be read.
    #[error("level {level} entry at {at:#x} could not be read: {error:?}")]
    Unreadable {
        /// Level of the table.
        level: u8,
        /// The entry's physical address.
        at: u64,
        /// The memory's reason.
        error: E,
    },
}

impl<R, E> Fault<R, E> {
    /// The level whose entry ended the walk; `None` if no entry was looked for.
    #[must_use]
    pub const fn level(&self) -> Option<u8> {
        match self {
            Self::Address { .. } | Self::NoRootEntry { .. } => None,
            Self::NotPresent { level, .. }
            | Self::Malformed { level, .. }
            | Self::TooDeep { level, .. }
            | Self::Unreadable { level, .. } => Some(*level),
        }
    }
}

/// What [`translate`] returns for format `F` over memory `M`.
pub type Outcome<F, M> = Result<
    Translation<<F as Format>::Attributes>,
    Fault<<F as Format>::Rule, <M as ReadEntry>::Error>,
>;

/// A whole walk: every entry it read, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk<A, R, E> {
    steps: [Step<A>; MAX_LEVELS],
    read: usize,
    /// The translation, or why there is none.
    pub outcome: Result<Translation<A>, Fault<R, E>>,
}

impl<A, R, E> Walk<A, R, E> {
    /// The entries read, the root's first. An unreadable one is not among them.
    #[must_use]
    pub fn steps(&self) -> &[Step<A>] {
        self.steps.get(..self.read).unwrap_or(&self.steps)
    }
}

/// Walks for `address` and keeps every entry on the way.
pub fn walk<F: Format, M: ReadEntry>(
    format: &F,
    memory: &M,
    root: Root<'_, F::Attributes>,
    address: u64,
) -> Walk<F::Attributes, F::Rule, M::Error> {
    let unread = Step {
        level: 0,
        at: None,
        entry: 0,
        attributes: None,
    };
    let mut steps = [unread; MAX_LEVELS];
    let mut read = 0usize;
    let outcome = visit(format, memory, root, address, |step| {
        if let Some(slot) = steps.get_mut(read) {
            *slot = step;
            read = read.saturating_add(1);
        }
    });
    Walk {
        steps,
        read,
        outcome,
    }
}

/// Walks for `address` and keeps only where it leads.
///
/// # Errors
///
/// The [`Fault`] that ends the walk.
#[inline]
pub fn translate<F: Format, M: ReadEntry>(
    format: &F,
    memory: &M,
    root: Root<'_, F::Attributes>,
    address: u64,
) -> Outcome<F, M> {
    visit(format, memory, root, address, |_| ())
}

/// Walks for `address` and tells `seen` of every entry as it is read, the root's first.
///
/// For who needs of the steps less than [`walk`] keeps: nothing is stored that `seen` does not store.
///
/// # Errors
///
/// The [`Fault`] that ends the walk. An unreadable entry is told to nobody.
#[inline(always)]
pub fn visit<F: Format, M: ReadEntry>(
    format: &F,
    memory: &M,
    root: Root<'_, F::Attributes>,
    address: u64,
    mut seen: impl FnMut(Step<F::Attributes>),
) -> Outcome<F, M> {
    let shape = format.shape();
    let Some(bits) = shape.strip(address) else {
        return Err(Fault::Address { address });
    };
    let cut = shape.cut();
    match descend(format, memory, root, cut, bits, &mut seen) {
        Next::Down { frame, attributes } => {
            let above = Some(attributes);
            match one(format, memory, 1, cut, bits, frame, above, None, &mut seen) {
                Next::End(end) => end,
                Next::Down { .. } => Err(Fault::TooDeep {
                    level: 1,
                    entry: frame,
                }),
            }
        }
        Next::End(end) => end,
    }
}

/// Goes down to the table at level 1, if the walk of the stripped address `bits` comes so far.
///
/// The loop over levels is written out. Where the shape is a constant, what is left are the levels it
/// has, with their shifts as constants.
#[inline(always)]
pub(crate) fn descend<F: Format, M: ReadEntry>(
    format: &F,
    memory: &M,
    root: Root<'_, F::Attributes>,
    cut: Cut<'_>,
    bits: u64,
    seen: &mut impl FnMut(Step<F::Attributes>),
) -> Next<F::Attributes, Outcome<F, M>> {
    let shape = format.shape();
    let (mut table, mut level, mut above, mut register) = match root {
        Root::Table(table) => (table, shape.levels(), None, None),
        Root::Registers(entries) => {
            let index = shape.index(bits, shape.levels());
            let entry = usize::try_from(index).ok().and_then(|i| entries.get(i));
            let Some(entry) = entry else {
                return Next::End(Err(Fault::NoRootEntry { index }));
            };
            (0, shape.levels(), None, Some(*entry))
        }
        Root::Inner {
            table,
            level,
            attributes,
        } => (
            table,
            level.clamp(1, shape.levels()),
            Some(attributes),
            None,
        ),
    };
    macro_rules! levels {
        ($($at:literal)*) => { $(
            if level == $at {
                match one(format, memory, $at, cut, bits, table, above, register.take(), seen) {
                    Next::End(end) => return Next::End(end),
                    Next::Down { frame, attributes } => {
                        table = frame;
                        above = Some(attributes);
                        level = $at - 1;
                    }
                }
            }
        )* };
    }
    levels!(5 4 3 2);
    match above {
        Some(attributes) => Next::Down {
            frame: table,
            attributes,
        },
        // A shape has two levels at least.
        None => Next::End(Err(Fault::TooDeep {
            level,
            entry: table,
        })),
    }
}

/// Reads one entry, tells `seen` of it, and follows it.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "the state of a walk, kept in registers"
)]
fn one<F: Format, M: ReadEntry>(
    format: &F,
    memory: &M,
    level: u8,
    cut: Cut<'_>,
    bits: u64,
    table: u64,
    above: Option<F::Attributes>,
    register: Option<u64>,
    seen: &mut impl FnMut(Step<F::Attributes>),
) -> Next<F::Attributes, Outcome<F, M>> {
    let (at, entry) = match register {
        Some(entry) => (None, entry),
        None => {
            let at = cut.entry_at(table, bits, level);
            match memory.read(at, cut.width()) {
                Ok(entry) => (Some(at), entry),
                Err(error) => return Next::End(Err(Fault::Unreadable { level, at, error })),
            }
        }
    };
    let next = follow(format, cut, entry, level, above, bits);
    let attributes = match &next {
        Next::Down { attributes, .. } => Some(*attributes),
        Next::End(end) => end.as_ref().ok().map(|there| there.attributes),
    };
    seen(Step {
        level,
        at,
        entry,
        attributes,
    });
    next
}

/// What [`follow`] returns for format `F` over memory whose error is `E`.
type Followed<F, E> = Next<
    <F as Format>::Attributes,
    Result<Translation<<F as Format>::Attributes>, Fault<<F as Format>::Rule, E>>,
>;

/// What comes after an entry.
pub(crate) enum Next<A, O> {
    /// The table at `frame`, further down, and what the entries above it fold to.
    Down { frame: u64, attributes: A },
    /// Nothing: the walk is over.
    End(O),
}

/// Follows one entry. `bits` is the stripped address, `above` what the entries above fold to.
#[inline(always)]
fn follow<F: Format, E>(
    format: &F,
    cut: Cut<'_>,
    entry: u64,
    level: u8,
    above: Option<F::Attributes>,
    bits: u64,
) -> Followed<F, E> {
    let fold = |here| above.map_or(here, |above| format.fold(above, here));
    match format.decode(entry, level) {
        Entry::Leaf { target, attributes } => {
            let offset = bits & cut.size(level).wrapping_sub(1);
            let target = target.wrapping_add(offset);
            Next::End(Ok(Translation {
                target,
                level,
                attributes: fold(attributes),
            }))
        }
        Entry::Table { frame, attributes } if level > 1 => Next::Down {
            frame,
            attributes: fold(attributes),
        },
        Entry::Table { .. } => Next::End(Err(Fault::TooDeep { level, entry })),
        Entry::Empty => Next::End(Err(Fault::NotPresent { level, entry })),
        Entry::Malformed(rule) => Next::End(Err(Fault::Malformed { level, entry, rule })),
    }
}

/// How a walk ends whose last entry is not a leaf.
#[cold]
pub(crate) fn no_leaf<F: Format, E>(
    format: &F,
    entry: u64,
    bits: u64,
) -> Result<Translation<F::Attributes>, Fault<F::Rule, E>> {
    match follow(format, format.shape().cut(), entry, 1, None, bits) {
        Next::End(end) => end,
        Next::Down { .. } => Err(Fault::TooDeep { level: 1, entry }),
    }
}
