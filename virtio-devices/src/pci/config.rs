// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration space of a function with a type 0 header.
//!
//! ```text
//!   00  device, vendor      10..27  base address registers    34  capabilities -> 40.. a list
//!   04  status, command     2c  subsystem                     3c  interrupt pin, line
//!   08  class, revision
//! ```
//!
//! A byte array, with one mask of the bits that software may set and one of those that it clears by
//! writing 1. A write of any width is so split over the fields it covers, and no write can change a
//! read-only bit.
//!
//! PCI Local Bus 3.0, "Configuration Space".

use super::bar::{Bar, BarError, BarKind};
use crate::bytes::read_at;

/// Bytes of configuration space, extended part included.
pub const SIZE: usize = 4096;

/// Offsets of the header's fields.
pub mod register {
    /// Command, 16 bits.
    pub const COMMAND: u16 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u16 = 0x06;
    /// First base address register; six, 32 bits each.
    pub const BARS: u16 = 0x10;
    /// Offset of the first capability, 8 bits.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line, 8 bits: a scratch register for firmware.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin, 8 bits: 0 none, 1 INTA.
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

bitflags::bitflags! {
    /// The command register's bits that a function here can have.
    ///
    /// PCI Local Bus 3.0, "Device Control".
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Command: u16 {
        /// Memory windows decode.
        const MEMORY = 1 << 1;
        /// The function may write memory, interrupt messages included.
        const BUS_MASTER = 1 << 2;
        /// The function may not assert its interrupt pin.
        const INTERRUPT_DISABLE = 1 << 10;
        const _ = !0;
    }
}

/// Status: the interrupt pin would be asserted, were it not disabled.
const STATUS_INTERRUPT: u8 = 1 << 3;
/// Status: there is a list of capabilities.
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// Who a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, subclass and programming interface, from the high byte down.
    pub class: u32,
    /// Vendor of the subsystem.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
}

/// A capability that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for a capability of {length} bytes at {offset:#x}")]
pub struct CapabilityError {
    /// Where it would be.
    pub offset: usize,
    /// Bytes, the two of its header included.
    pub length: usize,
}

/// Configuration space.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: Box<[u8; SIZE]>,
    writable: Box<[u8; SIZE]>,
    clears: Box<[u8; SIZE]>,
    bars: [Option<Bar>; 6],
    last_capability: usize,
    free: usize,
}

impl std::fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigSpace")
            .field("header", &self.bytes.get(..0x40))
            .field("bars", &self.bars)
            .finish_non_exhaustive()
    }
}

impl ConfigSpace {
    /// A function without windows, capabilities or interrupt pin.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: Box::new([0; SIZE]),
            writable: Box::new([0; SIZE]),
            clears: Box::new([0; SIZE]),
            bars: [None; 6],
            last_capability: usize::from(register::CAPABILITIES),
            free: 0x40,
        };
        let [pi, sub, base, _] = identity.class.to_le_bytes();
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(0x08, &[identity.revision, pi, sub, base]);
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        let command = Command::MEMORY | Command::BUS_MASTER | Command::INTERRUPT_DISABLE;
        space.allow(
            usize::from(register::COMMAND),
            &command.bits().to_le_bytes(),
        );
        space.allow(usize::from(register::INTERRUPT_LINE), &[0xff]);
        space
    }

    /// Gives the function the pin INTA.
    pub fn set_interrupt_pin(&mut self) {
        self.put(usize::from(register::INTERRUPT_PIN), &[1]);
    }

    /// Gives the function a memory window of `length` bytes behind base address register `index`, and the
    /// next one too if it is [`BarKind::Memory64`].
    pub fn add_bar(&mut self, index: u8, kind: BarKind, length: u64) -> Result<(), BarError> {
        let bar = Bar::new(index, kind, length)?;
        let slot = usize::from(index);
        let taken = Err(BarError::Taken { index });
        let before = slot.checked_sub(1).and_then(|slot| self.bars.get(slot));
        if before.is_some_and(|b| b.is_some_and(|b| b.registers() == 2)) {
            return taken;
        }
        let slots = slot..slot.saturating_add(bar.registers());
        let Some([first, others @ ..]) = self.bars.get_mut(slots) else {
            return taken;
        };
        if first.is_some() || others.iter().any(Option::is_some) {
            return taken;
        }
        *first = Some(bar);
        let at = usize::from(bar.register());
        self.put(at, &bar.type_bits().to_le_bytes());
        let mask = bar.writable().to_le_bytes();
        let length = bar.registers() << 2;
        self.allow(at, mask.get(..length).unwrap_or(&mask));
        Ok(())
    }

    /// Appends a capability: its identifier, and the bytes after the link to the next one, with a mask of
    /// those bits of `body` that software may set. Returns its offset, a multiple of four.
    ///
    /// PCI Local Bus 3.0, "Capabilities List".
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u16, CapabilityError> {
        self.add_capability_at(self.free, id, body, writable)
    }

    /// As [`add_capability`](Self::add_capability), at an offset of the caller's choice, for drivers that
    /// know where a device has it: behind all capabilities added before, and a multiple of four.
    pub fn add_capability_at(
        &mut self,
        offset: usize,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u16, CapabilityError> {
        let length = body.len().saturating_add(2);
        let refused = CapabilityError { offset, length };
        let end = offset.checked_add(length).filter(|&end| end <= 256);
        let (Some(end), Ok(link)) = (end, u8::try_from(offset)) else {
            return Err(refused);
        };
        if offset < self.free || !offset.is_multiple_of(4) || writable.len() > body.len() {
            return Err(refused);
        }
        self.put(self.last_capability, &[link]);
        // All inside of the first 256 bytes.
        let (next, inside) = (offset.saturating_add(1), offset.saturating_add(2));
        self.last_capability = next;
        self.put(offset, &[id, 0]);
        self.put(inside, body);
        self.allow(inside, writable);
        if let Some(status) = self.status() {
            *status |= STATUS_CAPABILITIES;
        }
        self.free = end.next_multiple_of(4);
        Ok(u16::from(link))
    }

    /// Makes bits of the field at `offset` clear when 1 is written to them. Out of range: no effect.
    pub fn set_clears(&mut self, offset: u16, mask: &[u8]) {
        for (clears, mask) in self.clears.iter_mut().skip(offset.into()).zip(mask) {
            *clears = *mask;
        }
    }

    /// Reads: any offset, any length. Beyond the end: zero.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        read_at(&*self.bytes, offset.into(), data);
    }

    /// Writes what software may write: any offset, any length.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let places = self
            .bytes
            .iter_mut()
            .zip(self.writable.iter())
            .zip(self.clears.iter());
        for (((byte, writable), clears), new) in places.skip(offset.into()).zip(data) {
            *byte = (*byte & !writable) | (new & writable);
            *byte &= !(new & clears);
        }
    }

    /// Sets bytes from the function's side, whatever software may write there. Out of range: no effect.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        for (byte, new) in self.bytes.iter_mut().skip(offset.into()).zip(data) {
            *byte = *new;
        }
    }

    /// The command register.
    pub fn command(&self) -> Command {
        Command::from_bits_retain(self.u16(register::COMMAND))
    }

    /// Shows in the status register whether the interrupt pin is, or would be, asserted.
    pub fn set_interrupt_status(&mut self, pending: super::Level) {
        let Some(status) = self.status() else {
            return;
        };
        match pending {
            super::Level::Asserted => *status |= STATUS_INTERRUPT,
            super::Level::Deasserted => *status &= !STATUS_INTERRUPT,
        }
    }

    /// 16 bits at `offset`, little-endian.
    pub fn u16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// 32 bits at `offset`, little-endian.
    pub fn u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// The windows that decode now: memory space is enabled, and an address was assigned
    /// ([`Bar::window`]).
    pub fn windows(&self) -> Vec<super::Window> {
        if !self.command().contains(Command::MEMORY) {
            return Vec::new();
        }
        self.bars
            .iter()
            .flatten()
            .filter_map(|bar| {
                let low = u64::from(self.u32(bar.register()));
                let high = match bar.registers() {
                    2 => u64::from(self.u32(bar.register().saturating_add(4))),
                    _ => 0,
                };
                bar.window((high << 32) | low)
            })
            .collect()
    }

    /// The window of base address register `index`, assigned or not.
    pub fn bar(&self, index: u8) -> Option<&Bar> {
        self.bars.get(usize::from(index))?.as_ref()
    }

    /// The low byte of the status register, which is there.
    fn status(&mut self) -> Option<&mut u8> {
        self.bytes.get_mut(usize::from(register::STATUS))
    }

    /// At an offset of our own, or one that was checked.
    fn put(&mut self, offset: usize, data: &[u8]) {
        for (byte, new) in self.bytes.iter_mut().skip(offset).zip(data) {
            *byte = *new;
        }
    }

    /// As [`put`](Self::put).
    fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (byte, new) in self.writable.iter_mut().skip(offset).zip(mask) {
            *byte = *new;
        }
    }
}
