// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtual-APIC page. SDM Vol. 3C, "Virtual APIC State".

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

/// A register of the virtual-APIC page, by its offset: that of the local APIC's register. Open: any multiple of 4 below
/// 4096 is a place in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApicRegister(pub u16);

impl ApicRegister {
    /// Virtual task-priority register (VTPR).
    pub const TPR: Self = Self(0x80);
    /// Virtual processor-priority register (VPPR).
    pub const PPR: Self = Self(0xa0);
    /// Virtual end-of-interrupt register (VEOI).
    pub const EOI: Self = Self(0xb0);
    /// The first of the eight words of the virtual interrupt-service register (VISR), 16 bytes apart.
    pub const ISR: Self = Self(0x100);
    /// The first of the eight words of the virtual trigger-mode register (VTMR), 16 bytes apart.
    pub const TMR: Self = Self(0x180);
    /// The first of the eight words of the virtual interrupt-request register (VIRR), 16 bytes apart.
    pub const IRR: Self = Self(0x200);
    /// Low half of the virtual interrupt-command register (VICR_LO).
    pub const ICR_LOW: Self = Self(0x300);
    /// High half of the virtual interrupt-command register (VICR_HI).
    pub const ICR_HIGH: Self = Self(0x310);
}

/// What the processor reads and writes in place of a local APIC: one page.
///
/// ```
/// use hvkit_vmx::{ApicRegister, VirtualApicPage};
///
/// static APIC: VirtualApicPage = VirtualApicPage::new();
/// APIC.write(ApicRegister::TPR, 0x30);
/// APIC.request(0x41);
/// assert_eq!(APIC.highest_request(), Some(0x41)); // RVI, for the guest interrupt status
/// ```
#[repr(C, align(4096))]
pub struct VirtualApicPage([AtomicU32; 1024]);

/// From one word of a 256-bit register to the next.
const STRIDE: u16 = 16;

impl VirtualApicPage {
    /// A page of zeros.
    pub const fn new() -> Self {
        Self([const { AtomicU32::new(0) }; 1024])
    }

    fn word(&self, register: ApicRegister) -> Option<&AtomicU32> {
        self.0.get(usize::from(register.0) / 4)
    }

    /// The register's value; 0 past the page.
    pub fn read(&self, register: ApicRegister) -> u32 {
        self.word(register)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Sets the register; nothing happens past the page.
    pub fn write(&self, register: ApicRegister, value: u32) {
        if let Some(word) = self.word(register) {
            word.store(value, Ordering::Release);
        }
    }

    /// Sets the bit of a vector in VIRR. The guest interrupt status must learn of a new highest one, see
    /// [`highest_request`](Self::highest_request).
    pub fn request(&self, vector: u8) {
        if let Some(word) = self.word(nth(ApicRegister::IRR, vector / 32)) {
            word.fetch_or(1 << (vector % 32), Ordering::AcqRel);
        }
    }

    /// The highest vector in VIRR.
    pub fn highest_request(&self) -> Option<u8> {
        self.highest(ApicRegister::IRR)
    }

    /// The highest vector in VISR.
    pub fn highest_in_service(&self) -> Option<u8> {
        self.highest(ApicRegister::ISR)
    }

    fn highest(&self, first: ApicRegister) -> Option<u8> {
        (0..8_u8).rev().find_map(|word| {
            let highest = self.read(nth(first, word)).checked_ilog2();
            highest.map(|bit| word << 5 | bit as u8)
        })
    }
}

/// Word `word` of eight that begin with `first`, 32 vectors each.
fn nth(first: ApicRegister, word: u8) -> ApicRegister {
    ApicRegister(
        first
            .0
            .saturating_add(u16::from(word).saturating_mul(STRIDE)),
    )
}

impl Default for VirtualApicPage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for VirtualApicPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualApicPage")
            .field("tpr", &self.read(ApicRegister::TPR))
            .field("highest_request", &self.highest_request())
            .field("highest_in_service", &self.highest_in_service())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets of all words that are not zero, with the words.
    fn set(page: &VirtualApicPage) -> Vec<(usize, u32)> {
        let words = page.0.iter().map(|word| word.load(Ordering::Relaxed));
        (0..)
            .step_by(4)
            .zip(words)
            .filter(|(_, word)| *word != 0)
            .collect()
    }

    #[test]
    fn a_request_is_a_bit_of_the_eight_words_of_virr() {
        for (vector, at, word) in [
            (0, 0x200, 1),
            (31, 0x200, 1 << 31),
            (32, 0x210, 1),
            (0x41, 0x220, 2),
            (255, 0x270, 1 << 31),
        ] {
            let page = VirtualApicPage::new();
            page.request(vector);
            assert_eq!(set(&page), [(at, word)]);
            assert_eq!(page.highest_request(), Some(vector));
            assert_eq!(page.highest_in_service(), None);
        }
    }

    #[test]
    fn the_highest_vector_wins() {
        let page = VirtualApicPage::new();
        assert_eq!(page.highest_request(), None);
        for vector in [0x20, 0xef, 0x80] {
            page.request(vector);
        }
        assert_eq!(page.highest_request(), Some(0xef));
        page.write(ApicRegister(0x150), 1 << 3);
        assert_eq!(page.highest_in_service(), Some(0xa3));
    }

    #[test]
    fn registers_are_at_the_local_apics_offsets() {
        let page = VirtualApicPage::new();
        page.write(ApicRegister::TPR, 0x30);
        page.write(ApicRegister::ICR_HIGH, 0x0100_0000);
        page.write(ApicRegister(0xfffc), 5);
        assert_eq!(set(&page), [(0x80, 0x30), (0x310, 0x0100_0000)]);
        assert_eq!(page.read(ApicRegister(0x1000)), 0);
        assert_eq!(
            (size_of::<VirtualApicPage>(), align_of::<VirtualApicPage>()),
            (4096, 4096)
        );
    }
}
