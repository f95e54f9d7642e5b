// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Exits worked out by hand, over tables written word by word: qualifications as raw numbers.

#[path = "model/guest.rs"]
mod guest;

use guest::{ToyAccess, ToyGuest};
use hvkit_ept::Ept;
use hvkit_ept::access::{Access, EptFault, GuestSpace, ShadowStack};
use hvkit_ept::marks::{UpdateError, Updates};
use hvkit_ept::nested_walk::{GuestFault, translate, translate_marking};
use hvkit_ept::spec::{
    Accesses, Controls, EptVpidCap, Mode, PageRights, SppExit, SppFault, ViolationFlags, WalkLength,
};
use hvkit_page_table::fake::{FakeGuest, Unreadable};
use hvkit_page_table::{ReadEntry, Width};

const E: Width = Width::Eight;
const CAP: EptVpidCap = EptVpidCap::from_msr(0x0f01_06f3_41c1);
const FLAGS: Controls = Controls::ACCESSED_DIRTY;
const NONE: Controls = Controls::empty();

fn ept(controls: Controls) -> Ept {
    Ept::new(CAP, 46, WalkLength::Four, controls).unwrap()
}

/// EPT root 0x1000, tables 0x2000, 0x3000, 0x4000. Guest-physical 0x10000 to 0x13fff: host 0x20000 up, all
/// RWX WB. The guest's root is at guest-physical 0x10000, its table at 0x11000; linear 0x5000 is
/// guest-physical 0x12000, user, writable, executable.
fn memory() -> FakeGuest {
    let memory = FakeGuest::new(0x10_0000);
    memory.set(0x1000, E, 0x2007);
    memory.set(0x2000, E, 0x3007);
    memory.set(0x3000, E, 0x4007);
    for n in 0..4 {
        memory.set(0x4000 + (0x10 + n) * 8, E, (0x20 + n) << 12 | 0x37);
    }
    memory.set(0x20000, E, 0x1_1007);
    memory.set(0x21000 + 5 * 8, E, 0x1_2007);
    memory
}

fn qualification<T: core::fmt::Debug>(found: Result<T, EptFault<Unreadable>>) -> (u64, u64) {
    match found.unwrap_err() {
        EptFault::Violation {
            guest_physical,
            qualification,
            ..
        } => (guest_physical, qualification.bits()),
        other => panic!("{other:?}"),
    }
}

fn linear(
    controls: Controls,
    memory: &FakeGuest,
    accesses: Accesses,
) -> Result<u64, EptFault<Unreadable>> {
    let ept = ept(controls);
    let space = GuestSpace::new(&ept, memory, 0x1000);
    let access = ToyAccess {
        accesses,
        mode: Mode::Supervisor,
        shadow_stack: ShadowStack::No,
    };
    match translate(&space, &ToyGuest::new(0x1_0000), 0x5678, access) {
        Ok(nested) => Ok(nested.host.host_physical),
        Err(GuestFault::Memory(fault)) => Err(fault),
        Err(GuestFault::Page(code)) => panic!("page fault {code}"),
    }
}

#[test]
fn the_undamaged_tables_translate() {
    for controls in [NONE, FLAGS] {
        assert_eq!(linear(controls, &memory(), Accesses::READ), Ok(0x2_2678));
        assert_eq!(linear(controls, &memory(), Accesses::WRITE), Ok(0x2_2678));
        assert_eq!(linear(controls, &memory(), Accesses::FETCH), Ok(0x2_2678));
    }
}

/// Guest table in a page that is not there: a read; with accessed and dirty flags, a read and a write.
#[test]
fn a_guest_table_that_is_not_mapped() {
    let memory = memory();
    memory.set(0x4000 + 0x11 * 8, E, 0);
    for accesses in [Accesses::READ, Accesses::WRITE, Accesses::FETCH] {
        let found = qualification(linear(NONE, &memory, accesses));
        assert_eq!(found, (0x1_1028, 0x81), "{accesses:?}");
        let found = qualification(linear(FLAGS, &memory, accesses));
        assert_eq!(found, (0x1_1028, 0x83), "{accesses:?}");
    }
}

/// Guest table in a read-only page. Without flags, only setting the guest's accessed or dirty flag
/// violates; with them, every use does.
#[test]
fn a_guest_table_in_a_read_only_page() {
    let memory = memory();
    memory.set(0x4000 + 0x11 * 8, E, 0x2_1031);
    // The guest's accessed flag is clear: every access has to set it.
    for accesses in [Accesses::READ, Accesses::WRITE, Accesses::FETCH] {
        assert_eq!(
            qualification(linear(NONE, &memory, accesses)),
            (0x1_1028, 0x8b)
        );
        assert_eq!(
            qualification(linear(FLAGS, &memory, accesses)),
            (0x1_1028, 0x8b)
        );
    }
    // Accessed: only a write has to set the dirty flag.
    memory.set(0x21000 + 5 * 8, E, 0x1_2027);
    assert_eq!(linear(NONE, &memory, Accesses::READ), Ok(0x2_2678));
    assert_eq!(linear(NONE, &memory, Accesses::FETCH), Ok(0x2_2678));
    assert_eq!(
        qualification(linear(NONE, &memory, Accesses::WRITE)),
        (0x1_1028, 0x8b)
    );
    assert_eq!(
        qualification(linear(FLAGS, &memory, Accesses::READ)),
        (0x1_1028, 0x8b)
    );
    // Accessed and dirty: nothing to set.
    memory.set(0x21000 + 5 * 8, E, 0x1_2067);
    assert_eq!(linear(NONE, &memory, Accesses::WRITE), Ok(0x2_2678));
    assert_eq!(
        qualification(linear(FLAGS, &memory, Accesses::FETCH)),
        (0x1_1028, 0x8b)
    );
    // A paging-write page lets it all through; only guest paging may write there.
    memory.set(0x4000 + 0x11 * 8, E, 1 << 58 | 0x2_1031);
    memory.set(0x21000 + 5 * 8, E, 0x1_2007);
    for controls in [NONE, FLAGS] {
        let with = controls | Controls::PAGING_WRITE;
        assert_eq!(linear(with, &memory, Accesses::WRITE), Ok(0x2_2678));
        assert_eq!(
            qualification(linear(controls, &memory, Accesses::WRITE)),
            (0x1_1028, 0x8b)
        );
    }
}

/// The page itself, with the advanced information: user-mode, writable, not execute-disable.
#[test]
fn the_page_itself() {
    let memory = memory();
    memory.set(0x4000 + 0x12 * 8, E, 0);
    assert_eq!(
        qualification(linear(NONE, &memory, Accesses::READ)),
        (0x1_2678, 0x781)
    );
    assert_eq!(
        qualification(linear(NONE, &memory, Accesses::WRITE)),
        (0x1_2678, 0x782)
    );
    assert_eq!(
        qualification(linear(NONE, &memory, Accesses::FETCH)),
        (0x1_2678, 0x784)
    );
    memory.set(0x4000 + 0x12 * 8, E, 0x2_2031);
    assert_eq!(
        qualification(linear(NONE, &memory, Accesses::WRITE)),
        (0x1_2678, 0x78a)
    );
    assert_eq!(
        qualification(linear(NONE, &memory, Accesses::FETCH)),
        (0x1_2678, 0x78c)
    );
    let rmw = Accesses::READ | Accesses::WRITE;
    assert_eq!(qualification(linear(NONE, &memory, rmw)), (0x1_2678, 0x78b));
    // Mode-based: executable for user-mode addresses, which this one is.
    let mbe = Controls::MODE_BASED_EXECUTE;
    memory.set(0x1000, E, 0x2407);
    memory.set(0x2000, E, 0x3407);
    memory.set(0x3000, E, 0x4407);
    assert_eq!(
        qualification(linear(mbe, &memory, Accesses::FETCH)),
        (0x1_2678, 0x78c)
    );
    memory.set(0x4000 + 0x12 * 8, E, 0x2_2431);
    assert_eq!(linear(mbe, &memory, Accesses::FETCH), Ok(0x2_2678));
    assert_eq!(
        qualification(linear(mbe, &memory, Accesses::WRITE)),
        (0x1_2678, 0x7ca)
    );
    // The same page as a supervisor-mode address: bit 2 decides.
    memory.set(0x20000, E, 0x1_1003);
    assert_eq!(
        qualification(linear(mbe, &memory, Accesses::FETCH)),
        (0x1_2678, 0x5cc)
    );
}

/// A page fault comes before an EPT violation of the page, and after one of the tables.
#[test]
fn page_faults_have_their_place() {
    let space_of = |memory: &FakeGuest, accesses, mode| {
        let ept = ept(NONE);
        let space = GuestSpace::new(&ept, memory, 0x1000);
        let access = ToyAccess {
            accesses,
            mode,
            shadow_stack: ShadowStack::No,
        };
        translate(&space, &ToyGuest::new(0x1_0000), 0x5678, access)
    };
    let memory = memory();
    memory.set(0x4000 + 0x12 * 8, E, 0);
    memory.set(0x21000 + 5 * 8, E, 0x1_2001);
    let write = space_of(&memory, Accesses::WRITE, Mode::Supervisor);
    assert_eq!(write, Err(GuestFault::Page(3)));
    let user = space_of(&memory, Accesses::READ, Mode::User);
    assert_eq!(user, Err(GuestFault::Page(5)));
    memory.set(0x4000 + 0x11 * 8, E, 0);
    let write = space_of(&memory, Accesses::WRITE, Mode::Supervisor);
    assert!(matches!(
        write,
        Err(GuestFault::Memory(EptFault::Violation { .. }))
    ));
}

/// Guest-paging verification: a page that asks for it, reached through a table in an ordinary page.
#[test]
fn guest_paging_verification() {
    let memory = memory();
    let both = Controls::GUEST_PAGING_VERIFICATION | Controls::PAGING_WRITE;
    memory.set(0x4000 + 0x12 * 8, E, 1 << 57 | 0x2_2037);
    assert_eq!(
        qualification(linear(both, &memory, Accesses::READ)),
        (0x1_2678, 0x87b9)
    );
    for one in [Controls::GUEST_PAGING_VERIFICATION, Controls::PAGING_WRITE] {
        assert_eq!(
            linear(one, &memory, Accesses::READ),
            Ok(0x2_2678),
            "{one:?} alone"
        );
    }
    // One of the two tables is not enough, both are.
    memory.set(0x4000 + 0x10 * 8, E, 1 << 58 | 0x2_0037);
    assert_eq!(
        qualification(linear(both, &memory, Accesses::READ)),
        (0x1_2678, 0x87b9)
    );
    memory.set(0x4000 + 0x11 * 8, E, 1 << 58 | 0x2_1037);
    assert_eq!(linear(both, &memory, Accesses::READ), Ok(0x2_2678));
}

#[test]
fn every_flag_of_a_write_is_set_once() {
    let (memory, ept) = (memory(), ept(FLAGS));
    let space = GuestSpace::new(&ept, &memory, 0x1000);
    let access = ToyAccess {
        accesses: Accesses::WRITE,
        mode: Mode::User,
        shadow_stack: ShadowStack::No,
    };
    let guest = ToyGuest::new(0x1_0000);
    let mut updates = Updates::new();
    translate_marking(&space, &guest, 0x5678, access, &mut updates).unwrap();
    assert_eq!(memory.read(0x1000, E), Ok(0x2007), "a walk changes nothing");
    assert_eq!(updates.apply(&memory), Ok(()));
    let words = [
        (0x1000, 0x2107),
        (0x2000, 0x3107),
        (0x3000, 0x4107),
        (0x4080, 0x2_0337), // the guest's tables are written, even if only read
        (0x4088, 0x2_1337),
        (0x4090, 0x2_2337),
        (0x4098, 0x2_3037), // not used
        (0x20000, 0x1_1027),
        (0x21028, 0x1_2067),
    ];
    for (at, word) in words {
        assert_eq!(memory.read(at, E), Ok(word), "{at:#x}");
    }
    assert!(updates.logged().eq([0x1_0000, 0x1_1000, 0x1_2000]));
    // Once more: nothing left to set.
    let mut again = Updates::new();
    translate_marking(&space, &guest, 0x5678, access, &mut again).unwrap();
    assert_eq!(again.marks(), []);
    // An entry that someone changes in between is left alone.
    memory.set(0x4098, E, 0x2_3037);
    memory.set(0x21028, E, 0x1_3007);
    let mut updates = Updates::new();
    translate_marking(&space, &guest, 0x5678, access, &mut updates).unwrap();
    memory.set(0x4098, E, 0);
    let changed = UpdateError::Changed {
        at: 0x4098,
        found: 0,
    };
    assert_eq!(updates.apply(&memory), Err(changed));
}

#[test]
fn other_exits_and_circumstances() {
    let memory = memory();
    let all = ept(Controls::VIOLATION_EXCEPTION | Controls::SUPERVISOR_SHADOW_STACK);
    let space = GuestSpace::new(&all, &memory, 0x1000);
    let page = PageRights::PAGING_OFF;
    let read = Access::translation(Accesses::READ, page);
    // Absent: convertible unless bit 63 is set.
    let convertible = |at: u64| match space.access(at, read).unwrap_err() {
        EptFault::Violation { convertible, .. } => convertible,
        other => panic!("{other:?}"),
    };
    memory.set(0x4000, E, 0);
    memory.set(0x4008, E, 1 << 63);
    memory.set(0x4010, E, 0x34); // execute-only
    memory.set(0x4018, E, 1 << 63 | 0x34);
    assert_eq!(
        [0, 0x1000, 0x2000, 0x3000].map(convertible),
        [true, false, true, false]
    );
    // Wider than 48 bits: no entry is used.
    assert_eq!(qualification(space.access(1 << 48, read)), (1 << 48, 0x781));
    assert!(!convertible(1 << 48));
    // PDPTEs: no linear address.
    let pdptes = Access::no_linear_address(Accesses::READ);
    assert_eq!(qualification(space.access(0, pdptes)), (0, 0x001));
    // What only the caller knows; what only we know is not taken from it.
    let flags = ViolationFlags::all();
    assert_eq!(
        qualification(space.access(0, pdptes.with_circumstances(flags))),
        (0, 0x1_1001)
    );
    // Shadow stacks.
    let write = Access::translation(Accesses::WRITE, page);
    let supervisor = write.with_shadow_stack(ShadowStack::Supervisor);
    assert_eq!(
        qualification(space.access(0x1_0000, supervisor)),
        (0x1_0000, 0x27ba)
    );
    memory.set(0x4080, E, 1 << 60 | 0x2_0031);
    assert!(
        space.access(0x1_0000, supervisor).is_ok(),
        "not writable, but a shadow stack"
    );
    let user = write.with_shadow_stack(ShadowStack::User);
    assert_eq!(
        qualification(space.access(0x1_0000, user)),
        (0x1_0000, 0x678a)
    );
    memory.set(0x3000, E, 0x4005);
    assert_eq!(
        qualification(space.access(0x1_0000, supervisor)),
        (0x1_0000, 0x678a)
    );
    // Misconfigured.
    memory.set(0x3000, E, 0x4006);
    let misconfigured = space.access(0x1_0000, read).unwrap_err();
    let EptFault::Misconfiguration {
        guest_physical,
        level,
        entry,
        ..
    } = misconfigured
    else {
        panic!("{misconfigured:?}");
    };
    assert_eq!((guest_physical, level, entry), (0x1_0000, 2, 0x4006));
    // A table outside memory.
    memory.set(0x3000, E, 0x80_0007);
    let outside = EptFault::Unreadable {
        at: 0x80_0080,
        error: Unreadable { at: 0x80_0080 },
    };
    assert_eq!(space.access(0x1_0000, read), Err(outside));
}

#[test]
fn sub_pages() {
    let memory = memory();
    let ept = ept(Controls::SUB_PAGE_WRITE);
    let space = GuestSpace::new(&ept, &memory, 0x1000).with_sub_pages(0x5000);
    memory.set(0x4090, E, 1 << 61 | 0x2_2035);
    let page = PageRights::PAGING_OFF;
    let write = Access::translation(Accesses::WRITE, page);
    let event = |access| match space.access(0x1_2680, access).unwrap_err() {
        EptFault::SubPage {
            guest_physical: 0x1_2680,
            qualification: SppExit(q),
            fault,
        } => (q, fault),
        other => panic!("{other:?}"),
    };
    assert_eq!(event(write), (0x800, SppFault::Miss));
    let iret = write.with_circumstances(ViolationFlags::NMI_UNBLOCKING);
    assert_eq!(event(iret), (0x1800, SppFault::Miss));
    memory.set(0x5000, E, 0x6003);
    assert_eq!(event(write), (0, SppFault::Misconfiguration { bits: 2 }));
    memory.set(0x5000, E, 0x6001);
    memory.set(0x6000, E, 0x7001);
    memory.set(0x7000, E, 0x8001);
    memory.set(0x8000 + 0x12 * 8, E, 1 << 26); // sub-page 13: 0x680 to 0x6ff
    assert_eq!(
        space.access(0x1_2680, write).unwrap().host_physical,
        0x2_2680
    );
    assert_eq!(
        space.access(0x1_26ff, write).unwrap().host_physical,
        0x2_26ff
    );
    assert_eq!(
        qualification(space.access(0x1_2700, write)),
        (0x1_2700, 0x7aa)
    );
    // Never for a paging write, or what is asynchronous.
    let paging = Access::paging_write();
    assert_eq!(
        qualification(space.access(0x1_2680, paging)),
        (0x1_2680, 0xab)
    );
    let trace = write.with_circumstances(ViolationFlags::ASYNCHRONOUS);
    assert_eq!(
        qualification(space.access(0x1_2680, trace)),
        (0x1_2680, 0x1_07aa)
    );
    memory.set(0x7000, E, 0x20_0001);
    let outside = EptFault::Unreadable {
        at: 0x20_0090,
        error: Unreadable { at: 0x20_0090 },
    };
    assert_eq!(space.access(0x1_2680, write), Err(outside));
}
