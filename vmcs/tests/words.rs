// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Capability words and events, bit by bit: each question is about the bit that the manual's table names, and no other.
//!
//! SDM Vol. 3D, appendix "VMX Capability Reporting Facility"; Vol. 3C, "Information for VM Exits During Event Delivery";
//! Vol. 3A, "Exceptions and Interrupts".

use hvkit_vmcs::capability::{Basic, EptVpid, Misc};
use hvkit_vmcs::controls::Allowed;
use hvkit_vmcs::encoding::Encoding;
use hvkit_vmcs::event::{Event, exception_name};

/// Asks of each bit alone, and of its absence.
fn asks_of(bit: u32, question: impl Fn(u64) -> bool) {
    for other in 0..64 {
        assert_eq!(question(1 << other), other == bit, "bit {other}, not {bit}");
        assert_eq!(question(!(1 << other)), other != bit, "without bit {other}");
    }
}

#[test]
fn basic() {
    asks_of(48, |word| Basic(word).has_32_bit_addresses());
    asks_of(49, |word| Basic(word).has_dual_monitor());
    asks_of(54, |word| Basic(word).has_ins_outs_information());
    asks_of(55, |word| Basic(word).has_true_controls());
    asks_of(56, |word| Basic(word).has_free_error_codes());
    asks_of(58, |word| Basic(word).has_nested_exceptions());
    let word = Basic(0x0018_1000_8123_4567);
    assert_eq!(
        (word.revision(), word.region_size(), word.memory_type()),
        (0x0123_4567, 0x1000, 6)
    );
}

#[test]
fn misc() {
    asks_of(5, |word| Misc(word).saves_lma());
    asks_of(6, |word| Misc(word).supports_activity(1));
    asks_of(7, |word| Misc(word).supports_activity(2));
    asks_of(8, |word| Misc(word).supports_activity(3));
    asks_of(14, |word| Misc(word).has_processor_trace());
    asks_of(29, |word| Misc(word).can_write_exit_information());
    asks_of(30, |word| Misc(word).allows_zero_length());
    assert!(Misc(0).supports_activity(0) && !Misc(u64::MAX).supports_activity(4));
    let word = Misc(0x0e04_01e5);
    assert_eq!(
        (
            word.preemption_timer_shift(),
            word.cr3_targets(),
            word.recommended_msr_count()
        ),
        (5, 4, 8 * 512)
    );
}

#[test]
fn ept_and_vpid() {
    asks_of(0, |word| EptVpid(word).has_execute_only());
    asks_of(6, |word| EptVpid(word).supports_walk_length(4));
    asks_of(7, |word| EptVpid(word).supports_walk_length(5));
    asks_of(8, |word| EptVpid(word).supports_memory_type(0));
    asks_of(14, |word| EptVpid(word).supports_memory_type(6));
    asks_of(16, |word| EptVpid(word).has_2m_pages());
    asks_of(17, |word| EptVpid(word).has_1g_pages());
    asks_of(20, |word| EptVpid(word).has_invept());
    asks_of(21, |word| EptVpid(word).has_accessed_dirty());
    asks_of(22, |word| EptVpid(word).has_advanced_exit_information());
    asks_of(23, |word| EptVpid(word).has_supervisor_shadow_stack());
    asks_of(32, |word| EptVpid(word).has_invvpid());
    for other in [1, 2, 3, 4, 5, 7, u64::MAX] {
        assert!(!EptVpid(u64::MAX).supports_memory_type(other));
    }
}

#[test]
fn allowed_settings() {
    let msr = 0x0000_00ff_0000_0016;
    let allowed = Allowed::from_msr(msr);
    assert_eq!((allowed.must_be_one, allowed.may_be_one), (0x16, 0xff));
    assert_eq!(allowed.to_msr(), msr);
}

#[test]
fn an_exit_that_unblocked_nmis_says_so_in_bit_12() {
    for bit in 0..32 {
        assert_eq!(Event(1 << bit).unblocked_nmi(), bit == 12, "bit {bit}");
        assert_eq!(Event(!(1 << bit)).unblocked_nmi(), bit != 12, "bit {bit}");
    }
}

#[test]
fn exceptions_are_called_what_the_manual_calls_them() {
    let names = [
        "#DE", "#DB", "", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "", "#TS", "#NP", "#SS", "#GP",
        "#PF", "", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
    ];
    for vector in 0..=u8::MAX {
        let name = names.get(usize::from(vector)).copied().unwrap_or("");
        assert_eq!(exception_name(vector).unwrap_or(""), name, "{vector}");
    }
}

#[test]
fn only_64_bit_fields_have_a_high_half() {
    // Width in bits 14:13; the access type in bit 0.
    assert_eq!(Encoding(0x2000).high_half(), Some(Encoding(0x2001)));
    assert_eq!(Encoding(0x2001).high_half(), Some(Encoding(0x2001)));
    for other in [0x0000, 0x4000, 0x6000] {
        assert_eq!(Encoding(other).high_half(), None, "{other:#x}");
    }
}
