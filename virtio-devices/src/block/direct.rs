// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file around which the host keeps no cache (O_DIRECT): it is read and written in whole blocks of the host's.
//!
//! The guest goes on having sectors of 512 bytes. Where a write begins or ends inside a block, the block is read,
//! changed and written, while nobody else writes.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use super::bounce::{ALIGNMENT, Aligned, Bounced, zeros};
use super::image::length_of;
use super::ring::{ENTRIES, Ring};
use super::transfer::{self, Hole};
use super::{Access, NoRing, OpenError, ResizeError, SECTOR};

/// A file that was opened with O_DIRECT.
#[derive(Debug)]
pub(super) struct Direct {
    file: File,
    access: Access,
    /// Bytes of a block: what offsets and lengths are multiples of.
    block: usize,
    /// Held by writers of whole blocks together, and alone by who writes part of one.
    writers: RwLock<()>,
}

impl Direct {
    /// Finds the size of the host's blocks for `file`, of `length` bytes.
    pub(super) fn new(
        file: File,
        access: Access,
        path: &Path,
        length: u64,
    ) -> Result<Self, OpenError> {
        let mut found = Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        for block in [SECTOR as usize, ALIGNMENT] {
            // Aligned to no more than it is long, so that the memory's alignment is tried as well.
            let mut probe = Aligned::new(2 * ALIGNMENT);
            let bytes = probe.bytes().get_mut(block % ALIGNMENT..);
            let bytes = bytes.and_then(|bytes| bytes.get_mut(..block));
            let bytes = bytes.ok_or(io::Error::from(io::ErrorKind::InvalidInput));
            found = bytes.and_then(|bytes| file.read_at(bytes, 0).map(|_| block));
            if found.is_ok() {
                break;
            }
        }
        let path = || path.to_path_buf();
        let block = found.map_err(|source| OpenError::NotDirect {
            path: path(),
            source,
        })?;
        if !length.is_multiple_of(block as u64) {
            return Err(OpenError::Blocks {
                path: path(),
                length,
                block,
            });
        }
        Ok(Self {
            file,
            access,
            block,
            writers: RwLock::default(),
        })
    }

    /// The whole blocks that `length` bytes at `offset` lie in.
    fn blocks(&self, offset: u64, length: usize) -> io::Result<Blocks> {
        let too_far = || io::Error::from(io::ErrorKind::InvalidInput);
        let inside = offset.checked_rem(self.block as u64).ok_or_else(too_far)?;
        // Less than a block.
        let from = inside as usize;
        let to = from.checked_add(length).ok_or_else(too_far)?;
        Ok(Blocks {
            start: offset.wrapping_sub(inside),
            whole: to
                .checked_next_multiple_of(self.block)
                .ok_or_else(too_far)?,
            inside: from..to,
        })
    }
}

/// Whole blocks, and what of them is asked for.
struct Blocks {
    /// Where they begin in the file.
    start: u64,
    /// How many bytes they are.
    whole: usize,
    inside: Range<usize>,
}

impl Blocks {
    /// Whether all of them is asked for.
    fn are_all(&self) -> bool {
        self.inside == (0..self.whole)
    }

    /// What is asked for, of the blocks' bytes.
    fn part<'b>(&self, blocks: &'b mut Aligned) -> io::Result<&'b mut [u8]> {
        let part = blocks.bytes().get_mut(self.inside.clone());
        part.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Bounced for Direct {
    fn ring(&self) -> Result<Ring, NoRing> {
        // What begins or ends inside a block is written with the rest of the block, which no other may write meanwhile;
        // what is under way in a ring would. A sector is never part of a smaller block.
        if self.block != SECTOR as usize {
            return Err(NoRing::Blocks { block: self.block });
        }
        // The kernel goes on holding a ring's file for a moment after the ring is gone. The lock is not to be held that long,
        // so the ring has the file by a second opening, which has none.
        let again = OpenOptions::new()
            .read(true)
            .write(self.access == Access::ReadWrite)
            .custom_flags(libc::O_DIRECT)
            .open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        Ok(Ring::new(&again, ENTRIES)?)
    }

    fn measure(&self) -> Result<(u64, u64), ResizeError> {
        Ok((length_of(&self.file)?, self.block as u64))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let asked = self.blocks(offset, buffer.len())?;
        if asked.are_all() {
            return self.file.read_exact_at(buffer, offset);
        }
        let mut blocks = Aligned::new(asked.whole);
        self.file.read_exact_at(blocks.bytes(), asked.start)?;
        buffer.copy_from_slice(asked.part(&mut blocks)?);
        Ok(())
    }

    fn write(&self, offset: u64, buffer: &[u8]) -> io::Result<()> {
        let asked = self.blocks(offset, buffer.len())?;
        if asked.are_all() {
            let _others = self.writers.read().unwrap_or_else(PoisonError::into_inner);
            return self.file.write_all_at(buffer, offset);
        }
        let _alone = self.writers.write().unwrap_or_else(PoisonError::into_inner);
        let mut blocks = Aligned::new(asked.whole);
        self.file.read_exact_at(blocks.bytes(), asked.start)?;
        asked.part(&mut blocks)?.copy_from_slice(buffer);
        self.file.write_all_at(blocks.bytes(), asked.start)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn hole(&self, offset: u64, length: u64, kind: Hole) -> io::Result<()> {
        let _alone = self.writers.write().unwrap_or_else(PoisonError::into_inner);
        match transfer::hole(&self.file, offset, length, kind) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            result => return result,
        }
        drop(_alone);
        // The host's file system has no holes; the guest gets its zeros all the same.
        zeros(offset, length, |zeros, at| self.write(at, zeros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every offset and length that there is around a block's borders, against a plain vector.
    #[test]
    fn parts_of_blocks_are_read_and_written_right() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut model: Vec<u8> = (0..0x8000u32).map(|i| (i % 251) as u8).collect();
        file.as_file().write_all_at(&model, 0).unwrap();
        // A cache is no matter here: the arithmetic is the same, for blocks that no host of ours has.
        let direct = Direct {
            file: file.reopen().unwrap(),
            access: Access::ReadWrite,
            block: 4096,
            writers: RwLock::default(),
        };
        let edges = [0, 512, 3584, 4096, 4608, 8192, 12_288 - 512];
        for (turn, &offset) in (1u8..).zip(&edges) {
            for length in [512, 3584, 4096, 4608, 8192] {
                let mut buffer = Aligned::new(length);
                direct.read(offset as u64, buffer.bytes()).unwrap();
                assert_eq!(buffer.bytes(), &model[offset..offset + length]);
                buffer.bytes().fill(turn);
                direct.write(offset as u64, buffer.bytes()).unwrap();
                model[offset..offset + length].fill(turn);
                assert_eq!(std::fs::read(file.path()).unwrap(), model);
            }
        }
        direct.hole(512, 5120, Hole::Zero).unwrap();
        model[512..512 + 5120].fill(0);
        assert_eq!(std::fs::read(file.path()).unwrap(), model);
    }
}
