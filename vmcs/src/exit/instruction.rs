// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VM-exit instruction information. SDM Vol. 3C, "Information for VM Exits Due to Instruction Execution", tables
//! "Format of the VM-Exit Instruction-Information Field as Used for ...".
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

use core::fmt;

use super::ExitReason;
use crate::event::names;

/// A general-purpose register, as instruction information and qualifications number them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct Gpr(pub u8);

names! { Gpr(u8) {
    RAX = 0, "RAX";
    RCX = 1, "RCX";
    RDX = 2, "RDX";
    RBX = 3, "RBX";
    RSP = 4, "RSP";
    RBP = 5, "RBP";
    RSI = 6, "RSI";
    RDI = 7, "RDI";
    R8 = 8, "R8";
    R9 = 9, "R9";
    R10 = 10, "R10";
    R11 = 11, "R11";
    R12 = 12, "R12";
    R13 = 13, "R13";
    R14 = 14, "R14";
    R15 = 15, "R15";
}}

/// A segment register, as instruction information numbers them. Two of the eight values are not used.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct SegmentRegister(pub u8);

names! { SegmentRegister(u8) {
    ES = 0, "ES";
    CS = 1, "CS";
    SS = 2, "SS";
    DS = 3, "DS";
    FS = 4, "FS";
    GS = 5, "GS";
}}

/// A memory operand. Its address is the segment's base, plus base register, plus scaled index register, plus the
/// displacement that the exit qualification holds, cut to the address size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MemoryOperand {
    /// The segment.
    pub segment: SegmentRegister,
    /// The base register, if there is one.
    pub base: Option<Gpr>,
    /// The index register and the logarithm of its scale, if there is one.
    pub index: Option<(Gpr, u8)>,
    /// Bits of the address: 16, 32 or 64; `None` for the code the manual does not use.
    pub address_bits: Option<u8>,
}

/// An operand in a register or in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Operand {
    /// In a register.
    Register(Gpr),
    /// In memory.
    Memory(MemoryOperand),
}

/// LGDT, LIDT, SGDT or SIDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum DescriptorTable {
    /// SGDT.
    Sgdt,
    /// SIDT.
    Sidt,
    /// LGDT.
    Lgdt,
    /// LIDT.
    Lidt,
}

/// LLDT, LTR, SLDT or STR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum SystemSegment {
    /// SLDT.
    Sldt,
    /// STR.
    Str,
    /// LLDT.
    Lldt,
    /// LTR.
    Ltr,
}

/// Instruction information, as its exit reason makes it read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Instruction {
    /// INS or OUTS.
    StringIo {
        /// Bits of the address: 16, 32 or 64.
        address_bits: Option<u8>,
        /// For OUTS: the segment. Undefined for INS, which uses ES.
        segment: SegmentRegister,
    },
    /// INVEPT, INVPCID or INVVPID.
    Invalidate {
        /// The descriptor.
        descriptor: MemoryOperand,
        /// The register with the type.
        kind: Gpr,
    },
    /// LGDT, LIDT, SGDT or SIDT.
    DescriptorTable {
        /// Which.
        instruction: DescriptorTable,
        /// Its operand.
        operand: MemoryOperand,
        /// Operand size 32 rather than 16. Undefined for exits from 64-bit mode.
        is_32_bit: bool,
    },
    /// LLDT, LTR, SLDT or STR.
    SystemSegment {
        /// Which.
        instruction: SystemSegment,
        /// Its operand.
        operand: Operand,
    },
    /// RDRAND or RDSEED.
    Random {
        /// The destination.
        destination: Gpr,
        /// Bits of the operand: 16, 32 or 64; `None` for the code the manual does not use.
        operand_bits: Option<u8>,
    },
    /// TPAUSE or UMWAIT.
    Wait {
        /// The source.
        source: Gpr,
    },
    /// VMCLEAR, VMPTRLD, VMPTRST, VMXON, XRSTORS or XSAVES.
    Memory(MemoryOperand),
    /// VMREAD or VMWRITE.
    Vmcs {
        /// Where the value is or goes.
        value: Operand,
        /// The register with the encoding.
        encoding: Gpr,
    },
    /// LOADIWKEY: the numbers of two XMM registers.
    LoadKey {
        /// The first operand.
        first: u8,
        /// The second.
        second: u8,
    },
    /// RDMSR or WRMSRNS with an immediate operand.
    Msr {
        /// What is read into, or written.
        register: Gpr,
    },
    /// The manual says nothing of the instruction information of this reason.
    Other(u32),
}

impl Instruction {
    /// Reads `raw`, the instruction information of an exit with this reason.
    pub const fn decode(reason: ExitReason, raw: u32) -> Self {
        if reason.is_entry_failure() {
            return Self::Other(raw);
        }
        match ExitReason(reason.basic() as u32) {
            ExitReason::IO_INSTRUCTION => Self::StringIo {
                address_bits: address_bits(raw),
                segment: segment(raw),
            },
            ExitReason::INVEPT | ExitReason::INVPCID | ExitReason::INVVPID => Self::Invalidate {
                descriptor: memory(raw),
                kind: gpr(raw, 28),
            },
            ExitReason::GDTR_IDTR => Self::DescriptorTable {
                instruction: match raw >> 28 & 3 {
                    0 => DescriptorTable::Sgdt,
                    1 => DescriptorTable::Sidt,
                    2 => DescriptorTable::Lgdt,
                    _ => DescriptorTable::Lidt,
                },
                operand: memory(raw),
                is_32_bit: raw >> 11 & 1 != 0,
            },
            ExitReason::LDTR_TR => Self::SystemSegment {
                instruction: match raw >> 28 & 3 {
                    0 => SystemSegment::Sldt,
                    1 => SystemSegment::Str,
                    2 => SystemSegment::Lldt,
                    _ => SystemSegment::Ltr,
                },
                operand: operand(raw),
            },
            ExitReason::RDRAND | ExitReason::RDSEED => Self::Random {
                destination: gpr(raw, 3),
                operand_bits: match raw >> 11 & 3 {
                    0 => Some(16),
                    1 => Some(32),
                    2 => Some(64),
                    _ => None,
                },
            },
            ExitReason::TPAUSE | ExitReason::UMWAIT => Self::Wait {
                source: gpr(raw, 3),
            },
            ExitReason::RDMSR_IMMEDIATE | ExitReason::WRMSRNS_IMMEDIATE => Self::Msr {
                register: gpr(raw, 3),
            },
            ExitReason::VMCLEAR
            | ExitReason::VMPTRLD
            | ExitReason::VMPTRST
            | ExitReason::VMXON
            | ExitReason::XRSTORS
            | ExitReason::XSAVES => Self::Memory(memory(raw)),
            ExitReason::VMREAD | ExitReason::VMWRITE => Self::Vmcs {
                value: operand(raw),
                encoding: gpr(raw, 28),
            },
            ExitReason::LOADIWKEY => Self::LoadKey {
                first: gpr(raw, 3).0,
                second: gpr(raw, 28).0,
            },
            _ => Self::Other(raw),
        }
    }
}

const fn gpr(raw: u32, low: u32) -> Gpr {
    Gpr((raw >> low & 0xf) as u8)
}

const fn segment(raw: u32) -> SegmentRegister {
    SegmentRegister((raw >> 15 & 7) as u8)
}

const fn address_bits(raw: u32) -> Option<u8> {
    match raw >> 7 & 7 {
        0 => Some(16),
        1 => Some(32),
        2 => Some(64),
        _ => None,
    }
}

const fn memory(raw: u32) -> MemoryOperand {
    let has_index = raw >> 22 & 1 == 0;
    let has_base = raw >> 27 & 1 == 0;
    MemoryOperand {
        segment: segment(raw),
        base: if has_base { Some(gpr(raw, 23)) } else { None },
        index: if has_index {
            Some((gpr(raw, 18), (raw & 3) as u8))
        } else {
            None
        },
        address_bits: address_bits(raw),
    }
}

const fn operand(raw: u32) -> Operand {
    if raw >> 10 & 1 != 0 {
        Operand::Register(gpr(raw, 3))
    } else {
        Operand::Memory(memory(raw))
    }
}
