// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Control-register accesses. SDM Vol. 3C, "Changes to Instruction Behavior in VMX Non-Root Operation", "Guest/Host Masks
//! and Read Shadows for CR0 and CR4".

use hvkit_vmcs::controls::Entry;
use hvkit_vmcs::exit::{ControlRegister, Gpr};
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::FieldsMut;

use super::Guest;

/// What the guest tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrAccess {
    /// MOV to a control register.
    Write {
        /// Which: 0, 3, 4 or 8.
        number: u8,
        /// The value.
        value: u64,
    },
    /// MOV from a control register.
    Read {
        /// Which: 3 or 8.
        number: u8,
        /// Where to.
        register: Gpr,
    },
    /// CLTS.
    Clts,
    /// LMSW, with its source.
    Lmsw(u16),
}

/// MOV to or from a control register, CLTS, LMSW.
#[derive(Debug)]
pub struct ControlRegisterExit<'r, V: FieldsMut> {
    /// The guest.
    pub guest: Guest<'r, V>,
    /// What it tried.
    pub access: CrAccess,
}

const PE: u64 = 1 << 0;
const TS: u64 = 1 << 3;
const WP: u64 = 1 << 16;
const NW: u64 = 1 << 29;
const CD: u64 = 1 << 30;
const CR4_PAE: u64 = 1 << 5;
const CR4_PCIDE: u64 = 1 << 17;
const CR4_CET: u64 = 1 << 23;
/// In the access rights of CS.
const CS_LONG: u32 = 1 << 13;
const PG: u64 = 1 << 31;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// In CR3: keep cached translations. It is not stored.
const CR3_KEEP: u64 = 1 << 63;

impl<'r, V: FieldsMut> ControlRegisterExit<'r, V> {
    pub(super) fn new(guest: Guest<'r, V>) -> Self {
        let access = ControlRegister(guest.read(f::EXIT_QUALIFICATION));
        let register = Gpr(access.register());
        let number = access.number();
        let access = match access.access() {
            0 => {
                let value = guest.get(register);
                let value = if guest.is_64_bit() {
                    value
                } else {
                    value & 0xffff_ffff
                };
                CrAccess::Write { number, value }
            }
            1 => CrAccess::Read { number, register },
            2 => CrAccess::Clts,
            _ => CrAccess::Lmsw(access.lmsw_source()),
        };
        Self { guest, access }
    }

    /// The value that CR0 would have after the access; `None` if it is not one to CR0.
    pub fn new_cr0(&self) -> Option<u64> {
        match self.access {
            CrAccess::Write { number: 0, value } => Some(value),
            CrAccess::Clts => Some(self.visible_cr0() & !TS),
            // PE, MP, EM and TS; it cannot clear PE.
            CrAccess::Lmsw(source) => {
                let old = self.visible_cr0();
                Some(old & !0xe | u64::from(source) & 0xf)
            }
            _ => None,
        }
    }

    /// Whether a processor refuses the new CR0 with a general-protection exception, in a guest whose `IA32_EFER` is `efer` as the guest reads it.
    /// `false` if CR0 is not written.
    ///
    /// SDM Vol. 2B, "MOV - Move to/from Control Registers", "64-Bit Mode Exceptions"; Vol. 3A, "Initializing IA-32e Mode".
    pub fn refuses_cr0(&self, efer: u64) -> bool {
        let Some(new) = self.new_cr0() else {
            return false;
        };
        let (old, cr4) = (self.visible_cr0(), self.visible_cr4());
        let has = |bits: u64| new & bits != 0;
        let begins = has(PG) && old & PG == 0 && efer & EFER_LME != 0;
        let ends = !has(PG) && old & PG != 0;
        let code_is_long = self.guest.read(f::GUEST_CS_ACCESS_RIGHTS) & CS_LONG != 0;
        new >> 32 != 0
            || has(PG) && !has(PE)
            || has(NW) && !has(CD)
            || !has(WP) && cr4 & CR4_CET != 0
            || ends && (self.guest.is_64_bit() || cr4 & CR4_PCIDE != 0)
            || begins && (cr4 & CR4_PAE == 0 || code_is_long)
    }

    /// CR4 as the guest reads it.
    fn visible_cr4(&self) -> u64 {
        let mask = self.guest.read(f::CR4_GUEST_HOST_MASK);
        self.guest.read(f::CR4_READ_SHADOW) & mask | self.guest.read(f::GUEST_CR4) & !mask
    }

    /// CR0 as the guest reads it.
    fn visible_cr0(&self) -> u64 {
        let mask = self.guest.read(f::CR0_GUEST_HOST_MASK);
        self.guest.read(f::CR0_READ_SHADOW) & mask | self.guest.read(f::GUEST_CR0) & !mask
    }

    /// Completes the instruction as the guest wants it, with `must_be_one` kept from it: those bits are set in the
    /// register, and the guest reads what it wrote.
    ///
    /// Setting or clearing CR0.PG changes IA-32e mode where `IA32_EFER.LME` asks for it, as a processor does. What else
    /// depends on a register is the caller's: PDPTEs of PAE paging, translations to forget, and refusing a value that
    /// would fault.
    pub fn allow(mut self, must_be_one: u64) {
        if let Some(value) = self.new_cr0() {
            self.set_cr0(value, must_be_one);
        } else {
            match self.access {
                CrAccess::Write { number: 3, value } => {
                    self.guest.write(f::GUEST_CR3, value & !CR3_KEEP);
                }
                CrAccess::Write { number: 4, value } => {
                    self.guest.write(f::GUEST_CR4, value | must_be_one);
                    self.guest.write(f::CR4_READ_SHADOW, value);
                }
                CrAccess::Read {
                    number: 3,
                    register,
                } => {
                    let value = self.guest.read(f::GUEST_CR3);
                    self.guest.set(register, value);
                }
                _ => {}
            }
        }
        self.guest.skip();
    }

    fn set_cr0(&mut self, value: u64, must_be_one: u64) {
        let guest = &mut self.guest;
        let paging = value & PG != 0;
        let efer = guest.read(f::GUEST_EFER);
        if efer & EFER_LME != 0 && paging != (guest.read(f::GUEST_CR0) & PG != 0) {
            let mut entry = Entry::from_bits_retain(guest.read(f::ENTRY_CONTROLS));
            entry.set(Entry::IA32E_MODE_GUEST, paging);
            guest.write(f::ENTRY_CONTROLS, entry.bits());
            let efer = if paging {
                efer | EFER_LMA
            } else {
                efer & !EFER_LMA
            };
            guest.write(f::GUEST_EFER, efer);
        }
        guest.write(f::GUEST_CR0, value | must_be_one);
        guest.write(f::CR0_READ_SHADOW, value);
    }

    /// Completes a MOV from a control register with a value.
    pub fn answer(mut self, value: u64) {
        if let CrAccess::Read { register, .. } = self.access {
            self.guest.set(register, value);
        }
        self.guest.skip();
    }

    /// Completes the instruction; the effect is the caller's.
    pub fn done(mut self) {
        self.guest.skip();
    }

    /// #GP(0), as for a value with reserved bits.
    pub fn fault(mut self) {
        self.guest.fault();
    }
}
