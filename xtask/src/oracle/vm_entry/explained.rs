// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Differences that `lab/ledgers/vm-entry.md` explains, as code: each rule says exactly which of the checker's findings
//! the model does not make, and what it finds instead, so that nothing else hides behind it.

use hvkit_vmcs::{
    check::{Expected, Place, Rule, Verdict, Violation, find_rule},
    controls::Entry,
    event::ActivityState,
    fields as f,
    store::Fields,
};
use lab_cases::vm_entry::{Case, Cpu, Record};

/// A rule of the ledger.
struct Quirk {
    /// The ledger's section.
    name: &'static str,
    /// Whether the model passes over this violation, in this case.
    passes_over: fn(&Violation, &Case) -> bool,
    /// The rule that the model calls broken where the manual does not.
    adds: fn(&Case) -> Option<&'static str>,
}

const NOTHING: fn(&Case) -> Option<&'static str> = |_| None;

const QUIRKS: &[Quirk] = &[
    Quirk {
        name: "guest-rip-not-canonical",
        passes_over: |violation, _| violation.rule.id == "guest.rip.canonical",
        adds: NOTHING,
    },
    Quirk {
        name: "pending-debug-high-half",
        passes_over: |violation, case| {
            let low = case.vmcs.read(f::GUEST_PENDING_DEBUG).unwrap_or(0) & 0xffff_ffff;
            violation.rule.id == "guest.pending-debug.reserved" && low & !0x1_500f == 0
        },
        adds: NOTHING,
    },
    Quirk {
        name: "pending-debug-bs",
        passes_over: |violation, _| violation.rule.id.starts_with("guest.pending-debug.bs-"),
        adds: NOTHING,
    },
    Quirk {
        name: "debugctl-reserved",
        passes_over: |violation, _| violation.rule.id == "guest.debugctl.reserved",
        adds: NOTHING,
    },
    Quirk {
        name: "entry-to-smm-outside",
        passes_over: |violation, case| {
            let controls = case.vmcs.read(f::ENTRY_CONTROLS).unwrap_or(0);
            violation.rule.id == "entry-controls.smm.outside" && controls & 1 << 11 == 0
        },
        adds: NOTHING,
    },
    Quirk {
        name: "hlt-takes-any-event",
        passes_over: |violation, case| {
            violation.rule.id == "guest.activity.event"
                && case.vmcs.read(f::GUEST_ACTIVITY) == Some(ActivityState::HLT.0)
        },
        adds: NOTHING,
    },
    Quirk {
        name: "perf-global-ctrl-reserved",
        passes_over: |violation, _| violation.rule.id.ends_with(".perf-global-ctrl.reserved"),
        adds: NOTHING,
    },
    Quirk {
        name: "error-codes-quite-free",
        passes_over: |violation, case| {
            violation.rule.id == "event.error-code.forbidden" && case.free_error_codes
        },
        adds: NOTHING,
    },
    Quirk {
        name: "cet-of-a-32-bit-guest",
        passes_over: |_, _| false,
        adds: |case| {
            let entry = Entry::from_bits_retain(case.vmcs.read(f::ENTRY_CONTROLS).unwrap_or(0));
            let high = |value: Option<u64>| value.unwrap_or(0) >> 32 != 0;
            let wide = high(case.vmcs.read(f::GUEST_S_CET))
                || high(case.vmcs.read(f::GUEST_INTERRUPT_SSP_TABLE));
            let loads = entry.contains(Entry::LOAD_CET);
            let short = !entry.contains(Entry::IA32E_MODE_GUEST);
            (loads && short && wide).then_some("guest.s-cet.canonical")
        },
    },
    Quirk {
        name: "cs-dpl-against-rpl",
        passes_over: |violation, _| violation.rule.id.starts_with("guest.cs.dpl-"),
        adds: |case| {
            let rights = case.vmcs.read(f::GUEST_CS_ACCESS_RIGHTS).unwrap_or(0);
            let (kind, dpl) = (rights & 0xf, rights >> 5 & 3);
            if case.vmcs.read(f::GUEST_RFLAGS).unwrap_or(0) & 1 << 17 != 0 {
                // Virtual-8086 segments are checked otherwise.
                return None;
            }
            let rpl = u32::from(case.vmcs.read(f::GUEST_CS_SELECTOR).unwrap_or(0) & 3);
            match kind {
                3 if dpl != 0 => Some("guest.cs.dpl-data"),
                9 | 11 if dpl != rpl => Some("guest.cs.dpl-non-conforming"),
                13 | 15 if dpl > rpl => Some("guest.cs.dpl-conforming"),
                _ => None,
            }
        },
    },
];

/// The names of all rules.
pub(super) fn names() -> Vec<&'static str> {
    QUIRKS.iter().map(|quirk| quirk.name).collect()
}

/// The rule by which the model answers `theirs`, if there is one. Where it takes several, the first of
/// them.
pub(super) fn explain(case: &Case, cpu: &Cpu, theirs: &Record) -> Option<&'static str> {
    let mut found = Vec::new();
    case.check(cpu, &mut |violation: &Violation| found.push(*violation));
    let said = theirs.outcome();
    let fits = |quirks: &[&Quirk]| with(quirks, &found, case).may_report(said);
    let met: Vec<&Quirk> = QUIRKS
        .iter()
        .filter(|quirk| {
            found
                .iter()
                .any(|violation| (quirk.passes_over)(violation, case))
                || (quirk.adds)(case).is_some()
        })
        .collect();
    // One rule if one will do, otherwise the fewest; the first of them gives its name.
    let mut choices: Vec<u32> = (1..1 << met.len()).collect();
    choices.sort_by_key(|choice| choice.count_ones());
    let chosen = |choice: u32| -> Vec<&Quirk> {
        let numbered = (0..).zip(&met);
        numbered
            .filter(|(number, _)| choice >> number & 1 != 0)
            .map(|(_, quirk)| *quirk)
            .collect()
    };
    let fitting = choices
        .into_iter()
        .map(chosen)
        .find(|quirks| fits(quirks))?;
    fitting.first().map(|quirk| quirk.name)
}

/// The verdict with the model's quirks.
fn with(quirks: &[&Quirk], found: &[Violation], case: &Case) -> Verdict {
    let kept = found.iter().filter(|violation| {
        !quirks
            .iter()
            .any(|quirk| (quirk.passes_over)(violation, case))
    });
    let added = quirks
        .iter()
        .filter_map(|quirk| (quirk.adds)(case))
        .filter_map(find_rule);
    let added: Vec<Violation> = added.map(violation_of).collect();
    kept.chain(&added).collect()
}

fn violation_of(rule: &'static Rule) -> Violation {
    Violation {
        rule,
        place: Place::Processor,
        value: 0,
        expected: Expected::AsTheRuleSays,
    }
}
