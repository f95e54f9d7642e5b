// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accesses through EPT tables that an adversary wrote, one-dimensional and nested.

use std::cell::Cell;

use arbitrary::{Arbitrary, Unstructured};
use hvkit_ept::Ept;
use hvkit_ept::access::{Access, EptFault, GuestSpace, ShadowStack};
use hvkit_ept::builder::{Policy, Region, build};
use hvkit_ept::marks::{UpdateError, Updates};
use hvkit_ept::mtrr::{FIXED, Mtrrs, Variable};
use hvkit_ept::nested_walk::{self, GuestFault, GuestPage, GuestPaging};
use hvkit_ept::spec::{
    Accesses, Controls, EptVpidCap, LinearAddress, PageRights, Qualification, Violation, WalkLength,
};
use hvkit_page_table::{Fault, ReadEntry, Root, UpdateEntry, Width, walk};

use crate::arena::Arena;

/// 64 KiB of memory; what is above reads as an error.
struct Memory([Cell<u64>; 8192]);

/// Outside memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outside;

impl Memory {
    fn slot(&self, at: u64) -> Result<&Cell<u64>, Outside> {
        self.0
            .get(usize::try_from(at / 8).map_err(|_| Outside)?)
            .ok_or(Outside)
    }
}

impl ReadEntry for Memory {
    type Error = Outside;

    fn read(&self, at: u64, _: Width) -> Result<u64, Outside> {
        self.slot(at).map(Cell::get)
    }
}

impl UpdateEntry for Memory {
    fn compare_exchange(&self, at: u64, _: Width, current: u64, new: u64) -> Result<u64, Outside> {
        let slot = self.slot(at)?;
        let found = slot.get();
        if found == current {
            slot.set(new);
        }
        Ok(found)
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    capability: u64,
    physical_bits: u8,
    length: WalkLength,
    controls: u32,
    root: u8,
    sub_pages: u8,
    accesses: Vec<(u64, u8, u8, PageRights)>,
    qualification: Qualification,
    map: Vec<Region>,
    def_type: u64,
    fixed: [u64; FIXED],
    variable: Vec<Variable>,
    /// The words of memory: which, and what.
    words: Vec<(u16, u64)>,
}

/// A guest whose tables are in EPT's own format: any tables do.
struct Guest(Ept);

impl GuestPaging for Guest {
    type Access = Accesses;
    type PageFault = ();

    fn translate<M: UpdateEntry>(
        &self,
        memory: &M,
        linear: u64,
        accesses: Accesses,
    ) -> Result<GuestPage, GuestFault<(), M::Error>> {
        let seen = walk(&self.0, memory, Root::Table(0x3000), linear);
        let found = match seen.outcome {
            Ok(found) => found,
            Err(Fault::Unreadable { error, .. }) => return Err(GuestFault::Memory(error)),
            Err(_) => return Err(GuestFault::Page(())),
        };
        for step in seen.steps() {
            if let Some(at) = step.at {
                memory
                    .compare_exchange(at, Width::Eight, step.entry, step.entry | 1 << 5)
                    .map_err(GuestFault::Memory)?;
            }
        }
        let rights = PageRights::PAGING_OFF;
        Ok(GuestPage {
            physical: found.target,
            accesses,
            rights,
            shadow_stack: ShadowStack::No,
        })
    }
}

/// What a fault says of itself must hang together.
fn consistent(ept: &Ept, asked: Accesses, fault: &EptFault<Outside>) {
    if let EptFault::Violation {
        qualification,
        convertible,
        ..
    } = *fault
    {
        let facts = Violation::decode(qualification, ept.capability(), ept.controls());
        assert_eq!(
            facts.qualification(ept.capability(), ept.controls()),
            qualification
        );
        assert_eq!(qualification.bits() >> 17, 0);
        assert!(facts.accesses.contains(asked));
        assert!(!convertible || ept.controls().contains(Controls::VIOLATION_EXCEPTION));
        if facts.linear == LinearAddress::None {
            assert!(!qualification.contains(Qualification::GUEST_PAGING_VERIFICATION));
        }
    }
}

fn check(input: &Input) {
    let capability = EptVpidCap::from_msr(input.capability);
    let facts = Violation::decode(input.qualification, capability, Controls::all());
    let again = facts.qualification(capability, Controls::all());
    assert_eq!(Violation::decode(again, capability, Controls::all()), facts);

    let controls = Controls::from_bits_truncate(input.controls);
    let bits = u32::from(input.physical_bits);
    let mtrrs = Mtrrs::new(input.def_type, &input.fixed, &input.variable, bits);
    if let Ok(mtrrs) = mtrrs {
        let most = 2 * (input.variable.len() + 8 * FIXED) + 1;
        assert!(mtrrs.runs().take(most + 1).count() <= most);
    }
    let Ok(ept) = Ept::new(capability, bits, input.length, controls) else {
        return;
    };
    let tables = Arena::new(64);
    // Large regions of small pages would take the fuzzer's whole time.
    let small = input.map.iter().all(|region| region.length < 1 << 32);
    if small && build(ept, &tables, &tables, &input.map, Policy::default()).is_err() {
        assert_eq!(tables.used(), 0);
    }

    let memory = Memory(std::array::from_fn(|_| Cell::new(0)));
    for &(at, word) in &input.words {
        if let Some(slot) = memory.0.get(usize::from(at)) {
            slot.set(word);
        }
    }
    let page = |n: u8| u64::from(n & 15) << 12;
    let space =
        GuestSpace::new(&ept, &memory, page(input.root)).with_sub_pages(page(input.sub_pages));
    let guest = Guest(ept);
    for &(address, kind, shadow, rights) in input.accesses.iter().take(16) {
        let accesses = Accesses::from_bits_truncate(kind);
        let shadow = match shadow & 3 {
            0 => ShadowStack::User,
            1 => ShadowStack::Supervisor,
            _ => ShadowStack::No,
        };
        let access = match kind >> 6 {
            0 => Access::no_linear_address(accesses),
            1 => Access::paging_read(),
            _ => Access::translation(accesses, rights),
        };
        let asked = if kind >> 6 == 1 {
            Accesses::READ
        } else {
            accesses
        };
        let access = access.with_shadow_stack(shadow);
        let mut updates = Updates::new();
        let found = space.access_marking(address, access, &mut updates);
        assert_eq!(space.access(address, access), found);
        match &found {
            Ok(granted) => assert_eq!(granted.host_physical & 0xfff, address & 0xfff),
            Err(fault) => {
                consistent(&ept, asked, fault);
                assert_eq!(updates.marks(), []);
            }
        }
        let stored = updates.apply(&memory);
        assert!(
            !matches!(stored, Err(UpdateError::Changed { .. })),
            "nobody else is here"
        );

        let mut updates = Updates::new();
        let found = nested_walk::translate_marking(&space, &guest, address, accesses, &mut updates);
        assert_eq!(
            nested_walk::translate(&space, &guest, address, accesses),
            found
        );
        if let Err(GuestFault::Memory(fault)) = &found {
            consistent(&ept, Accesses::empty(), fault);
        }
        let stored = updates.apply(&memory);
        assert!(
            !matches!(stored, Err(UpdateError::Changed { .. })),
            "nobody else is here"
        );
    }
}

/// Reads `data` as a processor's set-up, a memory map, tables, and accesses.
pub fn run(data: &[u8]) {
    if let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) {
        check(&input);
    }
}
