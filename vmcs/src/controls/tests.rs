// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Controls against raw words of the manual's tables.

use super::*;

#[test]
fn bits_are_where_the_tables_put_them() {
    assert_eq!(PinBased::POSTED_INTERRUPTS.bits(), 0x80);
    assert_eq!(Primary::ACTIVATE_TERTIARY.bits(), 0x0002_0000);
    assert_eq!(
        (Primary::MSR_BITMAPS | Primary::IO_BITMAPS).bits(),
        0x1200_0000
    );
    assert_eq!(Secondary::UNRESTRICTED_GUEST.bits(), 0x80);
    assert_eq!(Secondary::INSTRUCTION_TIMEOUT.bits(), 0x8000_0000);
    assert_eq!(Tertiary::IPI_VIRTUALIZATION.bits(), 0x10);
    assert_eq!(Tertiary::PEBS_GUEST_PHYSICAL.bits(), 0x1000);
    assert_eq!(ExitPrimary::HOST_ADDRESS_SPACE_SIZE.bits(), 0x200);
    assert_eq!(ExitSecondary::LOAD_SPEC_CTRL.bits(), 4);
    assert_eq!(Entry::LOAD_FRED.bits(), 0x0080_0000);
}

/// The manual lists the bits that the first processors fixed to 1; each list is spelt out here.
#[test]
fn default1_classes_are_the_manuals_lists() {
    let word = |bits: &[u32]| bits.iter().fold(0_u64, |word, bit| word | 1 << bit);
    assert_eq!(PinBased::DEFAULT1, word(&[1, 2, 4]));
    assert_eq!(
        Primary::DEFAULT1,
        word(&[1, 4, 5, 6, 8, 13, 14, 15, 16, 26])
    );
    assert_eq!(
        ExitPrimary::DEFAULT1,
        word(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 14, 16, 17])
    );
    assert_eq!(Entry::DEFAULT1, word(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 12]));
}

#[test]
fn adjust_names_what_is_refused_and_what_is_forced() {
    // IA32_VMX_PROCBASED_CTLS of a processor without the TRUE MSRs: CR3-load and CR3-store exiting
    // (bits 15 and 16) must be 1; "activate secondary controls" and "use TPR shadow" must be 0.
    let old = Allowed::from_msr(0x77d9_fffe_0401_e172);
    let chosen = adjust(Primary::HLT_EXITING, old).unwrap();
    assert_eq!(chosen.value.bits(), 0x0401_e1f2);
    assert_eq!(
        chosen.forced,
        Primary::CR3_LOAD_EXITING | Primary::CR3_STORE_EXITING
    );

    let wanted = Primary::HLT_EXITING | Primary::ACTIVATE_SECONDARY | Primary::TPR_SHADOW;
    let refused = adjust(wanted, old).unwrap_err();
    assert_eq!(
        refused.cannot_be_set,
        Primary::ACTIVATE_SECONDARY | Primary::TPR_SHADOW
    );
}

#[test]
fn adjust_clears_nothing_and_adds_nothing_else() {
    let free = Allowed {
        must_be_one: 0,
        may_be_one: u64::MAX,
    };
    let chosen = adjust(Tertiary::ENABLE_HLAT, free).unwrap();
    assert_eq!((chosen.value.bits(), chosen.forced), (2, Tertiary::empty()));
    // A bit without a name passes through where the processor allows it.
    let unnamed = adjust(Tertiary::from_bits_retain(1 << 63), free).unwrap();
    assert_eq!(unnamed.value.bits(), 1 << 63);
}

#[test]
fn allowed_reads_both_kinds_of_capability_msr() {
    let pin = Allowed::from_msr(0x0000_00ff_0000_0016);
    assert_eq!((pin.must_be_one, pin.may_be_one), (0x16, 0xff));
    assert!(pin.accepts(0x16) && pin.accepts(0xff));
    assert!(!pin.accepts(0x14), "bit 1 must be 1");
    assert!(!pin.accepts(0x116), "bit 8 must be 0");
    let tertiary = Allowed::from_msr64(0x1_0000_0010);
    assert!(tertiary.accepts(0x1_0000_0010) && tertiary.accepts(0) && !tertiary.accepts(1));
}

#[test]
fn names_of_a_value() {
    let names = |field, value| names_of(crate::Encoding(field), value).collect::<Vec<_>>();
    assert_eq!(names(0x4000, 0x3e), ["NMI exiting", "virtual NMIs"]);
    assert_eq!(names(0x401e, 0x82), ["enable EPT", "unrestricted guest"]);
    assert_eq!(names(0x2034, 0x10), ["IPI virtualization"]);
    assert_eq!(names(0x2044, 0x2), ["load FRED"]);
    assert_eq!(names(0x2018, 0x1), ["EPTP switching"]);
    assert_eq!(names(0x4012, 0x200), ["IA-32e mode guest"]);
    assert!(names(0x6800, u64::MAX).is_empty());
}
