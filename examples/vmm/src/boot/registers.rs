// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first processor as the kernel's entry point wants it.

use super::layout::{DESCRIPTORS, PAGE_TABLES};
use crate::machine::kvm::KvmError;
use crate::machine::memory::GuestRam;
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// How the first processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// In long mode, the first gigabyte mapped to itself, RSI at the zero page. Linux/x86 boot
    /// protocol, "64-bit Boot Protocol".
    Long {
        /// RIP.
        entry: u64,
        /// RSI.
        zero_page: u64,
    },
    /// In protected mode without paging, EBX at the start information. Xen, "x86/HVM direct boot
    /// ABI", "State from vcpu 0".
    Protected {
        /// EIP.
        entry: u64,
        /// EBX.
        start_info: u64,
    },
}

/// SDM 3A, "Control Registers", and 4, "IA32_EFER".
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: the bit that is always set; interrupts are off.
const RFLAGS: u64 = 2;

/// The selectors that the Linux boot protocol names: `__BOOT_CS` and `__BOOT_DS`.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// SDM 3A, "Segment Descriptors": 4 GiB flat, present, ring 0, accessed.
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA_32: u64 = 0x00cf_9300_0000_ffff;
/// A busy 32-bit task state segment at 0, of the least length.
const TASK_32: u64 = 0x0000_8b00_0000_0067;

/// SDM 3A, "Paging": present and writable; a page of 2 MiB.
const TABLE: u64 = 3;
const LARGE_PAGE: u64 = 0x83;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
const ENTRIES: u64 = 512;

impl EntryState {
    /// Writes the tables that the registers point at.
    pub(crate) fn write_tables(&self, ram: &GuestRam) -> Result<(), GuestMemoryError> {
        for (descriptor, at) in self
            .descriptors()
            .into_iter()
            .zip((DESCRIPTORS.0..).step_by(8))
        {
            ram.write_obj(descriptor, GuestAddress(at))?;
        }
        if let EntryState::Long { .. } = self {
            let [root, pointers, directory] =
                [0, 0x1000, 0x2000].map(|at| PAGE_TABLES.0.saturating_add(at));
            ram.write_obj(pointers | TABLE, GuestAddress(root))?;
            ram.write_obj(directory | TABLE, GuestAddress(pointers))?;
            for index in 0..ENTRIES {
                let entry = index.saturating_mul(LARGE_PAGE_SIZE) | LARGE_PAGE;
                let at = directory.saturating_add(index.saturating_mul(8));
                ram.write_obj(entry, GuestAddress(at))?;
            }
        }
        Ok(())
    }

    /// Sets the registers.
    pub(crate) fn apply(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let mut system = vcpu
            .get_sregs()
            .map_err(KvmError::refused("read the registers"))?;
        self.system(&mut system);
        vcpu.set_sregs(&system)
            .map_err(KvmError::refused("set the system registers"))?;
        vcpu.set_regs(&self.general())
            .map_err(KvmError::refused("set the registers"))
    }

    /// The descriptor table, from selector 0.
    fn descriptors(&self) -> [u64; 5] {
        let code = match self {
            EntryState::Long { .. } => CODE_64,
            EntryState::Protected { .. } => CODE_32,
        };
        [0, 0, code, DATA_32, TASK_32]
    }

    fn general(&self) -> kvm_regs {
        let base = kvm_regs {
            rflags: RFLAGS,
            ..Default::default()
        };
        match *self {
            EntryState::Long { entry, zero_page } => kvm_regs {
                rip: entry,
                rsi: zero_page,
                ..base
            },
            EntryState::Protected { entry, start_info } => kvm_regs {
                rip: entry,
                rbx: start_info,
                ..base
            },
        }
    }

    fn system(&self, system: &mut kvm_sregs) {
        let descriptors = self.descriptors();
        let segment = |selector: u16| {
            let descriptor = descriptors.get(usize::from(selector / 8));
            segment(selector, descriptor.copied().unwrap_or(0))
        };
        system.cs = segment(CODE);
        let data = segment(DATA);
        (system.ds, system.es, system.ss) = (data, data, data);
        (system.fs, system.gs) = (data, data);
        system.tr = segment(TASK);
        system.gdt = kvm_dtable {
            base: DESCRIPTORS.0,
            limit: descriptors.len().saturating_mul(8).saturating_sub(1) as u16,
            ..Default::default()
        };
        system.idt = kvm_dtable::default();
        system.cr0 = CR0_PE | CR0_ET;
        system.cr4 = 0;
        if let EntryState::Long { .. } = self {
            system.cr0 |= CR0_PG;
            system.cr3 = PAGE_TABLES.0;
            system.cr4 = CR4_PAE;
            system.efer |= EFER_LME | EFER_LMA;
        }
    }
}

/// A descriptor as KVM wants it. SDM 3A, "Segment Descriptors".
fn segment(selector: u16, descriptor: u64) -> kvm_segment {
    let bits = |at: u32, width: u32| (descriptor >> at) & (1u64 << width).saturating_sub(1);
    let granular = bits(55, 1) == 1;
    let limit = (bits(48, 4) << 16 | bits(0, 16)) as u32;
    kvm_segment {
        base: bits(56, 8) << 24 | bits(16, 24),
        limit: if granular { limit << 12 | 0xfff } else { limit },
        selector,
        type_: bits(40, 4) as u8,
        s: bits(44, 1) as u8,
        dpl: bits(45, 2) as u8,
        present: bits(47, 1) as u8,
        avl: bits(52, 1) as u8,
        l: bits(53, 1) as u8,
        db: bits(54, 1) as u8,
        g: bits(55, 1) as u8,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: EntryState = EntryState::Long {
        entry: 0x10_0200,
        zero_page: 0x7000,
    };
    const PROTECTED: EntryState = EntryState::Protected {
        entry: 0x100_0000,
        start_info: 0x6000,
    };

    #[test]
    fn descriptors_decode_as_the_manual_draws_them() {
        let code = segment(0x10, CODE_64);
        assert_eq!((code.base, code.limit), (0, 0xffff_ffff));
        assert_eq!((code.type_, code.s, code.dpl, code.present), (0xb, 1, 0, 1));
        assert_eq!((code.l, code.db, code.g), (1, 0, 1));
        let task = segment(0x20, TASK_32);
        assert_eq!((task.limit, task.type_, task.s, task.g), (0x67, 0xb, 0, 0));
        // Base 0x12345678, limit 0x9abcd bytes, ring 3 data.
        let odd = segment(8, 0x1249_f234_5678_abcd);
        assert_eq!((odd.base, odd.limit), (0x1234_5678, 0x9_abcd));
        assert_eq!((odd.dpl, odd.type_, odd.s), (3, 2, 1));
    }

    #[test]
    fn linux_is_entered_in_long_mode() {
        let mut system = kvm_sregs::default();
        LONG.system(&mut system);
        assert_eq!(system.cr0, 0x8000_0011);
        assert_eq!(system.cr4, 0x20);
        assert_eq!(system.efer, 0x500);
        assert_eq!((system.cs.selector, system.cs.l), (0x10, 1));
        assert_eq!((system.ds.selector, system.ss.selector), (0x18, 0x18));
        assert_eq!(
            (LONG.general().rip, LONG.general().rsi),
            (0x10_0200, 0x7000)
        );
        assert_eq!(LONG.general().rflags, 2);
    }

    #[test]
    fn pvh_is_entered_without_paging() {
        let mut system = kvm_sregs::default();
        PROTECTED.system(&mut system);
        assert_eq!((system.cr0, system.cr4, system.efer), (0x11, 0, 0));
        assert_eq!((system.cs.l, system.cs.db, system.tr.limit), (0, 1, 0x67));
        assert_eq!(PROTECTED.general().rbx, 0x6000);
    }

    #[test]
    fn the_first_gigabyte_is_mapped_to_itself() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        LONG.write_tables(&ram).unwrap();
        let word = |at| ram.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!(word(0x9000), 0xa003);
        assert_eq!(word(0xa000), 0xb003);
        assert_eq!([word(0xb000), word(0xb008)], [0x83, 0x20_0083]);
        assert_eq!(word(0xbff8), 0x3fe0_0083);
        assert_eq!(word(0x510), CODE_64);
    }
}
