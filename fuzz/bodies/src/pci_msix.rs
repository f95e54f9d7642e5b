// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An MSI-X table that software writes in any shape, and interrupts that come at any moment.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use hvkit_virtio_devices::fake::Vectors;
use hvkit_virtio_devices::pci::msix::Msix;

/// The most actions of an input.
const ACTIONS: usize = 48;
/// Bytes of an entry, and where its mask bit is. PCI Local Bus 3.0, "MSI-X Table".
const ENTRY: usize = 16;
const MASK_BYTE: usize = 12;
/// Message Control: enable, function mask.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

/// What software and the device do.
#[derive(Arbitrary, Debug)]
enum Action {
    Write(u16, [u8; 20], u8),
    /// Far away: where offsets wrap.
    WriteAnywhere(u64, [u8; 4]),
    Read(u16, u8),
    ReadPending(u16, u8),
    Control(u16),
    Trigger(u8),
    Reset,
}

/// When a vector's message is sent, by the specification.
struct Model {
    control: u16,
    masked: Vec<bool>,
    pending: Vec<bool>,
}

impl Model {
    fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// Sends what waits and may be sent; which.
    fn settle(&mut self) -> Vec<u16> {
        let mut sent = Vec::new();
        if !self.is_enabled() || self.control & FUNCTION_MASK != 0 {
            return sent;
        }
        for ((pending, masked), vector) in self.pending.iter_mut().zip(&self.masked).zip(0..) {
            if *pending && !masked {
                *pending = false;
                sent.push(vector);
            }
        }
        sent
    }

    fn set_control(&mut self, control: u16) {
        self.control = control & (ENABLE | FUNCTION_MASK);
        if !self.is_enabled() {
            self.pending.fill(false);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (byte, distance) in data.iter().zip(0..) {
            let Some(at) = offset.checked_add(distance) else {
                return;
            };
            let (entry, within) = (at / ENTRY as u64, at % ENTRY as u64);
            let entry = usize::try_from(entry).unwrap_or(usize::MAX);
            if within == MASK_BYTE as u64
                && let Some(masked) = self.masked.get_mut(entry)
            {
                *masked = byte & 1 != 0;
            }
        }
    }
}

/// Messages are sent when the specification says and at no other time; reads agree in every shape.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let count = u16::from(u8::arbitrary(&mut input).unwrap_or(0) % 70) + 1;
    let vectors = Arc::new(Vectors::default());
    let mut msix = Msix::new(count, vectors.clone()).expect("1 to 70 vectors");
    let mut model = Model {
        control: 0,
        masked: vec![true; count.into()],
        pending: vec![false; count.into()],
    };
    for _ in 0..ACTIONS {
        let Ok(action) = Action::arbitrary(&mut input) else {
            break;
        };
        match action {
            Action::Write(offset, data, length) => {
                let (offset, data) = (offset.into(), &data[..usize::from(length) % 21]);
                msix.table_write(offset, data);
                model.write(offset, data);
            }
            Action::WriteAnywhere(offset, data) => {
                msix.table_write(offset, &data);
                model.write(offset, &data);
                msix.table_read(offset, &mut [0; 9]);
                msix.pending_read(offset, &mut [0; 9]);
            }
            Action::Read(offset, length) => {
                let mut whole = vec![0; length.into()];
                msix.table_read(offset.into(), &mut whole);
                for (byte, at) in whole.iter().zip(u64::from(offset)..) {
                    let mut one = [0];
                    msix.table_read(at, &mut one);
                    assert_eq!(one, [*byte], "{at:#x}");
                }
            }
            Action::ReadPending(offset, length) => {
                let mut bits = vec![0; length.into()];
                msix.pending_read(offset.into(), &mut bits);
                for (byte, at) in bits.iter().zip(usize::from(offset)..) {
                    for bit in 0..8 {
                        let pending = model.pending.get(at * 8 + bit).copied();
                        let seen = byte >> bit & 1 != 0;
                        assert_eq!(seen, pending.unwrap_or(false), "vector {}", at * 8 + bit);
                    }
                }
            }
            Action::Control(control) => {
                msix.set_control(control);
                model.set_control(control);
            }
            Action::Trigger(vector) => {
                msix.trigger(vector.into());
                if model.is_enabled()
                    && let Some(pending) = model.pending.get_mut(usize::from(vector))
                {
                    *pending = true;
                }
            }
            Action::Reset => {
                msix.reset();
                model.set_control(0);
                model.masked.fill(true);
            }
        }
        assert_eq!(vectors.delivered(), model.settle());
        assert_eq!(msix.is_enabled(), model.is_enabled());
    }
}
