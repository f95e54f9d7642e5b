// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What came of a case, in 20 bytes.

/// What the serial line begins with, before the features' bytes.
pub const HEADER_MAGIC: &[u8; 8] = b"HVKITPG1";

/// The "vector" of an access that went through: the monitor's own software interrupt.
pub const DONE: u8 = 0x81;

/// What a case writes.
pub const STORED: u32 = 0x600d_da7a;

/// Whether the value that a case writes was found where the access read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Stored {
    /// Nothing was to be written, or it went elsewhere.
    #[default]
    No,
    /// It was there.
    Yes,
}

/// What came of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Record {
    /// The exception's vector, or [`DONE`].
    pub vector: u8,
    /// Whether the written value arrived.
    pub stored: Stored,
    /// Its error code, 0 if it has none.
    pub error: u16,
    /// What was read or, of a fetch, the address that the code told; 0 after an exception.
    pub value: u32,
    /// CR2, which was 0 before.
    pub cr2: u64,
    /// [`Digest`](crate::Digest) of the tables afterwards.
    pub tables: u32,
}

impl Record {
    /// Bytes of a record.
    pub const BYTES: usize = 20;

    /// The record as it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = self.vector;
        bytes[1] = u8::from(self.stored == Stored::Yes);
        bytes[2..4].copy_from_slice(&self.error.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.value.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.cr2.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.tables.to_le_bytes());
        bytes
    }

    /// The record that was sent.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            vector: bytes[0],
            stored: if bytes[1] == 0 {
                Stored::No
            } else {
                Stored::Yes
            },
            error: u16::from_le_bytes([bytes[2], bytes[3]]),
            value: word(4),
            cr2: u64::from(word(8)) | u64::from(word(12)) << 32,
            tables: word(16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_twenty_bytes_little_endian() {
        let record = Record {
            vector: 14,
            stored: Stored::Yes,
            error: 0x0201,
            value: 0x0605_0403,
            cr2: 0x0e0d_0c0b_0a09_0807,
            tables: 0x1211_100f,
        };
        let mut bytes = [
            14, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18,
        ];
        assert_eq!(record.to_bytes(), bytes);
        assert_eq!(Record::from_bytes(&bytes), record);
        bytes[1] = 0;
        assert_eq!(Record::from_bytes(&bytes).stored, Stored::No);
    }
}
