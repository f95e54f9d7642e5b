// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMCSs that enter: where tests, oracles and fuzzers begin, and a reader sees what a guest of each mode needs.
//!
//! Every address is a page of its own below 16 MiB; nothing is assumed to be in memory. The host is a 64-bit one.

use crate::{
    Vmcs,
    capability::Processor,
    controls::{Allowed, Controls, Entry, ExitPrimary, PinBased, Primary, Secondary, adjust},
    fields as f,
    store::FieldsMut,
};

/// Which guest a seed sets up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Seed {
    /// 64-bit mode, 4-level paging.
    LongMode,
    /// Protected mode with 32-bit paging.
    Protected,
    /// Protected mode with PAE paging under EPT.
    Pae,
    /// Real mode, as an unrestricted guest under EPT.
    RealMode,
    /// Virtual-8086 mode.
    Virtual8086,
}

impl Seed {
    /// Every seed.
    pub const ALL: [Self; 5] = [
        Self::LongMode,
        Self::Protected,
        Self::Pae,
        Self::RealMode,
        Self::Virtual8086,
    ];

    /// Whether the guest runs under EPT, and so which seeds a processor without EPT cannot enter.
    pub const fn needs_ept(self) -> bool {
        matches!(self, Self::Pae | Self::RealMode)
    }

    /// The VMCS, for this processor: reserved control bits are set as it wants them, and all MSRs that it can load
    /// from plain fields are loaded.
    pub fn vmcs(self, processor: &Processor) -> Vmcs {
        let mut seed = Builder {
            vmcs: Vmcs::new(),
            processor,
        };
        seed.controls(self);
        seed.host();
        seed.guest(self);
        seed.vmcs
    }
}

struct Builder<'a> {
    vmcs: Vmcs,
    processor: &'a Processor,
}

/// Accessed, present, readable and executable code; the L bit is added for 64-bit mode.
const CODE: u64 = 0x9b;
const DATA: u64 = 0x93;
const BIG: u64 = 1 << 14;
const GRANULAR: u64 = 1 << 15;
const LONG: u64 = 1 << 13;
const UNUSABLE: u64 = 1 << 16;
const PAT: u64 = 0x0007_0406_0007_0406;

impl Builder<'_> {
    /// Every field set here exists in [`Vmcs`].
    fn set<T: crate::field::WidthType, A: crate::field::Access>(
        &mut self,
        field: crate::Field<T, A>,
        value: u64,
    ) {
        let _ = self.vmcs.set(field.encoding(), value);
    }

    /// `wanted` where the processor has it, and what the processor requires.
    fn choose<C: Controls>(&self, wanted: C, allowed: Allowed) -> u64 {
        let possible = C::from_u64(wanted.to_u64() & allowed.may_be_one);
        // Nothing that may not be set is asked for, so nothing is refused.
        adjust(possible, allowed).map_or(allowed.must_be_one, |chosen| chosen.value.to_u64())
    }

    fn controls(&mut self, seed: Seed) {
        let vmx = self.processor.vmx;
        let mut secondary = Secondary::empty();
        if seed.needs_ept() {
            secondary |= Secondary::ENABLE_EPT | Secondary::UNRESTRICTED_GUEST;
        }
        let pin = self.choose(PinBased::NMI_EXITING, vmx.pin_based);
        self.set(f::PIN_BASED_CONTROLS, pin);
        let primary = self.choose(
            Primary::HLT_EXITING | Primary::ACTIVATE_SECONDARY,
            vmx.primary,
        );
        self.set(f::PRIMARY_CONTROLS, primary);
        let secondary = self.choose(secondary, vmx.secondary);
        self.set(f::SECONDARY_CONTROLS, secondary);
        // Page walk of 4 levels, write-back, table at 2 MiB.
        self.set(f::EPT_POINTER, 0x20_0000 | 3 << 3 | 6);
        let exit = ExitPrimary::HOST_ADDRESS_SPACE_SIZE
            | ExitPrimary::SAVE_DEBUG_CONTROLS
            | ExitPrimary::LOAD_PAT
            | ExitPrimary::LOAD_EFER;
        let exit = self.choose(exit, vmx.exit);
        self.set(f::PRIMARY_EXIT_CONTROLS, exit);
        let mut entry = Entry::LOAD_DEBUG_CONTROLS | Entry::LOAD_PAT | Entry::LOAD_EFER;
        if seed == Seed::LongMode {
            entry |= Entry::IA32E_MODE_GUEST;
        }
        let entry = self.choose(entry, vmx.entry);
        self.set(f::ENTRY_CONTROLS, entry);
        self.set(f::VMCS_LINK_POINTER, u64::MAX);
    }

    fn host(&mut self) {
        let vmx = self.processor.vmx;
        self.set(f::HOST_CR0, 0x8001_0033 | vmx.cr0_fixed0);
        self.set(f::HOST_CR3, 0x1000);
        self.set(f::HOST_CR4, 0x620 | vmx.cr4_fixed0);
        self.set(f::HOST_CS_SELECTOR, 0x08);
        for field in [
            f::HOST_SS_SELECTOR,
            f::HOST_DS_SELECTOR,
            f::HOST_ES_SELECTOR,
        ] {
            self.set(field, 0x10);
        }
        self.set(f::HOST_TR_SELECTOR, 0x18);
        self.set(f::HOST_TR_BASE, 0x4000);
        self.set(f::HOST_GDTR_BASE, 0x5000);
        self.set(f::HOST_IDTR_BASE, 0x6000);
        self.set(f::HOST_RSP, 0x9_0000);
        self.set(f::HOST_RIP, 0x20_0000);
        self.set(f::HOST_PAT, PAT);
        self.set(f::HOST_EFER, 0xd00);
    }

    fn guest(&mut self, seed: Seed) {
        let vmx = self.processor.vmx;
        let flat = GRANULAR | BIG;
        let (cr0, cr4, efer, flags) = match seed {
            Seed::LongMode => (0x8001_0033, 0x620, 0xd00, 0x2),
            Seed::Protected => (0x8001_0033, 0x600, 0, 0x2),
            Seed::Pae => (0x8001_0033, 0x620, 0, 0x2),
            Seed::RealMode => (0x30, 0, 0, 0x2),
            Seed::Virtual8086 => (0x8001_0033, 0x600, 0, 0x2_3202),
        };
        let cr0 = match seed {
            Seed::RealMode => cr0 | vmx.cr0_fixed0 & !0x8000_0001,
            _ => cr0 | vmx.cr0_fixed0,
        };
        self.set(f::GUEST_CR0, cr0);
        self.set(f::GUEST_CR3, 0x10_0000);
        self.set(f::GUEST_CR4, cr4 | vmx.cr4_fixed0);
        self.set(f::GUEST_EFER, efer);
        self.set(f::GUEST_PAT, PAT);
        self.set(f::GUEST_RFLAGS, flags);
        self.set(f::GUEST_DR7, 0x400);
        self.set(f::GUEST_RIP, 0x1000);
        self.set(f::GUEST_RSP, 0xf000);
        match seed {
            Seed::LongMode => {
                self.segments(CODE | GRANULAR | LONG, DATA | flat, u64::from(u32::MAX));
            }
            Seed::Protected | Seed::Pae => {
                self.segments(CODE | flat, DATA | flat, u64::from(u32::MAX));
            }
            Seed::RealMode => self.segments(CODE, DATA, 0xffff),
            Seed::Virtual8086 => self.segments(0xf3, 0xf3, 0xffff),
        }
        if matches!(seed, Seed::RealMode | Seed::Virtual8086) {
            self.set(f::GUEST_CS_SELECTOR, 0);
            for field in [
                f::GUEST_SS_SELECTOR,
                f::GUEST_DS_SELECTOR,
                f::GUEST_ES_SELECTOR,
            ] {
                self.set(field, 0);
            }
            self.set(f::GUEST_FS_SELECTOR, 0);
            self.set(f::GUEST_GS_SELECTOR, 0);
        }
        self.set(f::GUEST_TR_SELECTOR, 0x18);
        self.set(f::GUEST_TR_BASE, 0x7000);
        self.set(f::GUEST_TR_LIMIT, 0x67);
        self.set(f::GUEST_TR_ACCESS_RIGHTS, 0x8b);
        self.set(f::GUEST_LDTR_ACCESS_RIGHTS, UNUSABLE);
        self.set(f::GUEST_GDTR_BASE, 0x8000);
        self.set(f::GUEST_GDTR_LIMIT, 0xff);
        self.set(f::GUEST_IDTR_BASE, 0x9000);
        self.set(f::GUEST_IDTR_LIMIT, 0xfff);
    }

    fn segments(&mut self, code: u64, data: u64, limit: u64) {
        self.set(f::GUEST_CS_SELECTOR, 0x08);
        self.set(f::GUEST_CS_ACCESS_RIGHTS, code);
        self.set(f::GUEST_CS_LIMIT, limit);
        for (selector, rights, size) in [
            (
                f::GUEST_SS_SELECTOR,
                f::GUEST_SS_ACCESS_RIGHTS,
                f::GUEST_SS_LIMIT,
            ),
            (
                f::GUEST_DS_SELECTOR,
                f::GUEST_DS_ACCESS_RIGHTS,
                f::GUEST_DS_LIMIT,
            ),
            (
                f::GUEST_ES_SELECTOR,
                f::GUEST_ES_ACCESS_RIGHTS,
                f::GUEST_ES_LIMIT,
            ),
            (
                f::GUEST_FS_SELECTOR,
                f::GUEST_FS_ACCESS_RIGHTS,
                f::GUEST_FS_LIMIT,
            ),
            (
                f::GUEST_GS_SELECTOR,
                f::GUEST_GS_ACCESS_RIGHTS,
                f::GUEST_GS_LIMIT,
            ),
        ] {
            self.set(selector, 0x10);
            self.set(rights, data);
            self.set(size, limit);
        }
    }
}
