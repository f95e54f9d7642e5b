// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which cases a payload runs.

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
