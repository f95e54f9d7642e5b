// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The checker on any VMCS, processor, moment and memory.

use arbitrary::{Arbitrary, Unstructured};
use hvkit_vmcs::Vmcs;
use hvkit_vmcs::capability::{Processor, presets};
use hvkit_vmcs::check::{Checker, Moment, Unreadable, Violation, find_rule};
use hvkit_vmcs::fields::ALL;
use hvkit_vmcs::seed::Seed;
use hvkit_vmcs::store::FieldsMut;

#[derive(Arbitrary, Debug)]
struct Input {
    /// Of its own making, or a real one.
    processor: Option<Processor>,
    seed: Option<Seed>,
    moment: Moment,
    /// Field and value.
    changes: Vec<(u16, u64)>,
    /// Physical memory repeats it; none is readable from 2^32 on.
    memory: Vec<u8>,
}

/// Checks, and that all that is said agrees.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let processor = input.processor.unwrap_or_else(presets::bochs_skylake_x);
    let mut vmcs = input
        .seed
        .map_or_else(Vmcs::new, |seed| seed.vmcs(&processor));
    for (field, value) in input.changes.iter().take(16) {
        let info = &ALL[usize::from(*field) % ALL.len()];
        let stored = vmcs.set(info.encoding, *value);
        stored.expect("every field of the list has a place");
    }
    let memory = |address: u64, into: &mut [u8]| {
        if address >> 32 != 0 || input.memory.is_empty() {
            return Err(Unreadable { address });
        }
        for (at, byte) in (address as usize..).zip(into) {
            *byte = input.memory[at % input.memory.len()];
        }
        Ok(())
    };
    let plain = Checker::new(&processor).at(input.moment);
    let checker = plain.with_memory(memory);
    let mut found = Vec::new();
    let verdict = checker.check(&vmcs, &mut |violation: &Violation| found.push(*violation));
    assert_eq!(verdict.violations as usize, found.len());
    assert_eq!(verdict.missing, 0, "a VMCS has every field");
    for violation in &found {
        assert!(!violation.to_string().is_empty());
        let rule = find_rule(violation.rule.id).expect("each rule is in the list");
        assert_eq!(rule.id, violation.rule.id);
    }
    let outcome = verdict.outcome();
    // Rules that could not be decided are not broken.
    assert_eq!(verdict.enters(), found.is_empty());
    assert!(verdict.may_report(outcome));
    let again: hvkit_vmcs::check::Verdict = found.iter().collect();
    assert_eq!(again.outcome(), outcome);

    let mut causes = 0;
    let explanation = checker.explain(&vmcs, outcome, &mut |violation: &Violation| {
        assert!(found.contains(violation));
        causes += 1;
    });
    assert_eq!(explanation.causes, causes);
    assert_eq!(explanation.causes == 0, found.is_empty());
    assert_eq!(explanation.verdict, verdict);
}
