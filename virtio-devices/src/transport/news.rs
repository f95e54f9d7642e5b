// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Changes of device-specific configuration: whether there was one, and whether the driver is told of it.
//!
//! "Device Configuration Space" (2.5): the generation is another after each change. Only what is read is counted: however many
//! changes come between two reads, the number of the second is another, in however few bits it is shown (4.1.4.3.1).

/// When the driver is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Telling {
    /// At once.
    #[default]
    Now,
    /// When a restored device has all its registers, if a change comes.
    Later,
    /// The same, and one has come.
    Waiting,
}

/// A device's generation, and what is to be told.
#[derive(Debug, Default)]
pub(super) struct News {
    generation: u32,
    /// The configuration is another than at that generation.
    changed: bool,
    telling: Telling,
}

impl News {
    /// The number that is another after each change: of a transport that has less room for it, the low bits.
    pub(super) fn generation(&mut self) -> u32 {
        if std::mem::take(&mut self.changed) {
            self.generation = self.generation.wrapping_add(1);
        }
        self.generation
    }

    /// The generation of a device that goes on.
    pub(super) fn restore(&mut self, generation: u32) {
        self.generation = generation;
        self.changed = false;
    }

    /// Changes are kept until [`end`](Self::end): what they are told by is about to be restored.
    pub(super) fn keep(&mut self) {
        self.telling = Telling::Later;
    }

    /// Whether changes are kept.
    pub(super) fn are_kept(&self) -> bool {
        self.telling != Telling::Now
    }

    /// A change has come: whether to tell of it now.
    #[must_use]
    pub(super) fn comes(&mut self) -> bool {
        if self.telling != Telling::Now {
            self.telling = Telling::Waiting;
            return false;
        }
        self.changed = true;
        true
    }

    /// Each is told at once from now on: whether there is one to tell of.
    #[must_use]
    pub(super) fn end(&mut self) -> bool {
        std::mem::take(&mut self.telling) == Telling::Waiting && self.comes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_with_another_generation() {
        let mut news = News::default();
        assert!(news.comes());
        assert_eq!(news.generation(), 1);
        assert!(!news.end(), "told of already");
        news.restore(u32::MAX);
        news.keep();
        assert!(!news.comes() && !news.comes());
        assert_eq!(news.generation(), u32::MAX, "nobody may see it yet");
        assert!(news.end());
        assert_eq!(news.generation(), 0);
        assert!(!news.end());
        news.keep();
        assert!(!news.end(), "none has come");
        assert!(news.comes());
    }
}
