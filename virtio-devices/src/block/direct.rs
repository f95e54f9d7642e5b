// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file around which the host keeps no cache (O_DIRECT): it is read and written in whole blocks of the host's.
//!
//! The guest goes on having sectors of 512 bytes. Where a write begins or ends inside a block, the block is read,
//! changed and written, while nobody else writes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use super::bounce::{ALIGNMENT, Aligned, Bounced, zeros};
use super::transfer::{self, Hole};
use super::{OpenError, SECTOR};

/// A file that was opened with O_DIRECT.
#[derive(Debug)]
pub(super) struct Direct {
    file: File,
    /// Bytes of a block: what offsets and lengths are multiples of.
    block: usize,
    /// Held by writers of whole blocks together, and alone by who writes part of one.
    writers: RwLock<()>,
}

impl Direct {
    /// Finds the size of the host's blocks for `file`, of `length` bytes.
    pub(super) fn new(file: File, path: &Path, length: u64) -> Result<Self, OpenError> {
        let mut found = Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        for block in [SECTOR as usize, ALIGNMENT] {
            // Aligned to no more than it is long, so that the memory's alignment is tried as well.
            let mut probe = Aligned::new(block + ALIGNMENT);
            let bytes = &mut probe.bytes()[block % ALIGNMENT..][..block];
            found = file.read_at(bytes, 0).map(|_| block);
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
            block,
            writers: RwLock::default(),
        })
    }

    /// The whole blocks that `length` bytes at `offset` lie in: where they begin, and how many bytes they are.
    fn blocks(&self, offset: u64, length: usize) -> (u64, usize) {
        let inside = (offset % self.block as u64) as usize;
        let whole = (inside + length).next_multiple_of(self.block);
        (offset - inside as u64, whole)
    }
}

impl Bounced for Direct {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (start, whole) = self.blocks(offset, buffer.len());
        if (start, whole) == (offset, buffer.len()) {
            return self.file.read_exact_at(buffer, offset);
        }
        let mut blocks = Aligned::new(whole);
        self.file.read_exact_at(blocks.bytes(), start)?;
        // Inside a block.
        let from = (offset - start) as usize;
        buffer.copy_from_slice(&blocks.bytes()[from..from + buffer.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, buffer: &[u8]) -> io::Result<()> {
        let (start, whole) = self.blocks(offset, buffer.len());
        if (start, whole) == (offset, buffer.len()) {
            let _others = self.writers.read().unwrap_or_else(PoisonError::into_inner);
            return self.file.write_all_at(buffer, offset);
        }
        let _alone = self.writers.write().unwrap_or_else(PoisonError::into_inner);
        let mut blocks = Aligned::new(whole);
        self.file.read_exact_at(blocks.bytes(), start)?;
        let from = (offset - start) as usize;
        blocks.bytes()[from..from + buffer.len()].copy_from_slice(buffer);
        self.file.write_all_at(blocks.bytes(), start)
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
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        let mut model: Vec<u8> = (0..0x8000u32).map(|i| (i % 251) as u8).collect();
        file.as_file().write_all_at(&model, 0).unwrap();
        // A cache is no matter here: the arithmetic is the same, for blocks that no host of ours has.
        let direct = Direct {
            file: file.reopen().unwrap(),
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
