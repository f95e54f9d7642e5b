// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine's memory as the unit reaches it.

use hvkit_page_table::{UpdateEntry, Width};

/// The machine's physical memory: where tables, queues and descriptors are.
///
/// Reading an entry and changing one atomically are [`UpdateEntry`]'s; a unit also stores.
pub trait Memory: UpdateEntry {
    /// Stores `value` at `at`, as a whole, after everything that was stored before (release).
    ///
    /// # Errors
    ///
    /// There is no memory, or none that can be written.
    fn write(&self, at: u64, width: Width, value: u64) -> Result<(), Self::Error>;

    /// Reads consecutive 8-byte words from `at`, which is 8-byte aligned. For queues, whose entries need not
    /// be read as a whole.
    ///
    /// # Errors
    ///
    /// A word could not be read; those before it may have been.
    #[inline]
    fn read_words(&self, at: u64, words: &mut [u64]) -> Result<(), Self::Error> {
        let mut at = at;
        for word in words {
            *word = self.read(at, Width::Eight)?;
            at = at.wrapping_add(8);
        }
        Ok(())
    }
}

impl<T: Memory + ?Sized> Memory for &T {
    #[inline]
    fn write(&self, at: u64, width: Width, value: u64) -> Result<(), Self::Error> {
        (**self).write(at, width, value)
    }

    #[inline]
    fn read_words(&self, at: u64, words: &mut [u64]) -> Result<(), Self::Error> {
        (**self).read_words(at, words)
    }
}

#[cfg(feature = "vm-memory")]
impl<B: vm_memory::GuestMemoryBackend + ?Sized> Memory for hvkit_page_table::GuestTables<'_, B> {
    fn write(&self, at: u64, width: Width, value: u64) -> Result<(), Self::Error> {
        use core::sync::atomic::Ordering;
        use vm_memory::{Bytes, GuestAddress};
        match width {
            Width::Eight => self
                .0
                .store(value.to_le(), GuestAddress(at), Ordering::Release),
            Width::Four => {
                let value = (value as u32).to_le();
                self.0.store(value, GuestAddress(at), Ordering::Release)
            }
        }
    }

    fn read_words(&self, at: u64, words: &mut [u64]) -> Result<(), Self::Error> {
        use vm_memory::{Bytes, GuestAddress};
        // Looking the region up is what costs: once for 64 words.
        let mut at = at;
        for part in words.chunks_mut(64) {
            let mut bytes = [0u8; 512];
            let (bytes, _) = bytes.split_at_mut(part.len().saturating_mul(8));
            self.0.read_slice(bytes, GuestAddress(at))?;
            for (word, bytes) in part.iter_mut().zip(bytes.as_chunks().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            at = at.wrapping_add(bytes.len() as u64);
        }
        Ok(())
    }
}
