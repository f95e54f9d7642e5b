// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What INVEPT and INVVPID are asked to forget. SDM Vol. 3C, "INVEPT", "INVVPID".

use hvkit_vmcs::capability::EptVpid;

/// Which translations through EPT are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvEpt {
    /// Those of one EPTP.
    SingleContext {
        /// The EPTP, as in the VMCS.
        eptp: u64,
    },
    /// All.
    AllContexts,
}

/// Which translations of linear addresses are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvVpid {
    /// Those of one linear address.
    Address {
        /// The virtual processor: not 0.
        vpid: u16,
        /// The linear address.
        linear: u64,
    },
    /// Those of one virtual processor.
    SingleContext {
        /// The virtual processor: not 0.
        vpid: u16,
    },
    /// Those of every virtual processor but 0.
    AllContexts,
    /// Those of one virtual processor but global ones.
    SingleContextNotGlobal {
        /// The virtual processor: not 0.
        vpid: u16,
    },
}

/// The processor does not have an instruction, or not with this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidateError {
    /// INVEPT or its type is missing.
    #[error("IA32_VMX_EPT_VPID_CAP {capability:#x}: no INVEPT for {asked:?}")]
    NoInvEpt {
        /// What was asked for.
        asked: InvEpt,
        /// `IA32_VMX_EPT_VPID_CAP`.
        capability: u64,
    },
    /// INVVPID or its type is missing.
    #[error("IA32_VMX_EPT_VPID_CAP {capability:#x}: no INVVPID for {asked:?}")]
    NoInvVpid {
        /// What was asked for.
        asked: InvVpid,
        /// `IA32_VMX_EPT_VPID_CAP`.
        capability: u64,
    },
    /// The instruction refused its operand: an EPTP that no VM entry would take, VPID 0, an address that is not
    /// canonical.
    #[error(transparent)]
    Failed(#[from] crate::VmFail),
}

impl InvEpt {
    /// Type and descriptor.
    pub const fn operands(self) -> (u64, [u64; 2]) {
        match self {
            Self::SingleContext { eptp } => (1, [eptp, 0]),
            Self::AllContexts => (2, [0, 0]),
        }
    }

    /// Refuses what a processor with this capability does not have.
    ///
    /// # Errors
    ///
    /// [`InvalidateError::NoInvEpt`].
    pub const fn check(self, capability: EptVpid) -> Result<(), InvalidateError> {
        // Bit 20: INVEPT; 25 and 26: its types 1 and 2.
        let bit = match self {
            Self::SingleContext { .. } => 25,
            Self::AllContexts => 26,
        };
        if capability.has_invept() && capability.0 >> bit & 1 != 0 {
            return Ok(());
        }
        Err(InvalidateError::NoInvEpt {
            asked: self,
            capability: capability.0,
        })
    }
}

impl InvVpid {
    /// Type and descriptor.
    pub const fn operands(self) -> (u64, [u64; 2]) {
        match self {
            Self::Address { vpid, linear } => (0, [vpid as u64, linear]),
            Self::SingleContext { vpid } => (1, [vpid as u64, 0]),
            Self::AllContexts => (2, [0, 0]),
            Self::SingleContextNotGlobal { vpid } => (3, [vpid as u64, 0]),
        }
    }

    /// Refuses what a processor with this capability does not have.
    ///
    /// # Errors
    ///
    /// [`InvalidateError::NoInvVpid`].
    pub const fn check(self, capability: EptVpid) -> Result<(), InvalidateError> {
        // Bit 32: INVVPID; 40 to 43: its types 0 to 3.
        let bit = self.operands().0.saturating_add(40);
        if capability.has_invvpid() && capability.0 >> bit & 1 != 0 {
            return Ok(());
        }
        Err(InvalidateError::NoInvVpid {
            asked: self,
            capability: capability.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: InvVpid = InvVpid::Address {
        vpid: 7,
        linear: 0x1234_5000,
    };

    #[test]
    fn operands_of_the_manual() {
        assert_eq!(
            InvEpt::SingleContext { eptp: 0x105e }.operands(),
            (1, [0x105e, 0])
        );
        assert_eq!(InvEpt::AllContexts.operands(), (2, [0, 0]));
        assert_eq!(ADDRESS.operands(), (0, [7, 0x1234_5000]));
        assert_eq!(
            InvVpid::SingleContext { vpid: 0xffff }.operands(),
            (1, [0xffff, 0])
        );
        assert_eq!(InvVpid::AllContexts.operands(), (2, [0, 0]));
        assert_eq!(
            InvVpid::SingleContextNotGlobal { vpid: 7 }.operands(),
            (3, [7, 0])
        );
    }

    #[test]
    fn types_are_refused_by_their_own_bit() {
        let single = InvEpt::SingleContext { eptp: 0x105e };
        let with = |bits: &[u64]| EptVpid(bits.iter().map(|bit| 1 << bit).sum());
        assert_eq!(single.check(with(&[20, 25])), Ok(()));
        assert!(single.check(with(&[20, 26])).is_err());
        assert!(single.check(with(&[25])).is_err(), "no INVEPT at all");
        assert_eq!(InvEpt::AllContexts.check(with(&[20, 26])), Ok(()));
        assert_eq!(ADDRESS.check(with(&[32, 40])), Ok(()));
        assert!(ADDRESS.check(with(&[40])).is_err());
        assert_eq!(InvVpid::AllContexts.check(with(&[32, 42])), Ok(()));
        let error = InvVpid::SingleContextNotGlobal { vpid: 1 }.check(with(&[32, 42]));
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("no INVVPID for SingleContextNotGlobal { vpid: 1 }"),
            "{text}"
        );
        assert_eq!(
            InvVpid::SingleContext { vpid: 1 }.check(with(&[32, 41])),
            Ok(())
        );
    }
}
