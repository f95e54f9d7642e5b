// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What came of a case, in 20 bytes.

/// Which cases to run: the payload's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Of all cases.
    pub seed: u64,
    /// The first case's number.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl Order {
    /// Bytes of an order.
    pub const BYTES: usize = 24;

    /// The order as the payload finds it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (place, word) in bytes
            .chunks_exact_mut(8)
            .zip([self.seed, self.first, self.count])
        {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The order in the first bytes of `bytes`; what is missing is 0.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut words = bytes.chunks_exact(8).map(|word| {
            word.iter()
                .rev()
                .fold(0, |all, byte| all << 8 | u64::from(*byte))
        });
        let mut next = || words.next().unwrap_or(0);
        Self {
            seed: next(),
            first: next(),
            count: next(),
        }
    }
}

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
    /// [`Digest`] of the tables afterwards.
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

/// A sum over all words of the arena that are not zero, in any order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Digest(u64);

impl Digest {
    /// Counts the 8 bytes `word` at physical address `at`. Zero counts nothing.
    pub fn add(&mut self, at: u64, word: u64) {
        if word != 0 {
            let mixed = (word ^ at.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.0 = self.0.wrapping_add(mixed ^ mixed >> 32);
        }
    }

    /// The sum.
    #[must_use]
    pub fn sum(self) -> u32 {
        (self.0 ^ self.0 >> 32) as u32
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

    #[test]
    fn an_order_is_three_words_little_endian() {
        let order = Order {
            seed: 0x0807_0605_0403_0201,
            first: 9,
            count: 0x0100,
        };
        let mut bytes = [
            1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(order.to_bytes(), bytes);
        assert_eq!(Order::from_bytes(&bytes), order);
        bytes[17] = 0;
        assert_eq!(Order::from_bytes(&bytes).count, 0);
    }

    #[test]
    fn a_digest_sees_each_flag_and_each_place() {
        let of = |words: &[(u64, u64)]| {
            let mut digest = Digest::default();
            words.iter().for_each(|&(at, word)| digest.add(at, word));
            digest.sum()
        };
        let (a, b) = ((0x0110_0008, 0x0110_1007), (0x0110_1010, 0x0200_0007));
        assert_eq!(of(&[a, b]), of(&[b, a, (0x0110_2000, 0)]));
        assert_ne!(of(&[a, b]), of(&[(a.0, a.1 | 0x20), b]));
        assert_ne!(of(&[a, b]), of(&[a, (b.0, b.1 | 0x40)]));
        assert_ne!(of(&[a, b]), of(&[a, (b.0 + 8, b.1)]));
        assert_ne!(of(&[a, b]), of(&[(a.0, b.1), (b.0, a.1)]));
    }
}
