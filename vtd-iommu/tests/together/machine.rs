// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine of memory and one emulated unit, that threads may share.

use std::convert::Infallible;
use std::sync::Mutex;

use hvkit_page_table::{Frames, OwnEntries, ReadEntry, UpdateEntry, Width};
use hvkit_vtd_iommu::driver::{self, Domain, Mmio};
use hvkit_vtd_iommu::emulation::fake::{Journal, Ram};
use hvkit_vtd_iommu::emulation::{Access, Memory, Options, Process, Refused, Request, Unit};
use hvkit_vtd_iommu::spec::{Pasid, RequesterId};
use hvkit_vtd_iommu::tables::{SecondStage, SecondStageAttributes};

/// Bytes of memory.
pub(crate) const MEMORY: u64 = 8 << 20;
/// Where frames for tables come from; what is above is for devices.
const FRAMES: std::ops::Range<u64> = 0x1000..0x40_0000;
/// The first byte that no table is in.
pub(crate) const DATA: u64 = FRAMES.end;
/// The device of most tests.
pub(crate) const DEVICE: RequesterId = RequesterId(0x0318);

pub(crate) const RW: SecondStageAttributes = SecondStageAttributes::READ_WRITE;

pub(crate) type OurUnit<'a> = driver::Unit<&'a Machine, &'a Machine, &'a Machine>;
pub(crate) type OurDomain<'a> = Domain<SecondStage, &'a Machine, &'a Machine>;

/// The unit, and the world beside memory that it acts on.
pub(crate) struct Inside {
    pub(crate) unit: Unit,
    pub(crate) world: Journal,
}

pub(crate) struct Machine {
    pub(crate) ram: Ram,
    /// Held over a whole transaction of a device, as a unit drains those under way before an invalidation is done.
    pub(crate) inside: Mutex<Inside>,
    frames: Mutex<(u64, Vec<u64>)>,
}

impl Machine {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            ram: Ram::new(MEMORY),
            inside: Mutex::new(Inside {
                unit: Unit::new(options).unwrap(),
                world: Journal::default(),
            }),
            frames: Mutex::new((FRAMES.start, Vec::new())),
        }
    }

    /// A unit taken over, on.
    pub(crate) fn drive(&self, options: driver::Options) -> OurUnit<'_> {
        let mut unit = driver::Unit::take(self, self, self, options).unwrap();
        unit.enable().unwrap();
        unit
    }

    /// A device writes a word: one transaction.
    pub(crate) fn dma(&self, request: Request, word: u64) -> Result<u64, Refused> {
        let mut inside = self.inside.lock().unwrap();
        let Inside { unit, world } = &mut *inside;
        let there = unit.translate(&self.ram, world, &request)?;
        match request.access {
            Access::Write => {
                self.ram.set(there.address, word);
                Ok(word)
            }
            _ => Ok(self.ram.get(there.address)),
        }
    }

    /// A device without PASID writes a word at `to`.
    pub(crate) fn write(&self, source: RequesterId, to: u64, word: u64) -> Result<u64, Refused> {
        self.dma(Request::new(source, to, Access::Write), word)
    }

    /// A device without PASID reads a word at `from`.
    pub(crate) fn read(&self, source: RequesterId, from: u64) -> Result<u64, Refused> {
        self.dma(Request::new(source, from, Access::Read), 0)
    }

    /// A process's device writes a word.
    pub(crate) fn write_as(&self, pasid: Pasid, to: u64, word: u64) -> Result<u64, Refused> {
        let request = Request::new(DEVICE, to, Access::Write);
        self.dma(request.with_process(Process::user(pasid)), word)
    }
}

/// Maps and publishes.
pub(crate) fn map<'a>(
    unit: &mut OurUnit<'a>,
    domain: &mut OurDomain<'a>,
    at: u64,
    to: u64,
    bytes: u64,
) {
    let fresh = domain.map(at..at + bytes, to, RW).unwrap();
    unit.publish(domain, fresh).unwrap();
}

/// Unmaps and settles.
pub(crate) fn unmap<'a>(unit: &mut OurUnit<'a>, domain: &mut OurDomain<'a>, at: u64, bytes: u64) {
    let stale = domain.unmap(at..at + bytes).unwrap();
    unit.settle(domain, stale).unwrap();
}

impl Mmio for Machine {
    fn read32(&self, offset: u32) -> u32 {
        self.inside.lock().unwrap().unit.read32(offset)
    }

    fn read64(&self, offset: u32) -> u64 {
        self.inside.lock().unwrap().unit.read64(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        let mut inside = self.inside.lock().unwrap();
        let Inside { unit, world } = &mut *inside;
        unit.write32(&self.ram, world, offset, value);
    }

    fn write64(&self, offset: u32, value: u64) {
        let mut inside = self.inside.lock().unwrap();
        let Inside { unit, world } = &mut *inside;
        unit.write64(&self.ram, world, offset, value);
    }

    fn keep_waiting(&self, asked: u32) -> bool {
        // All that a write starts is done when it returns.
        asked < 2
    }
}

impl ReadEntry for Machine {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        Ok(self.ram.read(at, width).unwrap())
    }
}

impl UpdateEntry for Machine {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        Ok(self.ram.compare_exchange(at, width, current, new).unwrap())
    }
}

impl OwnEntries for Machine {
    fn write(&self, at: u64, width: Width, entry: u64) {
        Memory::write(&self.ram, at, width, entry).unwrap();
    }
}

impl Frames for Machine {
    fn allocate(&self) -> Option<u64> {
        let (next, free) = &mut *self.frames.lock().unwrap();
        free.pop().or_else(|| {
            let frame = *next;
            *next += 4096;
            FRAMES.contains(&frame).then_some(frame)
        })
    }

    fn free(&self, frame: u64) {
        // Whoever uses it now is found out.
        for word in 0..512 {
            self.ram.set(frame + 8 * word, 0xdead_f00d_dead_f00d);
        }
        self.frames.lock().unwrap().1.push(frame);
    }
}
