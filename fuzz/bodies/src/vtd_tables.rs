// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hostile VT-d tables: the unit that keeps nothing, the one that keeps all, and the inspector say the same of each
//! request; what is let through in legacy mode is what a walk by hand finds.

use arbitrary::{Arbitrary, Unstructured};
use hvkit_vtd_iommu::emulation::fake::{Journal, Ram};
use hvkit_vtd_iommu::emulation::{Access, Caching, Fate, Options, Process, Request, Unit};
use hvkit_vtd_iommu::inspect::{Explanation, Kind};
use hvkit_vtd_iommu::spec::registers::{FSTS, GCMD, RTADDR, RootTableAddress};
use hvkit_vtd_iommu::spec::{Pasid, RequesterId};

/// Bytes of memory: 16 frames, all of which may be tables.
const MEMORY: u64 = 0x1_0000;
const HOST_BITS: u32 = 46;

/// A word of the tables.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Word {
    Any(u64),
    /// What leads to a frame, with low bits, and perhaps one more.
    Leads {
        frame: u8,
        low: u16,
        extra: Option<u8>,
    },
}

#[derive(Arbitrary, Debug)]
struct Store {
    /// Mostly where the requests below look: the first entries of a frame.
    slot: u16,
    near: bool,
    word: Word,
}

#[derive(Arbitrary, Debug)]
struct Ask {
    address: u64,
    near: bool,
    access: Access4,
    pasid: Option<u8>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Access4 {
    Read,
    Write,
    Atomic,
    ZeroLengthRead,
}

#[derive(Arbitrary, Debug)]
struct Case {
    kind: u8,
    root_low: u16,
    stores: Vec<Store>,
    asks: Vec<Ask>,
}

/// Asks what `data` lists of the tables that it lists.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary(&mut Unstructured::new(data)) else {
        return;
    };
    let options = match case.kind % 3 {
        0 => Options::new(HOST_BITS),
        1 => Options::new(HOST_BITS).with_scalable_mode(),
        _ => Options::new(HOST_BITS)
            .with_scalable_mode()
            .with_device_tlbs(),
    };
    let options = Options {
        iotlb_pages: 64,
        // Few domains: a unit has room for each.
        capability: options.capability.with_nd(0),
        ..options
    };
    let ram = Ram::new(MEMORY);
    for store in case.stores.iter().take(48) {
        let slot = if store.near {
            // The first words of a frame, and those of the device's entries.
            let inside = [0, 1, 2, 3, 48, 49, 8, 9][usize::from(store.slot) % 8];
            u64::from(store.slot >> 3) % 16 * 512 + inside
        } else {
            u64::from(store.slot) % (MEMORY / 8)
        };
        let word = match store.word {
            Word::Any(word) => word,
            Word::Leads { frame, low, extra } => {
                let extra = extra.map_or(0, |bit| 1 << (bit % 64));
                u64::from(frame % 16) << 12 | u64::from(low & 0xfff) | extra
            }
        };
        ram.set(slot * 8, word);
    }
    // Legacy or scalable, or what is neither.
    let root = RootTableAddress(u64::from(case.root_low & 0xc00));
    let mut units = [Caching::Never, Caching::UntilInvalidated].map(|caching| {
        let mut unit = Unit::new(options.with_caching(caching)).expect("the presets");
        let world = &mut Journal::default();
        unit.write64(&ram, world, RTADDR.offset(), root.0);
        for command in [1 << 30, 1 << 31] {
            unit.write32(&ram, world, GCMD.offset(), command);
        }
        unit
    });
    for ask in case.asks.iter().take(8) {
        one(&ram, options, root, &mut units, ask);
    }
}

fn one(ram: &Ram, options: Options, root: RootTableAddress, units: &mut [Unit; 2], ask: &Ask) {
    let access = match ask.access {
        Access4::Read => Access::Read,
        Access4::Write => Access::Write,
        Access4::Atomic => Access::Atomic,
        Access4::ZeroLengthRead => Access::ZeroLengthRead,
    };
    let address = if ask.near {
        ask.address & 0x7fff
    } else {
        ask.address
    };
    let mut request = Request::new(RequesterId(0x18), address, access);
    if let Some(pasid) = ask.pasid {
        request = request.with_process(Process::user(Pasid::from_field(u32::from(pasid) % 4)));
    }
    let before = ram.hash();
    let why = Explanation::new(ram, options, root, request).expect("the presets");
    assert_eq!(ram.hash(), before, "an inspector writes nothing");
    assert!(!why.to_string().is_empty());
    let world = &mut Journal::default();
    let told = units
        .each_mut()
        .map(|unit| unit.translate(ram, world, &request));
    let fate = told[0].err().map(|refused| refused.fate);
    let [fresh, kept] = told.map(|told| told.map_err(|refused| refused.reason));
    // Marks change tables, which here may be any tables: those that hold marks are no longer what was explained.
    if ram.hash() == before {
        assert_eq!(fresh, why.verdict, "{why}");
        assert_eq!(
            kept.map(|to| to.address),
            fresh.map(|to| to.address),
            "{why}"
        );
    }
    let pending = units[0].register(FSTS).pending();
    match fate {
        Some(Fate::Recorded(_) | Fate::Collapsed) => assert!(pending, "{why}"),
        Some(Fate::Disabled) => assert!(has_disabled(&why), "{why}"),
        _ => {}
    }
    if let Ok(to) = fresh
        && root.0 & 0xc00 == 0
        && let Some(by_hand) = by_hand(ram, address)
    {
        assert_eq!(to.address, by_hand, "{why}");
    }
}

/// Whether an entry on the way says that faults are not recorded (FPD).
fn has_disabled(why: &Explanation) -> bool {
    why.entries.iter().any(|entry| {
        let tells = matches!(
            entry.kind,
            Kind::Context | Kind::PasidDirectory | Kind::Pasid
        );
        tells && entry.words[0] & 2 != 0
    })
}

/// Where legacy tables lead, if they are good: by the figures, with no check but those that say where to go.
fn by_hand(ram: &Ram, address: u64) -> Option<u64> {
    let read = |at: u64| (at < MEMORY).then(|| ram.get(at));
    const FRAME: u64 = 0x3fff_ffff_f000;
    let context = read(0)? & FRAME;
    let entry = context + 0x18 * 16;
    let (low, high) = (read(entry)?, read(entry + 8)?);
    if low >> 2 & 3 == 2 {
        return Some(address);
    }
    let mut table = low & FRAME;
    let levels = (high & 7) + 2;
    for level in (0..levels).rev() {
        let index = address >> (12 + 9 * level) & 0x1ff;
        let entry = read(table + 8 * index)?;
        if level == 0 || entry & 0x80 != 0 {
            let size = 1u64 << (12 + 9 * level);
            return Some(entry & FRAME & !(size - 1) | address & (size - 1));
        }
        table = entry & FRAME;
    }
    None
}
