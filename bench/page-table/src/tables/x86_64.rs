// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `x86_64`: one page at a time, x86's own tables.

use x86_64::structures::paging::mapper::{CleanUp, MappedFrame, TranslateResult};
use x86_64::structures::paging::{
    FrameAllocator, FrameDeallocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags,
    PhysFrame, Size2MiB, Size4KiB, Translate,
};
use x86_64::{PhysAddr, VirtAddr};

use super::{Size, Table};
use crate::arena;

pub struct X86_64(x86_64::structures::paging::OffsetPageTable<'static>);

struct Pool;

// SAFETY: every frame comes from the arena once, until it is freed.
unsafe impl FrameAllocator<Size4KiB> for Pool {
    #[inline(always)]
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        PhysFrame::from_start_address(PhysAddr::new(arena::allocate() as u64)).ok()
    }
}

impl FrameDeallocator<Size4KiB> for Pool {
    #[inline(always)]
    unsafe fn deallocate_frame(&mut self, frame: PhysFrame) {
        arena::free(frame.start_address().as_u64() as usize);
    }
}

impl Table for X86_64 {
    const NAME: &'static str = "x86_64 0.15.5";

    fn new() -> Self {
        let root = arena::allocate_zeroed() as *mut PageTable;
        // SAFETY: a zeroed frame of the arena, where virtual and physical addresses are equal.
        Self(unsafe { OffsetPageTable::new(&mut *root, VirtAddr::new(0)) })
    }

    #[inline(never)]
    fn map(&mut self, at: u64, to: u64, length: u64, size: Size) {
        let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
        match size {
            Size::Small => {
                for offset in (0..length).step_by(4096) {
                    let page = Page::<Size4KiB>::containing_address(VirtAddr::new(at + offset));
                    let frame = PhysFrame::containing_address(PhysAddr::new(to + offset));
                    // SAFETY: nothing is accessed through the mapping.
                    let flush = unsafe { self.0.map_to(page, frame, flags, &mut Pool) };
                    flush.expect("mapped").ignore();
                }
            }
            Size::Large => {
                for offset in (0..length).step_by(2 << 20) {
                    let page = Page::<Size2MiB>::containing_address(VirtAddr::new(at + offset));
                    let frame = PhysFrame::containing_address(PhysAddr::new(to + offset));
                    // SAFETY: as above.
                    let flush = unsafe { self.0.map_to(page, frame, flags, &mut Pool) };
                    flush.expect("mapped").ignore();
                }
            }
        }
    }

    #[inline(never)]
    fn unmap(&mut self, at: u64, length: u64) {
        for offset in (0..length).step_by(4096) {
            let page = Page::<Size4KiB>::containing_address(VirtAddr::new(at + offset));
            self.0.unmap(page).expect("mapped").1.ignore();
        }
        if length > 1 << 21 {
            // SAFETY: nobody walks the table, so its empty parts may go.
            unsafe { self.0.clean_up(&mut Pool) };
        }
    }

    #[inline(always)]
    fn translate(&mut self, at: u64) -> u64 {
        match self.0.translate(VirtAddr::new(at)) {
            TranslateResult::Mapped {
                frame: MappedFrame::Size4KiB(frame),
                offset,
                ..
            } => frame.start_address().as_u64() + offset,
            _ => self
                .0
                .translate_addr(VirtAddr::new(at))
                .expect("mapped")
                .as_u64(),
        }
    }
}
