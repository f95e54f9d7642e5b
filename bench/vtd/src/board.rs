// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver half on the emulated half: one memory, and registers that are calls.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

use hvkit_page_table::{Frames, OwnEntries, ReadEntry, UpdateEntry, Width};
use hvkit_vtd_iommu::driver::{self, Attachment, Domain, Mmio};
use hvkit_vtd_iommu::emulation::fake::Ram;
use hvkit_vtd_iommu::emulation::{Access, Nobody, Options, Request, Unit};
use hvkit_vtd_iommu::tables::SecondStage;

use crate::machine::DEVICE;

pub type OurUnit<'a> = driver::Unit<&'a Board, &'a Board, &'a Board>;
pub type OurDomain<'a> = Domain<SecondStage, &'a Board, &'a Board>;

/// A machine of memory and one emulated unit, for one thread.
pub struct Board {
    ram: Ram,
    unit: RefCell<Unit>,
    next: Cell<u64>,
    freed: RefCell<Vec<u64>>,
}

impl Board {
    pub fn new() -> Self {
        Self {
            ram: Ram::new(4 << 20),
            unit: RefCell::new(Unit::new(Options::new(48)).expect("a preset")),
            next: Cell::new(0x1000),
            freed: RefCell::default(),
        }
    }

    /// The unit on, and a domain with the device in it.
    pub fn drive(&self) -> (OurUnit<'_>, OurDomain<'_>) {
        let mut unit = driver::Unit::take(self, self, self, driver::Options::legacy(48))
            .expect("an emulated unit");
        unit.enable().expect("an emulated unit");
        let mut domain = unit.new_domain().expect("frames");
        unit.attach(&mut domain, Attachment::new(DEVICE))
            .expect("a new device");
        (unit, domain)
    }

    /// What the device reaches at `address`.
    #[inline(always)]
    pub fn reaches(&self, address: u64) -> Option<u64> {
        let request = Request::new(DEVICE, address, Access::Read);
        let mut unit = self.unit.borrow_mut();
        let found = unit.translate(&self.ram, &mut Nobody, &request);
        found.ok().map(|found| found.address)
    }

    #[inline(always)]
    fn word(&self, at: u64) -> &AtomicU64 {
        &self.ram.words()[(at / 8) as usize]
    }
}

impl Mmio for Board {
    fn read32(&self, offset: u32) -> u32 {
        self.unit.borrow().read32(offset)
    }

    fn read64(&self, offset: u32) -> u64 {
        self.unit.borrow().read64(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        let mut unit = self.unit.borrow_mut();
        unit.write32(&self.ram, &mut Nobody, offset, value);
    }

    fn write64(&self, offset: u32, value: u64) {
        let mut unit = self.unit.borrow_mut();
        unit.write64(&self.ram, &mut Nobody, offset, value);
    }
}

impl ReadEntry for Board {
    type Error = Infallible;

    #[inline(always)]
    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        let word = self.word(at).load(Ordering::Acquire);
        Ok(match width {
            Width::Eight => word,
            Width::Four => word >> (8 * (at % 8)) & 0xffff_ffff,
        })
    }
}

impl UpdateEntry for Board {
    #[inline(always)]
    fn compare_exchange(
        &self,
        at: u64,
        _: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        let word = self.word(at);
        let done = word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
        Ok(done.unwrap_or_else(|found| found))
    }
}

impl OwnEntries for Board {
    #[inline(always)]
    fn write(&self, at: u64, _: Width, entry: u64) {
        self.word(at).store(entry, Ordering::Release);
    }

    #[inline(always)]
    fn fill(&self, at: u64, _: Width, count: u64, entry: impl Fn(u64) -> u64) {
        let words = &self.ram.words()[(at / 8) as usize..][..count as usize];
        for (i, word) in (0..count).zip(words) {
            word.store(entry(i), Ordering::Relaxed);
        }
    }
}

impl Frames for Board {
    fn allocate(&self) -> Option<u64> {
        self.freed.borrow_mut().pop().or_else(|| {
            let frame = self.next.get();
            self.next.set(frame + 0x1000);
            (frame < self.ram.size()).then_some(frame)
        })
    }

    fn free(&self, frame: u64) {
        self.freed.borrow_mut().push(frame);
    }
}
