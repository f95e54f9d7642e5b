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

/// What CPUID says of the MSRs that VM entry loads, in raw words.
#[test]
fn what_msrs_take_is_what_cpuid_says() {
    let with = |leaves: &[((u32, u32), [u32; 4])]| {
        let mut machine = skylake();
        machine.cpuid.insert(
            (0, 0),
            Cpuid {
                eax: 0x1c,
                ..Cpuid::default()
            },
        );
        for &(leaf, [eax, ebx, ecx, edx]) in leaves {
            machine.cpuid.insert(leaf, Cpuid { eax, ebx, ecx, edx });
        }
        detect(&machine).unwrap().processor.writable
    };
    // Nothing is told: no such MSR.
    let none = with(&[((7, 0), [0; 4])]);
    let found = [
        none.perf_global_ctrl,
        none.rtit_ctl,
        none.lbr_ctl,
        none.s_cet,
        none.spec_ctrl,
    ];
    assert_eq!(found, [0; 5]);
    assert_eq!(none.debugctl, 0xffc3);

    // Version 2: 4 counters and 3 fixed ones. Version 5: fixed ones by number and by mask; metrics, if there may be some.
    let counters = |leaf, pdcm: u32| {
        let first = ((1, 0), [0, 0, 1 << 5 | pdcm << 15, 0]);
        with(&[first, ((0xa, 0), leaf)]).perf_global_ctrl
    };
    assert_eq!(counters([0x0730_0402, 0, 0, 0x603], 1), 0x7_0000_000f);
    assert_eq!(
        counters([0x0730_0401, 0, 0, 0x603], 1),
        0,
        "version 1 has none"
    );
    assert_eq!(
        counters([0x0830_0805, 0, 0xb, 0x602], 1),
        0x1_000b_0000_00ff
    );
    assert_eq!(counters([0x0830_0805, 0, 0, 0x604], 0), 0xf_0000_00ff);
    assert_eq!(
        counters([0xffff_ff02, !0, !0, !0], 0),
        0xffff_ffff_ffff,
        "whatever it says"
    );

    // Processor trace of Skylake: CR3 filter, PSB and CYC, IP filtering with two ranges, MTC; ToPA.
    let trace = |[ebx, ecx]: [u32; 2], ranges| {
        let leaves = [
            ((7, 0), [0, 1 << 25, 0, 0]),
            ((0x14, 0), [1, ebx, ecx, 0]),
            ((0x14, 1), [ranges, 0, 0, 0]),
        ];
        with(&leaves).rtit_ctl
    };
    assert_eq!(trace([0xf, 0x7], 0x0249_0002), 0xff_0f7b_ef8f);
    assert_eq!(trace([0, 0], 0), 0x2c0d);
    assert_eq!(
        trace([0x1f0, 0x8], 2),
        0x0180_0000_8000_3c7d,
        "no IP filtering, no ranges"
    );
    // Without the feature, the leaf says nothing.
    assert_eq!(with(&[((0x14, 0), [1, 0xf, 7, 0])]).rtit_ctl, 0);

    let branches = |ebx| {
        let leaves = [((7, 0), [0, 0, 0, 1 << 19]), ((0x1c, 0), [0, ebx, 0, 0])];
        with(&leaves).lbr_ctl
    };
    assert_eq!(
        [0, 1, 2, 4, 7].map(branches),
        [1, 7, 0x7f_0001, 9, 0x7f_000f]
    );

    // Shadow stacks, indirect-branch tracking; bus locks; IBRS, SSBD, and those of subleaf 2.
    let of_seven = |ecx, edx, more| {
        let leaves = [((7, 0), [2, 0, ecx, edx]), ((7, 2), [0, 0, 0, more])];
        with(&leaves)
    };
    assert_eq!(of_seven(1 << 7, 0, 0).s_cet, 0x3);
    assert_eq!(of_seven(0, 1 << 20, 0).s_cet, 0xc3c);
    assert_eq!(of_seven(1 << 7, 1 << 20, 0).s_cet, 0xc3f);
    assert_eq!(of_seven(1 << 24, 0, 0).debugctl, 0xffc7);
    assert_eq!(of_seven(0, 1 << 26, 0).spec_ctrl, 0x3);
    assert_eq!(of_seven(0, 1 << 31 | 1 << 27, 0).spec_ctrl, 0x7);
    assert_eq!(of_seven(0, 0, 0b1_1111).spec_ctrl, 0x5f8);
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
