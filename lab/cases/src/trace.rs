// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest's shadow MMU was asked, and the guest's entries that it read meanwhile: enough to do the same again elsewhere.
//!
//! A trace is a header and records. Words are of seven bits a byte, the lowest first, the eighth bit set in all but the last;
//! addresses are differences from the last one of their kind. Before an event stand the entries that were read while it was
//! handled and that are other than when they were last read: whoever replays stores them first. Memory begins as zeros.

/// The first bytes of a trace.
pub const MAGIC: [u8; 8] = *b"hvkit-t1";

/// Numbers for the MMU's verdicts.
pub mod verdict {
    /// A page was mapped.
    pub const MAPPED: u8 = 0;
    /// A mapping was changed.
    pub const CHANGED: u8 = 1;
    /// Nothing was wrong.
    pub const SPURIOUS: u8 = 2;
    /// The guest's own fault.
    pub const GUEST: u8 = 3;
    /// A write to a guarded table.
    pub const GUARDED: u8 = 4;
    /// Anything else.
    pub const OTHER: u8 = 5;
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The 8-byte entry at guest-physical `at` is now `value`.
    Entry {
        /// Guest-physical address.
        at: u64,
        /// The entry.
        value: u64,
    },
    /// A page fault, and what it came to.
    Fault {
        /// CR2.
        linear: u64,
        /// The error code.
        code: u32,
        /// CPL in bits 1:0, RFLAGS.AC in bit 2.
        by: u8,
        /// The MMU's [`verdict`].
        verdict: u8,
    },
    /// CR0, CR3, CR4 or `IA32_EFER` (8) was written.
    Register {
        /// Which.
        number: u8,
        /// With what.
        value: u64,
    },
    /// INVLPG (kind 4), or INVPCID of a kind.
    Invalidate {
        /// Kind.
        kind: u8,
        /// Address, for kinds 0 and 4.
        linear: u64,
    },
    /// The hypervisor wrote a table for the guest.
    Wrote {
        /// Guest-physical address.
        at: u64,
        /// Bytes.
        length: u8,
    },
    /// A span of guest memory. Before the first event.
    Region {
        /// First guest-physical address.
        start: u64,
        /// Bytes.
        length: u64,
        /// 0: memory; 1: memory that cannot be written; 2: a device.
        kind: u8,
    },
    /// The guest's processor. Before the first event; registers follow as [`Register`](Self::Register).
    Processor {
        /// MAXPHYADDR.
        physical_address_bits: u8,
        /// Whether it has 1 GiB pages: 1 or 0.
        gib_pages: u8,
        /// How many shadow tables there may be.
        budget: u64,
    },
}

/// Longest record in bytes.
pub const LONGEST: usize = 32;

/// What addresses are differences from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Last {
    at: u64,
    linear: u64,
}

/// Writes records.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    last: Last,
}

struct Bytes {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Bytes {
    fn byte(&mut self, byte: u8) {
        if let Some(to) = self.bytes.get_mut(self.length) {
            *to = byte;
        }
        self.length += 1;
    }

    fn word(&mut self, mut word: u64) {
        while word >= 0x80 {
            self.byte(word as u8 | 0x80);
            word >>= 7;
        }
        self.byte(word as u8);
    }

    fn difference(&mut self, value: u64, last: &mut u64) {
        let difference = value.wrapping_sub(*last) as i64;
        *last = value;
        self.word((difference << 1 ^ difference >> 63) as u64);
    }
}

impl Writer {
    /// The bytes of `record`, given to `out`.
    pub fn write(&mut self, record: &Record, out: impl FnOnce(&[u8])) {
        let mut to = Bytes {
            bytes: [0; LONGEST],
            length: 0,
        };
        let last = &mut self.last;
        match *record {
            Record::Entry { at, value } => {
                to.byte(0);
                to.difference(at >> 3, &mut last.at);
                // XD is bit 63.
                to.word(value.rotate_left(1));
            }
            Record::Fault {
                linear,
                code,
                by,
                verdict,
            } => {
                to.byte(1);
                to.difference(linear, &mut last.linear);
                to.word(code.into());
                to.byte(by);
                to.byte(verdict);
            }
            Record::Register { number, value } => {
                to.byte(2);
                to.byte(number);
                to.word(value);
            }
            Record::Invalidate { kind, linear } => {
                to.byte(3);
                to.byte(kind);
                to.difference(linear, &mut last.linear);
            }
            Record::Wrote { at, length } => {
                to.byte(4);
                to.difference(at >> 3, &mut last.at);
                to.byte((at & 7) as u8);
                to.byte(length);
            }
            Record::Region {
                start,
                length,
                kind,
            } => {
                to.byte(5);
                to.word(start);
                to.word(length);
                to.byte(kind);
            }
            Record::Processor {
                physical_address_bits,
                gib_pages,
                budget,
            } => {
                to.byte(6);
                to.byte(physical_address_bits);
                to.byte(gib_pages);
                to.word(budget);
            }
        }
        out(to.bytes.get(..to.length).unwrap_or_default());
    }
}

/// Reads records; ends at the end, or at bytes that are none.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    last: Last,
}

impl<'a> Reader<'a> {
    /// The records of a trace; `None` if it is not one.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        Some(Self {
            bytes: bytes.strip_prefix(&MAGIC)?,
            last: Last::default(),
        })
    }

    /// Bytes not read yet. After the end, those that are no record.
    pub fn rest(&self) -> usize {
        self.bytes.len()
    }

    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(byte)
    }

    fn word(&mut self) -> Option<u64> {
        let mut word = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            word |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(word);
            }
        }
        None
    }

    fn difference(&mut self) -> Option<u64> {
        let word = self.word()?;
        Some((word >> 1) ^ (word & 1).wrapping_neg())
    }

    fn at(&mut self) -> Option<u64> {
        self.last.at = self.last.at.wrapping_add(self.difference()?);
        Some(self.last.at << 3)
    }

    fn linear(&mut self) -> Option<u64> {
        self.last.linear = self.last.linear.wrapping_add(self.difference()?);
        Some(self.last.linear)
    }

    fn record(&mut self) -> Option<Record> {
        Some(match self.byte()? {
            0 => Record::Entry {
                at: self.at()?,
                value: self.word()?.rotate_right(1),
            },
            1 => Record::Fault {
                linear: self.linear()?,
                code: self.word()? as u32,
                by: self.byte()?,
                verdict: self.byte()?,
            },
            2 => Record::Register {
                number: self.byte()?,
                value: self.word()?,
            },
            3 => Record::Invalidate {
                kind: self.byte()?,
                linear: self.linear()?,
            },
            4 => Record::Wrote {
                at: self.at()? | u64::from(self.byte()? & 7),
                length: self.byte()?,
            },
            5 => Record::Region {
                start: self.word()?,
                length: self.word()?,
                kind: self.byte()?,
            },
            6 => Record::Processor {
                physical_address_bits: self.byte()?,
                gib_pages: self.byte()?,
                budget: self.word()?,
            },
            _ => return None,
        })
    }
}

impl Iterator for Reader<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let before = self.clone();
        let record = self.record();
        if record.is_none() {
            *self = before;
        }
        record
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    #[test]
    fn records_are_these_bytes_and_come_back() {
        let records = [
            Record::Processor {
                physical_address_bits: 40,
                gib_pages: 1,
                budget: 300,
            },
            Record::Region {
                start: 0x1000,
                length: 0x80,
                kind: 2,
            },
            Record::Entry {
                at: 0x18,
                value: 0x8000_0000_0000_0001,
            },
            Record::Entry { at: 8, value: 1 },
            Record::Fault {
                linear: u64::MAX,
                code: 7,
                by: 3,
                verdict: 9,
            },
            Record::Register {
                number: 3,
                value: 0x1ff,
            },
            Record::Invalidate { kind: 4, linear: 0 },
            Record::Wrote {
                at: 0x12,
                length: 2,
            },
        ];
        let mut bytes = MAGIC.to_vec();
        let mut writer = Writer::default();
        for record in &records {
            writer.write(record, |more| bytes.extend_from_slice(more));
        }
        let expected: [&[u8]; 8] = [
            &[6, 40, 1, 0xac, 2],
            &[5, 0x80, 0x20, 0x80, 1, 2],
            &[0, 6, 3],
            &[0, 3, 2],
            &[1, 1, 7, 3, 9],
            &[2, 3, 0xff, 3],
            &[3, 4, 2],
            &[4, 2, 2, 2],
        ];
        assert_eq!(bytes[8..], expected.concat());
        let mut reader = Reader::new(&bytes).unwrap();
        let read: Vec<Record> = reader.by_ref().collect();
        assert_eq!(read, records);
        assert_eq!(reader.rest(), 0);
    }

    #[test]
    fn a_trace_that_is_cut_or_wrong_ends_there() {
        assert!(Reader::new(b"hvkit-t2").is_none());
        let cut = [&MAGIC[..], &[6, 40, 1, 0xac]].concat();
        let mut reader = Reader::new(&cut).unwrap();
        assert_eq!((reader.next(), reader.rest()), (None, 4));
        let wrong = [&MAGIC[..], &[7]].concat();
        assert_eq!(Reader::new(&wrong).unwrap().next(), None);
        let endless = [&MAGIC[..], &[0xff; 40]].concat();
        assert_eq!(Reader::new(&endless).unwrap().count(), 0);
    }
}
