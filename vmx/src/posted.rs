// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The posted-interrupt descriptor. SDM Vol. 3C, "Posted-Interrupt Processing"; the fields that VT-d uses as well are of
//! the VT-d specification, "Posted Interrupt Descriptor".

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// Interrupts that others, processors or devices, want a virtual processor to take: 64 bytes.
///
/// ```text
///   bits 255:0   posted-interrupt requests, a bit a vector
///   bit  256     outstanding notification     bits 279:272  notification vector
///   bit  257     suppress notification        bits 319:288  notification destination
/// ```
///
/// ```
/// use hvkit_vmx::{Notify, PostedInterrupts};
///
/// static POSTED: PostedInterrupts = PostedInterrupts::new(0xf2, 3);
/// assert_eq!(POSTED.post(0x41), Some(Notify { vector: 0xf2, destination: 3 }));
/// assert_eq!(POSTED.post(0x42), None); // a notification is under way
/// assert_eq!(POSTED.take(), [0, 0b110, 0, 0]);
/// ```
// Who posts stores a request, then looks at the control word; who takes or allows stores there, then looks at the requests. One
// of the two must see the other: stores before loads of other words, which only `SeqCst` keeps in order.
#[repr(C, align(64))]
pub struct PostedInterrupts {
    requests: [AtomicU64; 4],
    control: AtomicU64,
    reserved: [AtomicU64; 3],
}

/// An interrupt to send, so that the processor looks at the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notify {
    /// Its vector.
    pub vector: u8,
    /// The local APIC: an x2APIC id, or an xAPIC id in bits 15:8.
    pub destination: u32,
}

const OUTSTANDING: u64 = 1 << 0;
const SUPPRESS: u64 = 1 << 1;

impl PostedInterrupts {
    /// No requests; notifications go to `destination` (an x2APIC id, or an xAPIC id in bits 15:8) with `vector`.
    pub const fn new(vector: u8, destination: u32) -> Self {
        Self {
            requests: [const { AtomicU64::new(0) }; 4],
            control: AtomicU64::new((vector as u64) << 16 | (destination as u64) << 32),
            reserved: [const { AtomicU64::new(0) }; 3],
        }
    }

    /// Requests an interrupt. Returns the notification to send, if none is outstanding or suppressed.
    pub fn post(&self, vector: u8) -> Option<Notify> {
        if let Some(word) = self.requests.get(usize::from(vector) / 64) {
            word.fetch_or(1 << (vector % 64), Ordering::SeqCst);
        }
        self.control
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |control| {
                (control & (OUTSTANDING | SUPPRESS) == 0).then_some(control | OUTSTANDING)
            })
            .ok()
            .map(notification)
    }

    /// Takes all requests, 64 vectors a word, as the processor does when it is notified.
    pub fn take(&self) -> [u64; 4] {
        // First the bit, then the requests: whoever posts in between notifies again.
        self.control.fetch_and(!OUTSTANDING, Ordering::SeqCst);
        let words = self.requests.each_ref();
        words.map(|word| word.swap(0, Ordering::SeqCst))
    }

    /// Whether a notification is outstanding.
    pub fn is_outstanding(&self) -> bool {
        self.control.load(Ordering::Acquire) & OUTSTANDING != 0
    }

    /// Keeps notifications back, as while the virtual processor does not run.
    pub fn suppress(&self) {
        self.control.fetch_or(SUPPRESS, Ordering::SeqCst);
    }

    /// Lets notifications through again. Returns whether there are requests that nobody was notified of.
    pub fn allow(&self) -> bool {
        self.control.fetch_and(!SUPPRESS, Ordering::SeqCst);
        self.requests
            .iter()
            .any(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// Directs later notifications elsewhere, as when the virtual processor moves.
    pub fn redirect(&self, to: Notify) {
        let target = u64::from(to.vector) << 16 | u64::from(to.destination) << 32;
        let keep = OUTSTANDING | SUPPRESS;
        let change = |control| Some(control & keep | target);
        // It always changes.
        let _ = self
            .control
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
    }

    /// The eight words, as the processor and devices see them.
    pub fn words(&self) -> [u64; 8] {
        let load = |word: &AtomicU64| word.load(Ordering::Acquire);
        let [a, b, c, d] = self.requests.each_ref().map(load);
        let [f, g, h] = self.reserved.each_ref().map(load);
        [a, b, c, d, load(&self.control), f, g, h]
    }
}

const fn notification(control: u64) -> Notify {
    Notify {
        vector: (control >> 16) as u8,
        destination: (control >> 32) as u32,
    }
}

impl fmt::Debug for PostedInterrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostedInterrupts({:#x?})", self.words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_figure() {
        let posted = PostedInterrupts::new(0xf2, 0x0102_0304);
        assert_eq!(posted.words(), [0, 0, 0, 0, 0x0102_0304_00f2_0000, 0, 0, 0]);
        for vector in [0, 63, 64, 255] {
            posted.post(vector);
        }
        assert_eq!(posted.words()[..4], [1 | 1 << 63, 1, 0, 1 << 63]);
        assert_eq!(posted.words()[4], 0x0102_0304_00f2_0001);
        posted.suppress();
        assert_eq!(posted.words()[4], 0x0102_0304_00f2_0003);
        assert_eq!(
            (
                size_of::<PostedInterrupts>(),
                align_of::<PostedInterrupts>()
            ),
            (64, 64)
        );
    }

    #[test]
    fn one_notification_is_outstanding_at_a_time() {
        let posted = PostedInterrupts::new(0xf2, 1);
        let notify = Some(Notify {
            vector: 0xf2,
            destination: 1,
        });
        assert_eq!(posted.post(0x30), notify);
        assert_eq!(posted.post(0x30), None);
        assert!(posted.is_outstanding());
        assert_eq!(posted.take(), [1 << 0x30, 0, 0, 0]);
        assert!(!posted.is_outstanding());
        assert_eq!(posted.post(0x31), notify);
    }

    #[test]
    fn what_was_posted_while_suppressed_is_told_afterwards() {
        let posted = PostedInterrupts::new(0xf2, 1);
        posted.suppress();
        assert_eq!(posted.post(0x80), None);
        assert!(!posted.is_outstanding());
        assert!(posted.allow());
        posted.take();
        assert!(!posted.allow());
    }

    #[test]
    fn a_new_destination_keeps_requests_and_state() {
        let posted = PostedInterrupts::new(0xf2, 1);
        posted.post(1);
        let to = Notify {
            vector: 0xf3,
            destination: 7,
        };
        posted.redirect(to);
        assert_eq!(posted.words()[4], 7 << 32 | 0xf3 << 16 | 1);
        posted.take();
        assert_eq!(posted.post(2), Some(to));
    }
}
