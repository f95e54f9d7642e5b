// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The list against raw numbers of the manual's appendix, and its own consistency.

use super::*;

/// All encodings of the appendix, by table, as raw numbers: first, last, and the numbers in between that it
/// leaves out.
#[test]
fn numbers_are_the_appendix() {
    use {Class::*, Width::*};
    let tables: [(Width, Class, u32, u32, &[u32]); 16] = [
        (Bits16, Control, 0x0000, 0x000a, &[]),
        (Bits16, ExitInformation, 1, 0, &[]),
        (Bits16, Guest, 0x0800, 0x0814, &[]),
        (Bits16, Host, 0x0c00, 0x0c0c, &[]),
        (Bits64, Control, 0x2000, 0x2052, &[0x2046, 0x2048, 0x2050]),
        (Bits64, ExitInformation, 0x2400, 0x2406, &[]),
        (Bits64, Guest, 0x2800, 0x2830, &[0x282a, 0x282c]),
        (Bits64, Host, 0x2c00, 0x2c1a, &[0x2c18]),
        (Bits32, Control, 0x4000, 0x4026, &[]),
        (Bits32, ExitInformation, 0x4400, 0x440e, &[]),
        (Bits32, Guest, 0x4800, 0x482e, &[0x482c]),
        (Bits32, Host, 0x4c00, 0x4c00, &[]),
        (Natural, Control, 0x6000, 0x600e, &[]),
        (Natural, ExitInformation, 0x6400, 0x640a, &[]),
        (Natural, Guest, 0x6800, 0x682c, &[]),
        (Natural, Host, 0x6c00, 0x6c1c, &[]),
    ];
    for (width, class, first, last, holes) in tables {
        let want: Vec<u32> = (first..=last)
            .step_by(2)
            .filter(|n| !holes.contains(n))
            .collect();
        let mut have: Vec<u32> = of(width, class).map(|info| info.encoding.0).collect();
        have.sort_unstable();
        assert_eq!(have, want, "{width:?} {class:?}");
    }
}

/// Bits 11:10 of an encoding: 1 is "VM-exit information", which VMWRITE may write on some processors only.
#[test]
fn all_but_exit_information_is_writable_everywhere() {
    for info in ALL {
        assert_eq!(info.is_writable(), info.encoding.0 >> 10 & 3 != 1);
    }
}

#[test]
fn names_belong_to_their_numbers() {
    let raw: &[(Encoding, u32)] = &[
        (VPID.encoding(), 0x0000),
        (LAST_PID_POINTER_INDEX.encoding(), 0x0008),
        (VIRTUAL_TIMER_VECTOR.encoding(), 0x000a),
        (GUEST_TR_SELECTOR.encoding(), 0x080e),
        (GUEST_UINV.encoding(), 0x0814),
        (HOST_TR_SELECTOR.encoding(), 0x0c0c),
        (EPT_POINTER.encoding(), 0x201a),
        (TSC_MULTIPLIER.encoding(), 0x2032),
        (TERTIARY_CONTROLS.encoding(), 0x2034),
        (ENCLV_EXITING_BITMAP.encoding(), 0x2036),
        (LOW_PASID_DIRECTORY.encoding(), 0x2038),
        (HIGH_PASID_DIRECTORY.encoding(), 0x203a),
        (SEAM_SHARED_EPT_POINTER.encoding(), 0x203c),
        (PCONFIG_EXITING_BITMAP.encoding(), 0x203e),
        (HLAT_POINTER.encoding(), 0x2040),
        (PID_POINTER_TABLE.encoding(), 0x2042),
        (SECONDARY_EXIT_CONTROLS.encoding(), 0x2044),
        (SPEC_CTRL_MASK.encoding(), 0x204a),
        (SPEC_CTRL_SHADOW.encoding(), 0x204c),
        (GUEST_DEADLINE_SHADOW.encoding(), 0x204e),
        (INJECTED_EVENT_DATA.encoding(), 0x2052),
        (GUEST_PHYSICAL_ADDRESS.encoding(), 0x2400),
        (ORIGINAL_EVENT_DATA.encoding(), 0x2404),
        (VMCS_LINK_POINTER.encoding(), 0x2800),
        (GUEST_EFER.encoding(), 0x2806),
        (GUEST_LBR_CTL.encoding(), 0x2816),
        (GUEST_PKRS.encoding(), 0x2818),
        (GUEST_FRED_CONFIG.encoding(), 0x281a),
        (GUEST_FRED_SSP3.encoding(), 0x2828),
        (GUEST_SPEC_CTRL.encoding(), 0x282e),
        (GUEST_DEADLINE.encoding(), 0x2830),
        (HOST_PKRS.encoding(), 0x2c06),
        (HOST_FRED_CONFIG.encoding(), 0x2c08),
        (HOST_FRED_SSP3.encoding(), 0x2c16),
        (HOST_SPEC_CTRL.encoding(), 0x2c1a),
        (PIN_BASED_CONTROLS.encoding(), 0x4000),
        (ENTRY_CONTROLS.encoding(), 0x4012),
        (INJECTED_EVENT.encoding(), 0x4016),
        (SECONDARY_CONTROLS.encoding(), 0x401e),
        (INSTRUCTION_TIMEOUT.encoding(), 0x4024),
        (INSTRUCTION_ERROR.encoding(), 0x4400),
        (EXIT_REASON.encoding(), 0x4402),
        (GUEST_ACTIVITY.encoding(), 0x4826),
        (PREEMPTION_TIMER_VALUE.encoding(), 0x482e),
        (HOST_SYSENTER_CS.encoding(), 0x4c00),
        (CR0_GUEST_HOST_MASK.encoding(), 0x6000),
        (EXIT_QUALIFICATION.encoding(), 0x6400),
        (GUEST_LINEAR_ADDRESS.encoding(), 0x640a),
        (GUEST_CR0.encoding(), 0x6800),
        (GUEST_RIP.encoding(), 0x681e),
        (GUEST_RFLAGS.encoding(), 0x6820),
        (GUEST_PENDING_DEBUG.encoding(), 0x6822),
        (GUEST_S_CET.encoding(), 0x6828),
        (GUEST_SSP.encoding(), 0x682a),
        (GUEST_INTERRUPT_SSP_TABLE.encoding(), 0x682c),
        (HOST_CR0.encoding(), 0x6c00),
        (HOST_RSP.encoding(), 0x6c14),
        (HOST_RIP.encoding(), 0x6c16),
        (HOST_S_CET.encoding(), 0x6c18),
    ];
    for (encoding, number) in raw {
        assert_eq!(encoding.0, *number, "{encoding:?}");
    }
}

/// The segment fields of the guest come in the same order in every table of the appendix.
#[test]
fn segments_are_in_register_order() {
    let order = ["ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"];
    for (base, suffix) in [
        (0x800, "selector"),
        (0x4800, "limit"),
        (0x4814, "access rights"),
        (0x6806, "base"),
    ] {
        for (at, register) in order.iter().enumerate() {
            let found = find(Encoding(base + 2 * at as u32)).unwrap();
            assert_eq!(found.name, format!("Guest {register} {suffix}"));
        }
    }
}

/// One number: a field if the list has it, spelled as it is there or as the upper half of it. Whether it is one, and not an upper half.
fn one_number(number: u16) -> bool {
    let encoding = Encoding(number.into());
    let listed = ALL.iter().find(|info| info.encoding == encoding.full());
    let reachable = encoding.is_well_formed();
    assert_eq!(
        find(encoding).map(|info| info.encoding),
        listed.filter(|_| reachable).map(|info| info.encoding),
        "{number:#x}"
    );
    find(encoding).is_some() && !encoding.is_high()
}

#[test]
fn every_one_of_65536_numbers_is_a_field_or_is_not() {
    let fields = (0..=u16::MAX).filter(|&number| one_number(number)).count();
    assert_eq!(fields, COUNT);
    for number in 0..=u16::MAX {
        let encoding = Encoding(number.into());
        assert!(!format!("{encoding:?} {encoding}").is_empty());
    }
    assert!(
        find(Encoding(0x1_6800)).is_none(),
        "bits 31:15 are reserved"
    );
}

/// `cargo kani --tests`: the same for a number that stands for all.
#[cfg(kani)]
mod proofs {
    #[kani::proof]
    fn one_number() {
        super::one_number(kani::any());
    }
}

#[test]
fn no_two_fields_share_a_slot_an_id_or_bytes_of_a_vmcs12() {
    let mut slots = [false; SLOTS];
    let mut bytes = [false; 4096];
    for info in &ALL {
        assert!(
            !std::mem::replace(&mut slots[slot(info.encoding).unwrap()], true),
            "{info:?}"
        );
        assert_eq!(
            find_by_id(&info.id.to_lowercase()).unwrap().encoding,
            info.encoding
        );
        let Some(offset) = info.vmcs12_offset else {
            continue;
        };
        for byte in usize::from(offset)..usize::from(offset) + info.encoding.width().bytes() {
            assert!(!std::mem::replace(&mut bytes[byte], true), "{info:?}");
        }
    }
}

#[test]
fn fields_exist_where_a_control_does() {
    let mut bare = crate::Capabilities::default();
    assert!(Exists::Always.on(&bare));
    let conditional = ALL.iter().filter(|info| info.exists != Exists::Always);
    for info in conditional.clone() {
        assert!(!info.exists.on(&bare), "{info:?}");
    }
    bare.entry.may_be_one = 1 << 22; // "load PKRS"
    let now: Vec<_> = conditional.filter(|info| info.exists.on(&bare)).collect();
    assert_eq!(now.len(), 1);
    assert_eq!(now[0].encoding.0, 0x2818);
}

#[test]
fn greatest_index_is_what_the_enumeration_msr_holds() {
    // With nothing optional, guest VMX-preemption timer value (index 23) does not exist; SYSENTER_CS (21) does.
    assert_eq!(greatest_index(&crate::Capabilities::default()), 21);
}
