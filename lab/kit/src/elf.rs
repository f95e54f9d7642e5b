// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The little of ELF64 that the laboratory reads: one section of a kernel module.

/// The bytes of section `name` of the ELF64 little-endian file `file`, if it has one.
///
/// Total: any bytes give an answer. (System V ABI, "Sections".)
pub fn section<'a>(file: &'a [u8], name: &str) -> Option<&'a [u8]> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(number::<8>(file, 0x28)?).ok()?;
    let size = usize::try_from(number::<2>(file, 0x3a)?).ok()?;
    let count = usize::try_from(number::<2>(file, 0x3c)?).ok()?;
    let names = usize::try_from(number::<2>(file, 0x3e)?).ok()?;
    let header = |index: usize| file.get(table.checked_add(index.checked_mul(size)?)?..);
    let content = |header: &[u8]| {
        let at = usize::try_from(number::<8>(header, 0x18)?).ok()?;
        let length = usize::try_from(number::<8>(header, 0x20)?).ok()?;
        file.get(at..at.checked_add(length)?)
    };
    let names = content(header(names)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let start = usize::try_from(number::<4>(header, 0)?).ok()?;
        let found = names.get(start..)?.split(|&b| b == 0).next()?;
        (found == name.as_bytes()).then(|| content(header))?
    })
}

/// The little-endian number of `N` bytes at `at`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(N)?)?;
    Some(bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF64 file of two sections: the names, and `.modinfo`.
    fn sample() -> Vec<u8> {
        let mut file = vec![0; 0x40];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x28] = 0x60;
        file[0x3a] = 0x40;
        file[0x3c] = 2;
        file.extend_from_slice(b"\0.modinfo\0a=1\0");
        file.resize(0x60, 0);
        for (name, at, size) in [(0u8, 0x40u8, 10u8), (1, 0x4a, 4)] {
            let mut header = [0; 0x40];
            (header[0], header[0x18], header[0x20]) = (name, at, size);
            file.extend_from_slice(&header);
        }
        file
    }

    #[test]
    fn finds_a_section_by_name() {
        assert_eq!(section(&sample(), ".modinfo"), Some(&b"a=1\0"[..]));
        assert_eq!(section(&sample(), ".text"), None);
    }

    #[test]
    fn every_prefix_and_every_byte_gives_an_answer() {
        let good = sample();
        for length in 0..good.len() {
            let _ = section(&good[..length], ".modinfo");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = 0xff;
            let _ = section(&bad, ".modinfo");
        }
        assert_eq!(section(&good[..0x60], ".modinfo"), None);
    }
}
