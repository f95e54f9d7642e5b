// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Blocks of a few words each, a kilobyte at a time.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::error::OutOfMemory;
use super::pages::room;

/// Words of the blocks there are: each class wastes little of the next.
pub(crate) const CLASSES: [usize; 19] = [
    2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64,
];

/// Words that are allocated together.
const PIECE: usize = 256;

/// Blocks of one size. A word that is 0 is not in use, and none after it is.
#[derive(Debug)]
pub(crate) struct Slab {
    words: usize,
    #[expect(
        clippy::vec_box,
        reason = "pieces stay where they are while their number grows"
    )]
    pieces: Vec<Box<[u32; PIECE]>>,
    /// The first free block plus one; each has the next in its first word.
    free: u32,
    /// Blocks in use or free, of all that there is room for.
    begun: u32,
    in_use: u32,
}

impl Slab {
    pub(crate) const fn new(words: usize) -> Self {
        Self {
            words,
            pieces: Vec::new(),
            free: 0,
            begun: 0,
            in_use: 0,
        }
    }

    /// Words of a block.
    pub(crate) const fn links(&self) -> usize {
        self.words
    }

    const fn in_piece(&self) -> usize {
        PIECE / self.words
    }

    /// How many blocks can be [taken](Self::take) without memory.
    pub(crate) fn spare(&self) -> usize {
        self.pieces.len() * self.in_piece() - self.in_use as usize
    }

    /// Sees to it that there is a block to take.
    pub(crate) fn reserve(&mut self) -> Result<(), OutOfMemory> {
        if self.spare() > 0 {
            return Ok(());
        }
        let count = self.pieces.len() + 1;
        room(&mut self.pieces, count)?;
        let mut piece = Vec::new();
        piece.try_reserve_exact(PIECE).map_err(|_| OutOfMemory)?;
        piece.resize(PIECE, 0);
        let piece = piece.into_boxed_slice().try_into();
        self.pieces.push(piece.map_err(|_| OutOfMemory)?);
        Ok(())
    }

    /// A block of zeros, of those that are spare.
    pub(crate) fn take(&mut self) -> u32 {
        debug_assert!(self.spare() > 0, "one was reserved");
        self.in_use += 1;
        let Some(block) = self.free.checked_sub(1) else {
            self.begun += 1;
            return self.begun - 1;
        };
        self.free = core::mem::take(&mut self.block_mut(block)[0]);
        block
    }

    /// Takes a block back. When none is in use, all memory is given back.
    pub(crate) fn give(&mut self, block: u32) {
        let next = self.free;
        let words = self.block_mut(block);
        words.fill(0);
        words[0] = next;
        self.free = block + 1;
        self.in_use -= 1;
        if self.in_use == 0 {
            // But for one piece: someone may have reserved a block.
            self.pieces.truncate(1);
            self.pieces.iter_mut().for_each(|piece| piece.fill(0));
            (self.free, self.begun) = (0, 0);
        }
    }

    fn place(&self, block: u32) -> (usize, usize) {
        let (piece, at) = (
            block as usize / self.in_piece(),
            block as usize % self.in_piece(),
        );
        (piece, at * self.words)
    }

    pub(crate) fn block(&self, block: u32) -> &[u32] {
        let (piece, at) = self.place(block);
        &self.pieces[piece][at..at + self.words]
    }

    pub(crate) fn block_mut(&mut self, block: u32) -> &mut [u32] {
        let (piece, at) = self.place(block);
        &mut self.pieces[piece][at..at + self.words]
    }

    /// How many words of a block are in use.
    pub(crate) fn used(&self, block: u32) -> usize {
        let words = self.block(block);
        words
            .iter()
            .position(|&word| word == 0)
            .unwrap_or(words.len())
    }

    /// Bytes of memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.pieces.len() * PIECE * size_of::<u32>()
            + self.pieces.capacity() * size_of::<Box<[u32; PIECE]>>()
    }
}
