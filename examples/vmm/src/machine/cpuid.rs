// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each vCPU says of itself: the host's features as KVM can provide them, and this machine's
//! topology: one package, one thread a core, the local APIC's id equal to the vCPU's number.
//!
//! Leaves are Intel's (SDM 2A, "CPUID") and AMD's (APM 3, "CPUID Function Numbers"); KVM's own,
//! from 0x4000_0000, come from the host as they are, with kvmclock.

use super::kvm::KvmError;
use kvm_bindings::kvm_cpuid_entry2 as Entry;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

/// Leaf 1 ECX, leaf 0x8000_0001 ECX: virtual machines of its own.
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;
/// Leaf 1 ECX: x2APIC, TSC-deadline timer, "under a hypervisor".
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: the field for the number of logical processors is valid.
const HTT: u32 = 1 << 28;
/// Leaf 6 EAX: the local APIC's timer never stops, whatever power state.
const ARAT: u32 = 1 << 2;
/// Leaf 0xb ECX, level types in bits 15:8.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;
/// Leaf 0x8000_0001 ECX: more than one core without hyper-threading.
const CMP_LEGACY: u32 = 1 << 1;

/// The feature leaves common to all vCPUs of one host.
#[derive(Clone, Debug)]
pub struct Features {
    supported: CpuId,
    tsc_deadline: bool,
}

impl Features {
    /// What the host's KVM can give a guest.
    pub fn of(kvm: &Kvm) -> Result<Self, KvmError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::refused("tell the processor features"))?;
        Ok(Features {
            supported,
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        })
    }

    /// Without virtual machines of the guest's own: what a processor knows of those is not part of a snapshot.
    #[must_use]
    pub fn without_nesting(mut self) -> Self {
        for entry in self.supported.as_mut_slice() {
            match entry.function {
                1 => entry.ecx &= !VMX,
                0x8000_0001 => entry.ecx &= !SVM,
                _ => {}
            }
        }
        self
    }

    /// Width of physical addresses in bits; 36 on processors that do not tell.
    #[must_use]
    pub fn address_bits(&self) -> u8 {
        self.supported
            .as_slice()
            .iter()
            .find(|entry| entry.function == 0x8000_0008)
            .map_or(36, |entry| entry.eax.to_le_bytes()[0])
    }

    /// The leaves of vCPU `id` of `count`.
    #[must_use]
    pub fn of_vcpu(&self, id: u32, count: u32) -> CpuId {
        let mut leaves: Vec<Entry> = self
            .supported
            .as_slice()
            .iter()
            .filter(|entry| !TOPOLOGIES.contains(&entry.function))
            .copied()
            .collect();
        for entry in &mut leaves {
            set_identity(entry, id, count);
            if entry.function == 1 && self.tsc_deadline {
                entry.ecx |= TSC_DEADLINE;
            }
        }
        if leaves
            .iter()
            .any(|entry| entry.function == 0 && entry.eax >= TOPOLOGY)
        {
            leaves.extend(topology(id, count));
        }
        // Fewer entries than KVM's maximum go in: some are left out, two are put back.
        CpuId::from_entries(&leaves).unwrap_or_else(|_| self.supported.clone())
    }
}

/// The leaf that lists topology levels, and Intel's newer one with more kinds of them, which is left out: where it is empty
/// software uses the older. SDM 2A, "CPUID": "V2 Extended Topology Enumeration Leaf".
const TOPOLOGY: u32 = 0xb;
const TOPOLOGIES: [u32; 2] = [TOPOLOGY, 0x1f];

/// The two levels of leaf 0xb.
fn topology(id: u32, count: u32) -> [Entry; 2] {
    let level = |index, eax, ebx, ecx| Entry {
        function: TOPOLOGY,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: ecx | index,
        edx: id,
        ..Entry::default()
    };
    [
        level(0, 0, 1, LEVEL_THREAD),
        level(1, id_bits(count), count, LEVEL_CORE),
    ]
}

/// Bits of an APIC id that number the cores of one package.
fn id_bits(count: u32) -> u32 {
    u32::BITS.saturating_sub(count.saturating_sub(1).leading_zeros())
}

/// Sets what depends on the number of the vCPU and on how many there are.
fn set_identity(entry: &mut Entry, id: u32, count: u32) {
    let cores_less_one = count.saturating_sub(1);
    match entry.function {
        1 => {
            // Bytes: of an id the low one, of a count what fits. Leaf 0xb has all of them.
            entry.ebx = entry.ebx & 0x0000_ffff | id << 24 | count.min(0xff) << 16;
            entry.ecx |= HYPERVISOR | X2APIC;
            if count > 1 {
                entry.edx |= HTT;
            } else {
                entry.edx &= !HTT;
            }
        }
        // Cache leaves: each cache belongs to one core, all cores to one package.
        4 if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & 0x0000_3fff | cores_less_one.min(0x3f) << 26;
        }
        6 => entry.eax |= ARAT,
        0x8000_0001 if count > 1 => entry.ecx |= CMP_LEGACY,
        0x8000_0001 => entry.ecx &= !CMP_LEGACY,
        0x8000_0008 => {
            let bits = id_bits(count);
            entry.ecx = entry.ecx & !0xf0ff | bits << 12 | cores_less_one.min(0xff);
        }
        0x8000_001d => entry.eax &= 0x0000_3fff,
        // The APIC id, the core's number with one thread a core, and the node.
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = id;
            entry.ecx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32) -> Entry {
        Entry {
            function,
            ..Entry::default()
        }
    }

    #[test]
    fn leaf_1_is_the_manuals() {
        let mut entry = leaf(1);
        entry.ebx = 0xffff_0812;
        set_identity(&mut entry, 3, 8);
        // Brand index and CLFLUSH size stay; 8 logical processors; initial APIC id 3.
        assert_eq!(entry.ebx, 0x0308_0812);
        assert_eq!(entry.ecx, 0x8020_0000);
        assert_eq!(entry.edx, 0x1000_0000);
        set_identity(&mut entry, 0x12b, 300);
        assert_eq!(entry.ebx, 0x2bff_0812);
        entry.edx = u32::MAX;
        set_identity(&mut entry, 0, 1);
        assert_eq!(entry.edx, 0xefff_ffff);
    }

    #[test]
    fn a_guest_that_is_saved_is_told_of_no_virtual_machines() {
        let mut leaves = [leaf(0), leaf(1), leaf(0x8000_0001)];
        for leaf in &mut leaves {
            leaf.ecx = u32::MAX;
        }
        let features = Features {
            supported: CpuId::from_entries(&leaves).unwrap(),
            tsc_deadline: true,
        };
        let ecx = |features: &Features| {
            let all = features.supported.as_slice().iter();
            all.map(|leaf| leaf.ecx).collect::<Vec<_>>()
        };
        assert_eq!(ecx(&features), [u32::MAX; 3]);
        let without = features.without_nesting();
        assert_eq!(ecx(&without), [u32::MAX, !(1 << 5), !(1 << 2)]);
    }

    #[test]
    fn leaf_b_has_one_thread_a_core_and_all_cores_in_a_package() {
        let [thread, core] = topology(5, 6);
        assert_eq!(
            [thread.eax, thread.ebx, thread.ecx, thread.edx],
            [0, 1, 0x100, 5]
        );
        // Six cores take three bits of the id.
        assert_eq!([core.eax, core.ebx, core.ecx, core.edx], [3, 6, 0x201, 5]);
        let [_, core] = topology(0x12b, 300);
        assert_eq!([core.eax, core.ebx, core.edx], [9, 300, 0x12b]);
        for (count, bits) in [
            (1, 0),
            (2, 1),
            (3, 2),
            (4, 2),
            (5, 3),
            (8, 3),
            (254, 8),
            (300, 9),
            (1024, 10),
        ] {
            assert_eq!(id_bits(count), bits, "{count}");
        }
    }

    #[test]
    fn the_hosts_own_topology_is_in_no_leaf() {
        let level = |function, index| Entry {
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: 7,
            ebx: 96,
            ecx: 0x500 | index,
            edx: 0x77,
            ..leaf(function)
        };
        let mut largest = leaf(0);
        largest.eax = 0x20;
        let host: [u32; 3] = [0, 1, 2];
        let [b, v2] = [0xb, 0x1f].map(|function| host.map(|index| level(function, index)));
        let leaves = [&[largest, leaf(1)][..], &b, &v2, &[leaf(0x20)]].concat();
        let features = Features {
            supported: CpuId::from_entries(&leaves).unwrap(),
            tsc_deadline: false,
        };
        let told = features.of_vcpu(1, 2);
        let mut functions: Vec<_> = told.as_slice().iter().map(|leaf| leaf.function).collect();
        functions.sort_unstable();
        // The two levels of leaf 0xb are ours.
        assert_eq!(functions, [0, 1, 0xb, 0xb, 0x20]);
        let levels = told.as_slice().iter().filter(|leaf| leaf.function == 0xb);
        assert!(levels.into_iter().all(|level| level.edx == 1));
    }

    #[test]
    fn amd_leaves_count_cores() {
        let mut entry = leaf(0x8000_0008);
        entry.eax = 0x3030;
        entry.ecx = 0x0003_f00f;
        set_identity(&mut entry, 1, 8);
        assert_eq!((entry.eax, entry.ecx), (0x3030, 0x0003_3007));
        set_identity(&mut entry, 0x12b, 300);
        assert_eq!((entry.eax, entry.ecx), (0x3030, 0x0003_90ff));
        let mut entry = leaf(0x8000_001e);
        entry.ebx = 0x100;
        set_identity(&mut entry, 7, 8);
        assert_eq!([entry.eax, entry.ebx, entry.ecx], [7, 7, 0]);
    }

    #[test]
    fn intel_cache_leaves_end_where_the_list_ends() {
        let mut entry = leaf(4);
        entry.eax = 0xfc00_c121;
        set_identity(&mut entry, 0, 2);
        assert_eq!(entry.eax, 0x0400_0121);
        entry.eax = 0;
        set_identity(&mut entry, 0, 2);
        assert_eq!(entry.eax, 0, "the end of the list became a cache");
    }
}
