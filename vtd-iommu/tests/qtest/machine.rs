// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU as a driver sees a machine: registers, memory for tables, frames, and devices.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::DefaultHasher;
use std::convert::Infallible;
use std::hash::{Hash, Hasher};

use hvkit_page_table::{Frames, OwnEntries, ReadEntry, UpdateEntry, Width};
use hvkit_vtd_iommu::driver::{Attachment, Domain, DriverError, Mmio, Options, Unit};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::fault::{FaultReason, FaultRecord};
use hvkit_vtd_iommu::spec::registers::IQT;
use hvkit_vtd_iommu::tables::{SecondStage, SecondStageAttributes};
use lab_kit::models::Model;
use lab_kit::qtest::{Batch, Edu, PciAddress, Qtest, QtestOptions, VTD};

/// Memory, in MiB.
const MEMORY: u64 = 16;
/// The same where all of it is to be hashed.
const LITTLE: u64 = 3;
/// What is missing where [`Lab::newer`] is `None`.
pub(crate) const NO_QEMU_11: &str = "QEMU 11: cargo xtask lab fetch qemu-11";
/// Where frames for tables come from.
const FRAMES: std::ops::Range<u64> = 0x10_0000..0x20_0000;
/// The first page that no table is in: what devices may be given.
pub(crate) const DATA: u64 = 0x20_0000;
/// Where `edu` is.
pub(crate) const EDU: RequesterId = RequesterId(0x18);

pub(crate) type LabUnit<'a> = Unit<&'a Lab, &'a Lab, &'a Lab>;
pub(crate) type LabDomain<'a> = Domain<SecondStage, &'a Lab, &'a Lab>;

/// Reads and writes.
pub(crate) const RW: SecondStageAttributes = SecondStageAttributes::READ_WRITE;

/// A running QEMU.
pub(crate) struct Lab {
    qemu: RefCell<Qtest>,
    edu: Edu,
    memory_mib: u64,
    next: Cell<u64>,
    free: RefCell<Vec<u64>>,
    /// How often the invalidation queue's tail was written.
    pub(crate) rings: Cell<u32>,
    /// Bits of each ECAP read that are shown as clear.
    pub(crate) without_ecap: Cell<u64>,
}

impl Lab {
    /// Debian's QEMU, with these properties of the unit.
    pub(crate) fn new(iommu: &str) -> Self {
        Self::with(QtestOptions::new().iommu(iommu))
    }

    /// What `options` say.
    pub(crate) fn with(options: QtestOptions) -> Self {
        Self::of(options, MEMORY)
    }

    /// What `options` say, with so little memory that all of it can be hashed.
    pub(crate) fn little(options: QtestOptions) -> Self {
        Self::of(options, LITTLE)
    }

    fn of(options: QtestOptions, memory_mib: u64) -> Self {
        let mut qemu = options.memory_mib(memory_mib).start().unwrap();
        let edu = Edu::find(&mut qemu).unwrap();
        Self {
            qemu: RefCell::new(qemu),
            edu,
            memory_mib,
            next: Cell::new(FRAMES.start),
            free: RefCell::default(),
            rings: Cell::new(0),
            without_ecap: Cell::new(0),
        }
    }

    /// QEMU 11, if it was fetched (`cargo xtask lab fetch qemu-11`).
    pub(crate) fn newer(iommu: &str) -> Option<Self> {
        Some(Self::with(newer(iommu)?))
    }

    /// A unit taken over in legacy mode, on.
    pub(crate) fn legacy(&self) -> LabUnit<'_> {
        let mut unit = Unit::take(self, self, self, Options::legacy(39)).unwrap();
        unit.enable().unwrap();
        unit
    }

    /// Fills `length` bytes of memory at `at` with `byte`.
    pub(crate) fn fill_memory(&self, at: u64, length: usize, byte: u8) {
        let mut batch = Batch::new();
        batch.fill(at, length, byte);
        self.qemu.borrow_mut().run(&batch).unwrap();
    }

    /// Writes memory.
    pub(crate) fn poke(&self, at: u64, bytes: &[u8]) {
        self.qemu.borrow_mut().write(at, bytes).unwrap();
    }

    /// Reads memory.
    pub(crate) fn peek(&self, at: u64, length: usize) -> Vec<u8> {
        self.qemu.borrow_mut().read(at, length).unwrap()
    }

    /// Has `edu` read `length` bytes at `from` into its buffer; zeroes if it is refused.
    pub(crate) fn dma_read(&self, from: u64, length: u64) {
        let mut qemu = self.qemu.borrow_mut();
        self.edu.read_memory(&mut qemu, from, 0, length).unwrap();
    }

    /// Has `edu` write the first `length` bytes of its buffer to `to`.
    pub(crate) fn dma_write(&self, to: u64, length: u64) {
        let mut qemu = self.qemu.borrow_mut();
        self.edu.write_memory(&mut qemu, to, 0, length).unwrap();
    }

    /// Has `edu` raise its interrupt.
    pub(crate) fn raise(&self) {
        let mut qemu = self.qemu.borrow_mut();
        self.edu.raise_interrupt(&mut qemu, 1).unwrap();
        self.edu.acknowledge_interrupt(&mut qemu, 1).unwrap();
    }

    /// Writes a configuration register of `edu`.
    pub(crate) fn edu_config_write(&self, offset: u8, value: u32) {
        let mut qemu = self.qemu.borrow_mut();
        qemu.config_write(self.edu.address(), offset, value)
            .unwrap();
    }

    /// Reads a configuration register of `edu`.
    pub(crate) fn edu_config_read(&self, offset: u8) -> u32 {
        let mut qemu = self.qemu.borrow_mut();
        qemu.config_read(self.edu.address(), offset).unwrap()
    }

    /// A second `edu` in slot `device`, if the machine was started with one, whose registers are put at `bar`.
    /// Its DMA: `write` bytes of its buffer to `to`.
    pub(crate) fn other_dma_write(&self, device: u8, bar: u32, to: u64, length: u64) {
        let address = PciAddress {
            bus: 0,
            device,
            function: 0,
        };
        let mut qemu = self.qemu.borrow_mut();
        let mut batch = Batch::new();
        batch.config_write(address, 0x10, bar);
        batch.config_write(address, 0x04, 6);
        let bar = u64::from(bar);
        batch.writeq(bar + 0x80, 0x4_0000);
        batch.writeq(bar + 0x88, to);
        batch.writeq(bar + 0x90, length);
        batch.writeq(bar + 0x98, 3);
        qemu.run(&batch).unwrap();
        for _ in 0..20_000 {
            if qemu.readq(bar + 0x98).unwrap() & 1 == 0 {
                return;
            }
        }
        panic!("the transfer does not end");
    }

    /// A hash of all memory outside of `except`.
    pub(crate) fn hash(&self, except: std::ops::Range<u64>) -> u64 {
        let mut hasher = DefaultHasher::new();
        for at in (0..self.memory_mib << 20).step_by(1 << 20) {
            let mut bytes = self.peek(at, 1 << 20);
            let inside = except.start.max(at)..except.end.min(at + (1 << 20));
            if !inside.is_empty() {
                let range = (inside.start - at) as usize..(inside.end - at) as usize;
                bytes[range].fill(0);
            }
            bytes.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// How many frames are out.
    pub(crate) fn frames_in_use(&self) -> u64 {
        let taken = (self.next.get() - FRAMES.start) / 4096;
        taken - self.free.borrow().len() as u64
    }
}

impl Mmio for Lab {
    fn read32(&self, offset: u32) -> u32 {
        let mut qemu = self.qemu.borrow_mut();
        qemu.readl(VTD + u64::from(offset)).unwrap()
    }

    fn read64(&self, offset: u32) -> u64 {
        let mut qemu = self.qemu.borrow_mut();
        let value = qemu.readq(VTD + u64::from(offset)).unwrap();
        if offset == 0x10 {
            value & !self.without_ecap.get()
        } else {
            value
        }
    }

    fn write32(&self, offset: u32, value: u32) {
        let mut qemu = self.qemu.borrow_mut();
        qemu.writel(VTD + u64::from(offset), value).unwrap();
    }

    fn write64(&self, offset: u32, value: u64) {
        if offset == IQT.offset() {
            self.rings.set(self.rings.get() + 1);
        }
        let mut qemu = self.qemu.borrow_mut();
        qemu.writeq(VTD + u64::from(offset), value).unwrap();
    }

    fn keep_waiting(&self, asked: u32) -> bool {
        asked < 100
    }
}

impl ReadEntry for Lab {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        let mut qemu = self.qemu.borrow_mut();
        Ok(match width {
            Width::Four => qemu.readl(at).unwrap().into(),
            Width::Eight => qemu.readq(at).unwrap(),
        })
    }
}

impl UpdateEntry for Lab {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        // Nobody else writes between two requests: the device's DMA is one of them.
        let found = self.load(at, width);
        if found == current {
            self.write(at, width, new);
        }
        Ok(found)
    }
}

impl OwnEntries for Lab {
    fn write(&self, at: u64, width: Width, entry: u64) {
        let mut qemu = self.qemu.borrow_mut();
        match width {
            Width::Four => qemu.writel(at, entry as u32).unwrap(),
            Width::Eight => qemu.writeq(at, entry).unwrap(),
        }
    }

    fn fill(&self, at: u64, width: Width, count: u64, entry: impl Fn(u64) -> u64) {
        let bytes: Vec<u8> = (0..count)
            .flat_map(|i| entry(i).to_le_bytes()[..width.bytes() as usize].to_vec())
            .collect();
        self.poke(at, &bytes);
    }
}

impl Frames for Lab {
    fn allocate(&self) -> Option<u64> {
        if let Some(frame) = self.free.borrow_mut().pop() {
            return Some(frame);
        }
        let frame = self.next.get();
        self.next.set(frame + 4096);
        FRAMES.contains(&frame).then_some(frame)
    }

    fn free(&self, frame: u64) {
        self.free.borrow_mut().push(frame);
    }
}

/// QEMU 11, if it was fetched.
pub(crate) fn newer(iommu: &str) -> Option<QtestOptions> {
    let model = Model::Qemu11.cached()?;
    Some(QtestOptions::new().qemu(model.program()).iommu(iommu))
}

/// `edu`, attached to a new domain.
pub(crate) fn with_domain<'a>(unit: &mut LabUnit<'a>) -> LabDomain<'a> {
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(EDU)).unwrap();
    domain
}

/// Maps and publishes.
pub(crate) fn map<'a>(
    unit: &mut LabUnit<'a>,
    domain: &mut LabDomain<'a>,
    at: u64,
    to: u64,
    bytes: u64,
) {
    let fresh = domain.map(at..at + bytes, to, RW).unwrap();
    unit.publish(domain, fresh).unwrap();
}

/// The one fault that was recorded.
pub(crate) fn the_fault(unit: &mut LabUnit<'_>) -> FaultRecord {
    let faults = unit.take_faults();
    assert_eq!(faults.records.len(), 1, "{faults:x?}");
    assert!(!faults.overflow);
    faults.records[0]
}

/// Asserts that the one fault has this reason, page and requester.
pub(crate) fn assert_fault(
    unit: &mut LabUnit<'_>,
    reason: FaultReason,
    page: u64,
    source: RequesterId,
) {
    let fault = the_fault(unit);
    assert_eq!(
        (fault.reason(), fault.address(), fault.source()),
        (reason, Some(page), source),
        "{fault:x?}"
    );
}

/// Asserts that nothing was refused.
pub(crate) fn assert_no_fault(unit: &mut LabUnit<'_>) {
    let faults = unit.take_faults();
    assert!(faults.records.is_empty() && !faults.overflow, "{faults:x?}");
}

/// The error of a result that must be one.
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, DriverError>) -> DriverError {
    result.unwrap_err()
}
