// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hyperlight-common`: ranges, x86's own tables.

use hyperlight_common::vmem::{
    BasicMapping, Mapping, MappingKind, MayNotMoveTable, TableOps, TableReadOps, Void, map,
    virt_to_phys,
};

use super::{Size, Table};
use crate::arena;

pub struct Hyperlight(Root);

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
