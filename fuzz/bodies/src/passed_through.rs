// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A function of the host that says anything of itself, passed through to a guest that does anything with it.
//!
//! Whatever both do, the function is asked for what a function has: configuration space below 256, registers inside its regions, pages inside
//! what it lets be mapped.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arbitrary::{Arbitrary, Unstructured};
use hvkit_virtio_devices::fake::Vectors;
use hvkit_virtio_devices::pci::PciFunction;
use hvkit_vmm::passthrough::assigned::Wiring;
use hvkit_vmm::passthrough::hardware::{PhysicalFunction, Region, Signals};
use hvkit_vmm::passthrough::pages::Pages;
use hvkit_vmm::passthrough::slots::Slot;
use hvkit_vmm::passthrough::{Assigned, Slots, Windows};

/// The most actions of an input.
const ACTIONS: usize = 32;
/// Where the capabilities begin that an input puts there.
const FIRST: usize = 0x40;

/// What a function says of a region: 2 to the power of what, or any length, and what can be mapped.
#[derive(Arbitrary, Clone, Debug)]
struct Says {
    power: u8,
    odd: bool,
    mappable: Option<(u32, u32)>,
}

impl Says {
    fn region(&self) -> Region {
        let length = match (self.power % 64, self.odd) {
            (0, _) => 0,
            (power, false) => 1 << power,
            (power, true) => (1 << power) + 12,
        };
        let range = |(start, length): (u32, u32)| {
            let start = u64::from(start) << 8;
            start..start.saturating_add(u64::from(length) << 8)
        };
        Region {
            length,
            mappable: self.mappable.map(range).into_iter().collect(),
        }
    }
}

/// A capability: where, what, and where the next is said to be; its body.
#[derive(Arbitrary, Debug)]
struct Said {
    at: u8,
    id: u8,
    next: u8,
    body: [u8; 10],
}

/// What the guest does, and what happens to the function.
#[derive(Arbitrary, Debug)]
enum Action {
    Read(u16, u8),
    Write(u16, [u8; 9], u8),
    BarRead(u8, u64, u8),
    BarWrite(u8, u64, [u8; 17], u8),
    /// As the bus has it: windows come and go as the guest says.
    Windows,
    Reset,
    Gone,
}

#[derive(Arbitrary, Debug)]
struct Input {
    bars: [u32; 6],
    regions: [Says; 6],
    header: u8,
    status: u8,
    first: u8,
    pin: bool,
    said: Vec<Said>,
    actions: Vec<Action>,
}

/// The function: shared, since its owner is given away.
#[derive(Clone)]
struct Hostile {
    config: Arc<Mutex<[u8; 256]>>,
    regions: [Region; 6],
    gone: Arc<Mutex<bool>>,
    pin: bool,
}

/// What a lock guards, whoever panicked with it.
fn held<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hostile {
    fn of(input: &Input) -> Self {
        let mut config = [0; 256];
        config[0x06] = input.status;
        config[0x0e] = input.header & 0x81;
        for (at, bar) in (0x10..).step_by(4).zip(input.bars) {
            config[at..at + 4].copy_from_slice(&bar.to_le_bytes());
        }
        config[0x34] = input.first;
        config[0x3d] = input.pin.into();
        for said in input.said.iter().take(16) {
            let bytes = [said.id, said.next].into_iter().chain(said.body);
            let at = FIRST.max(said.at.into());
            for (place, byte) in config[at..].iter_mut().zip(bytes) {
                *place = byte;
            }
        }
        Hostile {
            config: Arc::new(Mutex::new(config)),
            regions: input.regions.each_ref().map(Says::region),
            gone: Arc::default(),
            pin: input.pin,
        }
    }

    fn inside(&self, bar: u8, offset: u64, length: usize) {
        let has = self.regions[usize::from(bar)].length;
        let end = offset.checked_add(length as u64);
        assert!(
            end.is_some_and(|end| end <= has),
            "{length} bytes at {offset:#x} of {has:#x} in region {bar}"
        );
    }
}

impl PhysicalFunction for Hostile {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let start = usize::from(offset);
        data.copy_from_slice(&held(&self.config)[start..start + data.len()]);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let start = usize::from(offset);
        // It answers with something else than it was told.
        for (place, byte) in held(&self.config)[start..start + data.len()]
            .iter_mut()
            .zip(data)
        {
            *place ^= byte;
        }
    }

    fn region(&self, bar: u8) -> Region {
        self.regions[usize::from(bar)].clone()
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        self.inside(bar, offset, data.len());
        data.fill(0xee);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.inside(bar, offset, data.len());
    }

    fn pages(&self, bar: u8, range: Range<u64>) -> io::Result<Pages> {
        let region = &self.regions[usize::from(bar)];
        let inside = |whole: &Range<u64>| whole.start <= range.start && range.end <= whole.end;
        assert!(
            range.start < range.end && region.mappable.iter().any(inside),
            "{range:?} of {region:?}"
        );
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn has_pin(&self) -> bool {
        self.pin
    }

    fn signal(&self, _: Signals<'_>) -> io::Result<()> {
        Ok(())
    }

    fn is_gone(&self) -> bool {
        *held(&self.gone)
    }

    fn reset(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Nothing is ever mapped: no page is given.
struct NoSlots;

impl Slots for NoSlots {
    fn map(&self, guest: u64, _: Arc<Pages>) -> io::Result<Slot> {
        panic!("pages at {guest:#x}, of a function that gave none");
    }
}

fn check(input: &Input) {
    let function = Hostile::of(input);
    let wiring = Wiring {
        vectors: &mut |_| Ok(Arc::new(Vectors::default())),
        pin: None,
        slots: Arc::new(NoSlots),
        windows: Windows {
            low: 1 << 30,
            high: 1 << 40,
        },
    };
    let Ok(mut assigned) = Assigned::new(Box::new(function.clone()), wiring) else {
        return;
    };
    let mut there = Vec::new();
    for action in input.actions.iter().take(ACTIONS) {
        let mut bytes = [0; 16];
        match action {
            Action::Read(offset, length) => {
                assigned.config_read(*offset, &mut bytes[..usize::from(length % 9)]);
            }
            Action::Write(offset, bytes, length) => {
                assigned.config_write(*offset, &bytes[..usize::from(length % 10)]);
            }
            Action::BarRead(bar, offset, length) => {
                assigned.bar_read(bar % 6, *offset, &mut bytes[..usize::from(length % 17)]);
            }
            Action::BarWrite(bar, offset, bytes, length) => {
                assigned.bar_write(bar % 6, *offset, &bytes[..usize::from(length % 18)]);
            }
            Action::Windows => {
                for window in std::mem::take(&mut there) {
                    assigned.window_removed(window);
                }
                there = assigned.windows();
                for window in &there {
                    assigned.window_added(*window);
                }
            }
            Action::Reset => assigned.reset(),
            Action::Gone => *held(&function.gone) = true,
        }
    }
}

/// Reads `data` as what a function says and a guest does.
pub fn run(data: &[u8]) {
    if let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) {
        check(&input);
    }
}
