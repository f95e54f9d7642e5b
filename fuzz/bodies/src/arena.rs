// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames for tables: quicker than the fake that remembers every store.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;

use hvkit_page_table::{Frames, OwnEntries, ReadEntry, UpdateEntry, Width};

/// The most frames there ever are: 2 GiB of small pages.
const MOST: usize = 1024;
/// What is in a frame that nobody filled.
const GARBAGE: u64 = 0xbad0_0bad_0bad_0fff;

struct Frame {
    words: Box<[Cell<u64>; 512]>,
    in_use: Cell<bool>,
}

/// Frames by number, from 0x1000 on, which are never moved. A word where no frame is panics.
#[derive(Default)]
pub(crate) struct Arena {
    frames: RefCell<Vec<Frame>>,
    free: RefCell<Vec<u64>>,
    used: Cell<usize>,
    limit: Cell<usize>,
}

impl Arena {
    /// At most `limit` frames at a time.
    pub(crate) fn new(limit: usize) -> Self {
        let arena = Self::default();
        arena.limit(limit);
        arena
    }

    /// At most so many from now on.
    pub(crate) fn limit(&self, frames: usize) {
        self.limit.set(frames.min(MOST));
    }

    /// Frames in use.
    pub(crate) fn used(&self) -> usize {
        self.used.get()
    }

    /// Whether `at` is in a frame that is in use.
    pub(crate) fn owns(&self, at: u64) -> bool {
        let frames = self.frames.borrow();
        let number = usize::try_from(at >> 12).ok();
        let frame = number.and_then(|number| frames.get(number.checked_sub(1)?));
        frame.is_some_and(|frame| frame.in_use.get())
    }

    fn word<T>(&self, at: u64, use_it: impl FnOnce(&Cell<u64>) -> T) -> T {
        let frame = &self.frames.borrow()[(at >> 12) as usize - 1];
        use_it(&frame.words[(at >> 3 & 511) as usize])
    }

    fn get(&self, at: u64, width: Width) -> u64 {
        let word = self.word(at & !7, Cell::get);
        match width {
            Width::Eight => {
                assert_eq!(at & 7, 0);
                word
            }
            Width::Four => {
                assert_eq!(at & 3, 0);
                word >> (8 * (at & 4)) & 0xffff_ffff
            }
        }
    }

    fn set(&self, at: u64, width: Width, value: u64) {
        let value = match width {
            Width::Eight => value,
            Width::Four => {
                let shift = 8 * (at & 4);
                let others = self.word(at & !7, Cell::get) & !(0xffff_ffff << shift);
                others | (value & 0xffff_ffff) << shift
            }
        };
        self.word(at & !7, |word| word.set(value));
    }
}

impl ReadEntry for Arena {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        Ok(self.get(at, width))
    }
}

impl UpdateEntry for Arena {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        let found = self.get(at, width);
        if found == current {
            self.set(at, width, new);
        }
        Ok(found)
    }
}

impl OwnEntries for Arena {
    fn write(&self, at: u64, width: Width, entry: u64) {
        self.set(at, width, entry);
    }
}

impl Frames for Arena {
    fn allocate(&self) -> Option<u64> {
        if self.used.get() >= self.limit.get() {
            return None;
        }
        self.used.set(self.used.get() + 1);
        let mut frames = self.frames.borrow_mut();
        let again = self.free.borrow_mut().pop();
        let frame = again.unwrap_or_else(|| {
            frames.push(Frame {
                words: Box::new(std::array::from_fn(|_| Cell::new(GARBAGE))),
                in_use: Cell::new(false),
            });
            (frames.len() as u64) << 12
        });
        frames[(frame >> 12) as usize - 1].in_use.set(true);
        Some(frame)
    }

    fn free(&self, frame: u64) {
        let was = self.frames.borrow()[(frame >> 12) as usize - 1]
            .in_use
            .replace(false);
        assert!(was, "{frame:#x} is freed twice");
        self.free.borrow_mut().push(frame);
        self.used.set(self.used.get() - 1);
    }
}
