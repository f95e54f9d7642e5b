// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Basic checks, and what is said when several rules are broken.

use super::*;

/// Rules tested here.
pub(super) const RULES: [&str; 5] = [
    "entry.current-vmcs",
    "entry.not-shadow",
    "entry.mov-ss",
    "entry.launch-clear",
    "entry.resume-launched",
];

fn verdict(moment: Moment, changes: &[Change]) -> (Vec<&'static str>, Verdict) {
    let case = case("").at(moment);
    let (found, verdict) = case.check(changes);
    (
        found.iter().map(|violation| violation.rule.id).collect(),
        verdict,
    )
}

#[test]
fn basic_checks_have_their_numbers() {
    let now = Moment::default();
    let resume = Moment {
        instruction: EntryInstruction::Resume,
        ..now
    };
    let launched = LaunchState::Launched;
    for (moment, rule, said) in [
        (
            Moment {
                current_vmcs: CurrentVmcs::None,
                ..now
            },
            "entry.current-vmcs",
            "VMfailInvalid",
        ),
        (
            Moment {
                current_vmcs: CurrentVmcs::Shadow,
                ..now
            },
            "entry.not-shadow",
            "VMfailInvalid",
        ),
        (
            Moment {
                mov_ss_blocking: true,
                ..now
            },
            "entry.mov-ss",
            "VMfailValid: error 26",
        ),
        (
            Moment {
                launch_state: launched,
                ..now
            },
            "entry.launch-clear",
            "VMfailValid: error 4",
        ),
        (resume, "entry.resume-launched", "VMfailValid: error 5"),
    ] {
        let (ids, verdict) = verdict(moment, &[]);
        assert_eq!(ids, [rule]);
        assert!(
            verdict.outcome().to_string().starts_with(said),
            "{}",
            verdict.outcome()
        );
    }
    assert!(
        verdict(
            Moment {
                launch_state: launched,
                ..resume
            },
            &[]
        )
        .1
        .enters()
    );
}

#[test]
fn the_earlier_step_speaks() {
    // Everything is wrong at once; mend one thing after the other.
    let broken = Moment {
        mov_ss_blocking: true,
        launch_state: LaunchState::Launched,
        current_vmcs: CurrentVmcs::None,
        ..Moment::default()
    };
    let (control, host, guest) = (set(0x400a, 5), set(0xc02, 0), set(0x6820, 0));
    let all = [control, host, guest];
    let number = |moment, changes: &[Change]| match verdict(moment, changes).1.outcome() {
        Outcome::FailInvalid => 0,
        Outcome::FailValid(error) => error.0,
        Outcome::EntryFailure { reason, .. } => reason.0,
        Outcome::Enters => u32::MAX,
    };
    assert_eq!(number(broken, &all), 0);
    let somewhere = Moment {
        current_vmcs: CurrentVmcs::Somewhere,
        ..broken
    };
    assert_eq!(number(somewhere, &all), 26);
    let unblocked = Moment {
        mov_ss_blocking: false,
        ..somewhere
    };
    assert_eq!(number(unblocked, &all), 4);
    let ready = Moment {
        launch_state: LaunchState::Clear,
        ..unblocked
    };
    assert_eq!(number(ready, &all), 7);
    assert_eq!(number(ready, &[host, guest]), 8);
    assert_eq!(number(ready, &[guest]), 0x8000_0021);
    assert_eq!(number(ready, &[]), u32::MAX);
}

#[test]
fn within_a_step_any_order_is_allowed() {
    let failure = |qualification| Outcome::EntryFailure {
        reason: crate::exit::ExitReason(0x8000_0021),
        qualification,
    };
    let error = |number| Outcome::FailValid(crate::exit::InstructionError(number));
    let (_, both) = verdict(Moment::default(), &[set(0x400a, 5), set(0xc02, 0)]);
    assert_eq!(
        [7, 8, 4, 26].map(|n| both.may_report(error(n))),
        [true, true, false, false]
    );
    assert!(!both.may_report(failure(0)) && !both.may_report(Outcome::Enters));

    // RFLAGS and the link pointer.
    let (_, guest) = verdict(Moment::default(), &[set(0x2800, 1), set(0x6820, 0)]);
    assert_eq!(guest.outcome(), failure(0));
    let allowed = [0, 2, 3, 4, 8, 64, u64::MAX].map(|n| guest.may_report(failure(n)));
    assert_eq!(allowed, [true, false, false, true, false, false, false]);
    assert!(!guest.may_report(error(7)));
}

#[test]
fn a_store_with_holes_says_which() {
    let cpu = presets::core_i7_5600u();
    let mut snapshot = crate::store::Snapshot::of(&Seed::LongMode.vmcs(&cpu));
    let mut list = List::<4>::default();
    let verdict = Checker::new(&cpu).check(&snapshot, &mut list);
    assert!(verdict.enters() && verdict.missing == 0 && list.count == 0);

    snapshot = crate::store::Snapshot::new();
    let verdict = Checker::new(&cpu).check(&snapshot, &mut list);
    assert!(!verdict.enters());
    assert_eq!(verdict.missing as usize, list.missing);
    assert!(list.missing > 70, "{}", list.missing);
    assert!(
        list.count > 4 && list.iter().count() == 4,
        "the list keeps what it has room for"
    );
}

#[test]
fn a_violation_reads_as_a_sentence() {
    let case = case("").base([
        set(0xc02, 0),
        set(0x400a, 5),
        set(0x6c10, 1 << 60),
        set(0x2806, 0x502),
    ]);
    let (found, _) = case.check(&[]);
    let text: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        text[0],
        "execution.cr3-target-count: CR3-target count is 0x5; allowed: at most 0x4. The CR3-target count must not \
         exceed what IA32_VMX_MISC reports. [VM-Execution Control Fields]"
    );
    assert_eq!(
        text[1],
        "host.sysenter-esp.canonical: Host IA32_SYSENTER_ESP is 0x1000000000000000; allowed: a canonical address of \
         57 bits. IA32_SYSENTER_ESP must be canonical. [Checks on Host Control Registers, MSRs, and SSP]"
    );
    assert!(text[3].starts_with(
        "guest.efer.reserved: Guest IA32_EFER is 0x502; allowed: no bits outside 0xd01."
    ));
}
