// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `page-table-generic`: ranges, with an entry type that its user brings.

use page_table_generic::{
    FrameAllocator, MapConfig, PageTable, PageTableEntry, PhysAddr, TableMeta, VirtAddr,
};
use std::mem::ManuallyDrop;

use super::{Size, Table};
use crate::arena;

pub struct Generic(ManuallyDrop<Inner>);

/// The entry that the crate leaves to its user: the same bits as ours.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Pte(u64);

impl PageTableEntry for Pte {
    type PteConfig = u64;

    #[inline(always)]
    fn new_page(at: PhysAddr, config: u64, huge: bool) -> Self {
        Self(at.as_usize() as u64 | config | u64::from(huge) << 7)
    }

    #[inline(always)]
    fn new_table(at: PhysAddr) -> Self {
        Self(at.as_usize() as u64 | 7)
    }

    #[inline(always)]
    fn paddr(&self, _: bool) -> PhysAddr {
        PhysAddr::from_usize((self.0 & 0x000f_ffff_ffff_f000) as usize)
    }

    #[inline(always)]
    fn config(&self, _: bool) -> u64 {
        self.0 & 0x3f
    }

    #[inline(always)]
    fn present(&self) -> bool {
        self.0 & 7 != 0
    }

    #[inline(always)]
    fn huge(&self, directory: bool) -> bool {
        directory && self.0 & 0x80 != 0
    }

    #[inline(always)]
    fn unused(&self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.0 = 0;
    }
}

#[derive(Clone, Copy)]
pub struct FourLevels;

impl TableMeta for FourLevels {
    type P = Pte;
    const PAGE_SIZE: usize = 4096;
    const LEVEL_BITS: &[usize] = &[9; 4];
    const MAX_BLOCK_LEVEL: usize = 2;

    #[inline(always)]
    fn flush(_: Option<VirtAddr>) {}
}

#[derive(Clone)]
pub struct Pool;

impl FrameAllocator for Pool {
    #[inline(always)]
    fn alloc_frame(&self) -> Option<PhysAddr> {
        Some(PhysAddr::from_usize(arena::allocate()))
    }

    #[inline(always)]
    fn dealloc_frame(&self, frame: PhysAddr) {
        arena::free(frame.as_usize());
    }

    #[inline(always)]
    fn phys_to_virt(&self, at: PhysAddr) -> *mut u8 {
        at.as_usize() as *mut u8
    }
}

pub type Inner = PageTable<FourLevels, Pool>;

impl Table for Generic {
    const NAME: &'static str = "page-table-generic 0.9.1";

    fn new() -> Self {
        Self(ManuallyDrop::new(Inner::new(Pool).expect("a root")))
    }

    #[inline(never)]
    fn map(&mut self, at: u64, to: u64, length: u64, size: Size) {
        let config = MapConfig {
            vaddr: VirtAddr::from_usize(at as usize),
            paddr: PhysAddr::from_usize(to as usize),
            size: length as usize,
            pte: 0x37,
            allow_huge: size == Size::Large,
            flush: false,
        };
        self.0.map(&config).expect("mapped");
    }

    #[inline(never)]
    fn unmap(&mut self, at: u64, length: u64) {
        self.0
            .unmap(VirtAddr::from_usize(at as usize), length as usize)
            .expect("mapped");
    }

    #[inline(always)]
    fn translate(&mut self, at: u64) -> u64 {
        let there = self.0.translate_phys(VirtAddr::from_usize(at as usize));
        there.expect("mapped").as_usize() as u64
    }
}
