// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Blocks of a few words each, a kilobyte at a time.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use super::error::OutOfMemory;
use super::pages::{bytes_of, room};

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

    /// Blocks of a piece: one at least, as every class has 2 to 64 words.
    const fn in_piece(&self) -> usize {
        match PIECE.checked_div(self.words) {
            Some(blocks) => blocks,
            None => 1,
        }
    }

    /// How many blocks can be [taken](Self::take) without memory.
    pub(crate) fn spare(&self) -> usize {
        let all = self.pieces.len().saturating_mul(self.in_piece());
        all.saturating_sub(self.in_use as usize)
    }

    /// Sees to it that there is a block to take.
    pub(crate) fn reserve(&mut self) -> Result<(), OutOfMemory> {
        if self.spare() > 0 {
            return Ok(());
        }
        let count = self.pieces.len().saturating_add(1);
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
        self.in_use = self.in_use.saturating_add(1);
        let Some(block) = self.free.checked_sub(1) else {
            let block = self.begun;
            self.begun = block.saturating_add(1);
            return block;
        };
        self.free = self.block_mut(block).first_mut().map_or(0, core::mem::take);
        block
    }

    /// Takes a block back. When none is in use, all memory is given back.
    pub(crate) fn give(&mut self, block: u32) {
        let next = self.free;
        let words = self.block_mut(block);
        words.fill(0);
        if let Some(first) = words.first_mut() {
            *first = next;
            self.free = block.saturating_add(1);
        }
        self.in_use = self.in_use.saturating_sub(1);
        if self.in_use == 0 {
            // But for one piece: someone may have reserved a block.
            self.pieces.truncate(1);
            self.pieces.iter_mut().for_each(|piece| piece.fill(0));
            (self.free, self.begun) = (0, 0);
        }
    }

    fn place(&self, block: u32) -> (usize, Range<usize>) {
        let in_piece = self.in_piece();
        let piece = (block as usize).checked_div(in_piece).unwrap_or(0);
        let at = (block as usize).wrapping_sub(piece.wrapping_mul(in_piece));
        let start = at.wrapping_mul(self.words);
        (piece, start..start.wrapping_add(self.words))
    }

    /// A block's words. One that was never begun has none.
    pub(crate) fn block(&self, block: u32) -> &[u32] {
        let (piece, words) = self.place(block);
        let piece = self.pieces.get(piece);
        let found = piece.and_then(|piece| piece.get(words));
        debug_assert!(found.is_some(), "block {block} was not begun");
        found.unwrap_or_default()
    }

    /// The same, to be changed.
    pub(crate) fn block_mut(&mut self, block: u32) -> &mut [u32] {
        let (piece, words) = self.place(block);
        let piece = self.pieces.get_mut(piece);
        let found = piece.and_then(|piece| piece.get_mut(words));
        debug_assert!(found.is_some(), "block {block} was not begun");
        found.unwrap_or_default()
    }

    /// The first word of a block that is not in use.
    pub(crate) fn next(&mut self, block: u32) -> Option<&mut u32> {
        self.block_mut(block).iter_mut().find(|word| **word == 0)
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
        let words = self.pieces.len().saturating_mul(size_of::<[u32; PIECE]>());
        words.saturating_add(bytes_of(&self.pieces))
    }
}
