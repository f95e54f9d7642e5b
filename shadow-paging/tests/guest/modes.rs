// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which paging registers select, and which registers cannot be.

use hvkit_page_table::Root;
use hvkit_shadow_paging::guest::{
    Access, Features, GuestAttributes, GuestFault, GuestTranslation, Kind, Layout, LoadError,
    ModeError, PagingMode, PdpteError, Privilege, Registers, Reserved, probe, translate,
};

use crate::support::{Memory, Refused};

const FEATURES: Features = Features::all(46);
const READ: Access = Access::new(Kind::Read, Privilege::User);

fn load(registers: &Registers, memory: &Memory) -> Result<PagingMode, LoadError<Refused>> {
    PagingMode::load(registers, &FEATURES, memory)
}

fn raw(cr0: u64, cr3: u64, cr4: u64, efer: u64) -> Registers {
    Registers {
        cr0,
        cr3,
        cr4,
        efer,
        ..Registers::default()
    }
}

#[test]
fn raw_registers_select_each_mode() {
    let memory = Memory::new(&[(0x5fe0, 0), (0x5fe8, 0x6001), (0x5ff0, 0), (0x5ff8, 0x7001)]);
    let select = |registers: Registers| {
        let mode = load(&registers, &memory).unwrap();
        let layout = mode.format().map(|format| format.layout());
        match mode.root() {
            Some(Root::Table(table)) => (layout, Some(table)),
            Some(Root::Registers(entries)) => (layout, entries.get(1).copied()),
            _ => (layout, None),
        }
    };
    assert_eq!(
        select(raw(0x6000_0010, 0x5000, 0, 0)),
        (None, None),
        "after reset"
    );
    assert_eq!(
        select(raw(0x0000_0011, 0x5000, 0x20, 0x500)),
        (None, None),
        "no PG"
    );
    assert_eq!(
        select(raw(0x8000_0011, 0x5fff, 0, 0)),
        (Some(Layout::ThirtyTwoBit), Some(0x5000))
    );
    assert_eq!(
        select(raw(0x8000_0011, 0x5fff, 0x1020, 0)),
        (Some(Layout::Pae), Some(0x6001)),
        "LA57 outside IA-32e mode means nothing; CR3 is aligned to 32 bytes"
    );
    assert_eq!(
        select(raw(0x8000_0011, 0x6000_3fff_ffff_5018, 0x20, 0x500)),
        (Some(Layout::FourLevel), Some(0x3fff_ffff_5000)),
        "LAM bits and PCID are not part of the address"
    );
    assert_eq!(
        select(raw(0x8000_0011, 0x5000, 0x1020, 0x500)),
        (Some(Layout::FiveLevel), Some(0x5000))
    );
}

#[test]
fn impossible_registers_are_named() {
    let memory = Memory::default();
    let refused = |registers: Registers, features: Features| match PagingMode::load(
        &registers, &features, &memory,
    ) {
        Err(LoadError::Mode(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        refused(raw(0x8000_0000, 0, 0, 0), FEATURES),
        ModeError::PagingUnprotected { cr0: 0x8000_0000 }
    );
    assert_eq!(
        refused(raw(0x8000_0001, 0, 0x10, 0x100), FEATURES),
        ModeError::LongWithoutPae { cr4: 0x10 }
    );
    assert_eq!(
        refused(
            raw(1, 0, 0, 0x800),
            Features {
                execute_disable: false,
                ..FEATURES
            }
        ),
        ModeError::NoExecuteDisable { efer: 0x800 }
    );
    assert_eq!(
        refused(raw(1, 0, 0x80_0000, 0), FEATURES),
        ModeError::CetUnprotected { cr4: 0x80_0000 }
    );
    assert_eq!(
        refused(raw(0x8000_0001, 1 << 46, 0x20, 0x100), FEATURES),
        ModeError::Cr3Width {
            cr3: 1 << 46,
            physical_address_bits: 46
        }
    );
    for bits in [0, 31, 53, 255] {
        assert_eq!(
            refused(raw(1, 0, 0, 0), Features::all(bits)),
            ModeError::PhysicalAddressBits {
                physical_address_bits: bits
            }
        );
    }
}

#[test]
fn without_paging_addresses_are_physical() {
    let mode = load(&Registers::default(), &Memory::default()).unwrap();
    let memory = Memory::default();
    let write = Access::new(Kind::Write, Privilege::Supervisor);
    for linear in [0, 0x10_ffef, 0xffff_ffff] {
        let direct = GuestTranslation {
            physical: linear,
            size: 1 << 32,
            attributes: GuestAttributes::ALL,
        };
        assert_eq!(probe(&mode, &memory, linear, READ), Ok(direct));
        assert_eq!(translate(&mode, &memory, linear, write), Ok(direct));
    }
    let linear = 1 << 32;
    assert_eq!(
        probe(&mode, &memory, linear, READ),
        Err(GuestFault::TooWide { linear })
    );
    assert_eq!(
        translate(&mode, &memory, linear, READ),
        Err(GuestFault::TooWide { linear })
    );
    assert!(mode.walk(&memory, 0).is_none());
}

#[test]
fn pdptes_are_checked_when_loaded_and_then_memory_is_not_read() {
    let pae = raw(0x8000_0011, 0x5020, 0x20, 0);
    let at = [0x5020, 0x5028, 0x5030, 0x5038];
    let memory = |values: [u64; 4]| Memory::new(&[0, 1, 2, 3].map(|i| (at[i], values[i])));
    // Not present: no bit matters. Present: 4:3 may be set, 2:1, 8:5 and 63:46 not.
    let mode = load(&pae, &memory([u64::MAX - 1, 0x2001, 0x2019, 0x2e01])).unwrap();
    assert_eq!(
        mode.pdptes().unwrap().values(),
        &[u64::MAX - 1, 0x2001, 0x2019, 0x2e01]
    );
    for (index, bit) in [(0u8, 1u32), (1, 2), (2, 5), (3, 8)] {
        let entry = 0x2001 | 1 << bit;
        let mut values = [0x2001; 4];
        values[usize::from(index)] = entry;
        let error = PdpteError::Reserved {
            index,
            entry,
            rule: Reserved::Pdpte,
        };
        assert_eq!(load(&pae, &memory(values)), Err(LoadError::Pdpte(error)));
    }
    for entry in [0x8000_0000_0000_2001, 0x0000_4000_0000_2001] {
        let error = PdpteError::Reserved {
            index: 0,
            entry,
            rule: Reserved::Address,
        };
        assert_eq!(
            PagingMode::with_pdptes(&pae, &FEATURES, [entry, 0, 0, 0]),
            Err(LoadError::Pdpte(error))
        );
    }
    assert_eq!(
        load(&pae, &Memory::new(&[(0x5020, 0), (0x5028, 0)])),
        Err(LoadError::Pdpte(PdpteError::Unreadable {
            index: 2,
            at: 0x5030,
            error: Refused(0x5030)
        }))
    );

    // Loaded from tables that are edited later: linear address 0 still goes by the register.
    let memory = memory([0x2001, 0, 0, 0]);
    memory.set(0x2000, 0x0020_0085);
    let mode = load(&pae, &memory).unwrap();
    memory.set(0x5020, 0);
    assert_eq!(
        probe(&mode, &memory, 0x1234, READ).unwrap().physical,
        0x0020_1234
    );
    // No register, no page: not present, at level 3.
    let GuestFault::Page { code, .. } = probe(&mode, &memory, 0x4000_0000, READ).unwrap_err()
    else {
        panic!("a page fault");
    };
    assert_eq!(code.0, 4);
}

#[test]
fn keys_change_without_a_new_mode() {
    let memory = Memory::new(&[
        (0x1000, 0x2007),
        (0x2000, 0x3007),
        (0x3000, 0x0800_0000_0020_0087),
    ]);
    let registers = raw(0x8001_0011, 0x1000, 0x40_0020, 0x500);
    let mode = load(&registers, &memory).unwrap();
    assert!(probe(&mode, &memory, 0, READ).is_ok());
    let closed = mode.with_keys(0b0100, 0);
    assert!(matches!(
        probe(&closed, &memory, 0, READ),
        Err(GuestFault::Page { code, .. }) if code.0 == 0x25
    ));
    let off = load(&raw(0x8001_0011, 0x1000, 0x20, 0x500), &memory).unwrap();
    assert_eq!(
        off.with_keys(0b0100, 0b0100),
        off,
        "CR4.PKE and CR4.PKS are clear"
    );
}
