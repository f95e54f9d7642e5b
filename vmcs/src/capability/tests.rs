// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Capabilities from MSRs and text.

use super::*;
use crate::controls::{Primary, Secondary};

/// A processor of 2006: no TRUE MSRs, no secondary controls.
const PRESCOTT: [(u32, u64); 11] = [
    (0x480, 0x001a_0400_0000_0007),
    (0x481, 0x0000_001f_0000_0016),
    (0x482, 0x77b9_fffe_0401_e172),
    (0x483, 0x0003_efff_0003_6dff),
    (0x484, 0x0000_1fff_0000_11ff),
    (0x485, 0x0000_0000_0004_03c0),
    (0x486, 0x8000_0021),
    (0x487, 0xffff_ffff),
    (0x488, 0x2000),
    (0x489, 0x27ff),
    (0x48a, 0x2c),
];

#[test]
fn words_in_parts() {
    let bochs = presets::bochs_skylake_x().vmx;
    assert_eq!(
        (bochs.basic.revision(), bochs.basic.region_size()),
        (0x2b, 4096)
    );
    assert_eq!(bochs.basic.memory_type(), 6);
    assert!(bochs.basic.has_true_controls() && bochs.basic.has_ins_outs_information());
    assert!(!bochs.basic.has_32_bit_addresses() && !bochs.basic.has_dual_monitor());
    assert!(!bochs.basic.has_free_error_codes() && !bochs.basic.has_nested_exceptions());

    let misc = Misc(0x3004_81e5); // Core i7-5600U
    assert_eq!((misc.preemption_timer_shift(), misc.cr3_targets()), (5, 4));
    assert_eq!(misc.recommended_msr_count(), 512);
    assert!(misc.saves_lma() && !misc.has_processor_trace());
    assert!(misc.can_write_exit_information() && !misc.allows_zero_length());
    assert_eq!(
        [0, 1, 2, 3, 4].map(|s| misc.supports_activity(s)),
        [true, true, true, true, false]
    );
    assert_eq!(
        [1, 2, 3].map(|s| Misc(0x40).supports_activity(s)),
        [true, false, false]
    );
    assert_eq!(Misc(0x0e00_0000).recommended_msr_count(), 4096);

    let ept = EptVpid(0x0f01_0633_4141);
    assert!(ept.has_execute_only() && ept.has_2m_pages() && ept.has_1g_pages());
    assert!(ept.has_invept() && ept.has_accessed_dirty() && ept.has_invvpid());
    assert!(!ept.has_advanced_exit_information() && !ept.has_supervisor_shadow_stack());
    assert!(ept.supports_walk_length(4) && !ept.supports_walk_length(5));
    assert!(!ept.supports_walk_length(3) && EptVpid(0x80).supports_walk_length(5));
    assert_eq!(
        [0, 1, 6, 7].map(|t| ept.supports_memory_type(t)),
        [true, false, true, false]
    );
}

#[test]
fn true_controls_count_where_there_are_any() {
    let bochs = presets::bochs_skylake_x().vmx;
    // Bits 15 and 16 (CR3-load and CR3-store exiting) are free in TRUE_PROCBASED_CTLS alone.
    assert_eq!(bochs.primary.must_be_one, 0x0400_6172);
    let old = Capabilities::from_list(&PRESCOTT);
    assert_eq!(old.primary.must_be_one, 0x0401_e172);
    assert_eq!(old.exit.may_be_one, 0x0003_efff);
}

#[test]
fn what_does_not_exist_is_not_asked_for() {
    let mut asked = Vec::new();
    let old = Capabilities::from_msrs(|msr| {
        asked.push(msr.0);
        PRESCOTT
            .iter()
            .find(|(index, _)| *index == msr.0)
            .map(|(_, value)| *value)
    });
    assert!(asked.iter().all(|index| *index <= 0x48a), "{asked:x?}");
    assert_eq!(old.secondary, Allowed::NONE);
    assert_eq!(old.ept_vpid, EptVpid(0));

    let all = presets::everything().vmx;
    assert_eq!(all.tertiary.may_be_one, 0x13ff);
    assert_eq!(all.exit2.may_be_one, 0xf);
    assert_eq!(all.vm_functions.may_be_one, 1);
    assert!(all.secondary.accepts(Secondary::all().bits().into()));
    assert!(
        all.primary
            .accepts(0x0400_6172 | u64::from(Primary::all().bits()))
    );
}

#[test]
fn a_dump_reads_like_the_list() {
    let text = b"# Core i7-5600U\n\
        IA32_VMX_BASIC = 0x00da040000000012\n\
        0x481: 7f00000016   # pin-based\n\
        482 0xfff9fffe0401e172\r\n\
        \n\
        IA32_VMX_TRUE_PINBASED_CTLS 0X7f00000016\n\
        IA32_VMX_PROCBASED_CTLS2\t57cff00000000#";
    let read = parse_dump(text).unwrap();
    assert_eq!(read.basic, Basic(0x00da_0400_0000_0012));
    assert_eq!(
        read.pin_based,
        Allowed {
            must_be_one: 0x16,
            may_be_one: 0x7f
        }
    );
    assert_eq!(read.secondary.may_be_one, 0x57cff);
    assert_eq!(read.misc, Misc(0));
    assert_eq!(parse_dump(b""), Ok(Capabilities::default()));
}

#[test]
fn a_bad_dump_names_line_and_byte() {
    let error = |text: &[u8]| {
        let error = parse_dump(text).unwrap_err();
        (error.line, error.offset, error.problem)
    };
    assert_eq!(error(b"0x480 1\n0x4ff 2"), (2, 8, DumpProblem::UnknownMsr));
    assert_eq!(error(b"IA32_VMX_BASICS 1"), (1, 0, DumpProblem::UnknownMsr));
    assert_eq!(error(b"0x480"), (1, 5, DumpProblem::BadValue));
    assert_eq!(error(b"0x480 12g"), (1, 6, DumpProblem::BadValue));
    assert_eq!(error(b"0x480 0x"), (1, 6, DumpProblem::BadValue));
    assert_eq!(
        error(b"0x480 11112222333344445"),
        (1, 6, DumpProblem::BadValue)
    );
    assert_eq!(error(b"0x480 1 2"), (1, 8, DumpProblem::Trailing));
    assert_eq!(
        error(b"0x480 1\n\n  IA32_VMX_BASIC 1"),
        (3, 11, DumpProblem::Twice)
    );
    assert_eq!(error(b"\xff\xfe"), (1, 0, DumpProblem::UnknownMsr));
    assert_eq!(
        parse_dump(b"0x480 1 2").unwrap_err().to_string(),
        "line 1, byte 8: nothing should follow the value"
    );
}

#[test]
fn address_widths() {
    let plain = Processor::new(Capabilities::default());
    let at = |physical, linear| Processor {
        physical_address_bits: physical,
        linear_address_bits: linear,
        ..plain
    };
    assert_eq!(at(39, 48).beyond_physical(), 0xffff_ff80_0000_0000);
    assert_eq!(at(52, 48).beyond_physical(), 0xfff0_0000_0000_0000);
    assert_eq!(at(255, 48).beyond_physical(), 0xfff0_0000_0000_0000);
    for narrow in [0, 31, 32] {
        assert_eq!(at(narrow, 48).beyond_physical(), 0xffff_ffff_0000_0000);
    }
    assert!(at(39, 48).is_canonical(0x7fff_ffff_ffff) && !at(39, 48).is_canonical(1 << 47));
    assert!(at(39, 48).is_canonical(0xffff_8000_0000_0000));
    assert!(!at(39, 48).is_canonical(0xffff_7fff_ffff_ffff));
    assert!(at(39, 57).is_canonical(1 << 47) && !at(39, 57).is_canonical(1 << 56));
    // One past the end, as after a SYSCALL there.
    assert!(at(39, 48).is_nearly_canonical(1 << 47) && !at(39, 48).is_nearly_canonical(1 << 48));
    assert!(at(39, 48).is_nearly_canonical(0xffff_0000_0000_0000));
    assert!(!at(39, 48).is_nearly_canonical(0xfffe_0000_0000_0000));
    for width in [0, 63, 64, 200, 255] {
        let _ = (
            at(0, width).is_canonical(u64::MAX),
            at(0, width).is_nearly_canonical(u64::MAX),
        );
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_a_dump_or_an_error_inside_them(text: Vec<u8>) {
        if let Err(error) = parse_dump(&text) {
            assert!(error.offset <= text.len() && error.line <= text.len() + 1);
        }
    }
}
