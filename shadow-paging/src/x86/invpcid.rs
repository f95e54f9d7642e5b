// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! INVPCID's operands. SDM 2A, "INVPCID—Invalidate Process-Context Identifier".

use crate::guest::cr4;

/// Which translations INVPCID is to invalidate. Its type operand, in the manual's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InvalidateKind {
    /// One linear address of one PCID.
    Address(u64),
    /// All of one PCID but global ones.
    Context,
    /// All, with global ones.
    AllWithGlobal,
    /// All but global ones.
    All,
}

/// A linear address that is translated by 57 bits instead of 48.
const fn canonical(linear: u64, cr4: u64) -> bool {
    let spare = if cr4 & cr4::LA57 != 0 { 7 } else { 16 };
    (linear << spare).cast_signed() >> spare == linear.cast_signed()
}

impl InvalidateKind {
    /// What the operands of an INVPCID at CPL 0 say: the register's type, and the two halves of the descriptor in memory,
    /// the lower first. `None`: #GP(0).
    #[must_use]
    pub const fn decode(kind: u64, descriptor: [u64; 2], cr4: u64) -> Option<Self> {
        let [pcid, linear] = descriptor;
        let of_one = kind <= 1;
        if pcid >> 12 != 0 || of_one && pcid != 0 && cr4 & cr4::PCIDE == 0 {
            return None;
        }
        match kind {
            0 if canonical(linear, cr4) => Some(Self::Address(linear)),
            1 => Some(Self::Context),
            2 => Some(Self::AllWithGlobal),
            3 => Some(Self::All),
            _ => None,
        }
    }
}
