// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers of the emulated VT-d unit, as a guest accesses them: any offset, any width, any value; with the queue,
//! commands and tables that they lead to, and devices in between.

use arbitrary::{Arbitrary, Unstructured};
use hvkit_vtd_iommu::emulation::fake::{Journal, Ram};
use hvkit_vtd_iommu::emulation::{Access, Caching, Options, Request, State, Unit};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::interrupt::Message;
use hvkit_vtd_iommu::spec::invalidation::Descriptor;
use hvkit_vtd_iommu::spec::registers::{CAP, ECAP, IQA, VER};

/// Bytes of the guest's memory.
const MEMORY: u64 = 0x8000;
/// Registers that do something when they are written.
const BUSY: [u32; 20] = [
    0x18, 0x20, 0x28, 0x34, 0x38, 0x3c, 0x40, 0x80, 0x88, 0x90, 0x9c, 0xa0, 0xb8, 0xc0, 0xd0, 0xdc,
    0xe0, 0xf0, 0x500, 0x508,
];

/// What guest and devices do.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Action {
    /// Bytes to any place of the window, and beyond.
    Write {
        offset: u16,
        bytes: [u8; 16],
        length: u8,
    },
    /// A register that does something.
    Busy {
        which: u8,
        value: u64,
    },
    /// A word that such a register is meant to hold: a place in memory, with low bits.
    Point {
        which: u8,
        page: u8,
        low: u16,
    },
    /// A global command, as drivers give it: one bit on or off.
    Command {
        bit: u8,
        on: bool,
    },
    Read {
        offset: u16,
        length: u8,
    },
    Store {
        slot: u16,
        word: u64,
    },
    /// A descriptor in the queue, wherever that is, and the tail after it.
    Queue(Descriptor),
    Translate {
        source: u8,
        address: u32,
        write: bool,
    },
    Remap {
        source: u8,
        message: Message,
    },
    SaveAndRestore,
}

/// Runs the actions that `data` lists.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(kind) = u8::arbitrary(&mut input) else {
        return;
    };
    let options = match kind % 4 {
        0 => Options::new(39),
        1 => Options::new(46).with_device_tlbs().with_caching_mode(),
        2 => Options::new(48).with_scalable_mode().with_device_tlbs(),
        _ => Options::new(52)
            .with_scalable_mode()
            .with_posted_interrupts(),
    };
    let options = options.with_caching(if kind & 4 == 0 {
        Caching::Never
    } else {
        Caching::UntilInvalidated
    });
    let options = Options {
        iotlb_pages: 64,
        // Few domains: a unit has room for each.
        capability: options.capability.with_nd(0),
        ..options
    };
    let ram = Ram::new(MEMORY);
    let mut world = Journal {
        silent: kind & 8 != 0,
        ..Journal::default()
    };
    let mut unit = Unit::new(options).expect("the presets can be emulated");
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        let Ok(action) = Action::arbitrary(&mut input) else {
            break;
        };
        act(&mut unit, &ram, &mut world, options, action);
        // What only hardware writes.
        assert_eq!(unit.register(VER), options.version);
        assert_eq!(unit.register(CAP), options.capability);
        assert_eq!(unit.register(ECAP), options.extended);
        world.events.clear();
    }
}

fn act(unit: &mut Unit, ram: &Ram, world: &mut Journal, options: Options, action: Action) {
    let write32 = |unit: &mut Unit, world: &mut Journal, offset, value: u32| {
        unit.write32(ram, world, offset, value);
    };
    match action {
        Action::Write {
            offset,
            bytes,
            length,
        } => {
            let length = usize::from(length) % 17;
            let at = u32::from(offset) % 0x1100;
            unit.write(ram, world, at, &bytes[..length]);
        }
        Action::Busy { which, value } => {
            let offset = BUSY[usize::from(which) % BUSY.len()];
            unit.write64(ram, world, offset, value);
        }
        Action::Point { which, page, low } => {
            let offset = BUSY[usize::from(which) % BUSY.len()];
            let page = u64::from(page % 8) << 12;
            unit.write64(ram, world, offset, page | u64::from(low & 0xfff));
        }
        Action::Command { bit, on } => {
            let status = unit.read32(0x1c) & 0x96ff_ffff;
            let bit = 1 << (22 + u32::from(bit) % 10);
            write32(
                unit,
                world,
                0x18,
                if on { status | bit } else { status & !bit },
            );
        }
        Action::Read { offset, length } => {
            let mut bytes = [0xa5; 16];
            let length = usize::from(length) % 17;
            let at = u32::from(offset) % 0x1100;
            unit.read(at, &mut bytes[..length]);
            // What is read at once is what is read one by one.
            for (i, byte) in bytes[..length].iter().enumerate() {
                let mut single = [0];
                unit.read(at + i as u32, &mut single);
                assert_eq!(single[0], *byte, "{:#x}", at as usize + i);
            }
            assert!(bytes[length..].iter().all(|byte| *byte == 0xa5));
        }
        Action::Store { slot, word } => ram.set(u64::from(slot) * 8 % MEMORY, word),
        Action::Queue(descriptor) => {
            let address = unit.register(IQA);
            let raw = descriptor.encode();
            let tail = unit.read64(0x88) & 0x7_fff0;
            let at = address.queue().wrapping_add(tail);
            if at < MEMORY - 32 {
                ram.set_all(at, &raw.wide());
            }
            let step = if unit.read64(0x90) & 0x800 == 0 {
                16
            } else {
                32
            };
            let tail = (tail + step) % u64::from(address.bytes());
            unit.write64(ram, world, 0x88, tail);
        }
        Action::Translate {
            source,
            address,
            write,
        } => {
            let access = if write { Access::Write } else { Access::Read };
            let request = Request::new(RequesterId(source.into()), address.into(), access);
            let _ = unit.translate(ram, world, &request);
        }
        Action::Remap { source, message } => {
            let _ = unit.remap(ram, world, RequesterId(source.into()), message);
        }
        Action::SaveAndRestore => {
            let state: State = unit.save();
            let again = Unit::try_from((options, &state)).expect("a unit's own state");
            assert_eq!(again.save(), state);
            *unit = again;
        }
    }
}
