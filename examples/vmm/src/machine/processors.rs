// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Making the vCPUs: how many, and each as a BIOS would leave it.

use super::cpuid::Features;
use super::kvm::KvmError;
use super::vm::Vm;
use crate::config::Vtd;
use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use std::ffi::c_char;

/// Local APIC ids are bytes, and 255 means all of them.
const MOST_OF_BYTES: usize = 254;
/// With ids of 32 bits: what one of our snapshots has room for, and KVM runs.
pub(crate) const MOST: usize = 1024;

/// Which processors interrupts can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destinations {
    /// Those whose id is a byte, as messages and the I/O APIC have it.
    Bytes,
    /// All: remapping units turn messages into such with destinations of 32 bits.
    Wide,
}

impl Destinations {
    /// Those in a machine with these remapping units.
    #[must_use]
    pub fn of(vtds: &[Vtd]) -> Self {
        if vtds.iter().any(|vtd| vtd.interrupts) {
            Destinations::Wide
        } else {
            Destinations::Bytes
        }
    }
}

/// The vCPUs cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CountError {
    /// None was asked for.
    #[error("a machine needs a processor: boot is 0")]
    Zero,
    /// More than interrupts reach.
    #[error(
        "{asked} processors: interrupts reach {MOST_OF_BYTES} of them, unless a unit remaps them: add --vtd"
    )]
    NeedsRemapping {
        /// Asked for.
        asked: u32,
    },
    /// More than KVM runs.
    #[error("{asked} processors are too many: {most} are possible")]
    TooMany {
        /// Asked for.
        asked: u32,
        /// What this host's KVM and the APIC ids allow.
        most: usize,
    },
}

/// The number of vCPUs, if `kvm` can run so many.
pub fn count(asked: u32, kvm: &Kvm, destinations: Destinations) -> Result<u32, CountError> {
    // The ids are the numbers from 0 up.
    let most = kvm.get_max_vcpus().min(kvm.get_max_vcpu_id()).min(MOST);
    checked(asked, most, destinations)
}

fn checked(asked: u32, most: usize, destinations: Destinations) -> Result<u32, CountError> {
    let count = usize::try_from(asked).unwrap_or(usize::MAX);
    match (count, destinations) {
        (0, _) => Err(CountError::Zero),
        _ if count > most => Err(CountError::TooMany { asked, most }),
        (_, Destinations::Bytes) if count > MOST_OF_BYTES => {
            Err(CountError::NeedsRemapping { asked })
        }
        _ => Ok(asked),
    }
}

/// SDM 4: IA32_MISC_ENABLE, fast string operations.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// SDM 4: IA32_MTRR_DEF_TYPE. Enabled, write-back: a guest that finds the MTRRs off believes that
/// its memory is not cached.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// SDM 4: IA32_APIC_BASE, and in it the first processor's mark, the x2APIC mode, and that the local APIC is on, where it
/// is after a reset.
const APIC_BASE: u32 = 0x1b;
const FIRST: u64 = 1 << 8;
const X2APIC: u64 = 1 << 10;
const ON: u64 = 1 << 11;
const AT: u64 = 0xfee0_0000;

/// What IA32_APIC_BASE of vCPU `id` of `count` is, if it is not that of a reset.
///
/// With an id beyond [`MOST_OF_BYTES`] all local APICs are in x2APIC mode from the start, as a BIOS hands them over (SDM 3A,
/// "Extended XAPIC (x2APIC)"): those in the older mode would take what is sent to id 255 for themselves.
fn apic_base(id: u32, count: u32) -> Option<u64> {
    let wide = usize::try_from(count).map_or(true, |count| count > MOST_OF_BYTES.saturating_add(1));
    let first = if id == 0 { FIRST } else { 0 };
    wide.then_some(AT | ON | X2APIC | first)
}

/// Makes vCPU `id` of `count`. Its registers are those after a reset; the first one still has to
/// be given an entry point, the others wait for INIT and SIPI in KVM.
pub fn create(vm: &Vm, id: u32, count: u32, features: &Features) -> Result<VcpuFd, KvmError> {
    let vcpu = vm
        .fd()
        .create_vcpu(id.into())
        .map_err(KvmError::refused("create a vCPU"))?;
    vcpu.set_cpuid2(&features.of_vcpu(id, count))
        .map_err(KvmError::refused("set the processor features"))?;
    let mut msrs = vec![
        (MISC_ENABLE, FAST_STRINGS),
        (MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    msrs.extend(apic_base(id, count).map(|base| (APIC_BASE, base)));
    let msrs: Vec<_> = msrs
        .into_iter()
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    let refused = || KvmError::refused("set the model-specific registers");
    let msrs =
        Msrs::from_entries(&msrs).map_err(|_| refused()(kvm_ioctls::Error::new(libc::E2BIG)))?;
    let set = vcpu.set_msrs(&msrs).map_err(refused())?;
    if set < msrs.as_slice().len() {
        return Err(refused()(kvm_ioctls::Error::new(libc::EINVAL)));
    }
    connect_local_interrupts(&vcpu)?;
    Ok(vcpu)
}

/// SDM 3A, "Local Vector Table": the two local interrupt pins, and their delivery modes.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_EXTINT: u32 = 7 << 8;
const DELIVER_NMI: u32 = 4 << 8;

/// Pin 0 takes the PIC's interrupts, pin 1 is for NMIs, as the MADT says.
fn connect_local_interrupts(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut apic = vcpu
        .get_lapic()
        .map_err(KvmError::refused("read the local APIC"))?;
    set_register(&mut apic, LVT_LINT0, DELIVER_EXTINT);
    set_register(&mut apic, LVT_LINT1, DELIVER_NMI);
    vcpu.set_lapic(&apic)
        .map_err(KvmError::refused("set the local APIC"))
}

fn set_register(apic: &mut kvm_lapic_state, offset: usize, value: u32) {
    let register = apic.regs.iter_mut().skip(offset);
    for (byte, value) in register.zip(value.to_le_bytes()) {
        *byte = value as c_char;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_byte_numbers_need_remapped_interrupts() {
        use Destinations::{Bytes, Wide};
        assert_eq!(checked(0, 1024, Wide), Err(CountError::Zero));
        assert_eq!(checked(254, 1024, Bytes), Ok(254));
        assert_eq!(
            checked(255, 1024, Bytes),
            Err(CountError::NeedsRemapping { asked: 255 })
        );
        assert_eq!(checked(300, 1024, Wide), Ok(300));
        let too_many = |asked, most| Err(CountError::TooMany { asked, most });
        // Remapping would not help.
        assert_eq!(checked(300, 288, Bytes), too_many(300, 288));
        assert_eq!(checked(1025, 1024, Wide), too_many(1025, 1024));
        let quiet = Vtd {
            interrupts: false,
            ..Vtd::default()
        };
        assert_eq!(Destinations::of(&[]), Bytes);
        assert_eq!(Destinations::of(&[quiet]), Bytes);
        assert_eq!(Destinations::of(&[Vtd::default()]), Wide);
    }

    /// SDM 4: what IA32_APIC_BASE is, bit by bit.
    #[test]
    fn local_apics_start_in_x2apic_mode_if_an_id_is_255_or_more() {
        for id in [0, 1, 254] {
            assert_eq!(apic_base(id, 255), None, "{id}");
        }
        assert_eq!(apic_base(0, 256), Some(0xfee0_0d00));
        assert_eq!(apic_base(1, 256), Some(0xfee0_0c00));
        assert_eq!(apic_base(255, 256), Some(0xfee0_0c00));
    }

    #[test]
    fn an_apic_register_is_four_bytes_in_place() {
        let mut apic = kvm_lapic_state::default();
        set_register(&mut apic, LVT_LINT1, DELIVER_NMI);
        assert_eq!(apic.regs[0x35f..0x365], [0, 0, 4, 0, 0, 0]);
    }
}
