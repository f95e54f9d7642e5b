// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accesses of a guest, in any paging mode, through tables that an adversary wrote.

use std::cell::Cell;

use arbitrary::{Arbitrary, Unstructured};
use hvkit_page_table::{Format, ReadEntry, UpdateEntry, Width};
use hvkit_shadow_paging::guest::{
    Access, Features, GuestFault, Kind, PagingMode, Privilege, Registers, probe, translate,
};

/// 64 KiB of memory; what is above cannot be read.
struct Memory {
    words: Vec<Cell<u64>>,
    updates: Cell<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outside;

impl Memory {
    fn slot(&self, at: u64) -> Result<&Cell<u64>, Outside> {
        let index = usize::try_from(at / 8).map_err(|_| Outside)?;
        self.words.get(index).ok_or(Outside)
    }
}

/// The entry of `width` at `at` in `word`.
fn part(word: u64, at: u64, width: Width) -> u64 {
    match width {
        Width::Eight => word,
        Width::Four => word >> (8 * (at & 4)) & 0xffff_ffff,
    }
}

impl ReadEntry for Memory {
    type Error = Outside;

    fn read(&self, at: u64, width: Width) -> Result<u64, Outside> {
        assert_eq!(at % width.bytes(), 0, "entries are aligned");
        Ok(part(self.slot(at)?.get(), at, width))
    }
}

impl UpdateEntry for Memory {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Outside> {
        let slot = self.slot(at)?;
        let found = part(slot.get(), at, width);
        assert_eq!((current ^ new) & !0x60, 0, "only flags are set");
        assert_eq!(current & !new, 0, "and none cleared");
        if found == current {
            let shift = if width == Width::Four {
                8 * (at & 4)
            } else {
                0
            };
            slot.set(slot.get() | (new ^ current) << shift);
            self.updates.set(self.updates.get() + 1);
        }
        Ok(found)
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    pkru: u32,
    pkrs: u32,
    physical_address_bits: u8,
    features: [bool; 4],
    /// Words by place: most of memory is zero.
    words: Vec<(u16, u64)>,
    /// Linear address, kind, privilege.
    accesses: Vec<(u64, u8, u8)>,
}

fn access(kind: u8, privilege: u8) -> Access {
    let kind = match kind % 5 {
        0 => Kind::Read,
        1 => Kind::Write,
        2 => Kind::Fetch,
        3 => Kind::ShadowStackRead,
        _ => Kind::ShadowStackWrite,
    };
    let privilege = match privilege % 4 {
        0 => Privilege::User,
        1 => Privilege::Supervisor,
        2 => Privilege::SupervisorAc,
        _ => Privilege::Implicit,
    };
    Access::new(kind, privilege)
}

/// Reads `data` as control registers, features, tables, and accesses.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(data)) else {
        return;
    };
    let memory = Memory {
        words: vec![Cell::new(0); 8192],
        updates: Cell::new(0),
    };
    for (place, word) in &input.words {
        memory.words[usize::from(*place) % 8192].set(*word);
    }
    let registers = Registers {
        cr0: input.cr0,
        cr3: input.cr3,
        cr4: input.cr4,
        efer: input.efer,
        pkru: input.pkru,
        pkrs: input.pkrs,
    };
    let [gib_pages, execute_disable, pse36, pat] = input.features;
    let features = Features {
        physical_address_bits: input.physical_address_bits,
        gib_pages,
        execute_disable,
        pse36,
        pat,
    };
    let Ok(mode) = PagingMode::load(&registers, &features, &memory) else {
        return;
    };
    for (linear, kind, privilege) in input.accesses.into_iter().take(16) {
        let access = access(kind, privilege);
        memory.updates.set(0);
        let foreseen = probe(&mode, &memory, linear, access);
        assert_eq!(memory.updates.get(), 0, "a probe changes nothing");
        let answer = translate(&mode, &memory, linear, access);
        assert_eq!(
            foreseen, answer,
            "memory is writable, and nobody else is there"
        );
        match answer {
            Ok(found) => {
                assert!(memory.updates.get() <= 5);
                assert!(
                    found.physical >> features.physical_address_bits == 0
                        || mode.format().is_none()
                );
                let again = memory.updates.replace(0);
                let after = translate(&mode, &memory, linear, access);
                if access.kind.writes() && !found.attributes.writable() {
                    // With CR0.WP clear. D in a page that is not writable is how a shadow stack is spelled,
                    // so the attributes change; the address does not.
                    assert_eq!(after.map(|after| after.physical), Ok(found.physical));
                } else {
                    assert_eq!(after, answer);
                }
                assert_eq!(
                    memory.updates.get(),
                    0,
                    "{again} flags were set once and for all"
                );
            }
            Err(fault) => {
                assert_eq!(memory.updates.get(), 0, "a fault sets no flag");
                if let GuestFault::Page {
                    linear: cr2, code, ..
                } = fault
                {
                    assert_eq!(cr2, linear);
                    assert_eq!(code.0 & !0x7f, 0);
                    assert!(
                        code.0 & 0x28 == 0 || code.0 & 1 != 0,
                        "RSVD and PK come with P"
                    );
                }
            }
        }
        if let Some(walk) = mode.walk(&memory, linear) {
            let levels = mode.format().map_or(0, |format| format.shape().levels());
            assert!(walk.steps().len() <= usize::from(levels));
        }
    }
}
