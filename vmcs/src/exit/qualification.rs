// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Exit qualifications. SDM Vol. 3C, "Basic VM-Exit Information", tables "Exit Qualification for ...".
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use super::{ExitReason, bits::word};
use crate::event::{Event, EventKind};

word! {
    /// Debug exceptions. The format of DR6, but for the sense of bits 11 and 16.
    DebugQualification(u64) {
        /// Breakpoint conditions that were met, a bit each.
        u8 breakpoints [3:0];
        /// A bus lock was asserted.
        flag bus_lock [11:11];
        /// An access to a debug register was detected.
        flag register_access [13:13];
        /// A single step, or a taken branch.
        flag single_step [14:14];
        /// Inside an RTM region.
        flag rtm [16:16];
    }
}

word! {
    /// Task switches.
    TaskSwitch(u64) {
        /// The selector of the task-state segment the guest tried to switch to.
        u16 selector [15:0];
        /// What began it: 0 CALL, 1 IRET, 2 JMP, 3 a task gate in the IDT.
        u8 source [31:30];
    }
}

word! {
    /// Control-register accesses.
    ControlRegister(u64) {
        /// The control register; 0 for CLTS and LMSW.
        u8 number [3:0];
        /// 0 MOV to CR, 1 MOV from CR, 2 CLTS, 3 LMSW.
        u8 access [5:4];
        /// For LMSW: whether the operand is in memory.
        flag lmsw_from_memory [6:6];
        /// For MOV: the general-purpose register.
        u8 register [11:8];
        /// For LMSW: its source data.
        u16 lmsw_source [31:16];
    }
}

word! {
    /// MOV DR.
    DebugRegister(u64) {
        /// The debug register.
        u8 number [2:0];
        /// MOV from DR, rather than to it.
        flag is_read [4:4];
        /// The general-purpose register.
        u8 register [11:8];
    }
}

word! {
    /// I/O instructions.
    IoInstruction(u64) {
        /// Bytes less one: 0, 1 or 3.
        u8 size_code [2:0];
        /// IN or INS, rather than OUT or OUTS.
        flag is_in [3:3];
        /// INS or OUTS.
        flag is_string [4:4];
        /// With a REP prefix.
        flag is_repeated [5:5];
        /// The port is an immediate operand, rather than in DX.
        flag is_immediate [6:6];
        /// The port.
        u16 port [31:16];
    }
}

impl IoInstruction {
    /// Bytes of one access: 1, 2 or 4; `None` for codes the manual does not use.
    pub const fn size(self) -> Option<u8> {
        match self.size_code() {
            0 => Some(1),
            1 => Some(2),
            3 => Some(4),
            _ => None,
        }
    }
}

word! {
    /// Accesses to the APIC-access page.
    ApicAccess(u64) {
        /// For linear accesses: the offset in the page.
        u16 offset [11:0];
        /// 0 data read, 1 data write, 2 fetch, 3 event delivery, 4 asynchronous, each linear; 10 event delivery,
        /// 11 asynchronous, 15 an instruction's, each guest-physical.
        u8 access [15:12];
        /// Asynchronous to instruction execution, and not event delivery.
        flag is_asynchronous [16:16];
    }
}

word! {
    /// EPT violations.
    EptViolation(u64) {
        /// The access read data.
        flag is_read [0:0];
        /// The access wrote data.
        flag is_write [1:1];
        /// The access fetched an instruction.
        flag is_fetch [2:2];
        /// The address was readable.
        flag was_readable [3:3];
        /// The address was writable.
        flag was_writable [4:4];
        /// The address was executable; with mode-based execute control, for supervisor-mode linear addresses.
        flag was_executable [5:5];
        /// With mode-based execute control: the address was executable for user-mode linear addresses.
        flag was_user_executable [6:6];
        /// The guest-linear-address field is valid.
        flag has_linear_address [7:7];
        /// The access was to the translation of the linear address, rather than to a paging structure on the way.
        flag is_final [8:8];
        /// With advanced information: a user-mode linear address.
        flag is_user [9:9];
        /// With advanced information: paging made it read/write.
        flag is_paging_writable [10:10];
        /// With advanced information: paging made it execute-disable.
        flag is_paging_execute_disable [11:11];
        /// IRET had unblocked NMIs.
        flag unblocked_nmi [12:12];
        /// A shadow-stack access.
        flag is_shadow_stack [13:13];
        /// With supervisor shadow-stack control: bit 60 of the mapping entry.
        flag was_shadow_stack_page [14:14];
        /// Due to guest-paging verification.
        flag is_paging_verification [15:15];
        /// Asynchronous to instruction execution, and not event delivery.
        flag is_asynchronous [16:16];
    }
}

word! {
    /// A page-modification log that is full.
    PmlFull(u64) {
        /// IRET had unblocked NMIs.
        flag unblocked_nmi [12:12];
        /// Asynchronous to instruction execution.
        flag is_asynchronous [16:16];
    }
}

word! {
    /// SPP-related events.
    SppEvent(u64) {
        /// A miss, rather than a misconfiguration.
        flag is_miss [11:11];
        /// IRET had unblocked NMIs.
        flag unblocked_nmi [12:12];
        /// Asynchronous to instruction execution.
        flag is_asynchronous [16:16];
    }
}

word! {
    /// Instruction timeouts.
    Timeout(u64) {
        /// The context of the virtual machine is not valid: it should not be resumed.
        flag context_is_invalid [0:0];
        /// IRET had unblocked NMIs.
        flag unblocked_nmi [12:12];
    }
}

/// An exit qualification, as its exit reason makes it read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Qualification {
    /// The reason has none; the field is cleared.
    None,
    /// A debug exception.
    Debug(DebugQualification),
    /// A page fault: the linear address.
    PageFault(u64),
    /// An NMI: its sources, where the processor reports them.
    NmiSource(u64),
    /// A start-up IPI: its vector.
    Sipi(u8),
    /// A task switch.
    TaskSwitch(TaskSwitch),
    /// INVLPG: the linear address.
    LinearAddress(u64),
    /// An instruction with a memory operand: its displacement.
    Displacement(u64),
    /// A control-register access.
    ControlRegister(ControlRegister),
    /// MOV DR.
    DebugRegister(DebugRegister),
    /// An I/O instruction, or the SMI that followed one.
    Io(IoInstruction),
    /// MWAIT: whether address-range monitoring was armed.
    Mwait {
        /// It was.
        armed: bool,
    },
    /// RDMSRLIST or WRMSRLIST: the MSR, if MSR bitmaps are used.
    MsrList(u64),
    /// RDMSR or WRMSRNS with an immediate operand: the MSR.
    Msr(u32),
    /// WBINVD (false) or WBNOINVD.
    Wbnoinvd(bool),
    /// WRMSR (false) or WRMSRNS.
    Wrmsrns(bool),
    /// An access to the APIC-access page.
    ApicAccess(ApicAccess),
    /// A virtualized EOI: its vector.
    VirtualizedEoi(u8),
    /// An APIC write: the offset in the page.
    ApicWrite(u16),
    /// An EPT violation.
    EptViolation(EptViolation),
    /// The page-modification log is full.
    PmlFull(PmlFull),
    /// An SPP-related event.
    Spp(SppEvent),
    /// PASID translation failed: the PASID, or the low word of the source operand of ENQCMDS.
    Pasid(u32),
    /// An instruction timeout.
    Timeout(Timeout),
    /// The guest state was refused: 0 for most reasons.
    GuestState(GuestStateFailure),
    /// The number of the entry in the VM-entry MSR-load area, from 1.
    MsrEntry(u64),
    /// The manual says nothing of the qualification of this reason.
    Other(u64),
}

/// Why guest state was refused. SDM Vol. 3C, "VM-Entry Failures During or After Loading Guest State". Open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct GuestStateFailure(pub u64);

impl GuestStateFailure {
    /// Most failures.
    pub const OTHER: Self = Self(0);
    /// Loading the PDPTEs.
    pub const PDPTE: Self = Self(2);
    /// Injecting an NMI into a guest that blocks by STI.
    pub const NMI: Self = Self(3);
    /// The VMCS link pointer.
    pub const LINK_POINTER: Self = Self(4);
}

impl Qualification {
    /// Reads `raw`, the qualification of an exit with this reason. For exceptions and NMIs the event decides how;
    /// pass the exiting-event identification.
    pub const fn decode(reason: ExitReason, raw: u64, event: Event) -> Self {
        if reason.is_entry_failure() {
            return match ExitReason(reason.basic() as u32 | 1 << 31) {
                ExitReason::INVALID_GUEST_STATE => Self::GuestState(GuestStateFailure(raw)),
                ExitReason::MSR_LOADING => Self::MsrEntry(raw),
                ExitReason::MACHINE_CHECK => Self::None,
                _ => Self::Other(raw),
            };
        }
        match ExitReason(reason.basic() as u32) {
            ExitReason::EXCEPTION_OR_NMI => match (event.kind(), event.vector()) {
                (EventKind::NMI, _) => Self::NmiSource(raw),
                (_, 1) => Self::Debug(DebugQualification(raw)),
                (_, 14) => Self::PageFault(raw),
                _ => Self::None,
            },
            ExitReason::SIPI => Self::Sipi(raw as u8),
            ExitReason::IO_SMI | ExitReason::IO_INSTRUCTION => Self::Io(IoInstruction(raw)),
            ExitReason::TASK_SWITCH => Self::TaskSwitch(TaskSwitch(raw)),
            ExitReason::INVLPG => Self::LinearAddress(raw),
            ExitReason::CONTROL_REGISTER => Self::ControlRegister(ControlRegister(raw)),
            ExitReason::MOV_DR => Self::DebugRegister(DebugRegister(raw)),
            ExitReason::MWAIT => Self::Mwait {
                armed: raw & 1 != 0,
            },
            ExitReason::RDMSRLIST | ExitReason::WRMSRLIST => Self::MsrList(raw),
            ExitReason::RDMSR_IMMEDIATE | ExitReason::WRMSRNS_IMMEDIATE => Self::Msr(raw as u32),
            ExitReason::WBINVD => Self::Wbnoinvd(raw & 1 != 0),
            ExitReason::WRMSR => Self::Wrmsrns(raw & 1 != 0),
            ExitReason::APIC_ACCESS => Self::ApicAccess(ApicAccess(raw)),
            ExitReason::VIRTUALIZED_EOI => Self::VirtualizedEoi(raw as u8),
            ExitReason::APIC_WRITE => Self::ApicWrite(raw as u16 & 0xfff),
            ExitReason::EPT_VIOLATION => Self::EptViolation(EptViolation(raw)),
            ExitReason::PML_FULL => Self::PmlFull(PmlFull(raw)),
            ExitReason::SPP => Self::Spp(SppEvent(raw)),
            ExitReason::ENQCMD_PASID | ExitReason::ENQCMDS_PASID => Self::Pasid(raw as u32),
            ExitReason::INSTRUCTION_TIMEOUT => Self::Timeout(Timeout(raw)),
            ExitReason::INVEPT
            | ExitReason::INVPCID
            | ExitReason::INVVPID
            | ExitReason::GDTR_IDTR
            | ExitReason::LDTR_TR
            | ExitReason::VMCLEAR
            | ExitReason::VMPTRLD
            | ExitReason::VMPTRST
            | ExitReason::VMREAD
            | ExitReason::VMWRITE
            | ExitReason::VMXON
            | ExitReason::XRSTORS
            | ExitReason::XSAVES => Self::Displacement(raw),
            // Named by the manual, but what they report was found in no source.
            ExitReason::URDMSR | ExitReason::UWRMSR => Self::Other(raw),
            known if known.name().is_some() => Self::None,
            _ => Self::Other(raw),
        }
    }
}
