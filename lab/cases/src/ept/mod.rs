// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases of `cargo xtask oracle ept`: a guest in one of five modes, its tables, an EPT, and one instruction.
//!
//! The guest begins at a [sequence](Doing) of two or three instructions, of which all but the last VMCALL make the case's
//! access. Nothing of its memory is safe from a case: the fetch of that sequence goes through the case's tables like
//! everything else.
//!
//! ```text
//!   code:   linear --> guest's tables --> guest-physical --> EPT --> CODE, the sequences
//!   data:   linear --> guest's tables --> guest-physical --> EPT --> PATTERN, pages that tell their address
//!                        |
//!                        '--> each table: guest-physical --> EPT --> GUEST_TABLES
//! ```
//!
//! A guest-physical address is never the host-physical one it leads to, but in pages of 1 GiB, which begin at 0.

mod ept_tables;
mod generate;
mod guest_tables;
mod map;
mod record;

pub use map::{
    ARENAS, CODE, CODE_OFFSETS, DATA_OFFSETS, EPT_FRAMES, EPT_TABLES, GUEST_FRAMES, GUEST_TABLES,
    PATTERN, PATTERN_BYTES, PML_LOG, RAM_END, SEQUENCE_BYTES, VE_INFORMATION, VMCS, VMXON, pattern,
};
pub use record::{EptCpu, HEADER_MAGIC, Record, Stored};

use crate::Entries;

/// The guest's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real-address mode, with 32-bit segments of 4 GiB: an unrestricted guest.
    Real,
    /// Protected mode without paging.
    Unpaged,
    /// 32-bit paging.
    ThirtyTwoBit,
    /// PAE paging.
    Pae,
    /// 4-level paging, in 64-bit mode.
    FourLevel,
}

impl Mode {
    /// Whether linear addresses are guest-physical ones.
    #[must_use]
    pub const fn is_unpaged(self) -> bool {
        matches!(self, Self::Real | Self::Unpaged)
    }
}

/// What the guest's sequence does; RDI is the case's linear address, RAX [`STORED`], the stack is at RDI too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Reads 4 bytes.
    Read,
    /// Writes 4 bytes just above the linear address, then reads 4 bytes at it.
    Write,
    /// Exchanges 4 bytes: a read and a write at once.
    Exchange,
    /// Jumps there.
    Fetch,
    /// Reads a descriptor of an LDT there (VERR).
    Implicit,
    /// MOV to CR3 of the "linear" address, in PAE paging: the PDPTEs there are loaded.
    LoadPdptes,
    /// IRET with the stack there.
    Iret,
}

impl Doing {
    /// All, in the order of their sequences in the page of code.
    pub const ALL: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Exchange,
        Self::Fetch,
        Self::Implicit,
        Self::LoadPdptes,
        Self::Iret,
    ];

    /// The instructions, which mean the same in 32-bit and in 64-bit code; the rest of [`SEQUENCE_BYTES`] is zero.
    #[must_use]
    pub const fn bytes(self) -> [u8; SEQUENCE_BYTES as usize] {
        let [a, b, c, d] = STORED.to_le_bytes();
        match self {
            // mov eax, [di]; vmcall
            Self::Read => [0x8b, 7, 15, 1, 0xc1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            // mov [di + 4], STORED; mov eax, [di]; vmcall
            Self::Write => [0xc7, 0x47, 4, a, b, c, d, 0x8b, 7, 15, 1, 0xc1, 0, 0, 0, 0],
            // xchg [di], eax; vmcall
            Self::Exchange => [0x87, 7, 15, 1, 0xc1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            // jmp di
            Self::Fetch => [0xff, 0xe7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            // mov eax, 4: the LDT's first; verr ax; vmcall
            Self::Implicit => [0xb8, 4, 0, 0, 0, 15, 0, 0xe0, 15, 1, 0xc1, 0, 0, 0, 0, 0],
            // mov cr3, di; vmcall
            Self::LoadPdptes => [15, 0x22, 0xdf, 15, 1, 0xc1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            // iretd
            Self::Iret => [0xcf, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        }
    }

    /// Whether what is at the linear address may be written.
    const fn stores(self) -> bool {
        matches!(self, Self::Write | Self::Exchange)
    }

    /// Whether nothing may lead to other memory than the case chose: code there is run, or popped.
    const fn keeps_to_its_page(self) -> bool {
        matches!(self, Self::Fetch | Self::Iret | Self::LoadPdptes)
    }
}

/// What a case writes.
pub const STORED: u32 = 0x600d_da7a;

/// At which privilege level the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// CPL 3.
    User,
    /// CPL 0.
    Supervisor,
}

/// How the guest stands to NMIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nmi {
    /// Not blocked; "NMI exiting" and "virtual NMIs" are 0.
    Open,
    /// Blocked; the same controls.
    Blocked,
    /// Virtual NMIs are blocked; both controls are 1.
    VirtualBlocked,
}

/// Bits of the secondary processor-based VM-execution controls that cases choose.
pub mod secondary {
    /// Enable PML.
    pub const PML: u64 = 1 << 17;
    /// EPT-violation #VE.
    pub const VIOLATION_EXCEPTION: u64 = 1 << 18;
    /// Mode-based execute control for EPT.
    pub const MODE_BASED_EXECUTE: u64 = 1 << 22;
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// The guest's mode.
    pub mode: Mode,
    /// What it does.
    pub doing: Doing,
    /// At which privilege level.
    pub who: Who,
    /// CR0's PG, WP and PE.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4's PSE and PAE.
    pub cr4: u64,
    /// EFER's LME and NXE.
    pub efer: u64,
    /// The PDPTE fields, in PAE paging.
    pub pdptes: [u64; 4],
    /// Linear address of the sequence.
    pub code: u64,
    /// Linear address of the access.
    pub linear: u64,
    /// The EPTP.
    pub eptp: u64,
    /// Of [`secondary`], what is enabled.
    pub secondary: u64,
    /// The PML index.
    pub pml_index: u16,
    /// The word of the #VE information area that must be 0 for the exception.
    pub ve_busy: u32,
    /// NMIs.
    pub nmi: Nmi,
    /// All tables. Words of the log and of the information area are not among them.
    pub entries: Entries<64>,
}

impl Case {
    /// Case `index` of the run with `seed`, on `cpu`.
    #[must_use]
    pub fn new(seed: u64, index: u64, cpu: &EptCpu) -> Self {
        generate::case(seed, index, cpu)
    }
}
