// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! EPT over EPT as a stage: L1's EPT, or no table for L1 itself, onto the processor's EPT.

use hvkit_ept::spec::{
    Controls, EptEntry, EptVpidCap, MemoryType, Rights as EptRights, WalkLength,
};
use hvkit_ept::{Attributes, Ept};
use hvkit_page_table::{Entry, Fault, Format, Root, Shape, UpdateEntry, walk};
use hvkit_shadow_paging::mmu::{HostRights, Meaning, Path, Rights, Stage, Stopped, Table, Top};

/// What is done at a guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}

impl Access {
    pub(crate) fn needs(self) -> EptRights {
        match self {
            Self::Read => EptRights::READ,
            Self::Write => EptRights::WRITE,
            Self::Execute => EptRights::EXECUTE,
        }
    }
}

/// What L1 is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Violation,
    Misconfiguration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Nested {
    guest: Option<Ept>,
    shadow: Ept,
}

/// R, W, X, memory type and IPAT where an entry has them; then: D is set.
const ENTRY: u16 = 0x7f;
const GRANTS: u16 = 0b111;
const WRITTEN: u16 = 1 << 8;

pub(crate) fn capability() -> EptVpidCap {
    EptVpidCap::EXECUTE_ONLY
        | EptVpidCap::WALK_LENGTH_4
        | EptVpidCap::STRUCTURES_WRITE_BACK
        | EptVpidCap::PAGE_2M
        | EptVpidCap::PAGE_1G
        | EptVpidCap::ACCESSED_DIRTY
}

pub(crate) fn ept(controls: Controls) -> Ept {
    Ept::new(capability(), 40, WalkLength::Four, controls).unwrap()
}

impl Nested {
    /// L2 under L1's EPT.
    pub(crate) fn l2(controls: Controls) -> Self {
        Self {
            guest: Some(ept(controls)),
            shadow: ept(Controls::empty()),
        }
    }

    /// L1 itself.
    pub(crate) fn l1() -> Self {
        Self {
            guest: None,
            shadow: ept(Controls::empty()),
        }
    }
}

/// What the attributes grant. Where no flags are kept, every page counts as written.
fn rights(format: &Ept, attributes: Attributes, entry: u64) -> Rights {
    let mut bits = attributes.rights().bits() as u16 & GRANTS;
    bits |= u16::from(attributes.memory_type().bits()) << EptEntry::MEMORY_TYPE_SHIFT;
    if attributes.pat() == hvkit_ept::spec::Pat::Ignored {
        bits |= EptEntry::IGNORE_PAT as u16;
    }
    let dirty = format.marks().dirty;
    Rights(bits | if entry & dirty == dirty { WRITTEN } else { 0 })
}

impl Stage for Nested {
    type Shadow = Ept;
    type Access = Access;
    type Refusal = Exit;

    fn shadow(&self) -> &Ept {
        &self.shadow
    }

    fn guest(&self) -> Option<&Shape> {
        self.guest.as_ref().map(Format::shape)
    }

    fn all(&self) -> Rights {
        match self.guest {
            Some(_) => Rights(GRANTS),
            None => Rights(GRANTS | 6 << EptEntry::MEMORY_TYPE_SHIFT | WRITTEN),
        }
    }

    fn resolve<M: UpdateEntry>(
        &self,
        top: &Top,
        memory: &M,
        address: u64,
        access: Access,
    ) -> Result<Path, Stopped<Exit, M::Error>> {
        let (Some(format), Top::Table(root)) = (&self.guest, top) else {
            return Ok(Path {
                tables: [Table::default(); 5],
                target: address,
                level: 4,
                shift: 48,
                rights: self.all(),
            });
        };
        let walk = walk(format, memory, Root::Table(*root), address);
        let there = match walk.outcome {
            Ok(there) => there,
            Err(Fault::Malformed { .. }) => return Err(Stopped::Refused(Exit::Misconfiguration)),
            Err(Fault::Unreadable { level, at, error }) => {
                return Err(Stopped::Memory { level, at, error });
            }
            Err(_) => return Err(Stopped::Refused(Exit::Violation)),
        };
        if !there.attributes.rights().contains(access.needs()) {
            return Err(Stopped::Refused(Exit::Violation));
        }
        let marks = format.marks();
        let mut last = 0;
        for (number, step) in (1..).zip(walk.steps()) {
            let dirty = number == walk.steps().len() && access == Access::Write;
            let marked = step.entry | marks.accessed | if dirty { marks.dirty } else { 0 };
            if let (Some(at), true) = (step.at, marked != step.entry) {
                let stored =
                    memory.compare_exchange(at, format.shape().width(), step.entry, marked);
                let level = step.level;
                stored.map_err(|error| Stopped::Memory { level, at, error })?;
            }
            last = marked;
        }
        let of = |attributes: Attributes| Rights(attributes.rights().bits() as u16 & GRANTS);
        Ok(Path {
            tables: Path::of_steps(walk.steps(), self.all(), of),
            target: there.target,
            level: there.level,
            shift: format.shape().shift(there.level),
            rights: rights(format, there.attributes, last),
        })
    }

    fn meaning(&self, entry: u64, level: u8, above: Rights) -> Meaning {
        let Some(format) = &self.guest else {
            return Meaning::Nothing;
        };
        let accessed = format.marks().accessed;
        if entry & accessed != accessed {
            return Meaning::Nothing;
        }
        match format.decode(entry, level) {
            Entry::Table { frame, attributes } => Meaning::Table(Table {
                frame,
                above: Rights(above.0 & attributes.rights().bits() as u16),
            }),
            Entry::Leaf { target, attributes } => {
                let here = rights(format, attributes, entry).0;
                let rights = Rights(here & (above.0 | !GRANTS));
                Meaning::Page { target, rights }
            }
            Entry::Empty | Entry::Malformed(_) => Meaning::Nothing,
        }
    }

    fn grant(
        &self,
        rights: Rights,
        host: HostRights,
        access: Option<Access>,
    ) -> Option<Attributes> {
        let mut granted = EptRights::from_bits_truncate(u64::from(rights.0 & GRANTS));
        if !host.write || rights.0 & WRITTEN == 0 {
            granted.remove(EptRights::WRITE);
        }
        if !host.execute {
            granted.remove(EptRights::EXECUTE);
        }
        let needs = access.map_or(EptRights::empty(), Access::needs);
        let bits = (rights.0 & ENTRY) as u8 >> EptEntry::MEMORY_TYPE_SHIFT & 0b111;
        let kind = [MemoryType::Uncacheable, MemoryType::WriteBack][usize::from(bits == 6)];
        let possible = !granted.is_empty() && granted.contains(needs);
        possible.then_some(Attributes::new(granted, kind))
    }

    fn admits(&self, attributes: Attributes, rights: Rights, host: HostRights) -> bool {
        self.grant(rights, host, None).is_some_and(|most| {
            most.rights().contains(attributes.rights())
                && most.memory_type() == attributes.memory_type()
        })
    }

    fn includes(&self, now: Rights, then: Rights) -> bool {
        now == then || now.0 == then.0 | WRITTEN
    }

    fn protect(&self, attributes: Attributes) -> Option<Attributes> {
        let rest = attributes.rights() - EptRights::WRITE;
        (!rest.is_empty()).then_some(attributes.with_rights(rest))
    }

    fn writes(&self, access: Access) -> bool {
        access == Access::Write
    }
}
