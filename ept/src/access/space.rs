// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The verdict on an access.
//!
//! ```text
//!   guest-physical --> entry --> entry --> ... --> entry that maps a page
//!                        |absent    |misconfigured        |
//!                    violation   misconfiguration   rights enough?  --no--> sub-pages? --no--> violation
//!                                                         |yes
//!                                                   host-physical, flags to set
//! ```
//!
//! SDM 3C, "EPT-Induced VM Exits", with its priorities: an entry that is absent or misconfigured ends the
//! walk where it stands; rights are judged when the whole path is known.

use hvkit_page_table::{Fault, Format, ReadEntry, Root, Step, Translation, Width, visit, walk};

use super::{Access, EptFault, Granted, ShadowStack};
use crate::attributes::Attributes;
use crate::format::{Ept, Rule};
use crate::marks::{Forget, Mark, Note, Updates};
use crate::spec::{
    Accesses, Controls, EptEntry, LinearAddress, Mode, PageRights, Rights, SppExit, Violation,
    ViolationFlags,
};
use crate::spp::{self, SppError, SppFormat};

/// A guest-physical address space: EPT's tables in host memory.
#[derive(Debug)]
pub struct GuestSpace<'a, M> {
    ept: &'a Ept,
    memory: &'a M,
    root: u64,
    sub_pages: u64,
}

impl<M> Clone for GuestSpace<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for GuestSpace<'_, M> {}

impl<'a, M: ReadEntry> GuestSpace<'a, M> {
    /// The space that the table of format `ept` at `root` makes.
    pub const fn new(ept: &'a Ept, memory: &'a M, root: u64) -> Self {
        Self {
            ept,
            memory,
            root,
            sub_pages: 0,
        }
    }

    /// The same, with the sub-page permission table at `root` (the SPPTP field). It counts under
    /// [`Controls::SUB_PAGE_WRITE`].
    #[must_use]
    pub const fn with_sub_pages(self, root: u64) -> Self {
        Self {
            sub_pages: root,
            ..self
        }
    }

    /// The format.
    #[must_use]
    pub const fn ept(&self) -> &'a Ept {
        self.ept
    }

    /// Host memory.
    #[must_use]
    pub const fn memory(&self) -> &'a M {
        self.memory
    }

    /// Makes `access` to `guest_physical`, and forgets the flags it would set.
    ///
    /// # Errors
    ///
    /// The exit that a processor would make.
    #[inline]
    pub fn access(
        &self,
        guest_physical: u64,
        access: Access,
    ) -> Result<Granted, EptFault<M::Error>> {
        self.access_after(guest_physical, access, PagingPages::Writable, &mut Forget)
    }

    /// Makes `access` to `guest_physical`, and adds the flags it sets to `updates`.
    ///
    /// # Errors
    ///
    /// The exit that a processor would make. It sets no flags then.
    pub fn access_marking(
        &self,
        guest_physical: u64,
        access: Access,
        mut updates: &mut Updates,
    ) -> Result<Granted, EptFault<M::Error>> {
        self.access_after(guest_physical, access, PagingPages::Writable, &mut updates)
    }

    /// [`access_marking`](Self::access_marking), knowing what pages the guest's paging structures lie in.
    #[inline(always)]
    pub(crate) fn access_after<N: Note>(
        &self,
        guest_physical: u64,
        access: Access,
        paging: PagingPages,
        note: &mut N,
    ) -> Result<Granted, EptFault<M::Error>> {
        match self.allowed::<N>(guest_physical, access, paging) {
            Some(granted) => Ok(granted),
            None => self.access_at_length(guest_physical, access, paging, note),
        }
    }

    /// The page, if the access is allowed and no flag is left to be set: the common case. Of the path
    /// nothing is kept but what tells so.
    ///
    /// Inlined, for the access is a constant to most who make it. It has no other answer than `None` to
    /// give: a page that met a fault on its way out would have to be in memory.
    #[inline(always)]
    pub(crate) fn allowed<N: Note>(
        &self,
        guest_physical: u64,
        access: Access,
        paging: PagingPages,
    ) -> Option<Granted> {
        let access = self.effective(access);
        let root = Root::Table(self.root);
        let (mut all, mut last) = (u64::MAX, u64::MAX);
        let found = visit(self.ept, self.memory, root, guest_physical, |step| {
            all &= step.entry;
            last = step.entry;
        })
        .ok()?;
        let attributes = found.attributes;
        let marks = self.ept.marks();
        let unset = marks.accessed & !all
            | if access.accesses.contains(Accesses::WRITE) {
                marks.dirty & !last
            } else {
                0
            };
        if N::KEEPS && unset != 0
            || !self.allows(attributes, access)
            || self.verification_fails(attributes, access, paging)
        {
            return None;
        }
        Some(Granted {
            host_physical: found.target,
            level: found.level,
            attributes,
        })
    }

    /// The whole of it: keeps the path, notes flags, and says why not.
    #[inline(never)]
    fn access_at_length(
        &self,
        guest_physical: u64,
        access: Access,
        paging: PagingPages,
        note: &mut impl Note,
    ) -> Result<Granted, EptFault<M::Error>> {
        let access = self.effective(access);
        let root = Root::Table(self.root);
        let seen = walk(self.ept, self.memory, root, guest_physical);
        let found = match seen.outcome {
            Ok(found) => found,
            Err(fault) => return Err(self.no_translation(guest_physical, access, fault)),
        };
        let granted = self.judge(guest_physical, access, found, paging)?;
        self.mark_path(guest_physical, access, seen.steps(), note);
        Ok(granted)
    }

    /// With accessed and dirty flags, an access to a guest paging-structure entry counts as a write.
    #[inline(always)]
    fn effective(&self, access: Access) -> Access {
        let flags = self.ept.controls().contains(Controls::ACCESSED_DIRTY);
        if flags && access.linear == LinearAddress::PagingStructure {
            Access {
                accesses: Accesses::READ | Accesses::WRITE,
                ..access
            }
        } else {
            access
        }
    }

    fn judge(
        &self,
        guest_physical: u64,
        access: Access,
        found: Translation<Attributes>,
        paging: PagingPages,
    ) -> Result<Granted, EptFault<M::Error>> {
        let Translation {
            target,
            level,
            attributes,
        } = found;
        let granted = Granted {
            host_physical: target,
            level,
            attributes,
        };
        let why = if !self.allows(attributes, access) {
            if self.sub_page_allows(guest_physical, access, &granted)? {
                return Ok(granted);
            }
            ViolationFlags::empty()
        } else if self.verification_fails(attributes, access, paging) {
            ViolationFlags::GUEST_PAGING_VERIFICATION
        } else {
            return Ok(granted);
        };
        Err(self.violation(guest_physical, access, Some(attributes), why))
    }

    /// "EPT Violations": do these rights allow the access?
    #[inline(always)]
    fn allows(&self, attributes: Attributes, access: Access) -> bool {
        let (rights, controls) = (attributes.rights(), self.ept.controls());
        if self.is_supervisor_shadow_stack(access) {
            return rights.contains(Rights::READ)
                && attributes.writable_above()
                && attributes.options(EptEntry::SUPERVISOR_SHADOW_STACK) != 0;
        }
        let writable = rights.contains(Rights::WRITE)
            || access.linear == LinearAddress::PagingStructure
                && attributes.writable_above()
                && attributes.options(EptEntry::PAGING_WRITE) != 0;
        let fetch = match access.linear {
            LinearAddress::Translation(Some(PageRights {
                mode: Mode::User, ..
            })) if controls.contains(Controls::MODE_BASED_EXECUTE) => Rights::USER_EXECUTE,
            _ => Rights::EXECUTE,
        };
        (!access.accesses.contains(Accesses::READ) || rights.contains(Rights::READ))
            && (!access.accesses.contains(Accesses::WRITE) || writable)
            && (!access.accesses.contains(Accesses::FETCH) || rights.contains(fetch))
    }

    /// Whether the rights for supervisor shadow stacks count, in place of those for data.
    #[inline]
    fn is_supervisor_shadow_stack(&self, access: Access) -> bool {
        access.shadow_stack == ShadowStack::Supervisor
            && self
                .ept
                .controls()
                .contains(Controls::SUPERVISOR_SHADOW_STACK)
    }

    /// Guest-paging verification: the page demands that every guest paging structure of the translation
    /// lies in a paging-write page, and one does not.
    #[inline(always)]
    fn verification_fails(
        &self,
        attributes: Attributes,
        access: Access,
        paging: PagingPages,
    ) -> bool {
        let needed = Controls::GUEST_PAGING_VERIFICATION | Controls::PAGING_WRITE;
        paging == PagingPages::Others
            && self.ept.controls().contains(needed)
            && matches!(access.linear, LinearAddress::Translation(_))
            && attributes.options(EptEntry::VERIFY_GUEST_PAGING) != 0
    }

    /// "Sub-Page Write Permissions": a write that only the right to write is missing for.
    fn sub_page_allows(
        &self,
        guest_physical: u64,
        access: Access,
        granted: &Granted,
    ) -> Result<bool, EptFault<M::Error>> {
        let rights = granted.attributes.rights();
        let eligible = granted.attributes.options(EptEntry::SUB_PAGE_WRITE) != 0
            && granted.level == 1
            && access.accesses.contains(Accesses::WRITE)
            && matches!(access.linear, LinearAddress::Translation(_))
            && !self.is_supervisor_shadow_stack(access)
            && !access.circumstances.contains(ViolationFlags::ASYNCHRONOUS)
            && rights.contains(Rights::READ)
            && !rights.contains(Rights::WRITE);
        if !eligible {
            return Ok(false);
        }
        let format = SppFormat::new(self.ept.rules().physical_bits());
        match spp::vector(&format, self.memory, self.sub_pages, guest_physical) {
            Ok(vector) => Ok(vector.allows(guest_physical)),
            Err(SppError::Event(fault)) => {
                let mut qualification = SppExit::new(fault);
                if access
                    .circumstances
                    .contains(ViolationFlags::NMI_UNBLOCKING)
                {
                    qualification.0 |= SppExit::NMI_UNBLOCKING;
                }
                Err(EptFault::SubPage {
                    guest_physical,
                    qualification,
                    fault,
                })
            }
            Err(SppError::Unreadable { at, error }) => Err(EptFault::Unreadable { at, error }),
        }
    }

    #[cold]
    fn no_translation(
        &self,
        guest_physical: u64,
        access: Access,
        fault: Fault<Rule, M::Error>,
    ) -> EptFault<M::Error> {
        match fault {
            Fault::Malformed { level, entry, rule } => EptFault::Misconfiguration {
                guest_physical,
                level,
                entry,
                rule,
            },
            Fault::Unreadable { at, error, .. } => EptFault::Unreadable { at, error },
            Fault::NotPresent { entry, .. } => {
                let none = ViolationFlags::empty();
                let mut exit = self.violation(guest_physical, access, None, none);
                if let EptFault::Violation { convertible, .. } = &mut exit {
                    let exceptions = Controls::VIOLATION_EXCEPTION;
                    *convertible = self.ept.controls().contains(exceptions)
                        && entry & EptEntry::SUPPRESS_VE == 0;
                }
                exit
            }
            // Bits 51:48 of a guest-physical address under 4-level EPT: no entry is used. (The other
            // faults are of roots and formats that EPT does not have.)
            _ => self.violation(guest_physical, access, None, ViolationFlags::empty()),
        }
    }

    /// The violation for an access whose path grants `attributes`, or has an absent entry.
    #[cold]
    fn violation(
        &self,
        guest_physical: u64,
        access: Access,
        attributes: Option<Attributes>,
        why: ViolationFlags,
    ) -> EptFault<M::Error> {
        let controls = self.ept.controls();
        let mut flags = access.circumstances | why;
        flags.set(
            ViolationFlags::SHADOW_STACK,
            access.shadow_stack != ShadowStack::No,
        );
        let has = |option| attributes.is_some_and(|found| found.options(option) != 0);
        flags.set(
            ViolationFlags::SUPERVISOR_SHADOW_STACK_PAGE,
            has(EptEntry::SUPERVISOR_SHADOW_STACK),
        );
        let facts = Violation {
            accesses: access.accesses,
            granted: attributes.map_or(Rights::empty(), Attributes::rights),
            linear: access.linear,
            flags,
        };
        EptFault::Violation {
            guest_physical,
            qualification: facts.qualification(self.ept.capability(), controls),
            convertible: attributes.is_some()
                && controls.contains(Controls::VIOLATION_EXCEPTION)
                && !has(EptEntry::SUPPRESS_VE),
        }
    }

    /// The flags of EPT's own entries. SDM 3C, "Accessed and Dirty Flags for EPT".
    fn mark_path(
        &self,
        guest_physical: u64,
        access: Access,
        steps: &[Step<Attributes>],
        note: &mut impl Note,
    ) {
        let marks = self.ept.marks();
        for (i, step) in (1..).zip(steps) {
            let last = i == steps.len();
            let dirty = last && access.accesses.contains(Accesses::WRITE);
            let wanted = marks.accessed | if dirty { marks.dirty } else { 0 };
            let set = wanted & !step.entry;
            if let (Some(at), true) = (step.at, set != 0) {
                let logged = (set & marks.dirty != 0).then_some(guest_physical & !0xfff);
                note.note(Mark {
                    at,
                    width: Width::Eight,
                    entry: step.entry,
                    set,
                    logged,
                });
            }
        }
    }
}

/// What pages the guest paging structures of a translation lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PagingPages {
    /// All in paging-write pages, or nobody looked.
    Writable,
    /// Some in another.
    Others,
}
