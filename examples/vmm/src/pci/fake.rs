// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A function with registers of its own, and a kernel that remembers its doorbells.

use super::decode::Decoder;
use super::doorbells::Doorbells;
use super::root::Root;
use crate::bus::Bus;
use hvkit_virtio_devices::pci::{Doorbell, PciFunction, Window};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

pub(crate) const MMIO32: std::ops::Range<u64> = 0xc000_0000..0xe000_0000;
pub(crate) const MMIO64: std::ops::Range<u64> = 0x1_0000_0000..0x11_0000_0000;

/// A root with nothing on it, the bus its windows appear on, and its doorbells.
pub(crate) fn bench() -> (Root, Arc<Bus>, Arc<FakeDoorbells>) {
    let bus = Arc::new(Bus::default());
    let doorbells = Arc::new(FakeDoorbells::default());
    let apertures = [MMIO32, MMIO64];
    let decoder = Decoder::new(Arc::clone(&bus), apertures, doorbells.clone());
    (Root::new(decoder), bus, doorbells)
}

#[derive(Clone, Copy)]
pub(crate) struct FakeBar {
    pub(crate) index: u8,
    pub(crate) length: u64,
    /// Bits 3:0 of the register.
    pub(crate) flags: u8,
}

impl FakeBar {
    pub(crate) fn wide(&self) -> bool {
        self.flags & 7 == 4
    }
}

/// Type 0 header; BARs, command and interrupt line are writable, all else is read-only.
pub(crate) struct FakeFunction {
    pub(crate) config: [u8; 4096],
    pub(crate) bars: Vec<FakeBar>,
    pub(crate) bells: Vec<(u8, u64, EventFd)>,
    pub(crate) log: Vec<(u8, u64, Vec<u8>)>,
    /// The windows that it was told of and that were not taken from it.
    pub(crate) told: Vec<Window>,
}

impl FakeFunction {
    pub(crate) fn new() -> Self {
        let mut config = [0; 4096];
        // Distinct bytes where no rule says otherwise.
        for (register, byte) in config.iter_mut().enumerate().skip(0x40) {
            *byte = (register * 7 % 251) as u8;
        }
        config[..4].copy_from_slice(&[0xaf, 0x1b, 0x42, 0x10]);
        FakeFunction {
            config,
            bars: Vec::new(),
            bells: Vec::new(),
            log: Vec::new(),
            told: Vec::new(),
        }
    }

    pub(crate) fn with_pin(mut self, pin: u8) -> Self {
        self.config[0x3d] = pin;
        self
    }

    pub(crate) fn with_bar(mut self, index: u8, length: u64, flags: u8) -> Self {
        let bar = FakeBar {
            index,
            length,
            flags,
        };
        self.config[0x10 + 4 * usize::from(index)] = flags;
        self.bars.push(bar);
        self
    }

    pub(crate) fn with_bell(mut self, bar: u8, offset: u64) -> Self {
        self.bells.push((bar, offset, EventFd::new(0).unwrap()));
        self
    }

    pub(crate) fn shared(self) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(self))
    }

    pub(crate) fn address(&self, bar: &FakeBar) -> u64 {
        let at = 0x10 + 4 * usize::from(bar.index);
        let word = |at: usize| {
            u64::from(u32::from_le_bytes(
                self.config[at..at + 4].try_into().unwrap(),
            ))
        };
        let high = if bar.wide() { word(at + 4) } else { 0 };
        (high << 32 | word(at)) & !0xf
    }
}

impl PciFunction for FakeFunction {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4));
        assert_eq!(usize::from(offset) % data.len(), 0, "{offset:#x}");
        let offset = usize::from(offset);
        data.copy_from_slice(&self.config[offset..offset + data.len()]);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4));
        assert_eq!(usize::from(offset) % data.len(), 0, "{offset:#x}");
        for (at, &byte) in (usize::from(offset)..).zip(data) {
            let writable = match at {
                0x04 => 0x07,
                0x3c => 0xff,
                0x10..0x28 => self
                    .bars
                    .iter()
                    .find_map(|bar| {
                        let first = 0x10 + 4 * usize::from(bar.index);
                        let registers = if bar.wide() { 8 } else { 4 };
                        let byte = at.checked_sub(first).filter(|&b| b < registers)?;
                        Some(((bar.length - 1) | 0xf).to_le_bytes()[byte] ^ 0xff)
                    })
                    .unwrap_or(0),
                _ => 0,
            };
            self.config[at] = self.config[at] & !writable | byte & writable;
        }
    }

    fn windows(&self) -> Vec<Window> {
        if self.config[4] & 2 == 0 {
            return Vec::new();
        }
        let decoding = self.bars.iter().filter(|bar| bar.flags & 1 == 0);
        decoding
            .map(|bar| Window {
                bar: bar.index,
                address: self.address(bar),
                length: bar.length,
            })
            .filter(|window| window.address != 0)
            .collect()
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(bar << 4 | offset as u8 & 0xf);
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        self.log.push((bar, offset, data.to_vec()));
    }

    fn doorbells(&self) -> Vec<Doorbell<'_>> {
        let bells = self.bells.iter();
        bells
            .map(|&(bar, offset, ref event)| Doorbell { bar, offset, event })
            .collect()
    }

    fn window_added(&mut self, window: Window) {
        assert!(!self.told.contains(&window), "told twice of {window:x?}");
        self.told.push(window);
    }

    fn window_removed(&mut self, window: Window) {
        let at = self.told.iter().position(|&told| told == window);
        self.told.remove(at.expect("a window that was never there"));
    }
}

/// Refuses what KVM refuses: the same event twice at one address, and to detach what is not there.
#[derive(Default)]
pub(crate) struct FakeDoorbells {
    pub(crate) attached: Mutex<BTreeSet<(u64, i32)>>,
    pub(crate) full: Mutex<bool>,
}

impl FakeDoorbells {
    pub(crate) fn addresses(&self) -> Vec<u64> {
        let attached = self.attached.lock().unwrap();
        attached.iter().map(|&(address, _)| address).collect()
    }
}

impl Doorbells for FakeDoorbells {
    fn attach(&self, address: u64, event: &EventFd) -> io::Result<()> {
        if *self.full.lock().unwrap() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let mut attached = self.attached.lock().unwrap();
        match attached.insert((address, event.as_raw_fd())) {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::EEXIST)),
        }
    }

    fn detach(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let mut attached = self.attached.lock().unwrap();
        match attached.remove(&(address, event.as_raw_fd())) {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        }
    }
}
