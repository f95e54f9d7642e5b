// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A figure of the specification, as text: `127:88 0 | 87:72 DID | 71 0 | ...`, highest bit first.
//!
//! `0` is reserved, `-` ignored, `@NAME` an address of which only the host's bits may be set; anything else is a field.

/// A field of a figure.
struct Field {
    name: &'static str,
    word: usize,
    /// Where it begins in its word.
    low: u32,
    /// Its bits, in place.
    mask: u64,
}

/// A figure, taken apart.
pub(crate) struct Figure {
    fields: Vec<Field>,
    host_bits: u32,
}

impl Figure {
    /// Reads the text, of a unit with so many bits of host address. Each bit from the highest one down must be there once.
    pub(crate) fn new(text: &'static str, host_bits: u32) -> Self {
        let mut fields = Vec::new();
        let mut above = None;
        for part in text.split('|') {
            let (bits, name) = part.trim().split_once(' ').expect("bits, then a name");
            let (high, low) = bits.split_once(':').unwrap_or((bits, bits));
            let (high, low): (u32, u32) = (high.parse().unwrap(), low.parse().unwrap());
            assert!(high >= low, "{part}");
            assert!(above.is_none_or(|above| above == high + 1), "{part}");
            above = Some(low);
            // What is reserved may go over several words.
            for word in low / 64..=high / 64 {
                let low = low.max(word * 64) - word * 64;
                let high = high.min(word * 64 + 63) - word * 64;
                fields.push(Field {
                    name: name.trim(),
                    word: word as usize,
                    low,
                    mask: (low..=high).map(|at| 1 << at).sum(),
                });
            }
        }
        assert_eq!(above, Some(0));
        Self { fields, host_bits }
    }

    /// The bits of field `name`, shifted down; of an address, in their place.
    pub(crate) fn get(&self, words: &[u64], name: &str) -> u64 {
        let found = self.fields.iter().find_map(|field| {
            let bits = words[field.word] & field.mask;
            if field.name == name {
                Some(bits >> field.low)
            } else if field.name.strip_prefix('@') == Some(name) {
                Some(bits)
            } else {
                None
            }
        });
        found.expect("a field of the figure")
    }

    /// The reserved bits that are set, word by word.
    pub(crate) fn reserved<const N: usize>(&self, words: [u64; N]) -> [u64; N] {
        let mut set = [0; N];
        for field in &self.fields {
            let reserved = match field.name {
                "0" => field.mask,
                name if name.starts_with('@') => field.mask & !0 << self.host_bits,
                _ => 0,
            };
            set[field.word] |= words[field.word] & reserved;
        }
        set
    }
}

#[test]
fn a_figure_is_read_as_it_stands() {
    let figure = Figure::new("15:12 0 | 11:4 @P | 3:2 T | 1 - | 0 P1", 6);
    assert_eq!(figure.get(&[0xabcd], "P"), 0xbc0);
    assert_eq!(figure.get(&[0xabcd], "T"), 3);
    assert_eq!(figure.get(&[0xabcd], "P1"), 1);
    assert_eq!(figure.reserved([0xabcf]), [0xabc0]);
}
