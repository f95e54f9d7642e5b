// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's RAM as a file: region after region, and what is zero takes no room.

use crate::machine::memory::{GuestRam, PAGE};
use rustix::fs::{SeekFrom, seek};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// Bytes that are copied at a time.
const CHUNK: usize = 256 << 10;

/// Bytes of RAM.
pub(super) fn length(ram: &GuestRam) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
}

/// Writes `ram` to `file`, which is empty.
pub(super) fn write(ram: &GuestRam, file: &File) -> io::Result<()> {
    file.set_len(length(ram))?;
    let mut buffer = vec![0; CHUNK];
    let mut base = 0u64;
    for region in ram.iter() {
        let mut offset = 0u64;
        while offset < region.len() {
            let bytes = piece(&mut buffer, region.len().saturating_sub(offset));
            region
                .read_slice(bytes, MemoryRegionAddress(offset))
                .map_err(io::Error::other)?;
            let pages = bytes
                .chunks(PAGE as usize)
                .zip((base.saturating_add(offset)..).step_by(PAGE as usize));
            write_runs(file, pages)?;
            offset = offset.saturating_add(bytes.len() as u64);
        }
        base = base.saturating_add(region.len());
    }
    Ok(())
}

/// Writes pages that are not zero, as few writes as they are runs.
fn write_runs<'a>(file: &File, pages: impl Iterator<Item = (&'a [u8], u64)>) -> io::Result<()> {
    let mut run: Option<(Vec<u8>, u64)> = None;
    for (page, at) in pages {
        let zero = page.iter().all(|&byte| byte == 0);
        match &mut run {
            Some((bytes, _)) if !zero => bytes.extend_from_slice(page),
            _ => {
                if let Some((bytes, at)) = run.take() {
                    file.write_all_at(&bytes, at)?;
                }
                run = (!zero).then(|| (page.to_vec(), at));
            }
        }
    }
    match run {
        Some((bytes, at)) => file.write_all_at(&bytes, at),
        None => Ok(()),
    }
}

/// Fills `ram`, which is zero where nothing was written yet, from `file`, of the same length.
pub(super) fn read(ram: &GuestRam, file: &File) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut base = 0u64;
    for region in ram.iter() {
        let mut offset = 0u64;
        while let Some(found) = next_data(file, base.saturating_add(offset))? {
            // To the page that it is in; what lies before it there is zero.
            let start = found & !(PAGE - 1);
            if start >= base.saturating_add(region.len()) {
                break;
            }
            offset = start.saturating_sub(base).max(offset);
            let bytes = piece(&mut buffer, region.len().saturating_sub(offset));
            file.read_exact_at(bytes, base.saturating_add(offset))?;
            region
                .write_slice(bytes, MemoryRegionAddress(offset))
                .map_err(io::Error::other)?;
            offset = offset.saturating_add(bytes.len() as u64);
            if offset >= region.len() {
                break;
            }
        }
        base = base.saturating_add(region.len());
    }
    Ok(())
}

/// The front of `buffer`, no longer than `left`.
fn piece(buffer: &mut [u8], left: u64) -> &mut [u8] {
    match usize::try_from(left) {
        Ok(left) if left < buffer.len() => buffer.get_mut(..left).unwrap_or_default(),
        _ => buffer,
    }
}

/// Where `file` has something from `offset` on.
fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(found) => Ok(Some(found)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // A file system that knows no holes: all of it is data.
        Err(rustix::io::Errno::INVAL) => Ok(Some(offset)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use vm_memory::GuestAddress;

    fn ram() -> GuestRam {
        let regions = [(GuestAddress(0), 3 << 20), (GuestAddress(1 << 32), 1 << 20)];
        GuestRam::from_ranges(&regions).unwrap()
    }

    #[test]
    fn what_is_written_is_where_it_was_and_zeros_take_no_room() {
        let ram = ram();
        for at in [0, 0x1fff, 0x2f_fff8, (1 << 32) + 0x8_0000] {
            ram.write_slice(&[0x11, 0x22, 0x33, 0x44][..], GuestAddress(at))
                .unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        write(&ram, &file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 4 << 20);
        // The regions, one behind the other.
        for at in [0, 0x1fff, 0x2f_fff8, 0x38_0000] {
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, at).unwrap();
            assert_eq!(bytes, [0x11, 0x22, 0x33, 0x44], "{at:#x}");
        }
        // Pages 0, 1, 2, 0x2ff and one: of 512 bytes, with what the file system adds.
        let held = file.metadata().unwrap().blocks() * 512;
        assert!(held < 1 << 20, "{held}");

        let again = self::ram();
        read(&again, &file).unwrap();
        let [all, other] = [&ram, &again].map(|ram| {
            ram.iter()
                .map(|region| {
                    let mut bytes = vec![0; region.len() as usize];
                    region
                        .read_slice(&mut bytes, MemoryRegionAddress(0))
                        .unwrap();
                    bytes
                })
                .collect::<Vec<_>>()
        });
        assert!(all == other);
    }

    #[test]
    fn a_file_of_holes_and_one_that_is_short() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 20).unwrap();
        read(&ram(), &file).unwrap();
        file.write_all_at(&[1], 0x10_0000).unwrap();
        file.set_len(0x10_0001).unwrap();
        let error = read(&ram(), &file).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
