// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `axaddrspace`: the one EPT among the peers.

use ax_memory_addr::{PhysAddr, VirtAddr};
use ax_page_table_entry::MappingFlags;
use ax_page_table_multiarch::PagingHandler;
use axaddrspace::{AddrSpace, GuestPhysAddr};
use std::mem::ManuallyDrop;

use super::{Size, Table};
use crate::arena;

pub struct Axaddrspace(ManuallyDrop<axaddrspace::AddrSpace<Handler>>);

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

impl Table for Axaddrspace {
    const NAME: &'static str = "axaddrspace 0.5.7 (EPT)";

    fn new() -> Self {
        let space = AddrSpace::new_empty(4, GuestPhysAddr::from(0), 1 << 47);
        Self(ManuallyDrop::new(space.expect("a root")))
    }

    #[inline(never)]
    fn map(&mut self, at: u64, to: u64, length: u64, _: Size) {
        let flags = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE;
        let (at, to) = (
            GuestPhysAddr::from(at as usize),
            PhysAddr::from(to as usize),
        );
        self.0
            .map_linear(at, to, length as usize, flags)
            .expect("mapped");
    }

    #[inline(never)]
    fn unmap(&mut self, at: u64, length: u64) {
        self.0
            .unmap(GuestPhysAddr::from(at as usize), length as usize)
            .expect("mapped");
    }

    #[inline(always)]
    fn translate(&mut self, at: u64) -> u64 {
        let there = self.0.translate(GuestPhysAddr::from(at as usize));
        there.expect("mapped").as_usize() as u64
    }
}
