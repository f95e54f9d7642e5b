// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Exit reasons. SDM Vol. 3D, appendix "VMX Basic Exit Reasons"; Vol. 3C, "Basic VM-Exit Information".

use core::fmt;

/// The exit-reason field: the basic reason in bits 15:0, and bits that qualify it. Open: a processor newer than this
/// crate yields a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct ExitReason(pub u32);

macro_rules! reasons {
    (exits { $($name:ident = $number:literal, $text:literal;)* } failures { $($failed:ident = $failure:literal, $why:literal;)* }) => {
        impl ExitReason {
            $(
                #[doc = concat!("Basic reason ", stringify!($number), ": ", $text, ".")]
                pub const $name: Self = Self($number);
            )*
            $(
                #[doc = concat!("Basic reason ", stringify!($failure), " with bit 31 set: ", $why, ".")]
                pub const $failed: Self = Self($failure | 1 << 31);
            )*

            /// Every reason the manual defines.
            pub const ALL: &[Self] = &[$(Self::$name,)* $(Self::$failed),*];

            /// The manual's name for the basic reason, if it defines one.
            pub const fn name(self) -> Option<&'static str> {
                match self.basic() {
                    $($number => Some($text),)*
                    $($failure => Some($why),)*
                    _ => None,
                }
            }
        }
    };
}

reasons! {
    exits {
        EXCEPTION_OR_NMI = 0, "exception or non-maskable interrupt (NMI)";
        EXTERNAL_INTERRUPT = 1, "external interrupt";
        TRIPLE_FAULT = 2, "triple fault";
        INIT = 3, "INIT signal";
        SIPI = 4, "start-up IPI (SIPI)";
        IO_SMI = 5, "I/O system-management interrupt (SMI)";
        OTHER_SMI = 6, "other SMI";
        INTERRUPT_WINDOW = 7, "interrupt window";
        NMI_WINDOW = 8, "NMI window";
        TASK_SWITCH = 9, "task switch";
        CPUID = 10, "CPUID";
        GETSEC = 11, "GETSEC";
        HLT = 12, "HLT";
        INVD = 13, "INVD";
        INVLPG = 14, "INVLPG";
        RDPMC = 15, "RDPMC";
        RDTSC = 16, "RDTSC";
        RSM = 17, "RSM";
        VMCALL = 18, "VMCALL";
        VMCLEAR = 19, "VMCLEAR";
        VMLAUNCH = 20, "VMLAUNCH";
        VMPTRLD = 21, "VMPTRLD";
        VMPTRST = 22, "VMPTRST";
        VMREAD = 23, "VMREAD";
        VMRESUME = 24, "VMRESUME";
        VMWRITE = 25, "VMWRITE";
        VMXOFF = 26, "VMXOFF";
        VMXON = 27, "VMXON";
        CONTROL_REGISTER = 28, "control-register access";
        MOV_DR = 29, "MOV DR";
        IO_INSTRUCTION = 30, "I/O instruction";
        RDMSR = 31, "RDMSR";
        WRMSR = 32, "WRMSR or WRMSRNS";
        MWAIT = 36, "MWAIT";
        MONITOR_TRAP_FLAG = 37, "monitor trap flag";
        MONITOR = 39, "MONITOR";
        PAUSE = 40, "PAUSE";
        TPR_BELOW_THRESHOLD = 43, "TPR below threshold";
        APIC_ACCESS = 44, "APIC access";
        VIRTUALIZED_EOI = 45, "virtualized EOI";
        GDTR_IDTR = 46, "access to GDTR or IDTR";
        LDTR_TR = 47, "access to LDTR or TR";
        EPT_VIOLATION = 48, "EPT violation";
        EPT_MISCONFIGURATION = 49, "EPT misconfiguration";
        INVEPT = 50, "INVEPT";
        RDTSCP = 51, "RDTSCP";
        PREEMPTION_TIMER = 52, "VMX-preemption timer expired";
        INVVPID = 53, "INVVPID";
        WBINVD = 54, "WBINVD or WBNOINVD";
        XSETBV = 55, "XSETBV";
        APIC_WRITE = 56, "APIC write";
        RDRAND = 57, "RDRAND";
        INVPCID = 58, "INVPCID";
        VMFUNC = 59, "VMFUNC";
        ENCLS = 60, "ENCLS";
        RDSEED = 61, "RDSEED";
        PML_FULL = 62, "page-modification log full";
        XSAVES = 63, "XSAVES";
        XRSTORS = 64, "XRSTORS";
        PCONFIG = 65, "PCONFIG";
        SPP = 66, "SPP-related event";
        UMWAIT = 67, "UMWAIT";
        TPAUSE = 68, "TPAUSE";
        LOADIWKEY = 69, "LOADIWKEY";
        ENCLV = 70, "ENCLV";
        ENQCMD_PASID = 72, "ENQCMD PASID translation failure";
        ENQCMDS_PASID = 73, "ENQCMDS PASID translation failure";
        BUS_LOCK = 74, "bus lock";
        INSTRUCTION_TIMEOUT = 75, "instruction timeout";
        SEAMCALL = 76, "SEAMCALL";
        TDCALL = 77, "TDCALL";
        RDMSRLIST = 78, "RDMSRLIST";
        WRMSRLIST = 79, "WRMSRLIST";
        URDMSR = 80, "URDMSR";
        UWRMSR = 81, "UWRMSR";
        RDMSR_IMMEDIATE = 84, "RDMSR with immediate operand";
        WRMSRNS_IMMEDIATE = 85, "WRMSRNS with immediate operand";
    }
    failures {
        INVALID_GUEST_STATE = 33, "VM-entry failure due to invalid guest state";
        MSR_LOADING = 34, "VM-entry failure due to MSR loading";
        MACHINE_CHECK = 41, "VM-entry failure due to machine-check event";
    }
}

impl ExitReason {
    /// The basic reason (bits 15:0).
    pub const fn basic(self) -> u16 {
        self.0 as u16
    }

    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    /// Whether both have the same basic reason and both are entry failures or neither is.
    pub const fn is(self, other: Self) -> bool {
        self.basic() == other.basic() && self.is_entry_failure() == other.is_entry_failure()
    }

    /// Whether the exit left a shadow stack busy too early (bit 25).
    pub const fn left_shadow_stack_busy(self) -> bool {
        self.bit(25)
    }

    /// Whether a bus lock was asserted (bit 26).
    pub const fn asserted_bus_lock(self) -> bool {
        self.bit(26)
    }

    /// Whether the processor was in enclave mode (bit 27).
    pub const fn from_enclave(self) -> bool {
        self.bit(27)
    }

    /// Whether an SMM VM exit took precedence over a pending MTF VM exit (bit 28).
    pub const fn has_pending_mtf(self) -> bool {
        self.bit(28)
    }

    /// Whether it was an SMM VM exit from VMX root operation (bit 29).
    pub const fn from_root(self) -> bool {
        self.bit(29)
    }

    /// Whether this is not an exit but an entry that failed (bit 31).
    pub const fn is_entry_failure(self) -> bool {
        self.bit(31)
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "exit reason {}", self.basic()),
        }
    }
}

impl fmt::Debug for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExitReason({:#x}: {self})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_appendix() {
        assert_eq!(ExitReason::EPT_VIOLATION.0, 48);
        assert_eq!(ExitReason::INVALID_GUEST_STATE.0, 0x8000_0021);
        assert_eq!(
            ExitReason(0x8000_0022).name(),
            Some("VM-entry failure due to MSR loading")
        );
        let exit = ExitReason(0x0c00_000c);
        assert!(exit.is(ExitReason::HLT) && exit.asserted_bus_lock() && exit.from_enclave());
        assert!(
            !ExitReason(33).is(ExitReason::INVALID_GUEST_STATE),
            "bit 31 is clear"
        );
        assert!(ExitReason(0x3200_0025).has_pending_mtf() && ExitReason(0x2000_0006).from_root());
        assert!(ExitReason(0x0200_0000).left_shadow_stack_busy());
        assert_eq!(format!("{:?}", ExitReason(12)), "ExitReason(0xc: HLT)");
    }

    #[test]
    fn every_number_is_a_value() {
        for number in 0..=u16::MAX {
            let reason = ExitReason(number.into());
            let known = ExitReason::ALL.iter().any(|r| r.basic() == number);
            assert_eq!(reason.name().is_some(), known);
            assert!(!format!("{reason} {reason:?}").is_empty());
        }
        assert_eq!(ExitReason(4242).to_string(), "exit reason 4242");
    }
}
