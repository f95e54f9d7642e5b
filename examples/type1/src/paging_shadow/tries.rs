// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a guest makes progress whose writes are not understood.

use hvkit_vmx::Registers;

/// How often in a row a table may be given up for one write that is not understood: one that never succeeds would go on for ever.
const MOST_TRIES: u32 = 1000;

/// A write that is not understood, by where it is, where to, and all that the guest had in its registers. If the next is the same in all
/// of these, the guest has made no progress.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Try {
    /// Where it is.
    pub rip: u64,
    /// Where to.
    pub linear: u64,
    /// The general registers.
    pub registers: Registers,
    /// And the stack's.
    pub rsp: u64,
    /// And the flags.
    pub rflags: u64,
}

/// The last, and how often it came in a row.
#[derive(Default)]
pub struct Tries {
    last: Option<Try>,
    count: u32,
}

impl Tries {
    /// Whether this one may be tried again.
    pub fn again(&mut self, this: Try) -> bool {
        if self.last == Some(this) {
            self.count += 1;
        } else {
            *self = Self {
                last: Some(this),
                count: 1,
            };
        }
        self.count <= MOST_TRIES
    }
}
