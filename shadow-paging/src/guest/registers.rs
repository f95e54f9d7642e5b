// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers and features that choose how a guest's addresses are translated.

/// CR0's bits that paging reads. SDM 3A, "Control Registers".
pub mod cr0 {
    /// Protection enable.
    pub const PE: u64 = 1 << 0;
    /// Not write-through, which caching reads.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Write protect: supervisor writes honour R/W.
    pub const WP: u64 = 1 << 16;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// CR4's bits that paging reads. SDM 3A, "Control Registers".
pub mod cr4 {
    /// Page size extensions: 4 MiB pages in 32-bit paging.
    pub const PSE: u64 = 1 << 4;
    /// Physical address extension: 8-byte entries.
    pub const PAE: u64 = 1 << 5;
    /// 57-bit linear addresses: 5-level paging.
    pub const LA57: u64 = 1 << 12;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// Process-context identifiers: CR3 bits 11 to 0 tag what the TLB holds.
    pub const PCIDE: u64 = 1 << 17;
    /// Supervisor-mode execution prevention.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor-mode access prevention.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys for user-mode pages.
    pub const PKE: u64 = 1 << 22;
    /// Control-flow enforcement.
    pub const CET: u64 = 1 << 23;
    /// Protection keys for supervisor-mode pages.
    pub const PKS: u64 = 1 << 24;
}

/// `IA32_EFER`'s bits that paging reads. SDM 3A, "Extended Feature Enable Register".
pub mod efer {
    /// IA-32e mode enable.
    pub const LME: u64 = 1 << 8;
    /// Execute-disable bit enable.
    pub const NXE: u64 = 1 << 11;
}

/// The registers that paging reads, as raw words. Bits that it does not read may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Registers {
    /// Paging, protection, write protect.
    pub cr0: u64,
    /// Where the tables are.
    pub cr3: u64,
    /// Which paging, and its extensions.
    pub cr4: u64,
    /// `IA32_EFER`: IA-32e mode, execute-disable.
    pub efer: u64,
    /// Rights of user-mode pages by protection key; read if CR4.PKE is set.
    pub pkru: u32,
    /// `IA32_PKRS`, rights of supervisor-mode pages by protection key; read if CR4.PKS is set.
    pub pkrs: u32,
}

/// What the guest's processor can do, as its CPUID says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Features {
    /// MAXPHYADDR, 32 to 52 (CPUID 80000008H:EAX\[7:0\]).
    pub physical_address_bits: u8,
    /// 1 GiB pages (CPUID 80000001H:EDX\[26\]).
    pub gib_pages: bool,
    /// The execute-disable bit (CPUID 80000001H:EDX\[20\]).
    pub execute_disable: bool,
    /// 4 MiB pages above 4 GiB (CPUID 01H:EDX\[17\]).
    pub pse36: bool,
    /// The page attribute table (CPUID 01H:EDX\[16\]).
    pub pat: bool,
}

impl Features {
    /// Everything, with physical addresses of `physical_address_bits` bits.
    #[must_use]
    pub const fn all(physical_address_bits: u8) -> Self {
        Self {
            physical_address_bits,
            gib_pages: true,
            execute_disable: true,
            pse36: true,
            pat: true,
        }
    }
}

/// Registers or features that no processor can have, or a change of registers that none makes, and the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ModeError {
    /// CR0.PG without CR0.PE.
    #[error("CR0 {cr0:#x} enables paging without protection")]
    PagingUnprotected {
        /// CR0.
        cr0: u64,
    },
    /// `IA32_EFER.LME` and CR0.PG without CR4.PAE.
    #[error("IA-32e mode with CR4 {cr4:#x}, in which PAE is clear")]
    LongWithoutPae {
        /// CR4.
        cr4: u64,
    },
    /// `IA32_EFER.NXE` where the processor has no execute-disable bit.
    #[error("EFER {efer:#x} enables the execute-disable bit, which the processor lacks")]
    NoExecuteDisable {
        /// `IA32_EFER`.
        efer: u64,
    },
    /// CR4.CET without CR0.WP.
    #[error("CR4 {cr4:#x} enables CET while CR0.WP is clear")]
    CetUnprotected {
        /// CR4.
        cr4: u64,
    },
    /// CR3 reaches beyond physical memory (IA-32e mode).
    #[error("CR3 {cr3:#x} is wider than {physical_address_bits} bits")]
    Cr3Width {
        /// CR3.
        cr3: u64,
        /// MAXPHYADDR.
        physical_address_bits: u8,
    },
    /// CR3 bits 62:61: linear-address masking, which is not offered.
    #[error("CR3 {cr3:#x} asks for linear-address masking")]
    LinearAddressMasking {
        /// CR3.
        cr3: u64,
    },
    /// CR0.NW without CR0.CD.
    #[error("CR0 {cr0:#x} sets NW while CD is clear")]
    WriteThrough {
        /// CR0.
        cr0: u64,
    },
    /// CR0.PG cleared while CR4.PCIDE is set.
    #[error("CR0 {cr0:#x} ends paging while CR4.PCIDE is set")]
    PcidWithoutPaging {
        /// CR0.
        cr0: u64,
    },
    /// CR4.PCIDE set outside IA-32e mode, or while CR3 bits 11:0 are not 0.
    #[error(
        "CR4 {cr4:#x} sets PCIDE outside IA-32e mode, or while bits 11:0 of CR3 {cr3:#x} are not 0"
    )]
    PcidEnable {
        /// CR4.
        cr4: u64,
        /// CR3.
        cr3: u64,
    },
    /// CR4.LA57 changed in IA-32e mode.
    #[error("CR4 {cr4:#x} changes LA57 in IA-32e mode")]
    LinearAddressWidth {
        /// CR4.
        cr4: u64,
    },
    /// `IA32_EFER.LME` changed while CR0.PG is set.
    #[error("EFER {efer:#x} changes LME while paging is enabled")]
    LongModeWhilePaging {
        /// `IA32_EFER`.
        efer: u64,
    },
    /// A MAXPHYADDR that is not 32 to 52.
    #[error("physical addresses of {physical_address_bits} bits, where 32 to 52 are defined")]
    PhysicalAddressBits {
        /// MAXPHYADDR.
        physical_address_bits: u8,
    },
}
