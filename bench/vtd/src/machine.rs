// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A unit with a domain of many pages, all in the order of their addresses and no two adjacent in memory.

use std::sync::atomic::Ordering;

use hvkit_vtd_iommu::emulation::fake::Ram;
use hvkit_vtd_iommu::emulation::{Access, Nobody, Options, Request, Unit};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::registers::{GCMD, IQA, IQT, RTADDR};

pub const DEVICE: RequesterId = RequesterId(0x18);
pub const TOP: u64 = 0x3000;
pub const QUEUE: u64 = 0x10_0000;
/// 512 KiB of descriptors.
pub const QUEUE_SIZE: u64 = 7;
pub const DESCRIPTORS: u64 = 32768;
const STATUS: u64 = 0x18_0000;
pub const TABLES: u64 = 0x20_0000;

/// Where page `page` leads.
pub fn target(page: u64) -> u64 {
    page.wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0xff_ffff_f000
}

pub struct Machine {
    pub ram: Ram,
    pub unit: Unit,
}

impl Machine {
    /// A domain of `pages` pages, which are all kept.
    pub fn new(pages: u64) -> Self {
        let ram = Ram::new(TABLES + 0x1000 * (pages / 512 + 2));
        ram.set(0x1000, 0x2001);
        ram.set_all(0x2180, &[TOP | 1, 0x0702]);
        ram.set(TOP, 0x4003);
        ram.set(0x4000, 0x5003);
        for page in 0..pages {
            let table = TABLES + 0x1000 * (page / 512);
            ram.set(0x5000 + 8 * (page / 512), table | 3);
            ram.set(table + 8 * (page % 512), target(page) | 3);
        }
        let options = Options {
            iotlb_pages: pages.max(64) as u32,
            ..Options::new(48)
        };
        let mut unit = Unit::new(options).expect("a preset");
        unit.write64(&ram, &mut Nobody, RTADDR.offset(), 0x1000);
        unit.write64(&ram, &mut Nobody, IQA.offset(), QUEUE | QUEUE_SIZE);
        for command in [1u32 << 30, 1 << 26, 1 << 26 | 1 << 31] {
            unit.write32(&ram, &mut Nobody, GCMD.offset(), command);
        }
        let mut machine = Self { ram, unit };
        machine.touch(pages);
        machine
    }

    /// Reads each page, so that it is kept.
    pub fn touch(&mut self, pages: u64) {
        for page in 0..pages {
            assert_eq!(self.translate(page << 12), target(page));
        }
    }

    #[inline(always)]
    pub fn translate(&mut self, address: u64) -> u64 {
        let request = Request::new(DEVICE, address, Access::Read);
        match self.unit.translate(&self.ram, &mut Nobody, &request) {
            Ok(to) => to.address,
            Err(_) => 0,
        }
    }

    /// Fills the queue: page-selective invalidations of what `page` says, and a wait.
    pub fn fill_queue(&self, count: u64, page: impl Fn(u64) -> u64) {
        for i in 0..count - 1 {
            // IH: only leaves changed.
            let words = [0x7_0032, page(i) << 12 | 1 << 6];
            self.ram.set_all(QUEUE + 16 * i, &words);
        }
        self.ram
            .set_all(QUEUE + 16 * (count - 1), &[0x1_0000_0025, STATUS]);
    }

    /// Has `count` descriptors processed from the start of the queue.
    pub fn ring(&mut self, count: u64) {
        self.unit
            .write64(&self.ram, &mut Nobody, IQT.offset(), 16 * count);
    }

    /// The queue from its start again, which costs two commands.
    pub fn rewind(&mut self) {
        for command in [1u32 << 31, 1 << 31 | 1 << 26] {
            if command == 1 << 31 {
                self.unit
                    .write32(&self.ram, &mut Nobody, GCMD.offset(), command);
                self.unit.write64(&self.ram, &mut Nobody, IQT.offset(), 0);
            } else {
                self.unit
                    .write32(&self.ram, &mut Nobody, GCMD.offset(), command);
            }
        }
    }

    /// The entry of a leaf table.
    pub fn leaf(&self, page: u64) -> u64 {
        self.ram.words()[(TABLES / 8 + page) as usize].load(Ordering::Acquire)
    }

    /// Tells `each` the address in each of `count` descriptors.
    pub fn each_descriptor(&self, count: u64, mut each: impl FnMut(u64)) {
        let words = &self.ram.words()[(QUEUE / 8) as usize..][..2 * count as usize];
        for high in words.iter().skip(1).step_by(2) {
            each(high.load(Ordering::Relaxed));
        }
    }

    /// Reads `count` descriptors.
    pub fn read_queue(&self, count: u64) -> u64 {
        use hvkit_vtd_iommu::emulation::Memory;
        let mut words = [0; 64];
        let mut sum = 0;
        for at in (QUEUE..QUEUE + 16 * count).step_by(512) {
            self.ram.read_words(at, &mut words).expect("in memory");
            sum ^= words.iter().fold(0, |a, b| a ^ b);
        }
        sum
    }
}
