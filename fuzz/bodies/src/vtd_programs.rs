// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VT-d driver over a unit that lies: an emulated one, of which any register read may be answered with anything. Nothing
//! panics, nothing waits for ever, and no address that the unit names is followed.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;

use arbitrary::{Arbitrary, Unstructured};
use hvkit_page_table::{OwnEntries, ReadEntry, UpdateEntry, Width};
use hvkit_vtd_iommu::driver::{
    self, Attachment, DestinationMode, DriverError, FirstTable, Mmio, Switch,
};
use hvkit_vtd_iommu::emulation::fake::Journal;
use hvkit_vtd_iommu::emulation::{Memory, Options, Unit};
use hvkit_vtd_iommu::spec::interrupt::Irte;
use hvkit_vtd_iommu::spec::page_request::PageGroupResponse;
use hvkit_vtd_iommu::spec::{Pasid, RequesterId};
use hvkit_vtd_iommu::tables::{FirstStageAttributes, SecondStageAttributes};

use crate::arena::Arena;

/// Frames that the driver may have.
const FRAMES: usize = 64;
/// How often a wait may ask.
const PATIENCE: u32 = 4;
/// Register accesses that one call of the driver may make: a queue of 256 descriptors, each waited for, and some.
const ACCESSES: u32 = 20_000;

/// What the driver's owner does.
#[derive(Arbitrary, Debug)]
enum Action {
    Enable,
    Disable,
    ForgetEverything,
    Attach { source: u8, pasid: Option<u8> },
    Detach { source: u8, pasid: Option<u8> },
    PassThrough { source: u8, on: bool },
    Nested { source: u8, pasid: u8, levels: u8 },
    Map { page: u8, pages: u8, to: u16 },
    Unmap { page: u8, pages: u8 },
    MapFirst { page: u8, pages: u8 },
    UnmapFirst { page: u8, pages: u8 },
    TakeFaults,
    EnableInterrupts { extended: bool },
    SetInterrupt { index: u8, entry: Irte },
    CompatibleInterrupts { on: bool },
    EnablePageRequests,
    PollPageRequest,
    Respond(PageGroupResponse),
}

/// Memory that both sides see.
struct Shared<'a>(&'a Arena);

impl ReadEntry for Shared<'_> {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        // The unit may ask anywhere; the driver only where frames are (the arena panics elsewhere).
        if owned(self.0, at) {
            self.0.read(at, width)
        } else {
            Ok(0)
        }
    }
}

impl UpdateEntry for Shared<'_> {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        if owned(self.0, at) {
            self.0.compare_exchange(at, width, current, new)
        } else {
            Ok(!current)
        }
    }
}

impl Memory for Shared<'_> {
    fn write(&self, at: u64, width: Width, value: u64) -> Result<(), Infallible> {
        if owned(self.0, at) {
            OwnEntries::write(self.0, at, width, value);
        }
        Ok(())
    }
}

fn owned(tables: &Arena, at: u64) -> bool {
    at.is_multiple_of(4) && tables.owns(at)
}

/// The unit, and its lies.
struct Liar<'a> {
    memory: Shared<'a>,
    unit: RefCell<Unit>,
    world: RefCell<Journal>,
    /// What is answered in place of the truth, XORed, from the last on; when none is left, the truth.
    lies: RefCell<Vec<(u8, u64)>>,
    accesses: Cell<u32>,
}

impl Liar<'_> {
    fn counted(&self) {
        self.accesses.set(self.accesses.get() + 1);
        assert!(
            self.accesses.get() < ACCESSES,
            "the driver does not come to an end"
        );
    }

    /// The truth, or a lie: each lie waits for some accesses first.
    fn bent(&self, truth: u64) -> u64 {
        self.counted();
        let lies = &mut *self.lies.borrow_mut();
        match lies.last_mut() {
            Some((0, bits)) => {
                let answer = truth ^ *bits;
                lies.pop();
                answer
            }
            Some((wait, _)) => {
                *wait -= 1;
                truth
            }
            None => truth,
        }
    }
}

impl Mmio for Liar<'_> {
    fn read32(&self, offset: u32) -> u32 {
        let truth = self.unit.borrow().read32(offset);
        self.bent(truth.into()) as u32
    }

    fn read64(&self, offset: u32) -> u64 {
        let truth = self.unit.borrow().read64(offset);
        self.bent(truth)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.counted();
        let (unit, world) = (&mut *self.unit.borrow_mut(), &mut *self.world.borrow_mut());
        unit.write32(&self.memory, world, offset, value);
    }

    fn write64(&self, offset: u32, value: u64) {
        self.counted();
        let (unit, world) = (&mut *self.unit.borrow_mut(), &mut *self.world.borrow_mut());
        unit.write64(&self.memory, world, offset, value);
    }

    fn keep_waiting(&self, asked: u32) -> bool {
        asked < PATIENCE
    }
}

#[derive(Arbitrary, Debug)]
struct Case {
    kind: u8,
    lies: Vec<(u8, u64)>,
    actions: Vec<Action>,
}

/// Drives a unit that lies as `data` says.
pub fn run(data: &[u8]) {
    let Ok(mut case) = Case::arbitrary(&mut Unstructured::new(data)) else {
        return;
    };
    case.lies.truncate(32);
    let preset = match case.kind % 3 {
        0 => Options::new(46),
        1 => Options::new(46).with_scalable_mode(),
        _ => Options::new(46)
            .with_scalable_mode()
            .with_device_tlbs()
            .with_posted_interrupts(),
    };
    let preset = Options {
        iotlb_pages: 64,
        // Few domains: a unit has room for each.
        capability: preset.capability.with_nd(0),
        ..preset
    };
    let tables = Arena::new(FRAMES);
    let liar = Liar {
        memory: Shared(&tables),
        unit: RefCell::new(Unit::new(preset).expect("the presets can be emulated")),
        world: RefCell::new(Journal {
            silent: case.kind & 0x80 != 0,
            ..Journal::default()
        }),
        lies: RefCell::new(case.lies),
        accesses: Cell::new(0),
    };
    let options = if case.kind & 0x40 == 0 {
        driver::Options::legacy(46)
    } else {
        driver::Options::scalable(46)
    };
    let _ = drive(&liar, &tables, options, &case.actions);
}

fn drive(
    liar: &Liar<'_>,
    tables: &Arena,
    options: driver::Options,
    actions: &[Action],
) -> Result<(), DriverError> {
    let mut unit = driver::Unit::take(liar, tables, tables, options)?;
    let mut domain = unit.new_domain()?;
    let mut first = unit.new_first_stage_domain(4).ok();
    let (mut interrupts, mut block, mut queue) = (None, None, None);
    for action in actions.iter().take(24) {
        liar.accesses.set(0);
        let device = |source: u8, pasid: Option<u8>| {
            let device = Attachment::new(RequesterId(source.into()));
            match pasid {
                Some(pasid) => device.with_pasid(Pasid::from_field(pasid.into())),
                None => device,
            }
        };
        let span = |page: u8, pages: u8| {
            let at = u64::from(page) << 12;
            at..at + (u64::from(pages) << 12)
        };
        match action {
            Action::Enable => tried(unit.enable()),
            Action::Disable => tried(unit.disable()),
            Action::ForgetEverything => tried(unit.forget_everything()),
            Action::Attach { source, pasid } => {
                tried(unit.attach(&mut domain, device(*source, *pasid)));
                if let (Some(first), Some(_)) = (&mut first, pasid) {
                    tried(unit.attach(first, device(*source, *pasid)));
                }
            }
            Action::Detach { source, pasid } => {
                let pasid = pasid.map(|pasid| Pasid::from_field(pasid.into()));
                let source = RequesterId((*source).into());
                tried(unit.detach(&mut domain, source, pasid));
                if let Some(first) = &mut first {
                    tried(unit.detach(first, source, pasid));
                }
            }
            Action::PassThrough { source, on } => {
                let source = RequesterId((*source).into());
                tried(if *on {
                    unit.attach_pass_through(source)
                } else {
                    unit.detach_pass_through(source)
                });
            }
            Action::Nested {
                source,
                pasid,
                levels,
            } => {
                let table = FirstTable {
                    address: 0x5000,
                    levels: *levels,
                };
                tried(unit.attach_nested(&mut domain, device(*source, Some(*pasid)), table));
            }
            Action::Map { page, pages, to } => {
                let to = u64::from(*to) << 12;
                let attributes = SecondStageAttributes::READ_WRITE;
                if let Ok(fresh) = domain.map(span(*page, *pages), to, attributes) {
                    tried(unit.publish(&domain, fresh));
                }
            }
            Action::Unmap { page, pages } => {
                if let Ok(stale) = domain.unmap(span(*page, *pages)) {
                    tried(unit.settle(&domain, stale));
                }
            }
            Action::MapFirst { page, pages } => {
                if let Some(first) = &mut first {
                    let attributes = FirstStageAttributes::READ_WRITE;
                    if let Ok(fresh) = first.map(span(*page, *pages), 0x10_0000, attributes) {
                        tried(unit.publish(first, fresh));
                    }
                }
            }
            Action::UnmapFirst { page, pages } => {
                if let Some(first) = &mut first
                    && let Ok(stale) = first.unmap(span(*page, *pages))
                {
                    tried(unit.settle(first, stale));
                }
            }
            Action::TakeFaults => {
                // No unit has more records than its capability says, and that has 8 bits.
                assert!(unit.take_faults().records.len() <= 256);
            }
            Action::EnableInterrupts { extended } => {
                let mode = if *extended {
                    DestinationMode::X2Apic
                } else {
                    DestinationMode::XApic
                };
                if interrupts.is_none()
                    && let Ok(mut table) = unit.enable_interrupts(mode, None)
                {
                    block = table.allocate(4).ok();
                    interrupts = Some(table);
                }
            }
            Action::SetInterrupt { index, entry } => {
                if let (Some(table), Some(block)) = (&interrupts, block) {
                    let index = block.first() + u16::from(index % 5);
                    tried(unit.set_interrupt(table, block, index, *entry));
                    tried(unit.mask_interrupt(table, block, index));
                }
            }
            Action::CompatibleInterrupts { on } => {
                let to = if *on { Switch::On } else { Switch::Off };
                tried(unit.set_compatibility_interrupts(to));
            }
            Action::EnablePageRequests => {
                if queue.is_none() {
                    queue = unit.enable_page_requests(None).ok();
                }
            }
            Action::PollPageRequest => {
                if let Some(queue) = &mut queue {
                    let _ = unit.poll_page_request(queue);
                }
            }
            Action::Respond(response) => tried(unit.respond(*response)),
        }
    }
    Ok(())
}

/// It worked, or there was an error: both are allowed.
fn tried<T, E>(_: Result<T, E>) {}
