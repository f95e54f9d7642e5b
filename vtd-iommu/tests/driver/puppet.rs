// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The puppet.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::{OwnEntries, Width};
use hvkit_vtd_iommu::driver::{Domain, Mmio, Options, Unit};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::invalidation::{Descriptor, RawDescriptor};
use hvkit_vtd_iommu::spec::registers::{
    CAP, Capability, ECAP, ExtendedCapability, FSTS, FaultStatus, GCMD, GSTS, GlobalStatus, IQA,
    IQERCD, IQH, IQT, IotlbInvalidate, PMEN, PRS, QueueAddress, QueueError, VER,
};
use hvkit_vtd_iommu::tables::SecondStage;

use crate::caches::Caches;

/// The device of these tests.
pub(crate) const DEVICE: RequesterId = RequesterId(0x0318);

pub(crate) type PuppetUnit<'a> = Unit<&'a Puppet, &'a FakeTables, &'a FakeTables>;
pub(crate) type PuppetDomain<'a> = Domain<SecondStage, &'a FakeTables, &'a FakeTables>;

/// How a puppet fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Failure {
    #[default]
    None,
    /// The queue does not move.
    DeafQueue,
    /// Device-TLB invalidations are not answered: ITE, and waits behind them are aborted.
    DeviceTlbTimesOut,
    /// A device answers unasked: ICE.
    DeviceTlbUnasked,
    /// Register-based invalidations are refused.
    RefusesRegisters,
    /// Register-based invalidations are never done.
    DeafRegisters,
}

#[derive(Debug)]
pub(crate) struct Puppet {
    pub(crate) memory: FakeTables,
    words: RefCell<BTreeMap<u32, u32>>,
    /// Bits of the global command that it does not act on.
    pub(crate) deaf_to: Cell<u32>,
    pub(crate) failure: Cell<Failure>,
    /// Everything that was asked, waits aside.
    pub(crate) asked: RefCell<Vec<Descriptor>>,
    /// The words of the same.
    words_asked: RefCell<Vec<[u64; 4]>>,
    /// The first word of each wait.
    pub(crate) wait_words: RefCell<Vec<u64>>,
    pub(crate) waits: Cell<u32>,
    pub(crate) write_buffer_flushes: Cell<u32>,
    /// So many of them are done.
    pub(crate) flushes_done: Cell<u32>,
    /// The next command to CCMD or the IOTLB register is done when it was read so many times.
    pub(crate) late_by: Cell<u32>,
    /// That command's register, what it will say, and how many reads until then.
    pending: Cell<Option<(u32, u64, u32)>>,
    /// How often such a register, or the address that belongs to it, was written before its command was done.
    pub(crate) written_while_pending: Cell<u32>,
    /// What it keeps of the device's translations, if it is one that does.
    pub(crate) caches: RefCell<Option<Caches>>,
}

/// 39, 48 and 57 bits, 57-bit addresses, 256 domains, large pages, page-selective, draining.
pub(crate) fn cap() -> Capability {
    Capability(0)
        .with_nd(2)
        .with_sagaw(0b01110)
        .with_mgaw(47)
        .with_second_stage_large_pages(3)
        .with_page_selective(true)
        .with_max_address_mask(18)
        .with_drain_reads(true)
        .with_drain_writes(true)
        .with_fro(0x22)
        .with_nfr(3)
}

/// Queue, device-TLBs, pass-through; nothing else.
pub(crate) fn ecap() -> ExtendedCapability {
    ExtendedCapability(0)
        .with_coherent(true)
        .with_queued_invalidation(true)
        .with_device_tlb(true)
        .with_pass_through(true)
        .with_iro(0x50)
}

/// Scalable mode with all that the driver can use.
pub(crate) fn scalable_ecap() -> ExtendedCapability {
    ecap()
        .with_scalable_mode(true)
        .with_pasid(true)
        .with_pss(19)
        .with_second_stage(true)
        .with_first_stage(true)
        .with_nested(true)
        .with_page_requests(true)
        .with_scalable_walk_coherent(true)
}

impl Puppet {
    pub(crate) fn new(cap: Capability, ecap: ExtendedCapability) -> Self {
        let puppet = Self {
            memory: FakeTables::new(),
            words: RefCell::default(),
            deaf_to: Cell::default(),
            failure: Cell::default(),
            asked: RefCell::default(),
            words_asked: RefCell::default(),
            wait_words: RefCell::default(),
            waits: Cell::default(),
            write_buffer_flushes: Cell::default(),
            flushes_done: Cell::new(u32::MAX),
            late_by: Cell::default(),
            pending: Cell::default(),
            written_while_pending: Cell::default(),
            caches: RefCell::default(),
        };
        puppet.set32(VER.offset(), 0x60);
        puppet.set64(CAP.offset(), cap.0);
        puppet.set64(ECAP.offset(), ecap.0);
        puppet
    }

    pub(crate) fn legacy(&self) -> PuppetUnit<'_> {
        let unit = Unit::take(self, &self.memory, &self.memory, Options::legacy(46)).unwrap();
        self.forget_asked();
        unit
    }

    pub(crate) fn scalable(&self) -> PuppetUnit<'_> {
        let unit = Unit::take(self, &self.memory, &self.memory, Options::scalable(46)).unwrap();
        self.forget_asked();
        unit
    }

    pub(crate) fn forget_asked(&self) {
        self.asked.borrow_mut().clear();
        self.words_asked.borrow_mut().clear();
        self.wait_words.borrow_mut().clear();
        self.waits.set(0);
    }

    /// The words of what was asked since things asked were last taken or forgotten, waits aside.
    pub(crate) fn take_words(&self) -> Vec<[u64; 4]> {
        let words = self.words_asked.take();
        self.forget_asked();
        words
    }

    /// What was asked since this was last called.
    pub(crate) fn take_asked(&self) -> Vec<Descriptor> {
        let asked = self.asked.take();
        self.forget_asked();
        asked
    }

    pub(crate) fn set32(&self, offset: u32, value: u32) {
        self.words.borrow_mut().insert(offset, value);
    }

    pub(crate) fn set64(&self, offset: u32, value: u64) {
        self.set32(offset, value as u32);
        self.set32(offset + 4, (value >> 32) as u32);
    }

    fn command(&self, command: u32) {
        let deaf = self.deaf_to.get();
        let old = self.read32(GSTS.offset());
        let mut new = old & !GlobalStatus::LASTING | command & GlobalStatus::LASTING;
        if command & 1 << 27 != 0 {
            self.write_buffer_flushes
                .set(self.write_buffer_flushes.get() + 1);
            new |= deaf & 1 << 27;
            if self.write_buffer_flushes.get() > self.flushes_done.get() {
                new |= 1 << 27;
            }
        }
        // One-shots: root table, interrupt table.
        new |= command & (1 << 30 | 1 << 24);
        new = old & deaf & !(1 << 27) | new & (!deaf | 1 << 27);
        self.set32(GSTS.offset(), new);
    }

    /// Does what is in the queue.
    fn drain(&self) {
        let address = QueueAddress(self.read64(IQA.offset()));
        let bytes = u64::from(address.descriptor_bytes());
        let tail = self.read64(IQT.offset());
        let mut head = self.read64(IQH.offset());
        for _ in 0..u64::from(address.bytes()) / bytes {
            let failed = self.read32(FSTS.offset()) & 0x10 != 0;
            if head == tail || failed || self.failure.get() == Failure::DeafQueue {
                break;
            }
            let word = |i: u64| {
                self.memory
                    .load(address.queue() + head + 8 * i, Width::Eight)
            };
            let raw = match bytes {
                16 => RawDescriptor::from_narrow([word(0), word(1)]),
                _ => RawDescriptor::from_wide([word(0), word(1), word(2), word(3)]),
            };
            match Descriptor::decode(raw) {
                Ok(descriptor) => self.act(descriptor, raw),
                Err(error) => {
                    let QueueError(code) = error.queue_error();
                    self.set64(IQERCD.offset(), code.into());
                    self.set32(FSTS.offset(), 0x10);
                    break;
                }
            }
            head = (head + bytes) % u64::from(address.bytes());
            self.set64(IQH.offset(), head);
        }
    }

    fn act(&self, descriptor: Descriptor, raw: RawDescriptor) {
        if let Some(caches) = &mut *self.caches.borrow_mut() {
            caches.fill(&self.memory);
            caches.drop_named(&descriptor);
        }
        let device = match descriptor {
            Descriptor::Wait(wait) => {
                self.waits.set(self.waits.get() + 1);
                self.wait_words.borrow_mut().push(raw.wide()[0]);
                let aborted = self.read32(FSTS.offset()) & 0x40 != 0;
                if let Some(status) = wait.status.filter(|_| !aborted) {
                    self.memory
                        .write(status.address, Width::Four, status.data.into());
                }
                return;
            }
            Descriptor::DeviceTlb { device, .. } | Descriptor::PasidDeviceTlb { device, .. } => {
                Some(device.source)
            }
            _ => None,
        };
        self.asked.borrow_mut().push(descriptor);
        self.words_asked.borrow_mut().push(raw.wide());
        let Some(source) = device else { return };
        match self.failure.get() {
            Failure::DeviceTlbTimesOut => {
                self.set64(IQERCD.offset(), u64::from(source.0) << 32);
                self.set32(FSTS.offset(), 0x40);
            }
            Failure::DeviceTlbUnasked => {
                self.set64(IQERCD.offset(), u64::from(source.0) << 48);
                self.set32(FSTS.offset(), 0x20);
                self.failure.set(Failure::DeafQueue);
            }
            _ => {}
        }
    }

    /// CCMD or IOTLB: done at once, as wide as asked.
    fn invalidate_by_register(&self, offset: u32, value: u64, granularity: u64, actual: u32) {
        let (busy, done) = match self.failure.get() {
            Failure::DeafRegisters => (value, 0),
            Failure::RefusesRegisters => (value & !(1 << 63), 0),
            _ => (value & !(1 << 63), granularity << actual),
        };
        self.set64(offset, busy | done);
        let late = self.late_by.take();
        if late > 0 {
            self.pending.set(Some((offset, busy | done, late)));
            self.set64(offset, value);
        }
    }
}

impl Mmio for Puppet {
    fn read32(&self, offset: u32) -> u32 {
        self.words.borrow().get(&offset).copied().unwrap_or(0)
    }

    fn read64(&self, offset: u32) -> u64 {
        if let Some((register, done, left)) = self.pending.get()
            && register == offset
        {
            let next = left.checked_sub(1).map(|left| (register, done, left));
            self.pending.set(next);
            if next.is_none() {
                self.set64(offset, done);
            }
        }
        u64::from(self.read32(offset + 4)) << 32 | u64::from(self.read32(offset))
    }

    fn write32(&self, offset: u32, value: u32) {
        if offset == GCMD.offset() {
            self.command(value);
        } else if offset == FSTS.offset() {
            let status = FaultStatus(self.read32(offset) & !(value & 0x7d));
            self.set32(offset, status.0);
        } else if offset == PRS.offset() {
            self.set32(offset, self.read32(offset) & !value);
        } else if offset == PMEN.offset() {
            self.set32(offset, value | value >> 31);
        } else {
            self.set32(offset, value);
        }
    }

    fn write64(&self, offset: u32, value: u64) {
        let touched = |register| offset == register || (offset, register) == (0x500, 0x508);
        if self.pending.get().is_some_and(|(at, ..)| touched(at)) {
            let count = self.written_while_pending.get();
            self.written_while_pending.set(count + 1);
        }
        if offset == 0x28 {
            self.invalidate_by_register(offset, value, value >> 61 & 3, 59);
        } else if offset == 0x508 {
            let word = IotlbInvalidate(value);
            self.invalidate_by_register(offset, value, word.granularity().into(), 57);
        } else {
            self.set64(offset, value);
            if offset == IQT.offset() && self.read32(GSTS.offset()) & 1 << 26 != 0 {
                self.drain();
            }
        }
    }

    fn keep_waiting(&self, asked: u32) -> bool {
        asked < 4
    }
}
