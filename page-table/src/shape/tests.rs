// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shapes against numbers worked out by hand.

use super::*;

#[test]
fn x86_without_pae_is_two_tens_of_four_bytes() {
    let shape = Shape::new(12, &[10, 10], 0b11, Width::Four, Upper::Zero).unwrap();
    // Linear address 0xc0de_f123: directory 0x303, table 0x1ef, offset 0x123.
    assert_eq!(shape.index(0xc0de_f123, 2), 0x303);
    assert_eq!(shape.index(0xc0de_f123, 1), 0x1ef);
    assert_eq!(shape.entry_at(0x7000, 0xc0de_f123, 2), 0x7000 + 0x303 * 4);
    assert_eq!((shape.size(1), shape.size(2)), (4096, 4 << 20));
    assert_eq!(shape.address_bits(), 32);
    assert_eq!(shape.strip(0x1_0000_0000), None);
}

#[test]
fn pae_is_two_nine_nine() {
    let shape = Shape::new(12, &[9, 9, 2], 0b11, Width::Eight, Upper::Zero).unwrap();
    assert_eq!(
        (shape.levels(), shape.entries(3), shape.address_bits()),
        (3, 4, 32)
    );
    assert_eq!(shape.index(0xffff_ffff, 3), 3);
}

#[test]
fn canonical_addresses_keep_their_sign() {
    let four = Shape::nines(4, 0b111, Upper::SignExtended).unwrap();
    let five = Shape::nines(5, 0b111, Upper::SignExtended).unwrap();
    assert_eq!(four.strip(0xffff_8000_0000_0000), Some(0x8000_0000_0000));
    assert_eq!(four.extend(0x8000_0000_0000), 0xffff_8000_0000_0000);
    assert_eq!(four.strip(0x0000_8000_0000_0000), None);
    assert_eq!(
        five.strip(0x0000_8000_0000_0000),
        Some(0x0000_8000_0000_0000)
    );
    assert_eq!(five.strip(0xfeff_ffff_ffff_f000), None);
    assert_eq!(
        five.strip(0xff00_0000_0000_0000),
        Some(0x0100_0000_0000_0000)
    );
}

#[test]
fn impossible_shapes_are_named() {
    let new = |page, bits: &[u8], leaves| {
        Shape::new(page, bits, leaves, Width::Eight, Upper::Zero).unwrap_err()
    };
    assert_eq!(new(12, &[9], 1), ShapeError::Levels { levels: 1 });
    assert_eq!(new(12, &[9; 6], 1), ShapeError::Levels { levels: 6 });
    assert_eq!(
        new(12, &[9, 13], 1),
        ShapeError::IndexBits { level: 2, bits: 13 }
    );
    assert_eq!(
        new(12, &[0, 9], 1),
        ShapeError::IndexBits { level: 1, bits: 0 }
    );
    assert_eq!(
        new(11, &[9, 9], 1),
        ShapeError::AddressBits {
            bits: 20,
            page_bits: 11
        }
    );
    assert_eq!(
        new(12, &[12; 5], 1),
        ShapeError::AddressBits {
            bits: 72,
            page_bits: 12
        }
    );
    assert_eq!(
        new(12, &[9, 9], 0b10),
        ShapeError::Leaves {
            leaves: 2,
            levels: 2
        }
    );
    assert_eq!(
        new(12, &[9, 9], 0b101),
        ShapeError::Leaves {
            leaves: 5,
            levels: 2
        }
    );
    assert_eq!(
        Shape::nines(6, 1, Upper::Zero).unwrap_err(),
        ShapeError::Levels { levels: 6 }
    );
}

#[test]
fn constants_cut_as_the_shape_does() {
    let nines = Shape::nines(5, 0b111, Upper::SignExtended).unwrap();
    let eights = Shape::new(12, &[9; 4], 1, Width::Eight, Upper::Zero).unwrap();
    let pae = Shape::new(12, &[9, 9, 2], 0b11, Width::Eight, Upper::Zero).unwrap();
    let fours = Shape::new(12, &[9, 9], 1, Width::Four, Upper::Zero).unwrap();
    let wide = Shape::new(14, &[9, 9], 1, Width::Eight, Upper::Zero).unwrap();
    for (shape, constant) in [
        (nines, true),
        (eights, true),
        (pae, false),
        (fours, false),
        (wide, false),
    ] {
        let cut = shape.cut();
        assert_eq!(cut.nines, constant);
        assert_eq!(cut.width(), shape.width());
        for level in 1..=shape.levels() {
            let address = 0x0123_4567_89ab_cdef;
            let at = shape.entry_at(0x7000, address, level);
            assert_eq!(cut.entry_at(0x7000, address, level), at);
            assert_eq!(cut.size(level), shape.size(level));
        }
    }
    // By hand, too: level 3 of 0x12_3456_7abc is index 0x048 (bits 38 to 30).
    assert_eq!(nines.cut().entry_at(0x7000, 0x12_3456_7abc, 3), 0x7240);
}

#[test]
fn a_level_that_is_not_there_is_harmless() {
    let shape = Shape::nines(4, 0b111, Upper::Zero).unwrap();
    for level in [0, 6, 200, 255] {
        assert!(!shape.leaf_at(level));
        assert_eq!(shape.index(u64::MAX, level), 0);
    }
    assert!(shape.leaf_at(3) && !shape.leaf_at(4));
}

#[test]
fn what_is_below_an_entry_is_the_rest_of_the_address() {
    let shape = Shape::nines(4, 0b111, Upper::Zero).unwrap();
    let below = [1, 2, 3, 4].map(|level| shape.below(level));
    assert_eq!(below, [0xfff, 0x1f_ffff, 0x3fff_ffff, 0x7f_ffff_ffff]);
    assert_eq!(shape.base(0x1234_5678_9abc, 2), 0x1234_5660_0000);
    assert_eq!(shape.behind(0x1234_5678_9abc, 2), 0x1234_5680_0000);
    // The last entry of the widest table: what is behind it needs the 64th bit.
    let widest = Shape::new(12, &[12, 12, 12, 12, 3], 1, Width::Eight, Upper::Zero).unwrap();
    assert_eq!(widest.address_bits(), 63);
    assert_eq!(widest.behind((1 << 63) - 1, 5), 1 << 63);
    let wider = Shape::new(255, &[12, 12], 1, Width::Eight, Upper::Zero).unwrap_err();
    let (bits, page_bits) = (267, 255);
    assert_eq!(wider, ShapeError::AddressBits { bits, page_bits });
}

#[test]
fn leaves_are_at_levels_that_there_are() {
    let shape = Shape::nines(4, 0b111, Upper::Zero).unwrap();
    let at = [0, 1, 2, 3, 4, 5, 6].map(|level| shape.leaf_at(level));
    assert_eq!(at, [false, true, true, true, false, false, false]);
}
