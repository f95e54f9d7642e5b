// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine to try the unit on: memory, a world that remembers, and the words of a driver.

use hvkit_vtd_iommu::emulation::fake::{Journal, Ram};
use hvkit_vtd_iommu::emulation::{Access, Options, Process, Refused, Request, Translated, Unit};
use hvkit_vtd_iommu::spec::registers::{GCMD, IQA, IQT, RTADDR};
use hvkit_vtd_iommu::spec::{Pasid, RequesterId};

/// Device 00:03.0.
pub(crate) const DEVICE: RequesterId = RequesterId(0x18);
pub(crate) const ROOT: u64 = 0x1000;
pub(crate) const CONTEXT: u64 = 0x2000;
/// Where the context entry of [`DEVICE`] is, in legacy mode.
pub(crate) const ENTRY: u64 = CONTEXT + 0x18 * 16;
/// A second-stage table of three levels.
pub(crate) const TOP: u64 = 0x3000;
pub(crate) const MIDDLE: u64 = 0x4000;
pub(crate) const LEAVES: u64 = 0x5000;
pub(crate) const QUEUE: u64 = 0x6000;
pub(crate) const STATUS: u64 = 0x7000;
pub(crate) const DATA: u64 = 0x1_0000;

pub(crate) struct Machine {
    pub(crate) ram: Ram,
    pub(crate) unit: Unit,
    pub(crate) host: Journal,
    tail: u64,
    wide: bool,
}

impl Machine {
    /// Memory and a unit after power-on.
    pub(crate) fn new(options: Options) -> Self {
        Self {
            ram: Ram::new(1 << 20),
            unit: Unit::new(options).unwrap(),
            host: Journal::default(),
            tail: 0,
            wide: false,
        }
    }

    /// With legacy tables: pages 1 to 8 of domain 7 lead to the frames at [`DATA`], and translation on.
    pub(crate) fn legacy(options: Options) -> Self {
        let mut machine = Self::new(options);
        machine.ram.set(ROOT, CONTEXT | 1);
        machine.ram.set_all(ENTRY, &[TOP | 1, 0x0701]);
        machine.second_stage();
        machine.turn_on(ROOT);
        machine
    }

    /// Fills the tables at [`TOP`].
    pub(crate) fn second_stage(&self) {
        self.ram.set(TOP, MIDDLE | 3);
        self.ram.set(MIDDLE, LEAVES | 3);
        for page in 1..9 {
            self.ram.set(LEAVES + 8 * page, (DATA + 0x1000 * page) | 3);
        }
    }

    /// Takes `root` (with TTM) and turns translation on.
    pub(crate) fn turn_on(&mut self, root: u64) {
        self.write64(RTADDR.offset(), root);
        self.write32(GCMD.offset(), 1 << 30);
        self.write32(GCMD.offset(), 1 << 31);
    }

    /// Turns the queue on, with DW `wide`.
    pub(crate) fn queue_on(&mut self, wide: u64) {
        self.wide = wide != 0;
        self.write64(IQA.offset(), QUEUE | wide << 11);
        let keep = self.unit.read32(0x1c) & 0x9680_0000;
        self.write32(GCMD.offset(), keep | 1 << 26);
    }

    /// Puts descriptors into the queue, wide ones with zeros above, and rings.
    pub(crate) fn submit(&mut self, descriptors: &[[u64; 2]]) {
        for words in descriptors {
            self.ram.set_all(QUEUE + self.tail, words);
            if self.wide {
                self.ram.set_all(QUEUE + self.tail + 16, &[0, 0]);
            }
            self.tail = (self.tail + if self.wide { 32 } else { 16 }) % 0x1000;
        }
        self.write64(IQT.offset(), self.tail);
    }

    pub(crate) fn write32(&mut self, offset: u32, value: u32) {
        self.unit.write32(&self.ram, &mut self.host, offset, value);
    }

    pub(crate) fn write64(&mut self, offset: u32, value: u64) {
        self.unit.write64(&self.ram, &mut self.host, offset, value);
    }

    pub(crate) fn request(&mut self, request: Request) -> Result<Translated, Refused> {
        self.unit.translate(&self.ram, &mut self.host, &request)
    }

    /// Where a request of [`DEVICE`] goes, or the reason's code.
    pub(crate) fn dma(&mut self, address: u64, access: Access) -> Result<u64, u8> {
        let done = self.request(Request::new(DEVICE, address, access));
        done.map(|to| to.address)
            .map_err(|refused| refused.reason.0)
    }

    pub(crate) fn read(&mut self, address: u64) -> Result<u64, u8> {
        self.dma(address, Access::Read)
    }

    pub(crate) fn write(&mut self, address: u64) -> Result<u64, u8> {
        self.dma(address, Access::Write)
    }

    /// The same with a PASID, as a user.
    pub(crate) fn dma_with(&mut self, pasid: u32, address: u64, access: Access) -> Result<u64, u8> {
        let process = Process::user(Pasid::new(pasid).unwrap());
        let request = Request::new(DEVICE, address, access).with_process(process);
        let done = self.request(request);
        done.map(|to| to.address)
            .map_err(|refused| refused.reason.0)
    }
}
