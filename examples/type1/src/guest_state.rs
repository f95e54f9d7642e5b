// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest begins with, declared.

use hvkit_vmcs::controls::Entry;
use hvkit_vmcs::field::{Natural, ReadWrite, W16, W32};
use hvkit_vmcs::store::{FieldsMut, NoSuchField};
use hvkit_vmcs::{Field, Processor, fields as f};

/// A segment register.
#[derive(Clone, Copy)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// The base.
    pub base: u64,
    /// The limit, in bytes.
    pub limit: u32,
    /// Access rights. SDM Vol. 3C, "Guest Register State", table "Format of Access Rights".
    pub rights: u32,
}

/// Everything of a guest that an entry loads and that is not the same for all.
#[derive(Clone, Copy)]
pub struct GuestState {
    /// CR0, without what VMX fixes.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4, without what VMX fixes.
    pub cr4: u64,
    /// `IA32_EFER`. With LMA, the guest begins in IA-32e mode.
    pub efer: u64,
    /// RIP.
    pub rip: u64,
    /// RSP.
    pub rsp: u64,
    /// CS.
    pub code: Segment,
    /// DS, ES, FS, GS, SS.
    pub data: Segment,
    /// Base and limit of GDTR.
    pub gdtr: (u64, u32),
    /// Base and limit of IDTR.
    pub idtr: (u64, u32),
}

const UNUSABLE: u32 = 1 << 16;
const EFER_LMA: u64 = 1 << 10;
/// CR0.PE and CR0.PG: free for an unrestricted guest, whatever VMX fixes.
const UNRESTRICTED: u64 = 0x8000_0001;
const PAT_AFTER_RESET: u64 = 0x0007_0406_0007_0406;

impl GuestState {
    /// As after a reset, but at 0:`ip`.
    pub const fn real_mode(ip: u16) -> Self {
        Self {
            cr0: 0x10,
            cr3: 0,
            cr4: 0,
            efer: 0,
            rip: ip as u64,
            rsp: 0xff0,
            code: Segment {
                selector: 0,
                base: 0,
                limit: 0xffff,
                rights: 0x9b,
            },
            data: Segment {
                selector: 0,
                base: 0,
                limit: 0xffff,
                rights: 0x93,
            },
            gdtr: (0, 0xffff),
            idtr: (0, 0x3ff),
        }
    }

    /// 64-bit mode with flat segments and these page tables.
    pub const fn long_mode(cr3: u64, rip: u64, rsp: u64) -> Self {
        Self {
            cr0: 0x8000_0033,
            cr3,
            cr4: 0x620,
            efer: 0xd00,
            rip,
            rsp,
            code: Segment {
                selector: 0x10,
                base: 0,
                limit: u32::MAX,
                rights: 0xa09b,
            },
            data: Segment {
                selector: 0x18,
                base: 0,
                limit: u32::MAX,
                rights: 0xc093,
            },
            gdtr: (0, 0),
            idtr: (0, 0),
        }
    }

    /// Writes the guest-state area, and the "IA-32e mode guest" control.
    pub fn write(
        &self,
        vmcs: &mut impl FieldsMut,
        processor: &Processor,
    ) -> Result<(), NoSuchField> {
        let vmx = &processor.vmx;
        let cr0 = self.cr0 | vmx.cr0_fixed0 & !UNRESTRICTED;
        vmcs.write(f::GUEST_CR0, cr0)?;
        vmcs.write(f::CR0_GUEST_HOST_MASK, vmx.cr0_fixed0 & !UNRESTRICTED)?;
        vmcs.write(f::CR0_READ_SHADOW, self.cr0)?;
        vmcs.write(f::GUEST_CR3, self.cr3)?;
        vmcs.write(f::GUEST_CR4, self.cr4 | vmx.cr4_fixed0)?;
        vmcs.write(f::CR4_GUEST_HOST_MASK, vmx.cr4_fixed0)?;
        vmcs.write(f::CR4_READ_SHADOW, self.cr4)?;
        vmcs.write(f::GUEST_EFER, self.efer)?;
        let mut entry = Entry::from_bits_retain(vmcs.read(f::ENTRY_CONTROLS).unwrap_or(0));
        entry.set(Entry::IA32E_MODE_GUEST, self.efer & EFER_LMA != 0);
        vmcs.write(f::ENTRY_CONTROLS, entry.bits())?;
        vmcs.write(f::GUEST_RIP, self.rip)?;
        vmcs.write(f::GUEST_RSP, self.rsp)?;
        vmcs.write(f::GUEST_RFLAGS, 2)?;
        self.segments(vmcs)?;
        vmcs.write(f::GUEST_GDTR_BASE, self.gdtr.0)?;
        vmcs.write(f::GUEST_GDTR_LIMIT, self.gdtr.1)?;
        vmcs.write(f::GUEST_IDTR_BASE, self.idtr.0)?;
        vmcs.write(f::GUEST_IDTR_LIMIT, self.idtr.1)?;
        vmcs.write(f::GUEST_DR7, 0x400)?;
        vmcs.write(f::GUEST_PAT, PAT_AFTER_RESET)?;
        vmcs.write(f::GUEST_DEBUGCTL, 0)?;
        vmcs.write(f::GUEST_SYSENTER_CS, 0)?;
        vmcs.write(f::GUEST_SYSENTER_ESP, 0)?;
        vmcs.write(f::GUEST_SYSENTER_EIP, 0)?;
        vmcs.write(f::GUEST_INTERRUPTIBILITY, 0)?;
        vmcs.write(f::GUEST_ACTIVITY, 0)?;
        vmcs.write(f::GUEST_PENDING_DEBUG, 0)?;
        vmcs.write(f::VMCS_LINK_POINTER, u64::MAX)
    }

    fn segments(&self, vmcs: &mut impl FieldsMut) -> Result<(), NoSuchField> {
        let unusable = Segment {
            selector: 0,
            base: 0,
            limit: 0,
            rights: UNUSABLE,
        };
        // A busy task-state segment: entries insist on one.
        let task = Segment {
            limit: 0xffff,
            rights: 0x8b,
            ..unusable
        };
        for (to, segment) in [
            (CS, self.code),
            (DS, self.data),
            (ES, self.data),
            (FS, self.data),
            (GS, self.data),
            (SS, self.data),
            (LDTR, unusable),
            (TR, task),
        ] {
            vmcs.write(to.0, segment.selector)?;
            vmcs.write(to.1, segment.base)?;
            vmcs.write(to.2, segment.limit)?;
            vmcs.write(to.3, segment.rights)?;
        }
        Ok(())
    }
}

type Register = (
    Field<W16, ReadWrite>,
    Field<Natural, ReadWrite>,
    Field<W32, ReadWrite>,
    Field<W32, ReadWrite>,
);

macro_rules! registers {
    ($($name:ident $selector:ident $base:ident $limit:ident $rights:ident;)*) => {
        $(const $name: Register = (f::$selector, f::$base, f::$limit, f::$rights);)*
    };
}

registers! {
    CS GUEST_CS_SELECTOR GUEST_CS_BASE GUEST_CS_LIMIT GUEST_CS_ACCESS_RIGHTS;
    DS GUEST_DS_SELECTOR GUEST_DS_BASE GUEST_DS_LIMIT GUEST_DS_ACCESS_RIGHTS;
    ES GUEST_ES_SELECTOR GUEST_ES_BASE GUEST_ES_LIMIT GUEST_ES_ACCESS_RIGHTS;
    FS GUEST_FS_SELECTOR GUEST_FS_BASE GUEST_FS_LIMIT GUEST_FS_ACCESS_RIGHTS;
    GS GUEST_GS_SELECTOR GUEST_GS_BASE GUEST_GS_LIMIT GUEST_GS_ACCESS_RIGHTS;
    SS GUEST_SS_SELECTOR GUEST_SS_BASE GUEST_SS_LIMIT GUEST_SS_ACCESS_RIGHTS;
    LDTR GUEST_LDTR_SELECTOR GUEST_LDTR_BASE GUEST_LDTR_LIMIT GUEST_LDTR_ACCESS_RIGHTS;
    TR GUEST_TR_SELECTOR GUEST_TR_BASE GUEST_TR_LIMIT GUEST_TR_ACCESS_RIGHTS;
}
