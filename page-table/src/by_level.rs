// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Something for each level of a table.

use crate::shape::MAX_LEVELS;

/// A `T` for each level that any table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByLevel<T>([T; MAX_LEVELS]);

impl<T: Copy> ByLevel<T> {
    /// The same for each.
    pub(crate) const fn all(of_each: T) -> Self {
        Self([of_each; MAX_LEVELS])
    }

    /// What `level` has; `None` for a level that no table has.
    #[inline(always)]
    pub(crate) fn get(&self, level: u8) -> Option<T> {
        self.0.get(usize::from(level).wrapping_sub(1)).copied()
    }

    /// The place of what `level` has.
    #[inline(always)]
    pub(crate) fn get_mut(&mut self, level: u8) -> Option<&mut T> {
        self.0.get_mut(usize::from(level).wrapping_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_count_from_one() {
        let mut numbers = ByLevel::all(0);
        *numbers.get_mut(1).unwrap() = 10;
        *numbers.get_mut(5).unwrap() = 50;
        assert_eq!(
            [1, 2, 5].map(|level| numbers.get(level)),
            [Some(10), Some(0), Some(50)]
        );
        for level in [0, 6, u8::MAX] {
            assert_eq!((numbers.get(level), numbers.get_mut(level)), (None, None));
        }
    }
}
