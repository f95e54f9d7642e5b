// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `aarch64-paging`: Arm's stage 2.

use aarch64_paging::descriptor::{PhysicalAddress, Stage2Attributes};
use aarch64_paging::paging::{
    Constraints, MemoryRegion, PageTable, RootTable, Stage2, Translation,
};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use super::{Size, Table};
use crate::arena;

pub struct Aarch64(ManuallyDrop<Inner>);

pub struct Identity;

impl Translation<Stage2Attributes> for Identity {
    #[inline(always)]
    fn allocate_table(&mut self) -> (NonNull<PageTable<Stage2Attributes>>, PhysicalAddress) {
        let frame = arena::allocate_zeroed();
        let table = NonNull::new(frame as *mut _).expect("not null");
        (table, PhysicalAddress(frame))
    }

    #[inline(always)]
    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<Stage2Attributes>>) {
        arena::free(table.as_ptr() as usize);
    }

    #[inline(always)]
    fn physical_to_virtual(&self, at: PhysicalAddress) -> NonNull<PageTable<Stage2Attributes>> {
        NonNull::new(at.0 as *mut _).expect("not null")
    }
}

pub type Inner = RootTable<Stage2, Identity>;

fn region(at: u64, length: u64) -> MemoryRegion {
    MemoryRegion::new(at as usize, (at + length) as usize)
}

impl Table for Aarch64 {
    const NAME: &'static str = "aarch64-paging 0.12.3";

    fn new() -> Self {
        Self(ManuallyDrop::new(Inner::new(Identity, 0, Stage2)))
    }

    #[inline(never)]
    fn map(&mut self, at: u64, to: u64, length: u64, size: Size) {
        let attributes = Stage2Attributes::VALID
            | Stage2Attributes::MEMATTR_NORMAL_OUTER_WB
            | Stage2Attributes::MEMATTR_NORMAL_INNER_WB
            | Stage2Attributes::S2AP_ACCESS_RW
            | Stage2Attributes::SH_INNER
            | Stage2Attributes::ACCESS_FLAG;
        let mut constraints = Constraints::NO_CONTIGUOUS_HINT;
        if size == Size::Small {
            constraints |= Constraints::NO_BLOCK_MAPPINGS;
        }
        let to = PhysicalAddress(to as usize);
        self.0
            .map_range(&region(at, length), to, attributes, constraints)
            .expect("mapped");
    }

    #[inline(never)]
    fn unmap(&mut self, at: u64, length: u64) {
        let (none, anything) = (Stage2Attributes::empty(), Constraints::empty());
        let range = region(at, length);
        self.0
            .map_range(&range, PhysicalAddress(0), none, anything)
            .expect("mapped");
    }

    #[inline(always)]
    fn translate(&mut self, at: u64) -> u64 {
        let mut target = 0;
        self.0
            .walk_range(&region(at, 4096), &mut |_, descriptor, level| {
                let page = 4096u64 << (9 * (3 - level));
                target = descriptor.output_address().0 as u64 + (at & (page - 1));
                Ok(())
            })
            .expect("mapped");
        target
    }
}
