// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The manual's sentences about access rights, one by one, over raw entries.
//!
//! Written from SDM 3A, "Determination of Access Rights", "Protection Keys" and "Page-Fault
//! Exceptions", and nothing else: what *may* be done is listed, as the manual lists it (the crate lists
//! what may not).

use hvkit_shadow_paging::guest::{Access, Kind, Layout, Privilege, Registers};

/// The entries of a path, PDPTEs left out, all present and without reserved bits; and who asks.
pub(crate) struct Question<'a> {
    pub(crate) layout: Layout,
    pub(crate) registers: &'a Registers,
    pub(crate) entries: &'a [u64],
    pub(crate) access: Access,
}

impl Question<'_> {
    fn control(&self, register: u64, bit: u32) -> bool {
        register >> bit & 1 == 1
    }

    fn wp(&self) -> bool {
        self.control(self.registers.cr0, 16)
    }

    fn smep(&self) -> bool {
        self.control(self.registers.cr4, 20)
    }

    fn smap(&self) -> bool {
        self.control(self.registers.cr4, 21)
    }

    fn every(&self, bit: u32, value: u64) -> bool {
        self.entries.iter().all(|entry| entry >> bit & 1 == value)
    }

    /// "If the U/S flag is 0 in at least one entry, the address is a supervisor-mode address."
    fn user_address(&self) -> bool {
        self.every(2, 1)
    }

    /// "For 32-bit paging or if IA32_EFER.NXE = 0: from any ...; otherwise, with XD 0 in every entry."
    fn may_execute(&self) -> bool {
        self.layout == Layout::ThirtyTwoBit
            || !self.control(self.registers.efer, 11)
            || self.every(63, 0)
    }

    /// "A linear address is a shadow-stack address if R/W is 0 and D is 1 in the entry that maps the
    /// page, and R/W is 1 in every other entry."
    fn shadow_stack_address(&self) -> bool {
        let (last, above) = self.entries.split_last().unwrap();
        last >> 1 & 1 == 0 && last >> 6 & 1 == 1 && above.iter().all(|e| e >> 1 & 1 == 1)
    }

    /// The two bits that the address's key has in the register for its mode, if keys are on for it.
    fn key(&self) -> Option<(bool, bool)> {
        if matches!(self.layout, Layout::ThirtyTwoBit | Layout::Pae) {
            return None;
        }
        let key = self.entries.last().unwrap() >> 59 & 15;
        let (enable, rights) = if self.user_address() {
            (22, self.registers.pkru)
        } else {
            (24, self.registers.pkrs)
        };
        self.control(self.registers.cr4, enable).then(|| {
            (
                rights >> (2 * key) & 1 == 1,
                rights >> (2 * key + 1) & 1 == 1,
            )
        })
    }

    /// "A protection key for which read access is permitted."
    fn key_permits_read(&self) -> bool {
        self.key().is_none_or(|(ad, _)| !ad)
    }

    /// "A protection key for which write access is permitted": ADi = 0 and, for user-mode accesses or
    /// with CR0.WP = 1, WDi = 0.
    fn key_permits_write(&self) -> bool {
        let user_mode = self.access.privilege == Privilege::User;
        self.key()
            .is_none_or(|(ad, wd)| !ad && !(wd && (user_mode || self.wp())))
    }

    fn key_permits(&self) -> bool {
        match self.access.kind {
            Kind::Fetch => true,
            Kind::Read | Kind::ShadowStackRead => self.key_permits_read(),
            Kind::Write | Kind::ShadowStackWrite => self.key_permits_write(),
        }
    }

    fn supervisor_may(&self) -> bool {
        let user_address = self.user_address();
        let explicit_with_ac = self.access.privilege == Privilege::SupervisorAc;
        // "If CR4.SMAP = 1, ... only if EFLAGS.AC = 1 and the access is explicit."
        let smap_admits = !user_address || !self.smap() || explicit_with_ac;
        match self.access.kind {
            Kind::Read => smap_admits && self.key_permits_read(),
            Kind::Write if self.wp() => smap_admits && self.every(1, 1) && self.key_permits_write(),
            Kind::Write => smap_admits && self.key_permits_write(),
            Kind::Fetch => (!user_address || !self.smep()) && self.may_execute(),
            // "Supervisor-mode shadow-stack accesses are allowed only to supervisor-mode shadow-stack
            // addresses", the same protection-key rules.
            Kind::ShadowStackRead => {
                !user_address && self.shadow_stack_address() && self.key_permits_read()
            }
            Kind::ShadowStackWrite => {
                !user_address && self.shadow_stack_address() && self.key_permits_write()
            }
        }
    }

    fn user_may(&self) -> bool {
        self.user_address()
            && match self.access.kind {
                Kind::Read => self.key_permits_read(),
                Kind::Write => self.every(1, 1) && self.key_permits_write(),
                Kind::Fetch => self.may_execute(),
                Kind::ShadowStackRead => self.shadow_stack_address() && self.key_permits_read(),
                Kind::ShadowStackWrite => self.shadow_stack_address() && self.key_permits_write(),
            }
    }

    /// Nothing if the access is allowed; otherwise the error code.
    pub(crate) fn answer(&self) -> Option<u32> {
        let user_mode = self.access.privilege == Privilege::User;
        let may = if user_mode {
            self.user_may()
        } else {
            self.supervisor_may()
        };
        (!may).then(|| 1 | self.access_bits() | if self.key_permits() { 0 } else { 0x20 })
    }

    /// The flags of the error code that are about the access: W/R, U/S, I/D, SS.
    pub(crate) fn access_bits(&self) -> u32 {
        let pae = self.control(self.registers.cr4, 5);
        let nxe = self.control(self.registers.efer, 11);
        let tells_fetches = self.smep() || pae && nxe;
        let user = match self.access.privilege {
            Privilege::User => 0x04,
            Privilege::Supervisor | Privilege::SupervisorAc | Privilege::Implicit => 0,
        };
        user | match self.access.kind {
            Kind::Read => 0,
            Kind::Write => 0x02,
            Kind::Fetch if tells_fetches => 0x10,
            Kind::Fetch => 0,
            Kind::ShadowStackRead => 0x40,
            Kind::ShadowStackWrite => 0x42,
        }
    }
}
