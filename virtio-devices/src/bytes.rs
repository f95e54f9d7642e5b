// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A read of any shape from a structure of fixed bytes.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

/// Fills `data` from `bytes` at `offset`. Beyond the end: zero.
pub(crate) fn read_at(bytes: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let there = bytes.get(start..).unwrap_or_default();
    data.fill(0);
    put_at(data, 0, there);
}

/// Puts `field` at `at`, as much of it as there is room for.
pub(crate) fn put_at(bytes: &mut [u8], at: usize, field: &[u8]) {
    let room = bytes.get_mut(at..).unwrap_or_default();
    for (place, byte) in room.iter_mut().zip(field) {
        *place = *byte;
    }
}

#[cfg(test)]
mod tests {
    use super::read_at;

    #[test]
    fn every_offset_and_length() {
        let bytes = [1, 2, 3, 4, 5];
        for offset in (0..8).chain([u64::MAX - 1, u64::MAX]) {
            for length in 0..8 {
                let mut data = vec![0xee; length];
                read_at(&bytes, offset, &mut data);
                for (i, byte) in data.into_iter().enumerate() {
                    let at = u128::from(offset) + i as u128;
                    let expected = if at < 5 { at as u8 + 1 } else { 0 };
                    assert_eq!(byte, expected, "offset {offset} length {length} byte {i}");
                }
            }
        }
    }
}
