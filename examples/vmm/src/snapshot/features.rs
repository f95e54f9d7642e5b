// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest was told of its processor, and must find again: the feature words of CPUID.
//!
//! Other leaves tell of the processor that the host happened to ask, or of nothing that software relies on.

use super::error::SnapshotError;
use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

/// One leaf of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaf {
    /// EAX as it is asked by.
    pub leaf: u32,
    /// ECX as it is asked by.
    pub subleaf: u32,
    /// EAX, EBX, ECX, EDX.
    pub registers: [u32; 4],
}

/// Names of [`Leaf::registers`].
const NAMES: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];

/// Leaf, sub-leaf, and which bits of its registers are features. SDM 2A, "CPUID"; AMD APM 3, "CPUID Function Numbers"; KVM's
/// own leaf of features.
const FEATURES: [(u32, u32, [u32; 4]); 9] = [
    // OSXSAVE (ECX bit 27) follows the guest's CR4.
    (0x1, 0, [u32::MAX, 0, !(1 << 27), u32::MAX]),
    (0x7, 0, [0, u32::MAX, !(1 << 4), u32::MAX]),
    (0x7, 1, [u32::MAX, 0, 0, 0]),
    (0xd, 0, [u32::MAX, 0, 0, u32::MAX]),
    (0xd, 1, [u32::MAX, 0, u32::MAX, u32::MAX]),
    (0x4000_0001, 0, [u32::MAX, 0, 0, 0]),
    (0x8000_0001, 0, [0, 0, u32::MAX, u32::MAX]),
    (0x8000_0007, 0, [0, 0, 0, u32::MAX]),
    (0x8000_0008, 0, [u32::MAX, u32::MAX, 0, 0]),
];

/// The feature leaves among `entries`, nothing but features in them.
#[must_use]
pub fn leaves(entries: &[kvm_cpuid_entry2]) -> Vec<Leaf> {
    let found = |(leaf, subleaf, masks): (u32, u32, [u32; 4])| {
        let entry = entries
            .iter()
            .find(|entry| entry.function == leaf && entry.index == subleaf);
        let mut registers = entry.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx]);
        for (register, mask) in registers.iter_mut().zip(masks) {
            *register &= mask;
        }
        Leaf {
            leaf,
            subleaf,
            registers,
        }
    };
    FEATURES.into_iter().map(found).collect()
}

/// Whether a guest that was told `saved` finds the same here.
pub(super) fn compare(saved: &[Leaf], ours: &[Leaf]) -> Result<(), SnapshotError> {
    if saved.len() != ours.len() {
        return Err(SnapshotError::Differs {
            what: "feature leaves of CPUID",
            saved: saved.len() as u64,
            ours: ours.len() as u64,
        });
    }
    for (theirs, here) in saved.iter().zip(ours) {
        if (theirs.leaf, theirs.subleaf) != (here.leaf, here.subleaf) {
            return Err(SnapshotError::Differs {
                what: "as a leaf of CPUID",
                saved: theirs.leaf.into(),
                ours: here.leaf.into(),
            });
        }
        let words = theirs.registers.iter().zip(here.registers).zip(NAMES);
        for ((&saved, ours), register) in words {
            if saved != ours {
                return Err(SnapshotError::Features {
                    leaf: here.leaf,
                    subleaf: here.subleaf,
                    register,
                    saved,
                    ours,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    #[test]
    fn features_must_be_the_same_and_the_rest_need_not() {
        // APIC id in leaf 1 EBX, OSXSAVE in ECX; a cache leaf.
        let here = leaves(&[
            entry(1, 0, [0x830f10, 0x0102_0800, 0x0800_0001, 0x1234]),
            entry(4, 0, [1, 2, 3, 4]),
            entry(7, 0, [0, 0x20, 0, 0]),
        ]);
        let there = leaves(&[
            entry(7, 0, [1, 0x20, 0x10, 0]),
            entry(1, 0, [0x830f10, 0x0302_0800, 0x0000_0001, 0x1234]),
        ]);
        assert_eq!(here, there);
        compare(&there, &here).unwrap();
        let refused = |change: fn(&mut Vec<Leaf>)| {
            let mut saved = there.clone();
            change(&mut saved);
            compare(&saved, &here).unwrap_err().to_string()
        };
        assert_eq!(
            refused(|leaves| leaves[1].registers[1] = 0x60),
            "--restore: this host's processor is another one: CPUID 0x7.0x0 EBX was 0x60, here it is 0x20"
        );
        assert!(refused(Vec::clear).contains("0 feature leaves of CPUID"));
        assert!(refused(|leaves| leaves[0].leaf = 9).contains("9 as a leaf of CPUID"));
    }
}
