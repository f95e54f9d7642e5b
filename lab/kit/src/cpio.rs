// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The "newc" cpio archive: what Linux unpacks as its initramfs, and how files come back from a
//! machine of the laboratory.
//!
//! An entry is a header of `070701` and thirteen fields of eight hexadecimal digits, the name with
//! its NUL, and the data; name and data each padded to four bytes. `TRAILER!!!` ends the archive.
//! (Linux, "initramfs buffer format".)

use anyhow::{Context, Result, bail, ensure};

/// The type bits of an entry's mode, as in `stat`.
pub mod kind {
    /// The mask over the type bits.
    pub const MASK: u32 = 0o170_000;
    /// A regular file.
    pub const FILE: u32 = 0o100_000;
    /// A directory.
    pub const DIRECTORY: u32 = 0o040_000;
    /// A symbolic link; its data is the target.
    pub const LINK: u32 = 0o120_000;
    /// A character device.
    pub const CHARACTER: u32 = 0o020_000;
}

const MAGIC: &[u8] = b"070701";
const HEADER: usize = 110;
const TRAILER: &str = "TRAILER!!!";
/// No name is longer in a Linux file system; an archive that claims so is damaged.
const LONGEST_NAME: usize = 4096;

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Path, without a leading slash.
    pub name: &'a str,
    /// Type ([`kind`]) and permission bits.
    pub mode: u32,
    /// Major and minor number, for a device.
    pub device: (u32, u32),
    /// A file's content or a link's target.
    pub data: &'a [u8],
}

/// Appends `entry` to the archive `out`. `inode` must differ between entries.
pub fn append(out: &mut Vec<u8>, inode: u32, entry: &Entry<'_>) -> Result<()> {
    let size = u32::try_from(entry.data.len())
        .with_context(|| format!("{} is too large for an archive: 4 GiB", entry.name))?;
    let links = if entry.mode & kind::MASK == kind::DIRECTORY {
        2
    } else {
        1
    };
    let name_size = u32::try_from(entry.name.len() + 1).context("name too long")?;
    let (major, minor) = entry.device;
    out.extend_from_slice(MAGIC);
    // inode, mode, uid, gid, nlink, mtime, size, device of the archive, device, name size, check.
    for field in [
        inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0,
    ] {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(entry.name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(entry.data);
    pad(out);
    Ok(())
}

/// Ends the archive.
pub fn finish(out: &mut Vec<u8>) -> Result<()> {
    let trailer = Entry {
        name: TRAILER,
        mode: 0,
        device: (0, 0),
        data: &[],
    };
    append(out, 0, &trailer)
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Reads an archive up to its trailer. Fails on one that is damaged or cut short.
pub fn entries(archive: &[u8]) -> Result<Vec<Entry<'_>>> {
    let mut found = Vec::new();
    let mut at = 0;
    // Every round consumes at least a header, so the length bounds the loop.
    loop {
        let header = slice(archive, at, HEADER)?;
        ensure!(
            header.starts_with(MAGIC),
            "no cpio header at byte {at} of {}",
            archive.len()
        );
        let name_size = field(header, 11)? as usize;
        let size = field(header, 6)? as usize;
        ensure!(
            (1..=LONGEST_NAME).contains(&name_size),
            "cpio entry at byte {at}: a name of {name_size} bytes"
        );
        let name = slice(archive, at + HEADER, name_size)?;
        let name = std::str::from_utf8(&name[..name_size - 1])
            .with_context(|| format!("cpio entry at byte {at}: the name is not UTF-8"))?;
        if name == TRAILER {
            return Ok(found);
        }
        let data_at = (at + HEADER + name_size).next_multiple_of(4);
        found.push(Entry {
            name,
            mode: field(header, 1)?,
            device: (field(header, 9)?, field(header, 10)?),
            data: slice(archive, data_at, size)?,
        });
        at = (data_at + size).next_multiple_of(4);
    }
}

fn slice(archive: &[u8], at: usize, size: usize) -> Result<&[u8]> {
    match archive.get(at..at.saturating_add(size)) {
        Some(bytes) => Ok(bytes),
        None => bail!(
            "the cpio archive ends at byte {} where {size} bytes should follow byte {at}",
            archive.len()
        ),
    }
}

/// Field `index` of a header, in the order of [`append`].
fn field(header: &[u8], index: usize) -> Result<u32> {
    let at = MAGIC.len() + 8 * index;
    std::str::from_utf8(&header[at..at + 8])
        .ok()
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .with_context(|| format!("cpio header field {index} is not hexadecimal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: Entry<'_> = Entry {
        name: "a/b",
        mode: kind::FILE | 0o644,
        device: (0, 0),
        data: b"hello",
    };

    #[test]
    fn an_entry_is_spelled_as_the_format_says() {
        let mut out = Vec::new();
        append(&mut out, 7, &HELLO).unwrap();
        let header = "070701\
            00000007000081a400000000000000000000000100000000\
            00000005000000000000000000000000000000000000000400000000";
        assert_eq!(&out[..HEADER], header.as_bytes());
        // 110 + 4 bytes of name = 114, padded to 116; 5 bytes of data, padded to 124.
        assert_eq!(&out[HEADER..], b"a/b\0\0\0hello\0\0\0");
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        let mut whole = Vec::new();
        append(&mut whole, 1, &HELLO).unwrap();
        finish(&mut whole).unwrap();
        assert_eq!(entries(&whole).unwrap(), [HELLO]);
        let trailer_at = 124;
        for length in 0..trailer_at + HEADER + TRAILER.len() + 1 {
            assert!(entries(&whole[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_damaged_header_is_refused() {
        let mut whole = Vec::new();
        append(&mut whole, 1, &HELLO).unwrap();
        finish(&mut whole).unwrap();
        for (at, byte) in [(0, b'1'), (6 + 8 * 6, b'x'), (6 + 8 * 11, b'f')] {
            let mut bad = whole.clone();
            bad[at] = byte;
            assert!(entries(&bad).is_err(), "byte {at} = {byte:#x}");
        }
    }
}
