// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an exit loads: the host-state area. SDM Vol. 3C, "Host-State Area", "Loading Host State".

use hvkit_vmcs::Capabilities;
use hvkit_vmcs::controls::ExitPrimary;
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::{FieldsMut, NoSuchField};

/// The state of the host, but for RSP and RIP, which every entry writes.
///
/// An exit sets the limits of GDTR and IDTR to FFFFH, and loads segments without looking at the GDT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// Selectors: ES, CS, SS, DS, FS, GS, TR.
    pub selectors: [u16; 7],
    /// `IA32_FS_BASE`.
    pub fs_base: u64,
    /// `IA32_GS_BASE`.
    pub gs_base: u64,
    /// The base of the task-state segment.
    pub tr_base: u64,
    /// The base of the GDT.
    pub gdtr_base: u64,
    /// The base of the IDT.
    pub idtr_base: u64,
    /// `IA32_SYSENTER_CS`, `IA32_SYSENTER_ESP`, `IA32_SYSENTER_EIP`.
    pub sysenter: [u64; 3],
    /// `IA32_EFER`.
    pub efer: u64,
    /// `IA32_PAT`.
    pub pat: u64,
}

/// TI and RPL: 0 in every selector of the host-state area.
const SELECTOR_FLAGS: u16 = 7;

/// The host's state cannot be in a host-state area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostStateError {
    /// An exit must load TR with a selector other than 0: load a task register first.
    #[error("the task register is {0:#x}: an exit cannot load it")]
    NoTask(u16),
    /// The descriptor of the task register lies outside the GDT.
    #[error("the task register {selector:#x} is outside the GDT, whose limit is {limit:#x}")]
    TaskOutsideGdt {
        /// The selector.
        selector: u16,
        /// The limit of the GDT.
        limit: u16,
    },
    /// A selector in the LDT, or code that does not run at CPL 0.
    #[error("selector {0:#x} has a table indicator or a privilege level")]
    Selector(u16),
    /// A field that the processor does not have.
    #[error(transparent)]
    NoSuchField(#[from] NoSuchField),
}

impl HostState {
    /// Whether the selectors can be loaded by an exit.
    ///
    /// # Errors
    ///
    /// [`HostStateError::NoTask`], [`HostStateError::Selector`].
    pub fn check_selectors(&self) -> Result<(), HostStateError> {
        let [.., task] = self.selectors;
        if task & !SELECTOR_FLAGS == 0 {
            return Err(HostStateError::NoTask(task));
        }
        match self.selectors.iter().find(|s| **s & SELECTOR_FLAGS != 0) {
            Some(selector) => Err(HostStateError::Selector(*selector)),
            None => Ok(()),
        }
    }

    /// Writes the host-state area: EFER and PAT where the processor has the fields, which count if "load `IA32_EFER`" and
    /// "load `IA32_PAT`" are among the VM-exit controls.
    ///
    /// # Errors
    ///
    /// [`NoSuchField`] for a field that every processor has.
    pub fn write(&self, vmcs: &mut impl FieldsMut, vmx: &Capabilities) -> Result<(), NoSuchField> {
        vmcs.write(f::HOST_CR0, self.cr0)?;
        vmcs.write(f::HOST_CR3, self.cr3)?;
        vmcs.write(f::HOST_CR4, self.cr4)?;
        let selectors = [
            f::HOST_ES_SELECTOR,
            f::HOST_CS_SELECTOR,
            f::HOST_SS_SELECTOR,
            f::HOST_DS_SELECTOR,
            f::HOST_FS_SELECTOR,
            f::HOST_GS_SELECTOR,
            f::HOST_TR_SELECTOR,
        ];
        for (field, value) in selectors.into_iter().zip(self.selectors) {
            vmcs.write(field, value)?;
        }
        vmcs.write(f::HOST_FS_BASE, self.fs_base)?;
        vmcs.write(f::HOST_GS_BASE, self.gs_base)?;
        vmcs.write(f::HOST_TR_BASE, self.tr_base)?;
        vmcs.write(f::HOST_GDTR_BASE, self.gdtr_base)?;
        vmcs.write(f::HOST_IDTR_BASE, self.idtr_base)?;
        let [cs, esp, eip] = self.sysenter;
        vmcs.write(f::HOST_SYSENTER_CS, cs as u32)?;
        vmcs.write(f::HOST_SYSENTER_ESP, esp)?;
        vmcs.write(f::HOST_SYSENTER_EIP, eip)?;
        let may = |control: ExitPrimary| vmx.exit.may_be_one & u64::from(control.bits()) != 0;
        if may(ExitPrimary::LOAD_EFER) {
            vmcs.write(f::HOST_EFER, self.efer)?;
        }
        if may(ExitPrimary::LOAD_PAT) {
            vmcs.write(f::HOST_PAT, self.pat)?;
        }
        Ok(())
    }
}

/// The base address in a 16-byte system descriptor. SDM Vol. 3A, "TSS Descriptor in 64-bit mode".
#[cfg(any(target_arch = "x86_64", test))]
const fn descriptor_base(low: u64, high: u64) -> u64 {
    low >> 16 & 0xff_ffff | low >> 32 & 0xff00_0000 | high << 32
}

#[cfg(target_arch = "x86_64")]
mod capture {
    #![expect(unsafe_code, reason = "reads descriptor tables and selectors")]

    use core::arch::asm;

    use super::{HostState, HostStateError, SELECTOR_FLAGS, descriptor_base};
    use crate::this_processor::{ThisProcessor, control, rdmsr};

    #[repr(C, packed)]
    #[derive(Default)]
    struct TableRegister {
        limit: u16,
        base: u64,
    }

    impl HostState {
        /// The state of this processor as it is now.
        ///
        /// # Errors
        ///
        /// [`HostStateError`]: most often that no task register is loaded, which VMX insists on.
        pub fn capture(processor: &ThisProcessor) -> Result<Self, HostStateError> {
            let (mut gdtr, mut idtr) = (TableRegister::default(), TableRegister::default());
            // SAFETY: stores into locals.
            unsafe {
                asm!("sgdt [{}]", "sidt [{}]", in(reg) &raw mut gdtr, in(reg) &raw mut idtr,
                    options(nostack, preserves_flags));
            }
            let (es, cs, ss, ds, fs, gs, tr): (u16, u16, u16, u16, u16, u16, u16);
            // SAFETY: reads.
            unsafe {
                asm!("mov {0:x}, es", "mov {1:x}, cs", "mov {2:x}, ss", "mov {3:x}, ds",
                    out(reg) es, out(reg) cs, out(reg) ss, out(reg) ds, options(nomem, nostack, preserves_flags));
                asm!("mov {0:x}, fs", "mov {1:x}, gs", "str {2:x}",
                    out(reg) fs, out(reg) gs, out(reg) tr, options(nomem, nostack, preserves_flags));
            }
            let (cr0, cr3, cr4) = control(processor);
            let mut state = Self {
                cr0,
                cr3,
                cr4,
                selectors: [es, cs, ss, ds, fs, gs, tr],
                fs_base: rdmsr(processor, 0xc000_0100),
                gs_base: rdmsr(processor, 0xc000_0101),
                tr_base: 0,
                gdtr_base: gdtr.base,
                idtr_base: idtr.base,
                sysenter: [0x174, 0x175, 0x176].map(|index| rdmsr(processor, index)),
                efer: rdmsr(processor, 0xc000_0080),
                pat: rdmsr(processor, 0x277),
            };
            state.check_selectors()?;
            let limit = gdtr.limit;
            let offset = tr & !SELECTOR_FLAGS;
            // Its last byte, of 16.
            if usize::from(offset).saturating_add(15) > usize::from(limit) {
                return Err(HostStateError::TaskOutsideGdt {
                    selector: tr,
                    limit,
                });
            }
            let at = (gdtr.base as usize).wrapping_add(usize::from(offset)) as *const u64;
            // SAFETY: the GDT is mapped, or the processor could not use it, and the descriptor lies in it.
            let (low, high) = unsafe { (at.read_volatile(), at.add(1).read_volatile()) };
            state.tr_base = descriptor_base(low, high);
            Ok(state)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hvkit_vmcs::capability::presets;
    use hvkit_vmcs::store::Fields;
    use hvkit_vmcs::{Encoding, Vmcs};

    fn state() -> HostState {
        HostState {
            cr0: 0x8000_0031,
            cr3: 0x1000,
            cr4: 0x2620,
            selectors: [0x10, 0x08, 0x10, 0x10, 0, 0, 0x18],
            fs_base: 1,
            gs_base: 2,
            tr_base: 3,
            gdtr_base: 4,
            idtr_base: 5,
            sysenter: [6, 7, 8],
            efer: 0xd00,
            pat: 0x0007_0406_0007_0406,
        }
    }

    #[test]
    fn every_field_of_the_area_is_written() {
        let mut vmcs = Vmcs::new();
        state()
            .write(&mut vmcs, &presets::bochs_skylake_x().vmx)
            .unwrap();
        let words = [
            (0x6c00, 0x8000_0031),
            (0x6c02, 0x1000),
            (0x6c04, 0x2620),
            (0x0c00, 0x10),
            (0x0c02, 0x08),
            (0x0c04, 0x10),
            (0x0c06, 0x10),
            (0x0c08, 0),
            (0x0c0a, 0),
            (0x0c0c, 0x18),
            (0x6c06, 1),
            (0x6c08, 2),
            (0x6c0a, 3),
            (0x6c0c, 4),
            (0x6c0e, 5),
            (0x4c00, 6),
            (0x6c10, 7),
            (0x6c12, 8),
            (0x2c00, 0x0007_0406_0007_0406),
            (0x2c02, 0xd00),
        ];
        for (encoding, value) in words {
            assert_eq!(vmcs.get(Encoding(encoding)), Some(value), "{encoding:#x}");
        }
    }

    #[test]
    fn efer_and_pat_only_where_the_fields_exist() {
        let mut vmcs = Vmcs::new();
        state().write(&mut vmcs, &Capabilities::default()).unwrap();
        assert_eq!(vmcs.read(f::HOST_EFER), Some(0));
        assert_eq!(vmcs.read(f::HOST_PAT), Some(0));
        assert_eq!(vmcs.read(f::HOST_CR3), Some(0x1000));
    }

    #[test]
    fn selectors_that_no_exit_loads_are_refused() {
        assert_eq!(state().check_selectors(), Ok(()));
        let with = |at: usize, selector| {
            let mut state = state();
            state.selectors[at] = selector;
            state.check_selectors().unwrap_err()
        };
        assert_eq!(with(6, 0), HostStateError::NoTask(0));
        assert_eq!(with(6, 3), HostStateError::NoTask(3));
        assert_eq!(with(1, 0x33), HostStateError::Selector(0x33));
        assert_eq!(with(4, 0x14), HostStateError::Selector(0x14));
        assert_eq!(
            with(6, 0).to_string(),
            "the task register is 0x0: an exit cannot load it"
        );
    }

    #[test]
    fn the_base_is_in_four_pieces() {
        // Base 1122334455667788H, limit 67H, busy 64-bit TSS.
        let low = 0x5500_8b66_7788_0067;
        assert_eq!(descriptor_base(low, 0x1122_3344), 0x1122_3344_5566_7788);
    }
}
