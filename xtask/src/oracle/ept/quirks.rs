// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Bochs does otherwise than the manual, so exactly that a case can be run by it.

use std::cell::Cell;
use std::convert::Infallible;

use hvkit_ept::access::{Access as EptAccess, EptFault, GuestSpace};
use hvkit_ept::dirty::pml::PmlIndex;
use hvkit_ept::marks::Updates;
use hvkit_ept::nested_walk::{GuestFault as Nested, GuestPaging};
use hvkit_page_table::{ReadEntry, UpdateEntry, Width};
use hvkit_shadow_paging::guest::{Access, GuestFault};

use lab_cases::ept::PML_LOG;

use super::adapter::X86;
use crate::oracle::memory::Memory;

/// Which quirks are followed: the sections of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quirks(pub(super) u32);

impl Quirks {
    /// The manual.
    pub(super) const NONE: Self = Self(0);
    /// With flags, accesses to guest tables are reported as writes alone, not as reads and writes.
    pub(super) const TABLES_WRITTEN_ALONE: Self = Self(1 << 0);
    /// The log holds whole guest-physical addresses.
    pub(super) const LOG_LOW_BITS: Self = Self(1 << 1);
    /// Without flags, EPT is not asked before the guest's accessed and dirty flags are stored.
    pub(super) const MARKS_UNASKED: Self = Self(1 << 2);
    /// With a full log, no access is made, whether it needs flags or not.
    pub(super) const FULL_AT_ONCE: Self = Self(1 << 3);
    /// IRET unblocks NMIs that were not blocked.
    pub(super) const IRET_UNBLOCKS: Self = Self(1 << 4);
    /// Bit 12 of an entry that maps a large page is not reserved.
    pub(super) const BIT_12_IGNORED: Self = Self(1 << 5);
    /// The right of user-mode fetches is reported in bit 13 instead of bit 6.
    pub(super) const USER_EXECUTE_AT_13: Self = Self(1 << 6);

    /// All, by name.
    pub(super) const ALL: [(&'static str, Self); 7] = [
        ("user-execute-at-13", Self::USER_EXECUTE_AT_13),
        ("full-at-once", Self::FULL_AT_ONCE),
        ("iret-unblocks", Self::IRET_UNBLOCKS),
        ("bit-12-ignored", Self::BIT_12_IGNORED),
        ("tables-written-alone", Self::TABLES_WRITTEN_ALONE),
        ("log-low-bits", Self::LOG_LOW_BITS),
        ("marks-unasked", Self::MARKS_UNASKED),
    ];

    /// Whether `quirk` is followed.
    pub(super) const fn has(self, quirk: Self) -> bool {
        self.0 & quirk.0 != 0
    }
}

/// A nested walk by the model's quirks: every guest-physical access is made, marked and logged as it comes.
pub(super) struct Walk<'s, 'a> {
    pub(super) space: &'s GuestSpace<'a, Memory>,
    pub(super) quirks: Quirks,
    /// Where to log, under "enable PML" and with EPT's flags.
    pub(super) log: Option<Cell<PmlIndex>>,
}

/// Why a guest-physical access was not made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// An exit by EPT.
    Fault(EptFault<Infallible>),
    /// The log is full.
    LogFull,
}

impl Walk<'_, '_> {
    /// Translates, and returns the host-physical address.
    pub(super) fn translate(
        &self,
        guest: &X86,
        linear: u64,
        access: Access,
    ) -> Result<u64, Nested<GuestFault<()>, Stop>> {
        let page = guest.translate(self, linear, access)?;
        let access =
            EptAccess::translation(page.accesses, page.rights).with_shadow_stack(page.shadow_stack);
        self.touch(page.physical, access).map_err(Nested::Memory)
    }

    /// One access.
    fn touch(&self, at: u64, access: EptAccess) -> Result<u64, Stop> {
        let full = self
            .log
            .as_ref()
            .is_some_and(|log| log.get().next().is_none());
        if full && self.quirks.has(Quirks::FULL_AT_ONCE) {
            return Err(Stop::LogFull);
        }
        let mut updates = Updates::new();
        let granted = self.space.access_marking(at, access, &mut updates);
        let granted = granted.map_err(Stop::Fault)?;
        let memory = self.space.memory();
        for mark in updates.marks() {
            if let Some(log) = &self.log {
                let Some((entry, after)) = log.get().next() else {
                    return Err(Stop::LogFull);
                };
                if let Some(page) = mark.logged {
                    let low = if self.quirks.has(Quirks::LOG_LOW_BITS) {
                        at & 0xfff
                    } else {
                        0
                    };
                    memory.store(PML_LOG + u64::from(entry) * 8, Width::Eight, page | low);
                    log.set(after);
                }
            }
            let Ok(_) =
                memory.compare_exchange(mark.at, mark.width, mark.entry, mark.entry | mark.set);
        }
        Ok(granted.host_physical)
    }
}

impl ReadEntry for Walk<'_, '_> {
    type Error = Stop;

    fn read(&self, at: u64, width: Width) -> Result<u64, Stop> {
        let at = self.touch(at, EptAccess::paging_read())?;
        let Ok(entry) = self.space.memory().read(at, width);
        Ok(entry)
    }
}

impl UpdateEntry for Walk<'_, '_> {
    fn compare_exchange(&self, at: u64, width: Width, current: u64, new: u64) -> Result<u64, Stop> {
        let at = if self.quirks.has(Quirks::MARKS_UNASKED) {
            // Where reading it led.
            let read = self.space.access(at, EptAccess::paging_read());
            read.map_err(Stop::Fault)?.host_physical
        } else {
            self.touch(at, EptAccess::paging_write())?
        };
        let Ok(found) = self
            .space
            .memory()
            .compare_exchange(at, width, current, new);
        Ok(found)
    }
}
