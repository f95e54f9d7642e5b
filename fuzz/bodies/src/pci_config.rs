// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI configuration space with any windows and capabilities, written and read in any shape.

use arbitrary::{Arbitrary, Unstructured};
use hvkit_virtio_devices::pci::bar::BarKind;
use hvkit_virtio_devices::pci::config::{ConfigSpace, Identity};

/// The most actions of an input.
const ACTIONS: usize = 32;
/// Bytes of configuration space that the model has.
const SIZE: usize = 4096;

/// A base address register: which, of what kind, 2 to the power of what.
#[derive(Arbitrary, Debug)]
struct Window {
    index: u8,
    kind: u8,
    power: u8,
}

/// An access of software's.
#[derive(Arbitrary, Debug)]
enum Action {
    Write(u16, [u8; 9], u8),
    Read(u16, u8),
}

/// Configuration space as PCI Local Bus 3.0 has it, "Configuration Space": bytes, and which bits software may set.
struct Model {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
}

impl Model {
    /// After `space` was put together: its bytes, and from the specification which bits can be written.
    fn of(space: &ConfigSpace) -> Self {
        let mut model = Model {
            bytes: [0; SIZE],
            writable: [0; SIZE],
        };
        space.read(0, &mut model.bytes);
        // Command: memory space, bus master, interrupt disable. Interrupt line.
        model.writable[4] = 0b110;
        model.writable[5] = 0b100;
        model.writable[0x3c] = 0xff;
        model
    }

    fn window(&mut self, slot: usize, registers: usize, length: u64) {
        // A register's address bits above the window's size.
        let mask = (!(length - 1)).to_le_bytes();
        let at = 0x10 + 4 * slot;
        self.writable[at..at + 4 * registers].copy_from_slice(&mask[..4 * registers]);
    }

    fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, new) in (usize::from(offset)..SIZE).zip(data) {
            let writable = self.writable[at];
            self.bytes[at] = self.bytes[at] & !writable | new & writable;
        }
    }
}

/// Reads agree with the model whatever their shape; windows that decode are aligned, as long as they were made, and apart
/// from their neighbours only if software placed them so.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut space = ConfigSpace::new(Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_8000,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    });
    let mut lengths = Vec::new();
    for _ in 0..3 {
        let Ok(window) = Window::arbitrary(&mut input) else {
            break;
        };
        let kind = [
            BarKind::Memory32,
            BarKind::Memory64,
            BarKind::Memory64Prefetchable,
        ][usize::from(window.kind % 3)];
        let length = 1u64 << (window.power % 64);
        if space.add_bar(window.index, kind, length).is_ok() {
            let registers = if kind == BarKind::Memory32 { 1 } else { 2 };
            lengths.push((usize::from(window.index), registers, length));
        }
    }
    let body = <[u8; 6]>::arbitrary(&mut input).unwrap_or_default();
    let offset = u16::arbitrary(&mut input).unwrap_or_default();
    let mask = [0xff, 0, 0x0f];
    let capability = space.add_capability_at(offset.into(), 9, &body, &mask);
    let mut model = Model::of(&space);
    for &(slot, registers, length) in &lengths {
        model.window(slot, registers, length);
    }
    if let Ok(at) = capability {
        let at = usize::from(at) + 2;
        model.writable[at..at + mask.len()].copy_from_slice(&mask);
    }
    for _ in 0..ACTIONS {
        match Action::arbitrary(&mut input) {
            Ok(Action::Write(offset, data, length)) => {
                let data = &data[..usize::from(length) % 10];
                space.write(offset, data);
                model.write(offset, data);
            }
            Ok(Action::Read(offset, length)) => {
                let mut read = vec![0xaa; length.into()];
                space.read(offset, &mut read);
                for (at, byte) in (usize::from(offset)..).zip(&read) {
                    assert_eq!(*byte, model.bytes.get(at).copied().unwrap_or(0), "{at:#x}");
                }
            }
            Err(_) => break,
        }
    }
    let mut whole = [0; SIZE];
    space.read(0, &mut whole);
    assert_eq!(whole, model.bytes);
    let windows = space.windows();
    assert!(windows.len() <= lengths.len());
    if whole[4] & 2 == 0 {
        assert!(windows.is_empty(), "memory space is off");
    }
    for window in &windows {
        let made = lengths
            .iter()
            .find(|&&(slot, ..)| slot == usize::from(window.bar));
        assert_eq!(made.map(|&(_, _, length)| length), Some(window.length));
        assert_eq!(window.address % window.length, 0, "aligned to its size");
    }
}
