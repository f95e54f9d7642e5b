// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Our table and the peers', behind one small trait, each used the way its documentation says.

#[cfg(feature = "peers")]
mod aarch64;
#[cfg(feature = "peers")]
mod axaddrspace;
#[cfg(feature = "peers")]
mod generic;
#[cfg(feature = "peers")]
mod hyperlight;
#[cfg(feature = "peers")]
mod multiarch;
#[cfg(feature = "peers")]
mod x86_64;

use hvkit_page_table::{Frames, Mapper, PhysicalWindow, Stale};

use crate::arena;
use crate::ept::{Ept, RWX_WB};

#[cfg(feature = "peers")]
pub use self::{
    aarch64::Aarch64, axaddrspace::Axaddrspace, generic::Generic, hyperlight::Hyperlight,
    multiarch::Multiarch, x86_64::X86_64,
};

/// Page sizes a case may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Small,
    Large,
}

pub trait Table {
    const NAME: &'static str;
    /// Whether it maps 2 MiB pages.
    const LARGE: bool = true;
    fn new() -> Self;
    fn map(&mut self, at: u64, to: u64, length: u64, size: Size);
    fn unmap(&mut self, at: u64, length: u64);
    fn translate(&mut self, at: u64) -> u64;
}

/// The arena as a pool for one thread.
#[derive(Debug)]
pub struct Pool;

impl Frames for Pool {
    #[inline(always)]
    fn allocate(&self) -> Option<u64> {
        Some(arena::allocate() as u64)
    }

    #[inline(always)]
    fn free(&self, frame: u64) {
        arena::free(frame as usize);
    }
}

/// The arena as memory.
pub fn window() -> PhysicalWindow {
    let (start, length, base) = arena::window();
    // SAFETY: the arena's mapping is never unmapped, and no case touches the tables of another case's
    // value while that value's methods run: cases run in turn, on one thread, or share one value.
    unsafe { PhysicalWindow::new(start, length, base) }
}

pub struct Ours(pub Mapper<Ept, PhysicalWindow, Pool>);

impl Table for Ours {
    const NAME: &'static str = "hvkit-page-table";

    fn new() -> Self {
        Self(Mapper::new(Ept, window(), Pool).expect("a root"))
    }

    #[inline(never)]
    fn map(&mut self, at: u64, to: u64, length: u64, _: Size) {
        self.0.map(at..at + length, to, RWX_WB).expect("mapped");
    }

    #[inline(never)]
    fn unmap(&mut self, at: u64, length: u64) {
        let stale = self.0.unmap(at..at + length).expect("unmapped");
        self.0
            .settle(stale, &mut |_: &Stale| Ok::<(), ()>(()))
            .expect("settled");
    }

    #[inline(always)]
    fn translate(&mut self, at: u64) -> u64 {
        self.0.translate(at).expect("mapped").target
    }
}
