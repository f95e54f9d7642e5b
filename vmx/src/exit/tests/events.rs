// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory, exceptions, interrupts, and any words at all.

use super::*;

#[test]
fn an_ept_violation_is_tried_again() {
    let mut vmcs = stopped(&[
        (QUALIFICATION, 0x182),
        (0x2400, 0xfee0_0300),
        (0x640a, 0xffff_8000),
    ]);
    answer(&mut vmcs, &mut Registers::new(), 48, |exit| match exit {
        Exit::EptViolation(exit, access) => {
            assert_eq!((exit.physical, exit.linear()), (0xfee0_0300, 0xffff_8000));
            assert!(access.is_write() && access.is_final() && !access.is_read());
            exit.retry();
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(injected(&vmcs), (0, false));
}

#[test]
fn what_an_exit_interrupted_is_finished_first() {
    // During delivery of: #PF with error code 7; INT 80H of two bytes; an NMI; an interrupt, with bit 12 undefined.
    for (original, again, length, blocked) in [
        (0x8000_0b0e, 0x8000_0b0e, 0, 8),
        (0x8000_0480, 0x8000_0480, 2, 8),
        (0x8000_0202, 0x8000_0202, 0, 0),
        (0x8000_1020, 0x8000_0020, 0, 8),
    ] {
        let mut vmcs = stopped(&[
            (ORIGINAL, original),
            (ORIGINAL_ERROR, 7),
            (INTERRUPTIBILITY, 8),
        ]);
        answer(&mut vmcs, &mut Registers::new(), 48, |exit| match exit {
            Exit::EptViolation(exit, _) => exit.retry(),
            other => panic!("{other:?}"),
        });
        assert_eq!(field(&vmcs, INJECTED), again);
        assert_eq!(
            field(&vmcs, INJECTED_ERROR),
            if original & 0x800 != 0 { 7 } else { 0 }
        );
        assert_eq!(field(&vmcs, ENTRY_LENGTH), length);
        assert_eq!(field(&vmcs, INTERRUPTIBILITY), blocked, "{original:#x}");
    }
}

/// A full page-modification log (62) and a sub-page permission (66) come as exits of no type of their own.
#[test]
fn other_exits_are_finished_first_too() {
    for reason in [62, 66] {
        let fields = [
            (ORIGINAL, 0x8000_0b0e),
            (ORIGINAL_ERROR, 7),
            (QUALIFICATION, 0),
        ];
        let retry = |fields: &[(u32, u64)]| {
            let mut vmcs = stopped(fields);
            answer(
                &mut vmcs,
                &mut Registers::new(),
                reason,
                |exit| match exit {
                    Exit::Other(exit) => exit.retry(),
                    other => panic!("{other:?}"),
                },
            );
            vmcs
        };
        let vmcs = retry(&fields);
        assert_eq!(injected(&vmcs), (0x8000_0b0e, false));
        assert_eq!(field(&vmcs, INJECTED_ERROR), 7);
        let vmcs = retry(&[(QUALIFICATION, 1 << 12)]);
        assert_eq!(field(&vmcs, INTERRUPTIBILITY), 8);
    }
}

/// SDM Vol. 3C, "VM-Entry Control Fields": the deliver-error-code bit must be 0 while CR0.PE is.
#[test]
fn no_exception_of_real_mode_has_an_error_code() {
    // Exiting event, original event, what is injected in protected and in real mode.
    for (event, original, protected, real) in [
        (GP, 0, GP, 0x8000_030d),
        (GP, 0x8000_030a, 0x8000_0b08, 0x8000_0308),
        (0x8000_0b0e, 0, 0x8000_0b0e, 0x8000_030e),
        (UD, 0, UD, UD),
    ] {
        for (cr0, expected) in [(1, protected), (0, real)] {
            let mut vmcs = stopped(&[(CR0, cr0), (EVENT, event), (ORIGINAL, original)]);
            answer(&mut vmcs, &mut Registers::new(), 0, |exit| match exit {
                Exit::Exception(exit) => drop(exit.reflect()),
                other => panic!("{other:?}"),
            });
            assert_eq!(injected(&vmcs), (expected, false), "{event:#x}");
        }
    }
    for (cr0, expected) in [(1, GP), (0x6000_0010, 0x8000_030d)] {
        let mut vmcs = stopped(&[(CR0, cr0)]);
        answer(&mut vmcs, &mut Registers::new(), 31, |exit| match exit {
            Exit::ReadMsr(exit) => exit.fault(),
            other => panic!("{other:?}"),
        });
        assert_eq!(injected(&vmcs), (expected, false));
    }
}

#[test]
fn nmis_that_iret_unblocked_are_blocked_again() {
    // EPT violation, instruction timeout: bit 12 of the qualification. Page fault: bit 12 of the event. Double fault: undefined.
    for (reason, qualification, event, blocked) in [
        (48, 1 << 12, 0, 8),
        (48, 0, 0, 0),
        (49, 1 << 12, 0, 0),
        (75, 1 << 12, 0, 8),
        (75, 1 << 0, 0, 0),
        (0, 0, 0x8000_1b0e, 8),
        (0, 1 << 12, 0x8000_0b0e, 0),
        (0, 0, 0x8000_1b08, 0),
    ] {
        let mut vmcs = stopped(&[(QUALIFICATION, qualification), (EVENT, event)]);
        answer(
            &mut vmcs,
            &mut Registers::new(),
            reason,
            |exit| match exit {
                Exit::EptViolation(exit, _) | Exit::EptMisconfiguration(exit) => exit.retry(),
                Exit::Exception(exit) => exit.retry(),
                Exit::Other(exit) => exit.retry(),
                other => panic!("{other:?}"),
            },
        );
        assert_eq!(field(&vmcs, INTERRUPTIBILITY), blocked, "{reason}");
    }
}

#[test]
fn a_reflected_exception_is_what_it_would_have_been() {
    let reflect = |event: u64, original: u64| {
        let mut vmcs = stopped(&[
            (EVENT, event),
            (EVENT_ERROR, 6),
            (QUALIFICATION, 0xdead_b000),
            (ORIGINAL, original),
        ]);
        let mut registers = Registers::new();
        let mut became = None;
        answer(&mut vmcs, &mut registers, 0, |exit| match exit {
            Exit::Exception(exit) => became = Some(exit.reflect()),
            other => panic!("{other:?}"),
        });
        let injected = (field(&vmcs, INJECTED), field(&vmcs, INJECTED_ERROR));
        (became.unwrap(), injected, registers.cr2)
    };
    let page_fault = 0x8000_0b0e;
    assert_eq!(
        reflect(page_fault, 0),
        (Delivery::Second, (page_fault, 6), 0xdead_b000)
    );
    // Bits 12 and 13 are not for injection; #UD has no error code.
    assert_eq!(reflect(0x8000_3306, 0), (Delivery::Second, (UD, 0), 0));
    assert_eq!(
        reflect(GP, page_fault),
        (Delivery::DoubleFault, (0x8000_0b08, 0), 0)
    );
    assert_eq!(
        reflect(page_fault, 0x8000_0b08),
        (Delivery::TripleFault, (0, 0), 0)
    );
}

#[test]
fn events_and_windows_are_told_apart() {
    let mut registers = Registers::new();
    let mut vmcs = stopped(&[(EVENT, 0x8000_0041)]);
    answer(&mut vmcs, &mut registers, 1, |exit| {
        assert!(matches!(exit, Exit::Interrupt(_, Some(0x41))), "{exit:?}");
    });
    let mut vmcs = stopped(&[]);
    answer(&mut vmcs, &mut registers, 1, |exit| {
        assert!(matches!(exit, Exit::Interrupt(_, None)), "not acknowledged");
    });
    let mut vmcs = stopped(&[(EVENT, 0x8000_0202)]);
    answer(&mut vmcs, &mut registers, 0, |exit| match exit {
        Exit::Exception(exit) => assert!(exit.is_nmi() && exit.page_fault().is_none()),
        other => panic!("{other:?}"),
    });
    for (reason, name) in [
        (2, "TripleFault"),
        (7, "InterruptWindow"),
        (8, "NmiWindow"),
        (52, "PreemptionTimer"),
        (49, "EptMisconfiguration"),
        (54, "Other"),
        (0x1234, "Other"),
    ] {
        answer(&mut vmcs, &mut registers, reason, |mut exit| {
            assert!(format!("{exit:?}").starts_with(name), "{exit:?}");
            assert_eq!(exit.guest().reason(), ExitReason(reason));
        });
    }
}

#[test]
fn any_exit_can_be_read_and_answered() {
    // Random words in every field, every reason: a value, and an answer that does not panic.
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word
    };
    for reason in (0..90).chain([u32::from(u16::MAX)]) {
        for _ in 0..20 {
            let mut vmcs = Vmcs::new();
            for info in &f::ALL {
                vmcs.set(info.encoding, next()).unwrap();
            }
            let mut registers = Registers::new();
            for number in 0..16 {
                registers[Gpr(number)] = next();
            }
            answer(&mut vmcs, &mut registers, reason, |exit| match exit {
                Exit::ControlRegister(exit) => exit.allow(0x20),
                Exit::Io(exit) => exit.done(),
                Exit::Exception(exit) => drop(exit.reflect()),
                Exit::EptViolation(exit, _) => exit.retry(),
                Exit::Cpuid(exit) => exit.answer([0; 4]),
                mut other => other.guest().skip(),
            });
        }
    }
}

/// SDM: field 2052H is the injected-event data, 2404H the original-event data; bit 32 of CR4 is FRED.
#[test]
fn a_guest_that_uses_fred_finds_the_event_data() {
    const DATA: u32 = 0x2052;
    const ORIGINAL_DATA: u32 = 0x2404;
    let became = |cr4: u64, event: u64, original: u64, with: fn(Exception<'_, Vmcs>)| {
        let mut vmcs = stopped(&[
            (0x6804, cr4),
            (EVENT, event),
            (QUALIFICATION, 0xdead_b000),
            (ORIGINAL, original),
            (ORIGINAL_DATA, 0xbeef_0000),
            (DATA, 0x77),
        ]);
        answer(&mut vmcs, &mut Registers::new(), 0, |exit| match exit {
            Exit::Exception(exit) => with(exit),
            other => panic!("{other:?}"),
        });
        field(&vmcs, DATA)
    };
    let reflect = |exit: Exception<'_, Vmcs>| {
        let _ = exit.reflect();
    };
    const FRED: u64 = 1 << 32;
    // #DB, #NM and #PF have data; #UD and #GP have none, nor has a double fault.
    for (event, data) in [
        (0x8000_0301, 0xdead_b000),
        (0x8000_0307, 0xdead_b000),
        (0x8000_0b0e, 0xdead_b000),
        (UD, 0),
        (GP, 0),
    ] {
        assert_eq!(became(FRED, event, 0, reflect), data, "{event:#x}");
        assert_eq!(became(0, event, 0, reflect), 0x77, "{event:#x}");
    }
    assert_eq!(became(FRED, GP, 0x8000_0b0e, reflect), 0);
    // What the exit interrupted is delivered with what it had.
    let retry = |exit: Exception<'_, Vmcs>| exit.retry();
    assert_eq!(became(FRED, 0x8000_0b0e, 0x8000_0301, retry), 0xbeef_0000);
    assert_eq!(became(0, 0x8000_0b0e, 0x8000_0301, retry), 0x77);
    assert_eq!(became(FRED, GP, 0, |mut exit| exit.guest.fault()), 0);
}
