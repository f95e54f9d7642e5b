// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Our side: the emulated unit, a memory, and a device like QEMU's `edu`.

use std::cell::RefCell;
use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use hvkit_page_table::{ReadEntry, Width};
use hvkit_vtd_iommu::emulation::fake::Ram;
use hvkit_vtd_iommu::emulation::{
    Access, Caching, Fate, Memory, Nobody, Options, Request, Translated, Unit,
};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::fault::FaultReason;
use hvkit_vtd_iommu::spec::interrupt::Message;
use hvkit_vtd_iommu::spec::registers::{CAP, FECTL, FSTS, GCMD, GSTS, IRTA, InterruptTableAddress};

use super::program::{Program, Seen, Step, layout, start};
use super::quirks::{Front, Quirks};
use super::remap::Asker;
use super::walks;

/// Set interrupt remapping table pointer, of the global command.
const SIRTP: u32 = 1 << 24;

/// A machine of ours.
pub(super) struct Ours {
    ram: Ram,
    options: Options,
    device: RequesterId,
    /// Words that DMA went to and that no case sets up.
    astray: RefCell<BTreeSet<u64>>,
}

impl Ours {
    pub(super) fn new(options: Options, device: RequesterId) -> Self {
        Self {
            ram: Ram::new(layout::MEMORY),
            options,
            device,
            astray: RefCell::default(),
        }
    }

    /// Words that DMA went to since this was last asked, and that no case sets up.
    pub(super) fn take_astray(&self) -> BTreeSet<u64> {
        let astray = self.astray.take();
        for at in &astray {
            self.ram.set(*at, 0);
        }
        astray
    }

    /// Runs a program from power-on, on a unit that keeps what `caching` says, with `quirks` in the machine around it.
    pub(super) fn run(
        &self,
        program: &Program,
        caching: Caching,
        quirks: Quirks,
    ) -> Result<Vec<Seen>> {
        let mut options = self.options.with_caching(caching);
        if quirks.has(Quirks::SNOOP_IGNORED) {
            options.extended = options.extended.with_snoop_control(true);
        }
        let extended = self.options.extended.extended_interrupt_mode();
        let quirks = match extended {
            true => quirks.without(Quirks::EXTENDED_KEPT),
            false => quirks,
        };
        if quirks.has(Quirks::EXTENDED_KEPT) {
            options.extended = options.extended.with_extended_interrupt_mode(true);
        }
        let unit = Unit::new(options)
            .map_err(|error| anyhow!("the model's unit cannot be emulated: {error}"))?;
        for at in self.astray.borrow().iter() {
            self.ram.set(*at, 0);
        }
        for at in (layout::START..layout::END).step_by(8) {
            self.ram.set(at, 0);
        }
        for frame in 0..layout::DATA_FRAMES {
            for at in (0..layout::DATA_BYTES).step_by(8) {
                self.ram
                    .set(layout::DATA + frame * 0x1000 + at, data_word(frame, at));
            }
        }
        let mut buffer = [0u64; layout::BUFFER_WORDS as usize];
        for (slot, word) in (0..).zip(&mut buffer) {
            *word = pattern_word(slot);
        }
        let mut run = Run {
            machine: self,
            unit,
            quirks,
            front: Front::new(quirks),
            interrupt_table: InterruptTableAddress(0),
            buffer,
            seen: Vec::new(),
        };
        for step in start().iter().chain(&program.steps) {
            run.step(*step);
        }
        for frame in 0..layout::DATA_FRAMES {
            for at in (0..layout::DATA_BYTES).step_by(8) {
                let at = layout::DATA + frame * 0x1000 + at;
                let value = self.ram.get(at);
                run.seen.push(Seen::Word { at, value });
            }
        }
        Ok(run.seen)
    }
}

/// Bytes of the context entries of the mode that `reason` is of, if it is about what is reserved in them.
fn context_bytes(reason: FaultReason) -> Option<u64> {
    match reason {
        FaultReason::CONTEXT_RESERVED => Some(16),
        FaultReason::SM_CONTEXT_RESERVED => Some(32),
        _ => None,
    }
}

/// What the data frames hold before a case.
pub(super) fn data_word(frame: u64, at: u64) -> u64 {
    0xda7a_0000_0000_0000 | frame << 16 | at
}

/// What the device's buffer holds before a case.
pub(super) fn pattern_word(slot: u64) -> u64 {
    0xbeef_0000_0000_0000 | slot
}

struct Run<'a> {
    machine: &'a Ours,
    unit: Unit,
    quirks: Quirks,
    front: Front,
    /// The table of interrupt entries that was taken last.
    interrupt_table: InterruptTableAddress,
    buffer: [u64; layout::BUFFER_WORDS as usize],
    seen: Vec<Seen>,
}

impl Run<'_> {
    fn step(&mut self, step: Step) {
        let ram = &self.machine.ram;
        match step {
            Step::Store { at, word } => ram.set(at, word),
            Step::Write32 { offset, value } => {
                if offset == GCMD.offset() && value & SIRTP != 0 {
                    self.interrupt_table = self.unit.register(IRTA);
                }
                self.front
                    .write(&mut self.unit, ram, offset, value.into(), 4);
            }
            Step::Write64 { offset, value } => {
                self.front.write(&mut self.unit, ram, offset, value, 8);
            }
            Step::Read { address, slot } => {
                // What the device does not get, it takes for zeroes.
                let word = self.translate(address, Access::Read).and_then(|at| {
                    let word = ram.read(at, Width::Eight);
                    word.ok()
                });
                self.buffer[slot as usize] = word.unwrap_or(0);
            }
            Step::Write { address, slot } => {
                if let Some(at) = self.translate(address, Access::Write) {
                    // Nothing is there: the write is lost.
                    if ram
                        .write(at, Width::Eight, self.buffer[slot as usize])
                        .is_ok()
                    {
                        self.machine.astray.borrow_mut().insert(at);
                    }
                }
            }
            Step::Message { address, data } => {
                let message = Message {
                    address: address.into(),
                    data,
                };
                let remaps = self.unit.register(GSTS).interrupt_remapping();
                let asker = Asker {
                    source: self.machine.device,
                    table: remaps.then_some(self.interrupt_table),
                    quirks: self.quirks,
                };
                let seen = asker.send(&mut self.unit, ram, message);
                self.seen.push(Seen::Interrupt(seen));
            }
            Step::Faults => {
                let Some((low, high)) = self.unit.register(CAP).fault_record(0) else {
                    return;
                };
                self.seen.push(Seen::Faults {
                    status: self.unit.register(FSTS).0,
                    control: self.unit.register(FECTL).0,
                    low: self.unit.register(low).0,
                    high: walks::named(self.quirks, &self.unit, self.unit.register(high).0),
                });
            }
            Step::Look { offset, count } => {
                for register in 0..count {
                    let at = offset + 4 * register;
                    let value = self.front.read32(&self.unit, at).into();
                    self.seen.push(Seen::Word {
                        at: at.into(),
                        value,
                    });
                }
            }
            Step::Load { at } => {
                let value = ram.get(at);
                self.seen.push(Seen::Word { at, value });
            }
        }
    }

    fn translate(&mut self, address: u64, access: Access) -> Option<u64> {
        let request = Request::new(self.machine.device, address, access);
        if self.quirks.has(Quirks::SILENT_WHEN_KEPT) && self.keeps_without(&request) {
            return None;
        }
        let before = walks::Before::of(self.quirks, &self.machine.ram, &self.unit, &request);
        if self.quirks.has(Quirks::WIDE_PASS_THROUGH) && self.passes_through(&request) {
            before.undo(&self.machine.ram);
            return None;
        }
        let translated = self
            .unit
            .translate(&self.machine.ram, &mut Nobody, &request);
        if let Err(refused) = translated
            && let Some(size) = context_bytes(refused.reason)
            && refused.fate == Fate::Disabled
            && self.quirks.has(Quirks::RESERVED_CONTEXT)
        {
            // Once more, without FPD, so that it is recorded.
            let context = layout::CONTEXT + size * u64::from(self.machine.device.devfn());
            let ram = &self.machine.ram;
            let entry = ram.get(context);
            ram.set(context, entry & !2);
            let _ = self.unit.translate(ram, &mut Nobody, &request);
            ram.set(context, entry);
        }
        before.undo(&self.machine.ram);
        if let Err(refused) = translated
            && self.quirks.has(Quirks::MARKS_EARLY)
        {
            walks::mark_early(&self.machine.ram, refused.reason, &request);
        }
        translated.ok().map(|to| to.address)
    }

    /// Whether the unit refuses `request` only because pass-through does not go so far.
    fn passes_through(&self, request: &Request) -> bool {
        let ram = &self.machine.ram;
        let low = Request {
            address: 0,
            ..*request
        };
        let narrow = request.address >> self.machine.options.host_bits == 0;
        if narrow || walks::is_first_stage(ram, &self.unit, request) {
            return false;
        }
        let mut unit = self.unit.clone();
        let reaches = unit.translate(ram, &mut Nobody, &low);
        reaches.is_ok_and(|to| to.page_bits == 64 && unit.register(GSTS).translation())
    }

    /// Whether the unit keeps a translation for the page, and it lacks the right that `request` needs.
    fn keeps_without(&self, request: &Request) -> bool {
        let lacks = |to: Translated| match request.access {
            Access::Write => !to.writes,
            _ => !to.reads,
        };
        [Access::Read, Access::Write].into_iter().any(|access| {
            // What a unit answers that cannot read memory is what it keeps.
            let request = Request { access, ..*request };
            let kept = self
                .unit
                .clone()
                .translate(&Ram::new(0), &mut Nobody, &request);
            kept.is_ok_and(lacks)
        })
    }
}
