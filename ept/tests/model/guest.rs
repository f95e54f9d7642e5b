// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The toy guest for the crate's side: a format, its rules, and how it marks.

use hvkit_ept::access::ShadowStack;
use hvkit_ept::nested_walk::{GuestFault, GuestPage, GuestPaging};
use hvkit_ept::spec::{Accesses, Mode, PageRights};
use hvkit_page_table::{Entry, Fault, Format, Marks, Root, Shape, UpdateEntry, Upper, walk};

/// Two levels of 512 8-byte entries. P 0, R/W 1, U/S 2, A 5, D 6, PS 7, XD 63; bits 51:46 reserved.
pub(crate) struct Toy(Shape);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToyRights {
    writable: bool,
    user: bool,
    execute_disable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reserved;

impl Format for Toy {
    type Attributes = ToyRights;
    type Rule = Reserved;

    fn shape(&self) -> &Shape {
        &self.0
    }

    fn decode(&self, entry: u64, level: u8) -> Entry<ToyRights, Reserved> {
        if entry & 1 == 0 {
            return Entry::Empty;
        }
        if entry & 0x000f_c000_0000_0000 != 0 {
            return Entry::Malformed(Reserved);
        }
        let address = entry & 0x3fff_ffff_f000;
        let attributes = ToyRights {
            writable: entry & 2 != 0,
            user: entry & 4 != 0,
            execute_disable: entry >> 63 != 0,
        };
        if level == 1 || entry & 0x80 != 0 {
            let target = address & !(self.0.size(level) - 1);
            Entry::Leaf { target, attributes }
        } else {
            Entry::Table {
                frame: address,
                attributes,
            }
        }
    }

    fn fold(&self, above: ToyRights, here: ToyRights) -> ToyRights {
        ToyRights {
            writable: above.writable && here.writable,
            user: above.user && here.user,
            execute_disable: above.execute_disable || here.execute_disable,
        }
    }

    fn marks(&self) -> Marks {
        Marks {
            accessed: 1 << 5,
            dirty: 1 << 6,
        }
    }
}

/// The toy guest with its CR3.
pub(crate) struct ToyGuest {
    format: Toy,
    cr3: u64,
}

impl ToyGuest {
    pub(crate) fn new(cr3: u64) -> Self {
        Self {
            format: Toy(Shape::nines(2, 0b11, Upper::Zero).unwrap()),
            cr3,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ToyAccess {
    pub(crate) accesses: Accesses,
    pub(crate) mode: Mode,
    pub(crate) shadow_stack: ShadowStack,
}

impl GuestPaging for ToyGuest {
    type Access = ToyAccess;
    type PageFault = u32;

    fn translate<M: UpdateEntry>(
        &self,
        memory: &M,
        linear: u64,
        access: ToyAccess,
    ) -> Result<GuestPage, GuestFault<u32, M::Error>> {
        let user = access.mode == Mode::User;
        let (write, fetch) = (
            access.accesses.contains(Accesses::WRITE),
            access.accesses.contains(Accesses::FETCH),
        );
        let code = u32::from(write) << 1 | u32::from(user) << 2 | u32::from(fetch) << 4;
        let seen = walk(&self.format, memory, Root::Table(self.cr3), linear);
        let found = match seen.outcome {
            Ok(found) => found,
            Err(Fault::Unreadable { error, .. }) => return Err(GuestFault::Memory(error)),
            Err(Fault::Malformed { .. }) => return Err(GuestFault::Page(code | 9)),
            Err(_) => return Err(GuestFault::Page(code)),
        };
        let rights = found.attributes;
        if write && !rights.writable || fetch && rights.execute_disable || user && !rights.user {
            return Err(GuestFault::Page(code | 1));
        }
        let marks = self.format.marks();
        for (i, step) in seen.steps().iter().enumerate() {
            let last = i + 1 == seen.steps().len();
            let new = step.entry | marks.accessed | if last && write { marks.dirty } else { 0 };
            if new != step.entry {
                memory
                    .compare_exchange(step.at.unwrap(), self.format.0.width(), step.entry, new)
                    .map_err(GuestFault::Memory)?;
            }
        }
        Ok(GuestPage {
            physical: found.target,
            accesses: access.accesses,
            rights: PageRights {
                mode: if rights.user {
                    Mode::User
                } else {
                    Mode::Supervisor
                },
                writable: rights.writable,
                execute_disable: rights.execute_disable,
            },
            shadow_stack: access.shadow_stack,
        })
    }
}
