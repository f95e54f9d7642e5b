// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers of a unit: where each is, how wide, what software may do with each bit, what the bits mean.
//!
//! ```text
//!   0x000  version, capabilities, commands, root table, context command
//!   0x034  faults              0x064  protected memory     0x080  invalidation queue
//!   0x0b8  interrupt table     0x0c0  page requests        0x100  MTRRs
//!   0x300  performance         0x400  enhanced commands    0xe00  virtual commands
//!   FRO * 16  fault records (Capability::fault_record)
//!   IRO * 16  IOTLB registers (ExtendedCapability::iotlb_invalidate)
//! ```
//!
//! [`ALL`] lists those with a fixed place. VT-d, "Register Descriptions".

pub(crate) mod access;
mod capability;
mod command;
mod event;
mod memory;
mod performance;
mod queue;
#[cfg(test)]
mod tests;

pub use access::{Access, ReadOnly, ReadWrite, Readable, Register, Word, Writable, WriteOnly};
pub use capability::{Capability, ExtendedCapability, Version};
pub use command::{
    ContextCommand, GlobalCommand, GlobalStatus, InvalidateAddress, IotlbInvalidate,
    RootTableAddress, TranslationTableMode,
};
pub use event::{
    AdvancedFaultLog, EventAddress, EventControl, EventData, EventUpperAddress, FaultRecordHigh,
    FaultRecordLow, FaultStatus,
};
pub use memory::{
    MtrrBase, MtrrCapability, MtrrDefault, MtrrFixed, MtrrMask, ProtectedHigh, ProtectedLow,
    ProtectedMemoryEnable,
};
pub use performance::{
    CommandCapability, CommandResponse, EnhancedCommand, EnhancedOperand, PerformanceCapability,
    PerformanceEvents, PerformanceOffset, PerformanceStatus, VirtualCommand,
};
pub use queue::{
    CompletionStatus, InterruptTableAddress, PageQueueAddress, PageQueueHead, PageQueueTail,
    PageRequestStatus, QueueAddress, QueueError, QueueErrorRecord, QueueHead, QueueTail,
};

/// What a unit must report for a register to exist; where it does not, the register is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Needs {
    /// Every unit has it.
    Nothing,
    /// CAP.AFL.
    AdvancedFaultLogging,
    /// CAP.PLMR or CAP.PHMR.
    ProtectedMemory,
    /// CAP.PLMR.
    ProtectedLow,
    /// CAP.PHMR.
    ProtectedHigh,
    /// ECAP.QI.
    QueuedInvalidation,
    /// ECAP.IR.
    InterruptRemapping,
    /// ECAP.PRS.
    PageRequests,
    /// ECAP.MTS.
    MemoryTypes,
    /// ECAP.PMS.
    PerformanceMonitoring,
    /// CAP.ECMDS.
    EnhancedCommands,
    /// ECAP.VCS.
    VirtualCommands,
}

impl Needs {
    /// Whether a unit with these capabilities has it.
    #[must_use]
    pub const fn met(self, cap: Capability, ecap: ExtendedCapability) -> bool {
        match self {
            Self::Nothing => true,
            Self::AdvancedFaultLogging => cap.advanced_fault_logging(),
            Self::ProtectedMemory => cap.protected_low() || cap.protected_high(),
            Self::ProtectedLow => cap.protected_low(),
            Self::ProtectedHigh => cap.protected_high(),
            Self::QueuedInvalidation => ecap.queued_invalidation(),
            Self::InterruptRemapping => ecap.interrupt_remapping(),
            Self::PageRequests => ecap.page_requests(),
            Self::MemoryTypes => ecap.memory_types(),
            Self::PerformanceMonitoring => ecap.performance_monitoring(),
            Self::EnhancedCommands => cap.enhanced_commands(),
            Self::VirtualCommands => ecap.virtual_commands(),
        }
    }
}

/// A register, for lists: dumps, register files, tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// The specification's short name, without `_REG`.
    pub name: &'static str,
    /// Bytes from the unit's base.
    pub offset: u32,
    /// 4 or 8.
    pub bytes: u8,
    /// What software may do with each bit.
    pub access: Access,
    /// When it exists.
    pub needs: Needs,
}

macro_rules! registers {
    ($($name:ident = $offset:literal, $word:ident, $access:ident, $needs:ident, $title:literal;)*) => {
        $(
            #[doc = concat!($title, " (", stringify!($name), "_REG), at ", stringify!($offset), ".")]
            pub const $name: Register<$word, $access> = Register::at($offset);
        )*

        /// Every register with a fixed place, in the order of their offsets.
        pub const ALL: &[Info] = &[$(
            Info {
                name: stringify!($name),
                offset: $offset,
                bytes: <$word as Word>::BYTES,
                access: <$word as Word>::ACCESS,
                needs: Needs::$needs,
            },
        )*];
    };
}

registers! {
    VER = 0x000, Version, ReadOnly, Nothing, "Version Register";
    CAP = 0x008, Capability, ReadOnly, Nothing, "Capability Register";
    ECAP = 0x010, ExtendedCapability, ReadOnly, Nothing, "Extended Capability Register";
    GCMD = 0x018, GlobalCommand, WriteOnly, Nothing, "Global Command Register";
    GSTS = 0x01c, GlobalStatus, ReadOnly, Nothing, "Global Status Register";
    RTADDR = 0x020, RootTableAddress, ReadWrite, Nothing, "Root Table Address Register";
    CCMD = 0x028, ContextCommand, ReadWrite, Nothing, "Context Command Register";
    FSTS = 0x034, FaultStatus, ReadWrite, Nothing, "Fault Status Register";
    FECTL = 0x038, EventControl, ReadWrite, Nothing, "Fault Event Control Register";
    FEDATA = 0x03c, EventData, ReadWrite, Nothing, "Fault Event Data Register";
    FEADDR = 0x040, EventAddress, ReadWrite, Nothing, "Fault Event Address Register";
    FEUADDR = 0x044, EventUpperAddress, ReadWrite, Nothing, "Fault Event Upper Address Register";
    AFLOG = 0x058, AdvancedFaultLog, ReadWrite, AdvancedFaultLogging, "Advanced Fault Log Register";
    PMEN = 0x064, ProtectedMemoryEnable, ReadWrite, ProtectedMemory, "Protected Memory Enable Register";
    PLMBASE = 0x068, ProtectedLow, ReadWrite, ProtectedLow, "Protected Low-Memory Base Register";
    PLMLIMIT = 0x06c, ProtectedLow, ReadWrite, ProtectedLow, "Protected Low-Memory Limit Register";
    PHMBASE = 0x070, ProtectedHigh, ReadWrite, ProtectedHigh, "Protected High-Memory Base Register";
    PHMLIMIT = 0x078, ProtectedHigh, ReadWrite, ProtectedHigh, "Protected High-Memory Limit Register";
    IQH = 0x080, QueueHead, ReadOnly, QueuedInvalidation, "Invalidation Queue Head Register";
    IQT = 0x088, QueueTail, ReadWrite, QueuedInvalidation, "Invalidation Queue Tail Register";
    IQA = 0x090, QueueAddress, ReadWrite, QueuedInvalidation, "Invalidation Queue Address Register";
    ICS = 0x09c, CompletionStatus, ReadWrite, QueuedInvalidation, "Invalidation Completion Status Register";
    IECTL = 0x0a0, EventControl, ReadWrite, QueuedInvalidation, "Invalidation Event Control Register";
    IEDATA = 0x0a4, EventData, ReadWrite, QueuedInvalidation, "Invalidation Event Data Register";
    IEADDR = 0x0a8, EventAddress, ReadWrite, QueuedInvalidation, "Invalidation Event Address Register";
    IEUADDR = 0x0ac, EventUpperAddress, ReadWrite, QueuedInvalidation, "Invalidation Event Upper Address Register";
    IQERCD = 0x0b0, QueueErrorRecord, ReadOnly, QueuedInvalidation, "Invalidation Queue Error Record Register";
    IRTA = 0x0b8, InterruptTableAddress, ReadWrite, InterruptRemapping, "Interrupt Remapping Table Address Register";
    PQH = 0x0c0, PageQueueHead, ReadWrite, PageRequests, "Page Request Queue Head Register";
    PQT = 0x0c8, PageQueueTail, ReadWrite, PageRequests, "Page Request Queue Tail Register";
    PQA = 0x0d0, PageQueueAddress, ReadWrite, PageRequests, "Page Request Queue Address Register";
    PRS = 0x0dc, PageRequestStatus, ReadWrite, PageRequests, "Page Request Status Register";
    PECTL = 0x0e0, EventControl, ReadWrite, PageRequests, "Page Request Event Control Register";
    PEDATA = 0x0e4, EventData, ReadWrite, PageRequests, "Page Request Event Data Register";
    PEADDR = 0x0e8, EventAddress, ReadWrite, PageRequests, "Page Request Event Address Register";
    PEUADDR = 0x0ec, EventUpperAddress, ReadWrite, PageRequests, "Page Request Event Upper Address Register";
    MTRRCAP = 0x100, MtrrCapability, ReadOnly, MemoryTypes, "MTRR Capability Register";
    MTRRDEF = 0x108, MtrrDefault, ReadWrite, MemoryTypes, "MTRR Default Type Register";
    MTRR_FIX64K_00000 = 0x120, MtrrFixed, ReadWrite, MemoryTypes, "Fixed-Range MTRR, 00000h";
    MTRR_FIX16K_80000 = 0x128, MtrrFixed, ReadWrite, MemoryTypes, "Fixed-Range MTRR, 80000h";
    MTRR_FIX16K_A0000 = 0x130, MtrrFixed, ReadWrite, MemoryTypes, "Fixed-Range MTRR, A0000h";
    MTRR_FIX4K_C0000 = 0x138, MtrrFixed, ReadWrite, MemoryTypes, "Fixed-Range MTRR, C0000h";
    MTRR_FIX4K_C8000 = 0x140, MtrrFixed, ReadWrite, MemoryTypes, "Fixed-Range MTRR, C8000h";
    MTRR_FIX4K_D0000 = 0x148, MtrrFixed, ReadWrite, MemoryTypes, "Fixed-Range MTRR, D0000h";
    MTRR_FIX4K_D8000 = 0x150, MtrrFixed, ReadWrite, MemoryTypes, "Fixed-Range MTRR, D8000h";
    MTRR_FIX4K_E0000 = 0x158, MtrrFixed, ReadWrite, MemoryTypes, "Fixed-Range MTRR, E0000h";
    MTRR_FIX4K_E8000 = 0x160, MtrrFixed, ReadWrite, MemoryTypes, "Fixed-Range MTRR, E8000h";
    MTRR_FIX4K_F0000 = 0x168, MtrrFixed, ReadWrite, MemoryTypes, "Fixed-Range MTRR, F0000h";
    MTRR_FIX4K_F8000 = 0x170, MtrrFixed, ReadWrite, MemoryTypes, "Fixed-Range MTRR, F8000h";
    MTRR_PHYSBASE0 = 0x180, MtrrBase, ReadWrite, MemoryTypes, "Variable-Range MTRR 0, base";
    MTRR_PHYSMASK0 = 0x188, MtrrMask, ReadWrite, MemoryTypes, "Variable-Range MTRR 0, mask";
    MTRR_PHYSBASE1 = 0x190, MtrrBase, ReadWrite, MemoryTypes, "Variable-Range MTRR 1, base";
    MTRR_PHYSMASK1 = 0x198, MtrrMask, ReadWrite, MemoryTypes, "Variable-Range MTRR 1, mask";
    MTRR_PHYSBASE2 = 0x1a0, MtrrBase, ReadWrite, MemoryTypes, "Variable-Range MTRR 2, base";
    MTRR_PHYSMASK2 = 0x1a8, MtrrMask, ReadWrite, MemoryTypes, "Variable-Range MTRR 2, mask";
    MTRR_PHYSBASE3 = 0x1b0, MtrrBase, ReadWrite, MemoryTypes, "Variable-Range MTRR 3, base";
    MTRR_PHYSMASK3 = 0x1b8, MtrrMask, ReadWrite, MemoryTypes, "Variable-Range MTRR 3, mask";
    MTRR_PHYSBASE4 = 0x1c0, MtrrBase, ReadWrite, MemoryTypes, "Variable-Range MTRR 4, base";
    MTRR_PHYSMASK4 = 0x1c8, MtrrMask, ReadWrite, MemoryTypes, "Variable-Range MTRR 4, mask";
    MTRR_PHYSBASE5 = 0x1d0, MtrrBase, ReadWrite, MemoryTypes, "Variable-Range MTRR 5, base";
    MTRR_PHYSMASK5 = 0x1d8, MtrrMask, ReadWrite, MemoryTypes, "Variable-Range MTRR 5, mask";
    MTRR_PHYSBASE6 = 0x1e0, MtrrBase, ReadWrite, MemoryTypes, "Variable-Range MTRR 6, base";
    MTRR_PHYSMASK6 = 0x1e8, MtrrMask, ReadWrite, MemoryTypes, "Variable-Range MTRR 6, mask";
    MTRR_PHYSBASE7 = 0x1f0, MtrrBase, ReadWrite, MemoryTypes, "Variable-Range MTRR 7, base";
    MTRR_PHYSMASK7 = 0x1f8, MtrrMask, ReadWrite, MemoryTypes, "Variable-Range MTRR 7, mask";
    MTRR_PHYSBASE8 = 0x200, MtrrBase, ReadWrite, MemoryTypes, "Variable-Range MTRR 8, base";
    MTRR_PHYSMASK8 = 0x208, MtrrMask, ReadWrite, MemoryTypes, "Variable-Range MTRR 8, mask";
    MTRR_PHYSBASE9 = 0x210, MtrrBase, ReadWrite, MemoryTypes, "Variable-Range MTRR 9, base";
    MTRR_PHYSMASK9 = 0x218, MtrrMask, ReadWrite, MemoryTypes, "Variable-Range MTRR 9, mask";
    PERFCAP = 0x300, PerformanceCapability, ReadOnly, PerformanceMonitoring, "Performance Monitoring Capability Register";
    PERFCFGOFF = 0x310, PerformanceOffset, ReadOnly, PerformanceMonitoring, "Performance Monitoring Configuration Offset Register";
    PERFOVFOFF = 0x318, PerformanceOffset, ReadOnly, PerformanceMonitoring, "Performance Monitoring Overflow Offset Register";
    PERFCNTROFF = 0x31c, PerformanceOffset, ReadOnly, PerformanceMonitoring, "Performance Monitoring Counter Offset Register";
    PERFINTRSTS = 0x324, PerformanceStatus, ReadWrite, PerformanceMonitoring, "Performance Monitoring Interrupt Status Register";
    PERFINTRCTL = 0x328, EventControl, ReadWrite, PerformanceMonitoring, "Performance Monitoring Interrupt Control Register";
    PERFINTRDATA = 0x32c, EventData, ReadWrite, PerformanceMonitoring, "Performance Monitoring Interrupt Data Register";
    PERFINTRADDR = 0x330, EventAddress, ReadWrite, PerformanceMonitoring, "Performance Monitoring Interrupt Address Register";
    PERFINTRUADDR = 0x334, EventUpperAddress, ReadWrite, PerformanceMonitoring, "Performance Monitoring Interrupt Upper Address Register";
    PERFEVNTCAP0 = 0x380, PerformanceEvents, ReadOnly, PerformanceMonitoring, "Performance Monitoring Event Capability Register 0";
    ECMD = 0x400, EnhancedCommand, ReadWrite, EnhancedCommands, "Enhanced Command Register";
    ECEO = 0x408, EnhancedOperand, ReadWrite, EnhancedCommands, "Enhanced Command Extended Operand Register";
    ECRSP = 0x410, CommandResponse, ReadOnly, EnhancedCommands, "Enhanced Command Response Register";
    ECCAP0 = 0x430, CommandCapability, ReadOnly, EnhancedCommands, "Enhanced Command Capability Register 0";
    ECCAP1 = 0x438, CommandCapability, ReadOnly, EnhancedCommands, "Enhanced Command Capability Register 1";
    ECCAP2 = 0x440, CommandCapability, ReadOnly, EnhancedCommands, "Enhanced Command Capability Register 2";
    ECCAP3 = 0x448, CommandCapability, ReadOnly, EnhancedCommands, "Enhanced Command Capability Register 3";
    VCMD = 0xe00, VirtualCommand, ReadWrite, VirtualCommands, "Virtual Command Register";
    VCRSP = 0xe10, CommandResponse, ReadOnly, VirtualCommands, "Virtual Command Response Register";
    VCCAP = 0xe30, CommandCapability, ReadOnly, VirtualCommands, "Virtual Command Capability Register";
}
