// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The register file: what is stored where, and what a write of any width does to it.

use alloc::boxed::Box;

use super::options::{Options, WINDOW};
use crate::spec::registers::{
    ALL, Access, CAP, ECAP, FaultRecordHigh, FaultRecordLow, Info, InvalidateAddress,
    IotlbInvalidate, Register, VER, Word,
};

/// 8-byte words of the window.
const WORDS: usize = (WINDOW / 8) as usize;

/// Bytes that software writes to one aligned 8-byte word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WordWrite {
    /// Bytes from the unit's base, a multiple of 8.
    pub(super) offset: u32,
    /// The word; what `lanes` leaves out is 0.
    pub(super) value: u64,
    /// All ones for each byte that is written.
    pub(super) lanes: u64,
}

/// The register file.
#[derive(Clone)]
pub(super) struct RegisterFile {
    words: Box<[u64; WORDS]>,
    access: Box<[Access; WORDS]>,
}

impl core::fmt::Debug for RegisterFile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_map()
            .entries(
                self.words
                    .iter()
                    .enumerate()
                    .filter(|(_, word)| **word != 0),
            )
            .finish()
    }
}

impl RegisterFile {
    /// The registers of a unit with `options`, which have been checked, after power-on.
    pub(super) fn new(options: &Options) -> Self {
        let mut file = Self {
            words: Box::new([0; WORDS]),
            access: Box::new([Access::default(); WORDS]),
        };
        let (cap, ecap) = (options.capability, options.extended);
        for register in ALL.iter().filter(|r| r.needs.met(cap, ecap)) {
            let mut register = *register;
            // Data of messages has 16 bits; their upper address is extended interrupt mode's.
            register.access.read_write &= match register.name {
                "FEDATA" | "IEDATA" | "PEDATA" => 0xffff,
                "FEUADDR" | "IEUADDR" | "PEUADDR" if !ecap.extended_interrupt_mode() => 0,
                // EIME.
                "IRTA" if !ecap.extended_interrupt_mode() => !(1 << 11),
                _ => u64::MAX,
            };
            file.allow(&register);
        }
        let mut allow = |offset, access| {
            file.allow(&Info {
                name: "",
                offset,
                bytes: 8,
                access,
                needs: crate::spec::registers::Needs::Nothing,
            });
        };
        for index in 0..=cap.nfr() {
            let offset = cap.fault_record_offset(index);
            allow(offset, FaultRecordLow::ACCESS);
            allow(offset.wrapping_add(8), FaultRecordHigh::ACCESS);
        }
        let iotlb = ecap.invalidate_address_offset();
        allow(iotlb, InvalidateAddress::ACCESS);
        allow(iotlb.wrapping_add(8), IotlbInvalidate::ACCESS);
        file.set(VER, options.version);
        file.set(CAP, cap);
        file.set(ECAP, ecap);
        // The event interrupts are masked after power-on.
        for control in ["FECTL", "IECTL", "PECTL"] {
            if let Some(info) = ALL
                .iter()
                .find(|r| r.name == control && r.needs.met(cap, ecap))
            {
                file.put(info.offset, 4, 1 << 31);
            }
        }
        file
    }

    fn allow(&mut self, register: &Info) {
        let shift = bits_before(register.offset);
        if let Some(word) = self.access.get_mut(register.offset as usize / 8) {
            word.read_only |= register.access.read_only << shift;
            word.read_write |= register.access.read_write << shift;
            word.clear_by_one |= register.access.clear_by_one << shift;
            word.write_only |= register.access.write_only << shift;
        }
    }

    /// The 8-byte word at `offset`, 0 outside of the window.
    #[inline]
    pub(super) fn word(&self, offset: u32) -> u64 {
        self.words.get(offset as usize / 8).copied().unwrap_or(0)
    }

    /// A register's content.
    #[inline]
    pub(super) fn get<T: Word, A>(&self, register: Register<T, A>) -> T {
        let shift = bits_before(register.offset());
        T::from_raw(self.word(register.offset()) >> shift)
    }

    /// Gives a register another content: what hardware does.
    pub(super) fn set<T: Word, A>(&mut self, register: Register<T, A>, value: T) {
        self.put(register.offset(), T::BYTES, value.raw());
    }

    /// Stores `bytes` (4 or 8) at `offset`, whatever software may do there.
    pub(super) fn put(&mut self, offset: u32, bytes: u8, value: u64) {
        let shift = bits_before(offset);
        let lanes = if bytes == 8 {
            u64::MAX
        } else {
            0xffff_ffff << shift
        };
        if let Some(word) = self.words.get_mut(offset as usize / 8) {
            *word = *word & !lanes | value << shift & lanes;
        }
    }

    /// What software does to a word, commands apart.
    pub(super) fn write(&mut self, write: WordWrite) {
        let index = write.offset as usize / 8;
        if let (Some(word), Some(access)) = (self.words.get_mut(index), self.access.get(index)) {
            *word = access.after_write(*word, write.value, write.lanes);
        }
    }

    /// Fills `data` with what software reads at `offset`: any length, any alignment. What is no register reads
    /// as 0.
    pub(super) fn read(&self, offset: u32, data: &mut [u8]) {
        let mut at = Some(offset);
        for byte in data {
            // Behind the last offset there is nothing, as there is before it.
            *byte = at.map_or(0, |at| (self.word(at) >> bits_before(at)) as u8);
            at = at.and_then(|at| at.checked_add(1));
        }
    }

    /// Every word, for saving.
    pub(super) fn words(&self) -> &[u64; WORDS] {
        &self.words
    }

    /// The bits of word `index` that can be anything but 0.
    pub(super) fn storable(&self, index: usize) -> u64 {
        self.access
            .get(index)
            .map_or(0, |a| a.read_only | a.read_write | a.clear_by_one)
    }
}

/// Bits of an 8-byte word below the byte at `offset`.
const fn bits_before(offset: u32) -> u32 {
    (offset & 7) << 3
}

/// A write of any length and alignment, word by word.
pub(super) fn split(offset: u32, data: &[u8]) -> impl Iterator<Item = WordWrite> {
    let first = offset & !7;
    let end = offset.saturating_add(u32::try_from(data.len()).unwrap_or(u32::MAX));
    // Beyond the window there is nothing to write to.
    let end = end.min(WINDOW);
    (first..end).step_by(8).map(move |word| {
        let (mut value, mut lanes) = (0u64, 0u64);
        for i in 0..8 {
            let at = word | i;
            let byte = at
                .checked_sub(offset)
                .and_then(|skip| data.get(skip as usize));
            if let Some(byte) = byte {
                value |= u64::from(*byte) << bits_before(i);
                lanes |= 0xff << bits_before(i);
            }
        }
        WordWrite {
            offset: word,
            value,
            lanes,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn any_write_is_words_and_lanes() {
        let writes: Vec<_> = split(0x1e, &[1, 2, 3, 4]).collect();
        assert_eq!(
            writes,
            [
                WordWrite {
                    offset: 0x18,
                    value: 0x0201 << 48,
                    lanes: 0xffff << 48
                },
                WordWrite {
                    offset: 0x20,
                    value: 0x0403,
                    lanes: 0xffff
                },
            ]
        );
        assert_eq!(split(0xffc, &[0xff; 8]).count(), 1);
        assert_eq!(
            split(0xffc, &[0xff; 8]).next().unwrap().lanes,
            0xffff_ffff << 32
        );
        assert_eq!(split(WINDOW, &[0; 8]).count(), 0);
        assert_eq!(split(u32::MAX, &[0; 8]).count(), 0);
    }

    #[test]
    fn reads_of_any_width_see_the_same_bytes() {
        let file = RegisterFile::new(&Options::new(48));
        let mut whole = [0; 16];
        file.read(8, &mut whole);
        assert_eq!(whole[..8], Options::new(48).capability.0.to_le_bytes());
        for start in 0..16u32 {
            for length in 0..=(16 - start) {
                let mut part = [0xee; 16];
                let part = &mut part[..length as usize];
                file.read(8 + start, part);
                assert_eq!(part, &whole[start as usize..(start + length) as usize]);
            }
        }
        let mut beyond = [1; 8];
        file.read(0xffc, &mut beyond);
        assert_eq!(beyond, [0; 8]);
    }

    #[test]
    fn capabilities_are_read_only_and_absent_registers_are_not_there() {
        let options = Options::new(48);
        let mut file = RegisterFile::new(&options);
        for offset in (0..WINDOW).step_by(8) {
            for value in [u64::MAX, 0] {
                file.write(WordWrite {
                    offset,
                    value,
                    lanes: u64::MAX,
                });
            }
        }
        assert_eq!(file.get(CAP), options.capability);
        assert_eq!(file.get(ECAP), options.extended);
        // No page requests, so no PQA.
        file.write(WordWrite {
            offset: 0xd0,
            value: u64::MAX,
            lanes: u64::MAX,
        });
        assert_eq!(file.word(0xd0), 0);
        // But an IRTA, all but its reserved bits.
        file.write(WordWrite {
            offset: 0xb8,
            value: u64::MAX,
            lanes: u64::MAX,
        });
        assert_eq!(file.word(0xb8), 0xffff_ffff_ffff_f80f);
    }
}
