// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pages that say which MSRs, ports and VMCS fields exit.
//!
//! The processor reads them whenever a guest runs, so every word is atomic and all methods take `&self`: several virtual
//! processors may share one. A change counts from the next access of the guest on.

mod field;
mod io;
mod msr;

pub use field::FieldBitmap;
pub use io::IoBitmaps;
pub use msr::{MsrAccess, MsrBitmap, NotInBitmap};

use core::sync::atomic::{AtomicU64, Ordering};

/// Bits in a page of memory.
const BITS: usize = 4096 * 8;

/// 4096 bytes, as bits: bit `n` of the manual is bit `n mod 8` of byte `n / 8`.
#[repr(C, align(4096))]
struct Page([AtomicU64; BITS / 64]);

impl Page {
    const fn filled<const WORD: u64>() -> Self {
        // A constant is copied, not shared: each element is an atomic of its own.
        Self([const { AtomicU64::new(WORD) }; BITS / 64])
    }

    /// Bits past the page are not set.
    fn get(&self, bit: usize) -> bool {
        let word = self.0.get(bit / 64);
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (bit % 64) & 1 != 0)
    }

    /// Sets or clears a bit; callers pass one below [`BITS`].
    fn put(&self, bit: usize, value: bool) {
        if let Some(word) = self.0.get(bit / 64) {
            let mask = 1 << (bit % 64);
            if value {
                word.fetch_or(mask, Ordering::Relaxed);
            } else {
                word.fetch_and(!mask, Ordering::Relaxed);
            }
        }
    }

    /// The byte as the processor sees it.
    #[cfg(test)]
    fn byte(&self, at: usize) -> u8 {
        self.0[at / 8].load(Ordering::Relaxed).to_le_bytes()[at % 8]
    }
}
