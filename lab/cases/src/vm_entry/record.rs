// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What travels over the serial line.

use hvkit_vmcs::{
    Capabilities,
    capability::{Msr, Processor},
    check::Outcome,
    exit::{ExitReason, InstructionError},
};

/// What the serial line begins with, before the processor's words.
pub const HEADER_MAGIC: &[u8; 8] = b"HVKITVE1";

/// The processor: its VMX capability MSRs (0 for one that does not exist), and its address width.
#[derive(Clone, Debug)]
pub struct Cpu {
    /// In the order of [`Msr::ALL`].
    pub msrs: [u64; Msr::ALL.len()],
    /// MAXPHYADDR.
    pub physical_address_bits: u8,
}

impl Cpu {
    /// Bytes of a processor.
    pub const BYTES: usize = 8 * Msr::ALL.len() + 1;

    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (place, msr) in bytes.chunks_exact_mut(8).zip(self.msrs) {
            place.copy_from_slice(&msr.to_le_bytes());
        }
        bytes[Self::BYTES - 1] = self.physical_address_bits;
        bytes
    }

    /// From what travelled.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let mut msrs = [0; Msr::ALL.len()];
        for (msr, word) in msrs.iter_mut().zip(bytes.as_chunks().0) {
            *msr = u64::from_le_bytes(*word);
        }
        Self {
            msrs,
            physical_address_bits: bytes[Self::BYTES - 1],
        }
    }

    /// As the checker wants it.
    #[must_use]
    pub fn processor(&self) -> Processor {
        let find = |msr| Msr::ALL.iter().position(|known| *known == msr);
        let vmx = Capabilities::from_msrs(|msr| self.msrs.get(find(msr)?).copied());
        Processor {
            physical_address_bits: self.physical_address_bits,
            ..Processor::new(vmx)
        }
    }
}

/// What came of one case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// 0 VMfailInvalid, 1 VMfailValid, 2 an exit.
    pub kind: u8,
    /// The error number, or the exit reason.
    pub number: u32,
    /// The exit qualification.
    pub qualification: u64,
}

impl Record {
    /// Bytes of a record.
    pub const BYTES: usize = 13;

    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = self.kind;
        bytes[1..5].copy_from_slice(&self.number.to_le_bytes());
        bytes[5..].copy_from_slice(&self.qualification.to_le_bytes());
        bytes
    }

    /// From what travelled.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let [kind, a, b, c, d, qualification @ ..] = *bytes;
        Self {
            kind,
            number: u32::from_le_bytes([a, b, c, d]),
            qualification: u64::from_le_bytes(qualification),
        }
    }

    /// As the checker would say it. An exit without bit 31 means that the guest was entered.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self.kind {
            0 => Outcome::FailInvalid,
            1 => Outcome::FailValid(InstructionError(self.number)),
            _ => Outcome::from_exit(ExitReason(self.number), self.qualification),
        }
    }
}
