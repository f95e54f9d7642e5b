// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the MMU is asked, recorded, to be asked again on another machine: `cargo xtask bench shadow --trace FILE`.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use hvkit_shadow_paging::mmu::{Repair, Verdict};
use lab_cases::trace::{LONGEST, MAGIC, Record, Writer, verdict};
use payload_rt::port::outb;

/// Bytes here come out of Bochs at once.
const PORT: u16 = 0xe9;
/// What stands before a trace there, followed by its length in 8 bytes.
const MARKER: &[u8] = b"[trace ";

/// A trace in the making.
pub struct Recorder {
    writer: Writer,
    bytes: Vec<u8>,
    /// Where the last event ended: what comes after belongs to one that was not written.
    whole: usize,
    full: bool,
    /// The guest's entries as whoever replays knows them, by table.
    known: BTreeMap<u64, Box<[u64; 512]>>,
}

impl Recorder {
    /// Room for this many bytes.
    pub fn new(limit: u64) -> Self {
        let mut bytes = Vec::with_capacity(limit as usize);
        bytes.extend_from_slice(&MAGIC);
        Self {
            writer: Writer::default(),
            whole: bytes.len(),
            bytes,
            full: false,
            known: BTreeMap::new(),
        }
    }

    fn put(&mut self, record: &Record) {
        self.full |= self.bytes.len() + LONGEST > self.bytes.capacity();
        if !self.full {
            let bytes = &mut self.bytes;
            self.writer
                .write(record, |more| bytes.extend_from_slice(more));
        }
    }

    /// Where the entry at `at` is kept.
    fn known(&mut self, at: u64) -> &mut u64 {
        let table = self.known.entry(at >> 12);
        let table = table.or_insert_with(|| Box::new([0; 512]));
        &mut table[(at >> 3 & 511) as usize]
    }

    /// The MMU read an entry of the guest's.
    pub fn read(&mut self, at: u64, value: u64) {
        if self.full {
            return;
        }
        let known = self.known(at);
        if *known != value {
            *known = value;
            self.put(&Record::Entry { at, value });
        }
    }

    /// The MMU set flags in one.
    pub fn marked(&mut self, at: u64, value: u64) {
        if !self.full {
            *self.known(at) = value;
        }
    }

    /// The MMU was asked something, and has answered.
    pub fn event(&mut self, record: &Record) {
        self.put(record);
        if !self.full {
            self.whole = self.bytes.len();
        }
    }

    /// From here on it would be wrong.
    pub fn end(&mut self) {
        self.full = true;
    }

    /// Sends it out of the machine.
    pub fn send(&self) {
        let bytes = self.bytes.get(..self.whole).unwrap_or_default();
        let length = (bytes.len() as u64).to_le_bytes();
        for &byte in MARKER.iter().chain(&length).chain(bytes) {
            // SAFETY: the port only exists to carry bytes out of the emulator.
            unsafe { outb(PORT, byte) };
        }
    }
}

/// The number of a verdict.
pub fn number_of<R>(verdict: &Verdict<R>) -> u8 {
    match verdict {
        Verdict::Repaired(Repair::Mapped) => verdict::MAPPED,
        Verdict::Repaired(Repair::Changed) => verdict::CHANGED,
        Verdict::Repaired(Repair::Spurious) => verdict::SPURIOUS,
        Verdict::Guest(_) => verdict::GUEST,
        Verdict::Guarded { .. } => verdict::GUARDED,
        _ => verdict::OTHER,
    }
}
