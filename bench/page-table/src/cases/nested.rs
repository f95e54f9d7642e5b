// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The real thing: a long-mode guest's tables, as hvkit-shadow-paging reads them, through hvkit-ept.
//!
//! Formats are chosen at run time here, rights are judged, and faults would be those of a processor.

use hvkit_ept::access::{Access as EptAccess, GuestSpace, ShadowStack};
use hvkit_ept::marks::Updates;
use hvkit_ept::nested_walk::{self, GuestPage, GuestPaging};
use hvkit_ept::spec::{
    Accesses, Controls, EptVpidCap, MemoryType, Mode, PageRights, Rights, WalkLength,
};
use hvkit_ept::{Attributes, Ept};
use hvkit_page_table::{Mapper, OwnEntries, PhysicalWindow, Sizes, UpdateEntry, Width};
use hvkit_shadow_paging::guest::{
    Access, Features, GuestFault, Kind, PagingMode, Privilege, Registers, cr0, cr4, efer, probe,
    translate,
};

use super::START;
use super::order::{InOrder, Order};
use super::walk2d::by_hand;
use crate::arena::{self, Pages};
use crate::harness::{Case, Report, Role, compare, time};
use crate::tables::{Pool, window};

const PAGES: u64 = 1 << 18;
const OPERATIONS: u64 = 300_000;
const READ: Access = Access::new(Kind::Read, Privilege::Supervisor);

/// A guest in one of x86's paging modes, as hvkit-ept's documentation and tests have it.
struct X86(PagingMode);

impl GuestPaging for X86 {
    type Access = Access;
    type PageFault = ();

    #[inline]
    fn translate<M: UpdateEntry>(
        &self,
        memory: &M,
        linear: u64,
        access: Access,
    ) -> Result<GuestPage, nested_walk::GuestFault<(), M::Error>> {
        let found = translate(&self.0, memory, linear, access).map_err(|fault| match fault {
            GuestFault::Memory { error, .. } => nested_walk::GuestFault::Memory(error),
            _ => nested_walk::GuestFault::Page(()),
        })?;
        let mode = if found.attributes.user() {
            Mode::User
        } else {
            Mode::Supervisor
        };
        Ok(GuestPage {
            physical: found.physical,
            accesses: Accesses::READ,
            rights: PageRights {
                mode,
                writable: found.attributes.writable(),
                execute_disable: !found.attributes.executable(),
            },
            shadow_stack: ShadowStack::No,
        })
    }
}

/// A table of 4 levels in the arena that maps `PAGES` pages from `START` into the arena, all flags set.
fn guest_tables() -> u64 {
    let (start, length, _) = arena::window();
    let memory = window();
    let entry = |table: u64, address: u64, shift: u32| table + (address >> shift & 0xff8);
    let root = arena::allocate_zeroed() as u64;
    for page in 0..PAGES {
        let address = START + page * 4096;
        let mut table = root;
        for shift in [36, 27, 18] {
            let at = entry(table, address, shift);
            if memory.load(at, Width::Eight) == 0 {
                let below = arena::allocate_zeroed() as u64;
                memory.write(at, Width::Eight, below | 0x63);
            }
            table = memory.load(at, Width::Eight) & !0xfff;
        }
        let target = start + page * 4096 % length;
        memory.write(entry(table, address, 9), Width::Eight, target | 0x63);
    }
    root
}

/// One address after the other, where every flag is set already.
pub fn all(rounds: usize) -> Report {
    arena::prepare(32 << 20, Pages::Resident);
    let (start, length, _) = arena::window();
    let capability = EptVpidCap::from_msr(0x0f01_06f3_41c1);
    let format = |controls| {
        Ept::new(capability, 48, WalkLength::Four, controls).expect("what the capability has")
    };
    let (plain, flags) = (format(Controls::empty()), format(Controls::ACCESSED_DIRTY));
    let mut ept = Mapper::<_, PhysicalWindow, Pool>::new(flags, window(), Pool).expect("a root");
    ept.set_sizes(Sizes::SMALLEST);
    let attributes = Attributes::new(Rights::READ_WRITE_EXECUTE, MemoryType::WriteBack);
    ept.map(start..start + length, start, attributes)
        .expect("mapped");
    let ept = &ept;
    let root = guest_tables();
    let registers = Registers {
        cr0: cr0::PG | cr0::PE | cr0::WP,
        cr3: root,
        cr4: cr4::PAE,
        efer: efer::LME | efer::NXE,
        ..Registers::default()
    };
    let mode = PagingMode::with_pdptes(&registers, &Features::all(48), [0; 4]).expect("long mode");
    let guest = &X86(mode);
    let space = |format| GuestSpace::new(format, ept.memory(), ept.root());
    let (plain, flags) = (space(&plain), space(&flags));

    let mut cases = vec![
        case(BY_HAND, Role::Limit, move |at| {
            // SAFETY: both tables are in the arena; the guest's maps `PAGES` pages from `START` into
            // the arena, and the EPT all of that.
            unsafe { by_hand(root, ept.root(), at) }
        }),
        case("guest's walk alone, in flat memory", Role::Ours, |at| {
            let found = probe(&mode, ept.memory(), at, READ);
            found.expect("mapped").physical
        }),
        case("EPT's walk alone, and its verdict", Role::Ours, |at| {
            let at = start + at % length;
            let access = EptAccess::no_linear_address(Accesses::READ);
            let found = plain.access(at, access);
            found.expect("mapped").host_physical
        }),
        case("nested walk and verdict", Role::Ours, |at| {
            let found = nested_walk::translate(&plain, guest, at, READ);
            found.expect("mapped").host.host_physical
        }),
    ];
    cases.push(case("the same, with EPT's flags noted", Role::Ours, |at| {
        let mut updates = Updates::new();
        let found = nested_walk::translate_marking(&flags, guest, at, READ, &mut updates);
        // The first round sets the flags: a processor's part.
        updates.apply(ept.memory()).expect("nobody else is here");
        found.expect("mapped").host.host_physical
    }));
    let title = "a long-mode guest's table of 1 GiB through hvkit-ept, in order";
    compare(title, "address", OPERATIONS as f64, rounds, cases, &[])
}

const BY_HAND: &str = "2-D walk by hand, unchecked";

/// Asks `f` for addresses.
fn case<'a>(name: &str, role: Role, mut f: impl FnMut(u64) -> u64 + 'a) -> Case<'a> {
    let run = move || {
        let mut order = InOrder::of(PAGES);
        time(|| {
            let mut all = 0;
            for _ in 0..OPERATIONS {
                all ^= f(START + order.next() * 4096);
            }
            all
        })
    };
    Case {
        name: name.to_owned(),
        role,
        run: Box::new(run),
    }
}
