// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt-remapping entries and messages: what the emulated unit makes of them is what the figures say, with
//! and without kept entries.

use arbitrary::{Arbitrary, Unstructured};
use hvkit_vtd_iommu::emulation::fake::{Journal, Ram};
use hvkit_vtd_iommu::emulation::{Caching, Delivered, Options, Unit};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::interrupt::Message;
use hvkit_vtd_iommu::spec::registers::{GCMD, IRTA};

const MEMORY: u64 = 0x4000;
const TABLE: u64 = 0x1000;
/// 16 entries.
const SIZE: u64 = 3;

/// What software and devices do.
#[derive(Arbitrary, Debug)]
enum Action {
    /// An entry is any two words.
    Entry { index: u8, words: [u64; 2] },
    /// An entry that is nearly good: only the bits that mean something, and one more.
    Good {
        index: u8,
        words: [u64; 2],
        extra: Option<u8>,
    },
    /// A device asks for an entry.
    Ask {
        source: u16,
        near: bool,
        index: u8,
        data: u32,
        with_subhandle: bool,
    },
    /// A device sends anything.
    Send {
        source: u16,
        address: u32,
        data: u32,
    },
    /// A posted-interrupt descriptor changes.
    Descriptor { word: u8, value: u64 },
}

/// Runs the actions that `data` lists.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(kind) = u8::arbitrary(&mut input) else {
        return;
    };
    let options = Options::new(39).with_posted_interrupts();
    let options = Options {
        iotlb_pages: 64,
        // Few domains: a unit has room for each.
        capability: options.capability.with_nd(0),
        ..options
    };
    let (extended, compatible) = (kind & 1 != 0, kind & 2 != 0);
    let ram = Ram::new(MEMORY);
    let world = &mut Journal::default();
    let mut units = [Caching::Never, Caching::UntilInvalidated].map(|caching| {
        let mut unit = Unit::new(options.with_caching(caching)).expect("the presets");
        let table = TABLE | u64::from(extended) << 11 | SIZE;
        unit.write64(&ram, world, IRTA.offset(), table);
        let format = u32::from(compatible) << 23;
        for command in [1 << 24, 1 << 25 | format] {
            unit.write32(&ram, world, GCMD.offset(), command);
        }
        unit
    });
    for _ in 0..24 {
        if input.is_empty() {
            break;
        }
        let Ok(action) = Action::arbitrary(&mut input) else {
            break;
        };
        let mut put = |index: u8, words: [u64; 2]| {
            let at = TABLE + u64::from(index % 16) * 16;
            ram.set_all(at, &words);
            // What software owes after a change: the interrupt entry cache is forgotten. Here by a new pointer, which such a
            // unit takes for that (CAP.ESIRTPS).
            for unit in &mut units {
                let kept = unit.read32(0x1c) & 0x0280_0000;
                unit.write32(&ram, world, GCMD.offset(), 1 << 24 | kept);
            }
        };
        let (source, message) = match action {
            Action::Entry { index, words } => {
                put(index, words);
                continue;
            }
            Action::Good {
                index,
                words,
                extra,
            } => {
                let mut words = good(words, extended);
                if let Some(bit) = extra {
                    words[usize::from(bit) / 64 % 2] ^= 1 << (bit % 64);
                }
                put(index, words);
                continue;
            }
            Action::Descriptor { word, value } => {
                ram.set(0x2000 + u64::from(word % 8) * 8, value);
                continue;
            }
            Action::Ask {
                source,
                near,
                index,
                data,
                with_subhandle,
            } => {
                let index = u16::from(index % 20);
                let source = if near { 0x18 + source % 8 } else { source };
                let message = if with_subhandle {
                    let sub = data as u16 % (index + 1);
                    Message::remappable_block(index - sub, sub)
                } else {
                    Message {
                        data,
                        ..Message::remappable(index)
                    }
                };
                (source, message)
            }
            Action::Send {
                source,
                address,
                data,
            } => {
                let address = u64::from(0xfee0_0000 | address & 0xf_ffff);
                (source, Message { address, data })
            }
        };
        let source = RequesterId(source);
        let foretold = units[0].remapped(&ram, source, message);
        let expected = expect(&ram, extended, compatible, source.0, message);
        // One posts for both: the first sets ON, so the second need not notify.
        let [fresh, kept] = units
            .each_mut()
            .map(|unit| unit.remap(&ram, world, source, message));
        match (expected, fresh) {
            (Expected::Refused(reason), Err(refused)) => assert_eq!(reason, refused.reason.0),
            (Expected::Unchanged, Ok(Delivered::Unchanged(to))) => assert_eq!(to, message),
            (Expected::Remapped(words), Ok(Delivered::Remapped(to))) => {
                let seen = (to.vector, to.delivery.0, to.destination);
                assert_eq!(seen, words);
            }
            (Expected::Posted, Ok(Delivered::Posted { .. }) | Err(_)) => {}
            (expected, seen) => panic!("{expected:?}, and it is {seen:?}"),
        }
        if !matches!(expected, Expected::Posted) {
            assert_eq!(fresh, kept);
            assert_eq!(
                foretold.map_err(|reason| reason.0),
                fresh.map_err(|refused| refused.reason.0)
            );
        }
    }
}

/// The bits of an entry that mean something, P set; the descriptor of a posted one where this memory has it.
fn good([low, high]: [u64; 2], extended: bool) -> [u64; 2] {
    if low & 1 << 15 == 0 {
        let destination = if extended {
            u64::from(u32::MAX)
        } else {
            0xff00
        };
        let meaning = destination << 32 | 0x00ff_0fff;
        [low & meaning | 1, high & 0xf_ffff]
    } else {
        [low & 0x00ff_cf03 | 0x2000 << 32 | 1, high & 0xf_ffff]
    }
}

/// What is to come of a message, from the figures.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Refused(u8),
    Unchanged,
    Remapped((u8, u8, u32)),
    /// Posted; what of is the descriptor's.
    Posted,
}

fn expect(ram: &Ram, extended: bool, compatible: bool, source: u16, message: Message) -> Expected {
    let (address, data) = (message.address, message.data);
    if address & 0x10 == 0 {
        return if compatible && !extended {
            Expected::Unchanged
        } else {
            Expected::Refused(0x25)
        };
    }
    let mut index = address >> 5 & 0x7fff | (address >> 2 & 1) << 15;
    if address & 8 != 0 {
        if data >> 16 != 0 {
            return Expected::Refused(0x20);
        }
        index += u64::from(data & 0xffff);
    }
    if index >= 2 << SIZE {
        return Expected::Refused(0x21);
    }
    let [low, high] = [0, 8].map(|word| ram.get(TABLE + 16 * index + word));
    if low & 1 == 0 {
        return Expected::Refused(0x22);
    }
    let posted = low >> 15 & 1 != 0;
    let reserved = if posted {
        low & 0x0000_003f_ff00_30fc != 0 || high & 0xfff0_0000 != 0
    } else {
        // Without extended mode an xAPIC id is in DST's bits 15:8, and the others are reserved.
        let narrow = !extended && low >> 32 & !0xff00 != 0;
        low & 0xff00_7000 != 0 || high >> 20 != 0 || narrow
    };
    if reserved || high >> 18 & 3 == 3 {
        return Expected::Refused(0x24);
    }
    let sid = high as u16;
    let admitted = match high >> 18 & 3 {
        0 => true,
        1 => {
            let ignored = [0, 4, 6, 7][(high >> 16 & 3) as usize];
            (sid ^ source) & !ignored == 0
        }
        _ => (sid >> 8..=sid & 0xff).contains(&(source >> 8)),
    };
    if !admitted {
        return Expected::Refused(0x26);
    }
    if posted {
        return Expected::Posted;
    }
    let destination = if extended {
        (low >> 32) as u32
    } else {
        (low >> 40 & 0xff) as u32
    };
    Expected::Remapped(((low >> 16) as u8, (low >> 5 & 7) as u8, destination))
}
