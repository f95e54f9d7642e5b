// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The logical processor that runs this code.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "privileged instructions")
)]

use crate::Unsupported;

/// The logical processor that runs this code, at CPL 0. It stays where it was made: it is not `Send`.
#[cfg(target_arch = "x86_64")]
#[derive(Debug)]
pub struct ThisProcessor {
    _here: core::marker::PhantomData<*mut ()>,
}

/// The logical processor that runs this code: on this architecture there is no value of the type.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Debug)]
pub enum ThisProcessor {}

#[cfg(not(target_arch = "x86_64"))]
impl ThisProcessor {
    /// There is no VMX here.
    ///
    /// # Errors
    ///
    /// [`Unsupported::Architecture`], always.
    ///
    /// # Safety
    ///
    /// It is safe here; elsewhere it asks for CPL 0.
    #[expect(unsafe_code, reason = "as it is declared for x86-64")]
    pub const unsafe fn get() -> Result<Self, Unsupported> {
        Err(Unsupported::Architecture)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::asm;
    use core::arch::x86_64::__cpuid_count;

    use super::{ThisProcessor, Unsupported};
    use crate::cpu::{Cpuid, Machine};

    impl ThisProcessor {
        /// The processor.
        ///
        /// # Errors
        ///
        /// [`Unsupported::Architecture`] where the program is not built for x86-64; never here.
        ///
        /// # Safety
        ///
        /// As long as the value lives, the code that uses it runs on one logical processor, at CPL 0 in 64-bit mode.
        pub const unsafe fn get() -> Result<Self, Unsupported> {
            Ok(Self {
                _here: core::marker::PhantomData,
            })
        }
    }

    impl Machine for ThisProcessor {
        fn cpuid(&self, leaf: u32, subleaf: u32) -> Cpuid {
            let found = __cpuid_count(leaf, subleaf);
            Cpuid {
                eax: found.eax,
                ebx: found.ebx,
                ecx: found.ecx,
                edx: found.edx,
            }
        }

        fn rdmsr(&self, index: u32) -> u64 {
            rdmsr(self, index)
        }

        fn cr0(&self) -> u64 {
            control(self).0
        }

        fn cr4(&self) -> u64 {
            control(self).2
        }

        fn allow_vmx(&mut self) {
            // SAFETY: CPL 0, by `get`. The register decides about VMX and SMX alone; every processor with VMX has it. With
            // the lock set WRMSR faults, which does not break memory.
            unsafe {
                asm!("rdmsr", "or eax, 5", "wrmsr", in("ecx") 0x3a, out("eax") _, out("edx") _, options(nostack));
            }
        }

        fn set_ne(&mut self) {
            // SAFETY: CPL 0, by `get`. The bit decides how floating-point errors are told.
            unsafe {
                asm!("mov {0}, cr0", "or {0}, 0x20", "mov cr0, {0}", out(reg) _, options(nostack));
            }
        }

        fn set_vmxe(&mut self) {
            // SAFETY: CPL 0, by `get`. The bit makes VMXON possible; on a processor without VMX it faults.
            unsafe {
                asm!("mov {0}, cr4", "or {0}, 0x2000", "mov cr4, {0}", out(reg) _, options(nostack));
            }
        }
    }

    /// RDMSR of a register that exists: the callers' promise to [`Machine`].
    pub(crate) fn rdmsr(_: &ThisProcessor, index: u32) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: CPL 0, by `get`; reading changes nothing that this program relies on. An MSR that does not exist
        // faults, which does not break memory.
        unsafe {
            asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high,
                options(nostack, preserves_flags));
        }
        u64::from(high) << 32 | u64::from(low)
    }

    /// CR0, CR3 and CR4.
    pub(crate) fn control(_: &ThisProcessor) -> (u64, u64, u64) {
        let (cr0, cr3, cr4): (u64, u64, u64);
        // SAFETY: CPL 0, by `get`; reads.
        unsafe {
            asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4", out(reg) cr0, out(reg) cr3, out(reg) cr4,
                options(nomem, nostack, preserves_flags));
        }
        (cr0, cr3, cr4)
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{control, rdmsr};
