// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Our table and the peers', behind one small trait, each used the way its documentation says.

use std::mem::ManuallyDrop;

use hvkit_page_table::{Frames, Mapper, PhysicalWindow, Stale};

use crate::arena;
use crate::ept::{Ept, RWX_WB};

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

pub struct X86_64(x86_64::structures::paging::OffsetPageTable<'static>);

mod x86 {
    use super::*;
    use x86_64::structures::paging::mapper::{CleanUp, MappedFrame, TranslateResult};
    use x86_64::structures::paging::{
        FrameAllocator, FrameDeallocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags,
        PhysFrame, Size2MiB, Size4KiB, Translate,
    };
    use x86_64::{PhysAddr, VirtAddr};

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
}

pub struct Multiarch(ManuallyDrop<multiarch::Inner>);

mod multiarch {
    use super::*;
    use memory_addr::{PhysAddr, VirtAddr};
    use page_table_entry::MappingFlags;
    use page_table_entry::x86_64::X64PTE;
    use page_table_multiarch::{PageTable64, PagingHandler, PagingMetaData};

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
}

pub struct Axaddrspace(ManuallyDrop<axaddrspace::AddrSpace<ax::Handler>>);

mod ax {
    use super::*;
    use ax_memory_addr::{PhysAddr, VirtAddr};
    use ax_page_table_entry::MappingFlags;
    use ax_page_table_multiarch::PagingHandler;
    use axaddrspace::{AddrSpace, GuestPhysAddr};

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
}

pub struct Generic(ManuallyDrop<generic::Inner>);

mod generic {
    use super::*;
    use page_table_generic::{
        FrameAllocator, MapConfig, PageTable, PageTableEntry, PhysAddr, TableMeta, VirtAddr,
    };

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
}

pub struct Aarch64(ManuallyDrop<arm::Inner>);

mod arm {
    use super::*;
    use aarch64_paging::descriptor::{PhysicalAddress, Stage2Attributes};
    use aarch64_paging::paging::{
        Constraints, MemoryRegion, PageTable, RootTable, Stage2, Translation,
    };
    use std::ptr::NonNull;

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
                .walk_range(&region(at, 4096), &mut |_, descriptor, _| {
                    target = descriptor.output_address().0 as u64;
                    Ok(())
                })
                .expect("mapped");
            target
        }
    }
}

pub struct Hyperlight(hyper::Root);

mod hyper {
    use super::*;
    use hyperlight_common::vmem::{
        BasicMapping, Mapping, MappingKind, MayNotMoveTable, TableOps, TableReadOps, Void, map,
        virt_to_phys,
    };

    #[derive(Clone, Copy)]
    pub struct Root(u64);

    impl AsRef<Root> for Root {
        #[inline(always)]
        fn as_ref(&self) -> &Root {
            self
        }
    }

    impl TableReadOps for Root {
        type TableAddr = u64;

        #[inline(always)]
        fn entry_addr(table: u64, offset: u64) -> u64 {
            table + offset
        }

        #[inline(always)]
        unsafe fn read_entry(&self, at: u64) -> u64 {
            // SAFETY: the caller passes addresses of entries in tables of the arena.
            unsafe { *(at as *const u64) }
        }

        #[inline(always)]
        fn to_phys(at: u64) -> u64 {
            at
        }

        #[inline(always)]
        fn from_phys(at: u64) -> u64 {
            at
        }

        #[inline(always)]
        fn root_table(&self) -> u64 {
            self.0
        }
    }

    impl TableOps for Root {
        type TableMovability = MayNotMoveTable;

        #[inline(always)]
        unsafe fn alloc_table(&self) -> u64 {
            arena::allocate_zeroed() as u64
        }

        #[inline(always)]
        unsafe fn write_entry(&self, at: u64, entry: u64) -> Option<Void> {
            // SAFETY: as in `read_entry`.
            unsafe { *(at as *mut u64) = entry };
            None
        }

        unsafe fn update_root(&self, never: Void) {
            match never {}
        }
    }

    impl Table for Hyperlight {
        const NAME: &'static str = "hyperlight-common 0.18.0";
        const LARGE: bool = false;

        fn new() -> Self {
            Self(Root(arena::allocate_zeroed() as u64))
        }

        #[inline(never)]
        fn map(&mut self, at: u64, to: u64, length: u64, _: Size) {
            let rights = BasicMapping {
                readable: true,
                writable: true,
                executable: true,
            };
            let kind = MappingKind::Basic(rights);
            let mapping = Mapping {
                phys_base: to,
                virt_base: at,
                len: length,
                kind,
            };
            // SAFETY: nothing is accessed through the mapping.
            unsafe { map(&self.0, mapping) };
        }

        #[inline(never)]
        fn unmap(&mut self, at: u64, length: u64) {
            let kind = MappingKind::Unmapped;
            let mapping = Mapping {
                phys_base: 0,
                virt_base: at,
                len: length,
                kind,
            };
            // SAFETY: as above.
            unsafe { map(&self.0, mapping) };
        }

        #[inline(always)]
        fn translate(&mut self, at: u64) -> u64 {
            // SAFETY: the root is a table of the arena.
            let mut found = unsafe { virt_to_phys::<Root>(self.0, at, 1) };
            found.next().expect("mapped").phys_base
        }
    }
}
