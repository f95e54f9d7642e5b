// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Real guests through EPT: hvkit-shadow-paging knows the guest's paging modes, this crate what is below.

mod adapter;

use adapter::X86;
use hvkit_ept::Ept;
use hvkit_ept::access::{Access as EptAccess, EptFault, GuestSpace};
use hvkit_ept::marks::Updates;
use hvkit_ept::nested_walk;
use hvkit_ept::spec::{Accesses, Controls, EptVpidCap, PageRights, WalkLength};
use hvkit_page_table::fake::{FakeGuest, Unreadable};
use hvkit_page_table::{ReadEntry, Width};
use hvkit_shadow_paging::guest::{
    Access, Features, GuestFault, Kind, LoadError, PagingMode, PdpteError, Privilege, Registers,
    cr0, cr4, efer,
};

const E: Width = Width::Eight;
const CAP: EptVpidCap = EptVpidCap::from_msr(0x0f01_06f3_41c1);
const FEATURES: Features = Features::all(46);

/// Guest-physical 0 to 2 MiB is host 0x20_0000 up, in one page; EPT's tables are below.
fn memory() -> FakeGuest {
    let memory = FakeGuest::new(0x40_0000);
    memory.set(0x1000, E, 0x2007);
    memory.set(0x2000, E, 0x3007);
    memory.set(0x3000, E, 0x20_00b7);
    memory
}

fn host(guest_physical: u64) -> u64 {
    guest_physical + 0x20_0000
}

fn ept() -> Ept {
    Ept::new(CAP, 46, WalkLength::Four, Controls::ACCESSED_DIRTY).unwrap()
}

fn long_mode() -> Registers {
    Registers {
        cr0: cr0::PG | cr0::PE | cr0::WP,
        cr3: 0x1_0000,
        cr4: cr4::PAE,
        efer: efer::LME | efer::NXE,
        ..Registers::default()
    }
}

const READ: Access = Access::new(Kind::Read, Privilege::Supervisor);
const WRITE: Access = Access::new(Kind::Write, Privilege::User);

#[test]
fn a_long_mode_guest() {
    let (memory, ept) = (memory(), ept());
    memory.set(host(0x1_0000), E, 0x1_1007);
    memory.set(host(0x1_1000), E, 0x1_2007);
    memory.set(host(0x1_2000), E, 0x1_3007);
    memory.set(host(0x1_3000 + 8 * 8), E, 0x8000_0000_0005_5007);
    let guest = X86(PagingMode::with_pdptes(&long_mode(), &FEATURES, [0; 4]).unwrap());
    let space = GuestSpace::new(&ept, &memory, 0x1000);
    let mut updates = Updates::new();
    let found = nested_walk::translate_marking(&space, &guest, 0x8abc, WRITE, &mut updates);
    assert_eq!(found.unwrap().host.host_physical, host(0x5_5abc));
    updates.apply(&memory).unwrap();
    assert_eq!(
        memory.read(host(0x1_3040), E),
        Ok(0x8000_0000_0005_5067),
        "A and D"
    );
    assert_eq!(memory.read(host(0x1_2000), E), Ok(0x1_3027), "A");
    assert_eq!(memory.read(0x3000, E), Ok(0x20_03b7), "A and D, of EPT");
    assert_eq!(updates.logged().collect::<Vec<_>>(), [0x1_0000]);

    // Execute-disable: the guest's own fault, W=0 U=1 I=1 P=1.
    let fetch = Access::new(Kind::Fetch, Privilege::User);
    let found = nested_walk::translate(&space, &guest, 0x8abc, fetch);
    let Err(nested_walk::GuestFault::Page(GuestFault::Page { code, .. })) = found else {
        panic!("{found:?}");
    };
    assert_eq!(code.0, 0x15);
    // A page beyond EPT's 2 MiB: a violation of the page, with what paging says of it.
    memory.set(host(0x1_3040), E, 0x8000_0000_0035_5007);
    let found = nested_walk::translate(&space, &guest, 0x8abc, WRITE);
    let Err(nested_walk::GuestFault::Memory(EptFault::Violation {
        guest_physical,
        qualification,
        ..
    })) = found
    else {
        panic!("{found:?}");
    };
    assert_eq!((guest_physical, qualification.bits()), (0x35_5abc, 0xf82));
}

#[test]
fn a_guest_without_paging() {
    let (memory, ept) = (memory(), ept());
    let registers = Registers {
        cr0: cr0::PE,
        ..Registers::default()
    };
    let guest = X86(PagingMode::with_pdptes(&registers, &FEATURES, [0; 4]).unwrap());
    let space = GuestSpace::new(&ept, &memory, 0x1000);
    let found = nested_walk::translate(&space, &guest, 0x1234, READ).unwrap();
    assert_eq!(found.host.host_physical, host(0x1234));
    assert_eq!(found.guest.rights, PageRights::PAGING_OFF);
}

/// The loads of PDPTEs are reads without a linear address, flags or not.
#[test]
fn a_pae_guest_loads_its_pdptes() {
    let (memory, ept) = (memory(), ept());
    let registers = Registers {
        efer: 0,
        cr3: 0x1_0020,
        ..long_mode()
    };
    memory.set(host(0x1_0020), E, 0x1_1001);
    memory.set(host(0x1_1000), E, 0x1_2007);
    memory.set(host(0x1_2040), E, 0x5_5007);
    let space = GuestSpace::new(&ept, &memory, 0x1000);
    let reader = space.reader(EptAccess::no_linear_address(Accesses::READ));
    let guest = X86(PagingMode::load(&registers, &FEATURES, &reader).unwrap());
    let updates = reader.into_updates();
    updates.apply(&memory).unwrap();
    assert_eq!(memory.read(0x3000, E), Ok(0x20_01b7), "accessed, not dirty");
    let found = nested_walk::translate(&space, &guest, 0x8abc, WRITE).unwrap();
    assert_eq!(found.host.host_physical, host(0x5_5abc));

    // From a page that is not there.
    let registers = Registers {
        cr3: 0x30_0000,
        ..registers
    };
    let reader = space.reader(EptAccess::no_linear_address(Accesses::READ));
    let refused = PagingMode::load(&registers, &FEATURES, &reader);
    let Err(LoadError::Pdpte(PdpteError::Unreadable { error, .. })) = refused else {
        panic!("{refused:?}");
    };
    let EptFault::Violation {
        guest_physical,
        qualification,
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!((guest_physical, qualification.bits()), (0x30_0000, 0x1));
    // From host memory that is not there.
    memory.set(0x3008, E, 0x60_00b7);
    let refused = PagingMode::load(&registers, &FEATURES, &reader);
    let outside = EptFault::Unreadable {
        at: 0x70_0000,
        error: Unreadable { at: 0x70_0000 },
    };
    let Err(LoadError::Pdpte(PdpteError::Unreadable { error, .. })) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error, outside);
}
