// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Detecting and enabling on processors made of tables.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::*;
use hvkit_vmcs::capability::Msr;

/// A processor of tables. What is not in them reads as zero.
struct Table {
    cpuid: BTreeMap<(u32, u32), Cpuid>,
    msrs: BTreeMap<u32, u64>,
    cr0: u64,
    cr4: u64,
    read: RefCell<Vec<u32>>,
}

impl Machine for Table {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Cpuid {
        self.cpuid
            .get(&(leaf, subleaf))
            .copied()
            .unwrap_or_default()
    }
    fn rdmsr(&self, index: u32) -> u64 {
        self.read.borrow_mut().push(index);
        // An MSR that is not there faults.
        self.msrs[&index]
    }
    fn cr0(&self) -> u64 {
        self.cr0
    }
    fn cr4(&self) -> u64 {
        self.cr4
    }
    fn allow_vmx(&mut self) {
        let value = self.msrs[&0x3a];
        assert_eq!(value & 1, 0, "a locked register faults");
        self.msrs.insert(0x3a, value | 5);
    }
    fn set_ne(&mut self) {
        self.cr0 |= 0x20;
    }
    fn set_vmxe(&mut self) {
        self.cr4 |= 0x2000;
    }
}

/// A processor as Bochs's Skylake-X answers, in 64-bit mode, its VMX left alone by firmware.
fn skylake() -> Table {
    let leaf = |eax, ebx, ecx, edx| Cpuid { eax, ebx, ecx, edx };
    let msrs = [
        (0x3a, 0),
        (0x480, 0x00d8_1000_0000_002b),
        (0x485, 0x6004_01e0),
        (0x486, 0x8000_0021),
        (0x487, 0xffff_ffff),
        (0x488, 0x2000),
        (0x489, 0x37_27ff),
        (0x48a, 0x34),
        (0x48b, 0x0217_7fff_0000_0000),
        (0x48c, 0x0f01_0633_4141),
        (0x48d, 0x7f_0000_0016),
        (0x48e, 0xf7f9_fffe_0400_6172),
        (0x48f, 0x007f_ffff_0003_6dfb),
        (0x490, 0xffff_0000_11fb),
        (0x491, 1),
    ];
    Table {
        cpuid: [
            ((0, 0), leaf(0x16, 0, 0, 0)),
            ((1, 0), leaf(0, 0, 1 << 5, 0)),
            ((7, 0), leaf(1, 1 << 11, 0, 0)),
            ((7, 1), leaf(1 << 26, 0, 0, 0)),
            ((0x8000_0000, 0), leaf(0x8000_0008, 0, 0, 0)),
            ((0x8000_0001, 0), leaf(0, 0, 0, 1 << 29)),
            ((0x8000_0008, 0), leaf(0x3028, 0, 0, 0)),
        ]
        .into(),
        msrs: msrs.into(),
        cr0: 0x8000_0011,
        cr4: 0x620,
        read: RefCell::default(),
    }
}

#[test]
fn a_processor_with_vmx_is_detected_whole() {
    let machine = skylake();
    let detected = detect(&machine).unwrap();
    let processor = detected.processor;
    assert_eq!(
        (
            processor.physical_address_bits,
            processor.linear_address_bits
        ),
        (40, 48)
    );
    assert_eq!(processor.vmx.basic.revision(), 0x2b);
    assert_eq!(processor.features, Features::RTM | Features::LAM);
    assert_eq!(detected.feature_control, FeatureControl::empty());
    let read = machine.read.borrow();
    assert!(
        !read.contains(&Msr::PROCBASED_CTLS3.0),
        "it does not exist here"
    );
    assert!(!read.contains(&Msr::EXIT_CTLS2.0));
}

#[test]
fn what_is_missing_is_named() {
    let mut machine = skylake();
    machine.cpuid.insert(
        (1, 0),
        Cpuid {
            ecx: 0x1f,
            ..Cpuid::default()
        },
    );
    assert_eq!(detect(&machine), Err(Unsupported::NoVmx { ecx: 0x1f }));
    assert!(
        machine.read.borrow().is_empty(),
        "no MSR before CPUID says that it is there"
    );
    let mut machine = skylake();
    machine.cpuid.insert((0x8000_0000, 0), Cpuid::default());
    assert_eq!(detect(&machine), Err(Unsupported::NoIntel64 { edx: 0 }));
    let text = Unsupported::NoVmx { ecx: 0x1f }.to_string();
    assert_eq!(text, "CPUID.01H:ECX is 0x1f: bit 5, VMX, is clear");
}

#[test]
fn leaf_7_is_asked_for_only_where_it_is() {
    let mut machine = skylake();
    machine.cpuid.insert(
        (0, 0),
        Cpuid {
            eax: 6,
            ..Cpuid::default()
        },
    );
    assert_eq!(
        detect(&machine).unwrap().processor.features,
        Features::empty()
    );
    let mut machine = skylake();
    machine.cpuid.insert(
        (7, 0),
        Cpuid {
            ebx: 1 << 2,
            ..Cpuid::default()
        },
    );
    assert_eq!(detect(&machine).unwrap().processor.features, Features::SGX);
}

#[test]
fn enabling_sets_the_msr_and_the_two_bits_and_nothing_else() {
    let mut machine = skylake();
    let detected = detect(&machine).unwrap();
    let enabled = detected.enable(&mut machine).unwrap();
    assert_eq!(enabled.processor(), &detected.processor);
    assert_eq!(machine.msrs[&0x3a], 5);
    assert_eq!((machine.cr0, machine.cr4), (0x8000_0031, 0x2620));
    // A second time, with the register locked by the first.
    detected.enable(&mut machine).unwrap();
}

#[test]
fn other_bits_of_the_msr_are_kept() {
    let mut machine = skylake();
    machine.msrs.insert(0x3a, 1 << 20);
    detect(&machine).unwrap().enable(&mut machine).unwrap();
    assert_eq!(machine.msrs[&0x3a], 1 << 20 | 5);
}

#[test]
fn a_lock_without_vmx_is_final() {
    for locked in [1, 3] {
        let mut machine = skylake();
        machine.msrs.insert(0x3a, locked);
        let error = detect(&machine).unwrap().enable(&mut machine).unwrap_err();
        let found = FeatureControl::from_bits_retain(locked);
        assert_eq!(error, EnableError::LockedByFirmware(found));
        assert_eq!(
            (machine.cr0, machine.cr4),
            (0x8000_0011, 0x620),
            "nothing was changed"
        );
    }
}

#[test]
fn bits_that_change_the_mode_are_named_not_set() {
    let mut machine = skylake();
    machine.cr0 = 0x10;
    let error = detect(&machine).unwrap().enable(&mut machine).unwrap_err();
    let bits = ControlBits {
        register: 0,
        bits: 0x8000_0001,
    };
    assert_eq!(error, EnableError::MustBeOne(bits));
    assert_eq!(error.to_string(), "VMX operation needs CR0.PE,PG to be 1");
    assert_eq!(
        (machine.msrs[&0x3a], machine.cr4),
        (0, 0x620),
        "nothing was changed"
    );
    let mut machine = skylake();
    machine.cr4 = 0x620 | 1 << 22 | 1 << 40;
    let error = detect(&machine).unwrap().enable(&mut machine).unwrap_err();
    assert_eq!(
        error.to_string(),
        "VMX operation needs CR4.PKE,bit 40 to be 0"
    );
    assert_eq!(
        format!(
            "{:?}",
            ControlBits {
                register: 4,
                bits: 1 << 13
            }
        ),
        "CR4.VMXE (0x2000)"
    );
}
