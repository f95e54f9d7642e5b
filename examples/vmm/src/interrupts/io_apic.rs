// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An I/O APIC of our own, with 24 inputs and an EOI register, whose messages a remapping unit may turn.
//!
//! ```text
//!   63:56 destination | 16 masked | 15 level | 14 remote IRR | 11 logical | 10:8 delivery | 7:0 vector
//!   63:49 index 14:0 | 48: 1      | ...                      | 11 index 15 |              | 7:0 vector      remappable
//! ```
//!
//! Locks are taken in this order: a line's, this, the remapping unit's, the router's. Edges on a masked input are lost, as
//! on the real one.
//!
//! Intel 82093AA I/O Advanced Programmable Interrupt Controller, "Register Description"; for the EOI register, I/O
//! Controller Hub 9, "I/O Advanced Programmable Interrupt Controller"; VT-d, "I/OxAPIC Programming".

use super::remapper::Source;
use super::router::Router;
use super::routing::Gsi;
use crate::bus::BusDevice;
use crate::machine::address_map::IO_APIC_PINS;
use hvkit_virtio_devices::pci::{Level, MsiMessage};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of the register window.
pub const WINDOW: u64 = 0x1000;

const PINS: usize = IO_APIC_PINS as usize;
/// Offsets of registers.
const SELECT: u64 = 0x00;
const DATA: u64 = 0x10;
const EOI: u64 = 0x40;
/// Registers by [`SELECT`].
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const FIRST_ENTRY: u8 = 0x10;

/// With an EOI register, and the highest entry in bits 23:16.
const VERSION_WORD: u32 = 0x20 | (IO_APIC_PINS - 1) << 16;
const ID_BITS: u32 = 0x0f00_0000;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const LOGICAL: u64 = 1 << 11;
const DELIVERY: u64 = 7 << 8;
/// Delivery status and remote IRR are hardware's.
const READ_ONLY: u64 = REMOTE_IRR | 1 << 12;
/// What has no meaning, in both formats.
const RESERVED: u64 = 0x0000_ffff_fffe_0000;

/// Address of interrupt messages.
const MESSAGES: u64 = 0xfee0_0000;
/// Of the data of a level-triggered message: level asserted.
const ASSERT: u32 = 1 << 14;

/// The message that an entry stands for.
fn message(entry: u64) -> MsiMessage {
    let high = entry >> 48;
    // Of the remappable format bits 63:48 are index and format, which go to address bits 19:4; of the other, bits 63:56
    // go to 19:12.
    let address = if high & 1 != 0 {
        high << 4
    } else {
        (high >> 8) << 12
    };
    let logical = (entry & LOGICAL) >> 11 << 2;
    let data = (entry & (LEVEL | DELIVERY | 0xff)) as u32;
    let assert = if entry & LEVEL != 0 { ASSERT } else { 0 };
    MsiMessage {
        address: MESSAGES | address | logical,
        data: data | assert,
    }
}

/// Who holds an input asserted until the end of the interrupt.
struct Held {
    key: u64,
    pin: usize,
    asserted: bool,
    resample: EventFd,
}

struct State {
    select: u8,
    id: u32,
    entries: [u64; PINS],
    /// Inputs that are asserted until somebody says otherwise.
    lines: u32,
    held: Vec<Held>,
    last_key: u64,
}

impl State {
    /// What an input is set to; one that is not there is masked.
    fn entry(&self, pin: usize) -> u64 {
        self.entries.get(pin).copied().unwrap_or(MASKED)
    }

    fn set_entry(&mut self, pin: usize, entry: u64) {
        if let Some(place) = self.entries.get_mut(pin) {
            *place = entry;
        }
    }

    fn is_asserted(&self, pin: usize) -> bool {
        let held = || {
            self.held
                .iter()
                .any(|held| held.pin == pin && held.asserted)
        };
        self.lines >> pin & 1 != 0 || held()
    }
}

/// The controller as it was saved: its inputs are the devices'.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoApicState {
    /// The register that is selected.
    pub select: u8,
    /// The ID register.
    pub id: u32,
    /// The redirection entries.
    pub entries: [u64; PINS],
}

/// The controller.
pub struct IoApic {
    source: Source,
    router: OnceLock<Weak<Router>>,
    state: Mutex<State>,
}

impl std::fmt::Debug for IoApic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.state().entries).finish()
    }
}

impl IoApic {
    /// A controller after a reset, every input masked. It requests interrupts as `source`.
    #[must_use]
    pub fn new(source: Source) -> Self {
        IoApic {
            source,
            router: OnceLock::new(),
            state: Mutex::new(State {
                select: 0,
                id: 0,
                entries: [MASKED; PINS],
                lines: 0,
                held: Vec::new(),
                last_key: 0,
            }),
        }
    }

    /// Has its messages go through `router`. Once, before the guest runs.
    pub fn connect(&self, router: &Arc<Router>) {
        if self.router.set(Arc::downgrade(router)).is_err() {
            log::error!("the I/O APIC is connected already");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the guest has written.
    #[must_use]
    pub fn save(&self) -> IoApicState {
        let state = self.state();
        IoApicState {
            select: state.select,
            id: state.id,
            entries: state.entries,
        }
    }

    /// Takes what was saved, as if the guest wrote it, and with it which interrupts have not ended. Before any input is
    /// asserted, and when the remapping unit has its state again.
    pub fn restore(&self, saved: &IoApicState) {
        let mut state = self.state();
        state.select = saved.select;
        state.id = saved.id & ID_BITS;
        for (pin, &entry) in saved.entries.iter().enumerate() {
            // What hardware sets cannot be written, only kept.
            let kept = state.entry(pin) | entry & REMOTE_IRR;
            state.set_entry(pin, kept);
            self.entry_written(&mut state, pin, entry);
        }
    }

    /// The input that `gsi` is wired to: the PC's timer is on input 2.
    fn pin(gsi: Gsi) -> Option<usize> {
        let pin = if gsi.0 == 0 { 2 } else { gsi.0 as usize };
        (pin < PINS).then_some(pin)
    }

    /// Sets the level of an input.
    pub fn set_level(&self, gsi: Gsi, level: Level) {
        let Some(pin) = Self::pin(gsi) else { return };
        let mut state = self.state();
        let before = state.is_asserted(pin);
        match level {
            Level::Asserted => state.lines |= 1 << pin,
            Level::Deasserted => state.lines &= !(1 << pin),
        }
        if !before && state.is_asserted(pin) {
            self.service(&mut state, pin);
        }
    }

    /// An edge on an input.
    pub fn pulse(&self, gsi: Gsi) {
        if let Some(pin) = Self::pin(gsi) {
            self.service(&mut self.state(), pin);
        }
    }

    /// One more who may assert an input, until the end of the interrupt, when `resample` is written. The key to do it by.
    pub fn hold(&self, gsi: Gsi, resample: EventFd) -> Option<u64> {
        let pin = Self::pin(gsi)?;
        let mut state = self.state();
        state.last_key = state.last_key.wrapping_add(1);
        let key = state.last_key;
        state.held.push(Held {
            key,
            pin,
            asserted: false,
            resample,
        });
        Some(key)
    }

    /// Asserts its input.
    pub fn assert(&self, key: u64) {
        let mut state = self.state();
        let held = state.held.iter().find(|held| held.key == key);
        let Some(pin) = held.map(|held| held.pin) else {
            return;
        };
        let before = state.is_asserted(pin);
        for held in state.held.iter_mut().filter(|held| held.key == key) {
            held.asserted = true;
        }
        if !before {
            self.service(&mut state, pin);
        }
    }

    /// Ends what [`hold`](Self::hold) began.
    pub fn release(&self, key: u64) {
        self.state().held.retain(|held| held.key != key);
    }

    /// A processor ended the interrupt `vector`, or the guest said so here.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut state = self.state();
        for pin in 0..PINS {
            let entry = state.entry(pin);
            let ends = entry & LEVEL != 0 && entry & REMOTE_IRR != 0;
            if ends && entry as u8 == vector {
                state.set_entry(pin, entry & !REMOTE_IRR);
                for held in &mut state.held {
                    if held.pin == pin && held.asserted {
                        held.asserted = false;
                        // Fails only if it is full, and then it was written.
                        let _ = held.resample.write(1);
                    }
                }
                if state.is_asserted(pin) {
                    self.service(&mut state, pin);
                }
            }
        }
    }

    /// An input is asserted: sends its message, unless that is masked or not ended yet.
    fn service(&self, state: &mut State, pin: usize) {
        let entry = state.entry(pin);
        let waits = entry & LEVEL != 0 && entry & REMOTE_IRR != 0;
        if entry & MASKED != 0 || waits {
            return;
        }
        if entry & LEVEL != 0 {
            state.set_entry(pin, entry | REMOTE_IRR);
        }
        if let Some(router) = self.router.get().and_then(Weak::upgrade) {
            router.request(self.source, message(entry));
        }
    }

    fn entry_written(&self, state: &mut State, pin: usize, value: u64) {
        let before = state.entry(pin);
        let mut entry = value & !(READ_ONLY | RESERVED) | before & READ_ONLY;
        if entry & LEVEL == 0 {
            entry &= !REMOTE_IRR;
        }
        state.set_entry(pin, entry);
        // KVM wants to know which interrupts have an end that matters.
        let announced = |entry| (entry & (LEVEL | MASKED) == LEVEL).then(|| message(entry));
        if announced(before) != announced(entry)
            && let Some(router) = self.router.get().and_then(Weak::upgrade)
        {
            router.announce(Gsi(pin as u32), self.source, announced(entry));
        }
        if entry & LEVEL != 0 && state.is_asserted(pin) {
            self.service(state, pin);
        }
    }

    fn read_register(&self, state: &State) -> u32 {
        match state.select {
            ID | ARBITRATION => state.id,
            VERSION => VERSION_WORD,
            other => match entry_of(other) {
                Some((pin, shift)) => (state.entry(pin) >> shift) as u32,
                None => 0,
            },
        }
    }

    fn write_register(&self, state: &mut State, value: u32) {
        match state.select {
            ID => state.id = value & ID_BITS,
            other => {
                if let Some((pin, shift)) = entry_of(other) {
                    let kept = state.entry(pin) & !(0xffff_ffff << shift);
                    self.entry_written(state, pin, kept | u64::from(value) << shift);
                }
            }
        }
    }
}

/// The entry that a register is half of, and where that half begins.
fn entry_of(register: u8) -> Option<(usize, u32)> {
    let offset = register.checked_sub(FIRST_ENTRY)?;
    let pin = usize::from(offset / 2);
    (pin < PINS).then_some((pin, u32::from(offset % 2) * 32))
}

/// Its registers on the memory bus.
#[derive(Debug)]
pub struct Window(pub Arc<IoApic>);

impl BusDevice for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let state = self.0.state();
        let word = match offset {
            SELECT => state.select.into(),
            DATA => self.0.read_register(&state),
            _ => 0,
        };
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(word.to_le_bytes()) {
            *byte = value;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut word = [0; 4];
        for (byte, value) in word.iter_mut().zip(data) {
            *byte = *value;
        }
        let [low, ..] = word;
        match offset {
            SELECT => self.0.state().select = low,
            DATA => {
                let mut state = self.0.state();
                self.0.write_register(&mut state, u32::from_le_bytes(word));
            }
            EOI => self.0.end_of_interrupt(low),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
