// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `page_table_multiarch`: ranges through a cursor.

use memory_addr::{PhysAddr, VirtAddr};
use page_table_entry::MappingFlags;
use page_table_entry::x86_64::X64PTE;
use page_table_multiarch::{PageTable64, PagingHandler, PagingMetaData};
use std::mem::ManuallyDrop;

use super::{Size, Table};
use crate::arena;

pub struct Multiarch(ManuallyDrop<Inner>);

pub struct FourLevels;

impl PagingMetaData for FourLevels {
    const LEVELS: usize = 4;
    const PA_MAX_BITS: usize = 52;
    const VA_MAX_BITS: usize = 48;
    type VirtAddr = VirtAddr;

    #[inline(always)]
    fn flush_tlb(_: Option<VirtAddr>) {}
}

pub struct Handler;

impl PagingHandler for Handler {
    #[inline(always)]
    fn alloc_frames(_: usize, _: usize) -> Option<PhysAddr> {
        Some(arena::allocate().into())
    }

    #[inline(always)]
    fn dealloc_frames(at: PhysAddr, _: usize) {
        arena::free(at.as_usize());
    }

    #[inline(always)]
    fn phys_to_virt(at: PhysAddr) -> VirtAddr {
        at.as_usize().into()
    }
}

pub type Inner = PageTable64<FourLevels, X64PTE, Handler>;

impl Table for Multiarch {
    const NAME: &'static str = "page_table_multiarch 0.6.2";

    fn new() -> Self {
        Self(ManuallyDrop::new(Inner::try_new().expect("a root")))
    }

    #[inline(never)]
    fn map(&mut self, at: u64, to: u64, length: u64, size: Size) {
        let flags = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE;
        let target = |here: VirtAddr| {
            PhysAddr::from((here.as_usize() as u64).wrapping_sub(at).wrapping_add(to) as usize)
        };
        let huge = size == Size::Large;
        let mut cursor = self.0.cursor();
        cursor
            .map_region((at as usize).into(), target, length as usize, flags, huge)
            .expect("mapped");
    }

    #[inline(never)]
    fn unmap(&mut self, at: u64, length: u64) {
        let mut cursor = self.0.cursor();
        cursor
            .unmap_region((at as usize).into(), length as usize)
            .expect("mapped");
    }

    #[inline(always)]
    fn translate(&mut self, at: u64) -> u64 {
        self.0
            .query((at as usize).into())
            .expect("mapped")
            .0
            .as_usize() as u64
    }
}
