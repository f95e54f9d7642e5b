// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The function on the guest's PCI bus that stands for one of the host's.

use super::bars::{BarLayout, Part, Run};
use super::capabilities::{EXPRESS, VENDOR};
use super::gone::Gone;
use super::hardware::PhysicalFunction;
use super::interrupts::{Interrupts, MsiPart, MsixPart};
use super::pages::Pages;
use super::slots::{Slot, Slots};
use super::view::{View, ViewError, Windows, overlap};
use crate::interrupts::{InterruptError, LevelEvent};
use hvkit_virtio_devices::pci::config::{Command, ConfigSpace, register};
use hvkit_virtio_devices::pci::msi::{self, Msi};
use hvkit_virtio_devices::pci::msix::{self, Msix};
use hvkit_virtio_devices::pci::{Level, MsiVectors, PciFunction, Window};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// PCI Express: Device Control's high byte, and in it Initiate Function Level Reset.
const DEVICE_CONTROL_HIGH: u16 = 0x09;
const RESET: u8 = 1 << 7;
/// PCI Express: Device Status, and in it Transactions Pending.
const DEVICE_STATUS: u16 = 0x0a;
const TRANSACTIONS_PENDING: u8 = 1 << 5;
/// Status: the interrupt pin would be asserted, were it not disabled.
const STATUS_INTERRUPT: u8 = 1 << 3;

/// Makes the vectors of one kind, as many as asked for.
pub type MakeVectors<'a> = &'a mut dyn FnMut(u16) -> Result<Arc<dyn MsiVectors>, InterruptError>;

/// What a machine gives a function.
pub struct Wiring<'a> {
    /// Its vectors.
    pub vectors: MakeVectors<'a>,
    /// The line of its pin, if it has one.
    pub pin: Option<LevelEvent>,
    /// Who maps its registers into the guest.
    pub slots: Arc<dyn Slots>,
    /// Room for its registers.
    pub windows: Windows,
}

impl fmt::Debug for Wiring<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wiring")
            .field("pin", &self.pin)
            .field("windows", &self.windows)
            .finish_non_exhaustive()
    }
}

/// A function that cannot be put on the guest's bus.
#[derive(Debug, thiserror::Error)]
pub enum AssignedError {
    /// What it is.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Its interrupts.
    #[error(transparent)]
    Interrupt(#[from] InterruptError),
}

/// A passed-through function.
pub struct Assigned {
    mapped: Vec<(Window, Vec<Slot>)>,
    pages: [Vec<(u64, Arc<Pages>)>; 6],
    interrupts: Interrupts,
    config: ConfigSpace,
    /// As `config` was before the guest ran.
    initial: ConfigSpace,
    bars: [BarLayout; 6],
    slots: Arc<dyn Slots>,
    express: Option<u16>,
    /// Configuration space that is the function's own.
    own: Vec<Range<u16>>,
    /// The bits of the command register that the function was last given.
    command: Command,
    physical: Box<dyn PhysicalFunction>,
}

impl fmt::Debug for Assigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assigned")
            .field("config", &self.config)
            .field("interrupts", &self.interrupts)
            .field("mapped", &self.mapped)
            .finish_non_exhaustive()
    }
}

impl Assigned {
    /// Stands for `physical`, which was just reset.
    pub fn new(
        physical: Box<dyn PhysicalFunction>,
        wiring: Wiring<'_>,
    ) -> Result<Self, AssignedError> {
        let mut view = View::of(&*physical, wiring.windows)?;
        let Capabilities {
            msi,
            msix,
            express,
            own,
        } = capabilities(&mut view, wiring.vectors)?;
        let pages = std::array::from_fn(|bar| map_direct(&*physical, &view, bar));
        let mut assigned = Assigned {
            mapped: Vec::new(),
            pages,
            interrupts: Interrupts::new(msix, msi, wiring.pin),
            config: view.config.clone(),
            initial: view.config,
            bars: view.bars,
            slots: wiring.slots,
            express,
            own,
            command: Command::empty(),
            physical,
        };
        assigned.tell_command();
        assigned.interrupts.settle(&*assigned.physical);
        Ok(assigned)
    }

    /// Gives the function of the guest's command register what is the function's: whether it may
    /// master the bus, and whether its pin is off. Its memory space stays on whatever the guest says,
    /// for its registers may be mapped, and a guest that cannot take them away cannot be harmed by
    /// another of its own processors that uses them.
    fn tell_command(&mut self) {
        let shared = Command::BUS_MASTER | Command::INTERRUPT_DISABLE;
        let command = (self.config.command() & shared) | Command::MEMORY;
        if command != self.command {
            self.command = command;
            let bytes = command.bits().to_le_bytes();
            self.physical.config_write(register::COMMAND, &bytes);
        }
    }

    /// Function level reset: the function's, and of what stands for it.
    fn reset(&mut self) {
        self.interrupts.off(&*self.physical);
        if let Err(error) = self.physical.reset() {
            log::error!("the guest's reset of the device failed: {error}");
        }
        self.config = self.initial.clone();
        if let Some(part) = &mut self.interrupts.msix {
            part.state.reset();
        }
        self.command = Command::empty();
        self.sync();
    }

    /// Brings interrupts and the function in step with what configuration space says.
    fn sync(&mut self) {
        self.tell_command();
        if let Some(part) = &mut self.interrupts.msix {
            part.state
                .set_control(self.config.u16(part.offset.saturating_add(2)));
        }
        if let Some(part) = &mut self.interrupts.msi {
            let mut body = [0; 12];
            self.config.read(part.offset.saturating_add(2), &mut body);
            part.state.set(&body);
        }
        self.interrupts.settle(&*self.physical);
    }

    /// Shows what only the function knows.
    fn refresh(&mut self, offset: u16, length: usize) {
        let byte = |at| {
            let mut byte = [0];
            self.physical.config_read(at, &mut byte);
            byte[0]
        };
        let touches = |at: u16| overlap(&(at..at.saturating_add(1)), offset, length).is_some();
        if touches(register::STATUS) {
            let level = match byte(register::STATUS) & STATUS_INTERRUPT {
                0 => Level::Deasserted,
                _ => Level::Asserted,
            };
            self.config.set_interrupt_status(level);
        }
        if let Some(status) = self
            .express
            .and_then(|express| express.checked_add(DEVICE_STATUS))
            && touches(status)
        {
            let pending = byte(status) & TRANSACTIONS_PENDING;
            self.config.set(status, &[pending]);
        }
    }

    /// Gives the function up while the guest runs, as if it had been pulled out: the guest's way to its registers goes first, the
    /// function last, and from then on all that is here reads all ones.
    pub fn give_up(&mut self) {
        self.mapped.clear();
        self.pages = Default::default();
        // It must not write the guest's memory when nobody is there for it.
        self.interrupts.off(&*self.physical);
        self.physical.config_write(register::COMMAND, &[0, 0]);
        self.interrupts = Interrupts::new(None, None, None);
        std::mem::replace(&mut self.physical, Box::new(Gone)).close();
    }

    fn run(&self, bar: u8, offset: u64) -> Option<Run> {
        self.bars.get(usize::from(bar))?.run(offset)
    }
}

/// Which bytes of an access at `offset` are those of `common`.
fn within(common: &Range<u16>, offset: u16) -> Range<usize> {
    let start = usize::from(common.start.saturating_sub(offset));
    start..start.saturating_add(common.len())
}

/// Cuts an access at `length`, the bytes until something else begins.
fn split_length(length: u64, data: usize) -> usize {
    usize::try_from(length).map_or(data, |length| length.min(data))
}

impl PciFunction for Assigned {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if self.physical.is_gone() {
            // As of a device that was pulled out. PCI Express, "Completion Status Field": all ones.
            data.fill(0xff);
            return;
        }
        self.refresh(offset, data.len());
        self.config.read(offset, data);
        for range in &self.own {
            if let Some(common) = overlap(range, offset, data.len())
                && let Some(bytes) = data.get_mut(within(&common, offset))
            {
                self.physical.config_read(common.start, bytes);
            }
        }
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        if self.physical.is_gone() {
            return;
        }
        let reset = self.express.is_some_and(|express| {
            let at = express.checked_add(DEVICE_CONTROL_HIGH);
            let index = at.and_then(|at| at.checked_sub(offset));
            let byte = index.and_then(|index| data.get(usize::from(index)));
            byte.is_some_and(|byte| byte & RESET != 0)
        });
        self.config.write(offset, data);
        for range in &self.own {
            if let Some(common) = overlap(range, offset, data.len())
                && let Some(bytes) = data.get(within(&common, offset))
            {
                self.physical.config_write(common.start, bytes);
            }
        }
        match reset {
            true => self.reset(),
            false => self.sync(),
        }
    }

    fn windows(&self) -> Vec<Window> {
        self.config.windows()
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let (mut rest, mut at) = (data, offset);
        while !rest.is_empty() {
            let Some(run) = self.run(bar, at) else {
                return;
            };
            let (now, later) = rest.split_at_mut(split_length(run.length, rest.len()));
            match (run.part, &self.interrupts.msix) {
                (Part::Table, Some(part)) => part.state.table_read(run.offset, now),
                (Part::Pending, Some(part)) => part.pending_read(run.offset, now),
                (Part::Registers, _) => self.physical.bar_read(bar, at, now),
                // MSI-X is hidden: so is what belongs to it.
                (Part::Table | Part::Pending, None) => {}
            }
            at = at.saturating_add(now.len() as u64);
            rest = later;
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        let (mut rest, mut at) = (data, offset);
        while !rest.is_empty() {
            let Some(run) = self.run(bar, at) else {
                return;
            };
            let (now, later) = rest.split_at(split_length(run.length, rest.len()));
            match (run.part, &mut self.interrupts.msix) {
                (Part::Table, Some(part)) => part.state.table_write(run.offset, now),
                (Part::Registers, _) => self.physical.bar_write(bar, at, now),
                (Part::Pending, _) | (Part::Table, None) => {}
            }
            at = at.saturating_add(now.len() as u64);
            rest = later;
        }
    }

    fn window_added(&mut self, window: Window) {
        let pages = self.pages.get(usize::from(window.bar));
        let slots = pages.into_iter().flatten().filter_map(|(offset, pages)| {
            let guest = window.address.checked_add(*offset)?;
            match self.slots.map(guest, Arc::clone(pages)) {
                Ok(slot) => Some(slot),
                // Slower, not wrong: each access exits to us.
                Err(error) => {
                    log::warn!("registers at {guest:#x} are not mapped: {error}");
                    None
                }
            }
        });
        self.mapped.push((window, slots.collect()));
    }

    fn window_removed(&mut self, window: Window) {
        self.mapped.retain(|(mapped, _)| *mapped != window);
    }
}

impl Drop for Assigned {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// What was found of a function's capabilities and shown to the guest.
struct Capabilities {
    msi: Option<MsiPart>,
    msix: Option<MsixPart>,
    express: Option<u16>,
    own: Vec<Range<u16>>,
}

/// Adds to `view` the capabilities that somebody answers for, in the order of their offsets.
fn capabilities(view: &mut View, make: MakeVectors<'_>) -> Result<Capabilities, AssignedError> {
    let mut found = Capabilities {
        msi: None,
        msix: None,
        express: None,
        own: Vec::new(),
    };
    let mut all: Vec<(u8, u8, Vec<u8>, Vec<u8>)> = Vec::new();
    if let Some(shape) = view.msi() {
        let vectors = make(shape.count)?;
        if let Ok(state) = Msi::new(shape.count, shape.width, Arc::clone(&vectors)) {
            let (body, writable) = state.capability();
            found.msi = MsiPart::new(state, shape.offset, &vectors);
            if found.msi.is_some() {
                all.push((shape.offset, msi::CAPABILITY, body, writable));
            }
        }
    }
    if let Some(shape) = view.take_msix() {
        let vectors = make(shape.count)?;
        if let Ok(state) = Msix::new(shape.count, Arc::clone(&vectors)) {
            let (body, writable) = state.capability(shape.table, shape.pending);
            found.msix = MsixPart::new(state, shape.offset, &vectors);
            if found.msix.is_some() {
                let (body, writable) = (body.to_vec(), writable.to_vec());
                all.push((shape.offset, msix::CAPABILITY, body, writable));
            }
        }
    }
    if let Some((offset, body, writable)) = view.express() {
        all.push((offset, EXPRESS, body, writable));
    }
    for (offset, body) in view.vendor() {
        all.push((offset, VENDOR, body, Vec::new()));
    }
    all.sort_by_key(|(offset, ..)| *offset);
    for (offset, id, body, writable) in all {
        let shown = view.add(offset, id, &body, &writable);
        let offset = u16::from(offset);
        match id {
            _ if !shown && id == msi::CAPABILITY => found.msi = None,
            _ if !shown && id == msix::CAPABILITY => found.msix = None,
            _ if !shown => {}
            EXPRESS => found.express = Some(offset),
            VENDOR => {
                // At most 255 bytes, behind identifier and link.
                let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
                let first = offset.saturating_add(2);
                found.own.push(first..first.saturating_add(length));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Maps the pages of `bar` that the guest may reach without us.
fn map_direct(physical: &dyn PhysicalFunction, view: &View, bar: usize) -> Vec<(u64, Arc<Pages>)> {
    let (Some(layout), Some(region)) = (view.bars.get(bar), view.regions.get(bar)) else {
        return Vec::new();
    };
    let ranges = layout.direct(region);
    let map = |range: Range<u64>| match physical.pages(bar as u8, range.clone()) {
        Ok(pages) => Some((range.start, Arc::new(pages))),
        Err(error) => {
            log::warn!("registers {range:#x?} of BAR {bar} are not mapped: {error}");
            None
        }
    };
    ranges.into_iter().filter_map(map).collect()
}
