// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What travels over the serial line.

use crate::vm_entry::Cpu;

/// What the serial line begins with, before the processor's words.
pub const HEADER_MAGIC: &[u8; 8] = b"HVKITEP1";

/// The processor: as for VM entries. Guest pages of 1 GiB are taken to exist; they do in every model with EPT.
pub type EptCpu = Cpu;

/// Whether the value that a case writes was found where the access read from.
pub use crate::paging::Stored;

/// What came of a case: what the exit says, as far as it means something for its reason, and memory afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Record {
    /// The exit reason: all of the field.
    pub reason: u32,
    /// Of an exception, its vector.
    pub vector: u8,
    /// Whether the written value arrived; only after VMCALL.
    pub stored: Stored,
    /// Of an exception, its error code.
    pub error: u16,
    /// What was read or, of a fetch, the address that the code told; only after VMCALL.
    pub value: u32,
    /// The exit qualification of an EPT violation or of a full log, and the address of a page fault.
    pub qualification: u64,
    /// The guest-physical address of an EPT violation or misconfiguration.
    pub guest_physical: u64,
    /// The guest-linear address of an EPT violation whose qualification says that there is one.
    pub linear: u64,
    /// The PML index.
    pub pml_index: u16,
    /// [`Digest`](crate::Digest) of the arenas.
    pub memory: u32,
}

impl Record {
    /// Bytes of a record.
    pub const BYTES: usize = 42;

    /// The record as it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut at = 0;
        let mut put = |value: u64, width: usize| {
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            at += width;
        };
        put(self.reason.into(), 4);
        put(self.vector.into(), 1);
        put((self.stored == Stored::Yes).into(), 1);
        put(self.error.into(), 2);
        put(self.value.into(), 4);
        put(self.qualification, 8);
        put(self.guest_physical, 8);
        put(self.linear, 8);
        put(self.pml_index.into(), 2);
        put(self.memory.into(), 4);
        bytes
    }

    /// The record that was sent.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let mut at = 0;
        let mut take = |width: usize| {
            let mut value = [0; 8];
            value[..width].copy_from_slice(&bytes[at..at + width]);
            at += width;
            u64::from_le_bytes(value)
        };
        Self {
            reason: take(4) as u32,
            vector: take(1) as u8,
            stored: if take(1) == 0 {
                Stored::No
            } else {
                Stored::Yes
            },
            error: take(2) as u16,
            value: take(4) as u32,
            qualification: take(8),
            guest_physical: take(8),
            linear: take(8),
            pml_index: take(2) as u16,
            memory: take(4) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_42_bytes_little_endian() {
        let mut bytes: [u8; Record::BYTES] = core::array::from_fn(|n| n as u8 + 1);
        bytes[5] = 1;
        let record = Record::from_bytes(&bytes);
        let expected = Record {
            reason: 0x0403_0201,
            vector: 5,
            stored: Stored::Yes,
            error: 0x0807,
            value: 0x0c0b_0a09,
            qualification: 0x1413_1211_100f_0e0d,
            guest_physical: 0x1c1b_1a19_1817_1615,
            linear: 0x2423_2221_201f_1e1d,
            pml_index: 0x2625,
            memory: 0x2a29_2827,
        };
        assert_eq!(record, expected);
        assert_eq!(record.to_bytes(), bytes);
    }
}
