// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages a case asks for, one after the other.

use super::Random;

/// In which order pages are asked for. A type, so that each case is compiled for its order alone.
pub trait Order: Copy {
    const KIND: &'static str;
    /// Of so many pages.
    fn of(pages: u64) -> Self;
    fn next(&mut self) -> u64;
}

#[derive(Clone, Copy)]
pub struct InOrder {
    page: u64,
    pages: u64,
}

impl Order for InOrder {
    const KIND: &'static str = "in order";
    fn of(pages: u64) -> Self {
        Self { page: 0, pages }
    }

    #[inline(always)]
    fn next(&mut self) -> u64 {
        let page = self.page;
        self.page = if page + 1 == self.pages { 0 } else { page + 1 };
        page
    }
}

#[derive(Clone, Copy)]
pub struct AtRandom {
    random: Random,
    pages: u64,
}

impl Order for AtRandom {
    const KIND: &'static str = "at random";
    fn of(pages: u64) -> Self {
        let random = Random(7);
        Self { random, pages }
    }

    #[inline(always)]
    fn next(&mut self) -> u64 {
        self.random.below(self.pages)
    }
}
