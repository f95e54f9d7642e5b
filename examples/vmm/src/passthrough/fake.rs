// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A function made of bytes, and a guest's address space that remembers what was mapped.

use super::hardware::{PhysicalFunction, Region, Signals};
use super::pages::Pages;
use super::slots::{Slot, Slots};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};
use vmm_sys_util::eventfd::EventFd;

/// What the function was told of its interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Off,
    Pin,
    Msi(usize),
    Msix(usize),
}

/// The state of a function that several hands hold.
pub(super) struct Device {
    pub(super) config: [u8; 256],
    pub(super) bars: [Vec<u8>; 6],
    pub(super) mappable: bool,
    pub(super) config_writes: Vec<(u16, Vec<u8>)>,
    pub(super) bar_writes: Vec<(u8, u64, Vec<u8>)>,
    pub(super) told: Vec<Told>,
    pub(super) resets: u32,
    pub(super) refuse: bool,
    events: Vec<EventFd>,
    file: File,
}

/// The function, and the test's hand on it.
#[derive(Clone)]
pub(super) struct FakePhysical(Arc<Mutex<Device>>);

impl FakePhysical {
    /// A function with this configuration space and windows of these lengths.
    pub(super) fn new(config: [u8; 256], lengths: [usize; 6]) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mut bar = 0u8;
        let bars = lengths.map(|length| {
            bar += 1;
            // Distinct bytes, of the window and the offset in it.
            (0..length).map(|at| (at % 251) as u8 ^ bar << 4).collect()
        });
        FakePhysical(Arc::new(Mutex::new(Device {
            config,
            bars,
            mappable: true,
            config_writes: Vec::new(),
            bar_writes: Vec::new(),
            told: Vec::new(),
            resets: 0,
            refuse: false,
            events: Vec::new(),
            file,
        })))
    }

    /// Who else has it.
    pub(super) fn others(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }

    pub(super) fn device(&self) -> MutexGuard<'_, Device> {
        self.0.lock().unwrap()
    }

    /// The device interrupts: the event of `vector` is written, if there is one.
    pub(super) fn interrupt(&self, vector: usize) {
        if let Some(event) = self.device().events.get(vector) {
            event.write(1).unwrap();
        }
    }

    fn check(&self) -> io::Result<()> {
        match self.device().refuse {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }
}

impl PhysicalFunction for FakePhysical {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let start = usize::from(offset);
        data.copy_from_slice(&self.device().config[start..start + data.len()]);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let mut device = self.device();
        device.config_writes.push((offset, data.to_vec()));
        let start = usize::from(offset);
        device.config[start..start + data.len()].copy_from_slice(data);
    }

    fn region(&self, bar: u8) -> Region {
        let device = self.device();
        let length = device.bars[usize::from(bar)].len() as u64;
        let whole = std::iter::once(0..length);
        Region {
            length,
            mappable: whole.filter(|_| device.mappable).collect(),
        }
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let start = offset as usize;
        let device = self.device();
        data.copy_from_slice(&device.bars[usize::from(bar)][start..start + data.len()]);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        let start = offset as usize;
        let mut device = self.device();
        device.bar_writes.push((bar, offset, data.to_vec()));
        device.bars[usize::from(bar)][start..start + data.len()].copy_from_slice(data);
    }

    fn pages(&self, _bar: u8, range: Range<u64>) -> io::Result<Pages> {
        self.check()?;
        let length = (range.end - range.start) as usize;
        Pages::map(self.device().file.as_fd(), range.start, length)
    }

    fn has_pin(&self) -> bool {
        self.device().config[0x3d] != 0
    }

    fn signal(&self, signals: Signals<'_>) -> io::Result<()> {
        let clone = |events: &[EventFd]| events.iter().map(|e| e.try_clone().unwrap()).collect();
        let mut device = self.device();
        let (told, events) = match signals {
            Signals::Off => (Told::Off, Vec::new()),
            Signals::Pin { trigger, .. } => (Told::Pin, vec![trigger.try_clone().unwrap()]),
            Signals::Msi(events) => (Told::Msi(events.len()), clone(events)),
            Signals::Msix(events) => (Told::Msix(events.len()), clone(events)),
        };
        device.told.push(told);
        drop(std::mem::replace(&mut device.events, events));
        drop(device);
        self.check()
    }

    fn reset(&self) -> io::Result<()> {
        self.device().resets += 1;
        self.check()
    }
}

/// Where pages are in the guest.
#[derive(Clone, Default)]
pub(super) struct FakeSlots {
    mapped: Arc<Mutex<BTreeMap<u64, u64>>>,
    pub(super) refuse: Arc<Mutex<bool>>,
}

impl FakeSlots {
    /// First address and length of each.
    pub(super) fn mapped(&self) -> Vec<(u64, u64)> {
        let mapped = self.mapped.lock().unwrap();
        mapped.iter().map(|(&at, &length)| (at, length)).collect()
    }
}

impl Slots for FakeSlots {
    fn map(&self, guest: u64, pages: Arc<Pages>) -> io::Result<Slot> {
        if *self.refuse.lock().unwrap() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut mapped = self.mapped.lock().unwrap();
        let end = guest + pages.length();
        let overlaps = mapped
            .iter()
            .any(|(&at, &length)| at < end && guest < at + length);
        assert!(!overlaps, "KVM refuses slots that overlap");
        mapped.insert(guest, pages.length());
        let all = Arc::clone(&self.mapped);
        Ok(Slot::new(move || {
            all.lock().unwrap().remove(&guest);
            drop(pages);
        }))
    }
}
