// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Values from a fuzzer's bytes. Feature `arbitrary`.
//!
//! Spans are mostly of whole pages and mostly small, so that operations are not all refused; shapes are
//! mostly possible ones.

use arbitrary::{Arbitrary, Result, Unstructured};

use crate::harvest::Collect;
use crate::map::Sizes;
use crate::shape::{MAX_LEVELS, Shape, Upper, Width};
use crate::span::Span;

impl<'a> Arbitrary<'a> for Span {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        if u.ratio(1, 16)? {
            return Ok(Self::new(u.arbitrary()?, u.arbitrary()?));
        }
        let page = u64::from(u.arbitrary::<u32>()?);
        let pages = 1 + u64::from(u.arbitrary::<u16>()?);
        Ok(Self::new(page << 12, pages << 12))
    }
}

impl<'a> Arbitrary<'a> for Sizes {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let (largest, largest_executable) = (u.int_in_range(0..=6)?, u.int_in_range(0..=6)?);
        Ok(Self {
            largest,
            largest_executable,
        })
    }
}

impl<'a> Arbitrary<'a> for Collect {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        u.choose(&[Self::Accessed, Self::Dirty, Self::Both])
            .copied()
    }
}

impl<'a> Arbitrary<'a> for Shape {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let levels = u.int_in_range(2..=MAX_LEVELS)?;
        let mut index_bits = [0; MAX_LEVELS];
        for bits in index_bits.iter_mut().take(levels) {
            *bits = u.int_in_range(1..=10)?;
        }
        let leaves = 1 | (u.arbitrary::<u8>()? & (1u8 << levels).wrapping_sub(1));
        let width = *u.choose(&[Width::Four, Width::Eight])?;
        let upper = *u.choose(&[Upper::Zero, Upper::SignExtended])?;
        let index_bits = index_bits.get(..levels).unwrap_or(&index_bits);
        Self::new(12, index_bits, leaves, width, upper)
            .map_err(|_| arbitrary::Error::IncorrectFormat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_bytes_make_something_usable() {
        let (mut aligned, mut shapes) = (0, 0);
        let mut sizes = std::collections::HashSet::new();
        for seed in 0..=255u8 {
            let bytes: [u8; 64] = core::array::from_fn(|i| seed.wrapping_mul(31) ^ (i as u8) << 2);
            let span = Span::arbitrary(&mut Unstructured::new(&bytes)).unwrap();
            aligned += u32::from((span.start | span.length) & 0xfff == 0 && span.length != 0);
            sizes.insert(Sizes::arbitrary(&mut Unstructured::new(&bytes)).unwrap());
            shapes += u32::from(Shape::arbitrary(&mut Unstructured::new(&bytes)).is_ok());
        }
        assert!(
            aligned > 200 && aligned < 256,
            "{aligned} of 256 spans are aligned"
        );
        assert!(shapes > 200, "{shapes} of 256 shapes");
        // Seven levels that may be the largest, and as many for what is executable.
        assert!(sizes.len() > 7, "{} of 49 limits", sizes.len());
        assert!(
            sizes
                .iter()
                .all(|sizes| sizes.largest <= 6 && sizes.largest_executable <= 6)
        );
    }
}
