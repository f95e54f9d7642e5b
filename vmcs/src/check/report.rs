// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the checker tells.

use core::fmt;

use super::rule::Rule;
use crate::encoding::Encoding;

/// Where the offending value was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Place {
    /// In a field of the VMCS.
    Field(Encoding),
    /// In the state of the processor.
    Processor,
    /// In physical memory.
    Memory {
        /// The address of the word.
        address: u64,
    },
    /// In an entry of the VM-entry MSR-load area.
    MsrEntry {
        /// Its number; the first is 1, as in the exit qualification.
        number: u32,
        /// Bits 63:0 of the entry: the MSR index, and bits that must be zero.
        index: u64,
    },
}

/// What a value would have to be, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Expected {
    /// Bits that must be 1, and all that may be.
    Bits {
        /// These must be 1.
        must_be_one: u64,
        /// All others must be 0.
        may_be_one: u64,
    },
    /// This value, no other.
    Exactly(u64),
    /// Any value but this.
    AnyBut(u64),
    /// No more than this.
    AtMost(u64),
    /// One of these.
    OneOf(&'static [u64]),
    /// A physical address: a multiple of `alignment`, of at most `bits` bits.
    PhysicalAddress {
        /// A power of two.
        alignment: u64,
        /// The processor's physical-address width.
        bits: u8,
    },
    /// A canonical address.
    Canonical {
        /// The processor's linear-address width.
        bits: u8,
    },
    /// The rule's sentence says it.
    AsTheRuleSays,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bits {
                must_be_one: 0,
                may_be_one,
            } => write!(f, "no bits outside {may_be_one:#x}"),
            Self::Bits {
                must_be_one,
                may_be_one: u64::MAX,
            } => write!(f, "bits {must_be_one:#x} set"),
            Self::Bits {
                must_be_one,
                may_be_one,
            } => {
                write!(
                    f,
                    "bits {must_be_one:#x} set, and none outside {may_be_one:#x}"
                )
            }
            Self::Exactly(value) => write!(f, "{value:#x}"),
            Self::AnyBut(value) => write!(f, "any value but {value:#x}"),
            Self::AtMost(value) => write!(f, "at most {value:#x}"),
            Self::OneOf(values) => {
                f.write_str("one of")?;
                values.iter().try_for_each(|value| write!(f, " {value:#x}"))
            }
            Self::PhysicalAddress { alignment, bits } => {
                write!(f, "a multiple of {alignment:#x} below 2^{bits}")
            }
            Self::Canonical { bits } => write!(f, "a canonical address of {bits} bits"),
            Self::AsTheRuleSays => f.write_str("as the rule says"),
        }
    }
}

/// One broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Violation {
    /// Which rule.
    pub rule: &'static Rule,
    /// Where the offending value is.
    pub place: Place,
    /// The value.
    pub value: u64,
    /// What it would have to be.
    pub expected: Expected,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.rule.id)?;
        match self.place {
            Place::Field(field) => write!(f, "{field} is {:#x}", self.value)?,
            Place::Processor => f.write_str("the processor's state")?,
            Place::Memory { address } => {
                write!(f, "memory at {address:#x} holds {:#x}", self.value)?;
            }
            Place::MsrEntry { number, index } => {
                write!(
                    f,
                    "entry {number} loads MSR {index:#x} with {:#x}",
                    self.value
                )?;
            }
        }
        if self.expected != Expected::AsTheRuleSays {
            write!(f, "; allowed: {}", self.expected)?;
        }
        write!(f, ". {} [{}]", self.rule.sentence, self.rule.section)
    }
}

/// Takes what the checker tells. A closure of `&Violation` is a sink.
pub trait Sink {
    /// A rule is broken.
    fn violation(&mut self, violation: &Violation);

    /// A rule could not be decided: it looks at memory that is not there, or at an MSR whose rules are not known.
    fn undecided(&mut self, rule: &'static Rule) {
        let _ = rule;
    }

    /// The store does not have a field that a rule looks at; it was taken as zero.
    fn missing(&mut self, field: Encoding) {
        let _ = field;
    }
}

impl<F: FnMut(&Violation)> Sink for F {
    fn violation(&mut self, violation: &Violation) {
        self(violation);
    }
}

/// A sink for those who only want the verdict.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl Sink for Discard {
    #[inline(always)]
    fn violation(&mut self, _: &Violation) {}
}

/// The first `N` violations, in an array.
#[derive(Clone, Copy, Debug)]
pub struct List<const N: usize> {
    found: [Option<Violation>; N],
    /// How many violations there were, kept or not.
    pub count: usize,
    /// How many rules could not be decided.
    pub undecided: usize,
    /// How many times a field was missing.
    pub missing: usize,
}

impl<const N: usize> Default for List<N> {
    fn default() -> Self {
        Self {
            found: [None; N],
            count: 0,
            undecided: 0,
            missing: 0,
        }
    }
}

impl<const N: usize> List<N> {
    /// The violations kept, in the order of the chapter.
    pub fn iter(&self) -> impl Iterator<Item = &Violation> {
        self.found.iter().flatten()
    }
}

impl<const N: usize> Sink for List<N> {
    fn violation(&mut self, violation: &Violation) {
        if let Some(place) = self.found.get_mut(self.count) {
            *place = Some(*violation);
        }
        self.count = self.count.saturating_add(1);
    }

    fn undecided(&mut self, _: &'static Rule) {
        self.undecided = self.undecided.saturating_add(1);
    }

    fn missing(&mut self, _: Encoding) {
        self.missing = self.missing.saturating_add(1);
    }
}
