// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is measured.

pub mod fault;
pub mod map;
pub mod nested;
mod order;
pub mod translate;
pub mod unmap;
pub mod walk2d;

/// Where every mapping begins.
pub const START: u64 = 1 << 30;

/// Runs a macro once for each peer.
#[cfg(feature = "peers")]
macro_rules! each_peer {
    ($case:ident) => {{
        use crate::tables::{Aarch64, Axaddrspace, Generic, Hyperlight, Multiarch, X86_64};
        $case!(X86_64);
        $case!(Multiarch);
        $case!(Axaddrspace);
        $case!(Generic);
        $case!(Aarch64);
        $case!(Hyperlight);
    }};
}
/// Runs nothing.
#[cfg(not(feature = "peers"))]
macro_rules! each_peer {
    ($case:ident) => {};
}
pub(crate) use each_peer;

/// A cheap stream of numbers below `n`.
#[derive(Clone, Copy)]
pub struct Random(pub u64);

impl Random {
    #[inline(always)]
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 32) * n) >> 32
    }
}
