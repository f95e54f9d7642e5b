// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the README promises, as a user of the crate sees it.

use hvkit_vmcs::capability::presets;
use hvkit_vmcs::check::{Checker, Violation, rules};
use hvkit_vmcs::{fields, seed::Seed, store::FieldsMut};

const README: &str = include_str!("../README.md");

#[test]
fn the_program_prints_what_the_page_shows() {
    let processor = presets::core_i7_5600u();
    let mut vmcs = Seed::LongMode.vmcs(&processor);
    vmcs.write(fields::GUEST_CS_ACCESS_RIGHTS, 0xc09b).unwrap();
    vmcs.write(fields::GUEST_RIP, 0xffff_ffff_8100_0000)
        .unwrap();
    let mut lines = Vec::new();
    let verdict = Checker::new(&processor).check(&vmcs, &mut |violation: &Violation| {
        lines.push(violation.to_string());
    });
    lines.push(verdict.outcome().to_string());
    let shown = format!("```text\n{}\n```", lines.join("\n"));
    assert!(README.contains(&shown), "{shown}");
}

#[test]
fn the_number_of_rules_is_true() {
    let claim = format!("{} rules", rules().count());
    assert!(README.contains(&claim), "{claim}");
}

#[test]
#[cfg(feature = "arbitrary")]
fn any_bytes_make_a_vmcs_a_processor_and_a_moment_that_get_a_verdict() {
    use arbitrary::{Arbitrary, Unstructured};
    use hvkit_vmcs::{
        Processor, Vmcs,
        check::{Discard, Moment},
    };

    let bytes: Vec<u8> = (0..16_384_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for start in 0..64 {
        let mut input = Unstructured::new(&bytes[start * 100..]);
        let processor = Processor::arbitrary(&mut input).unwrap();
        let moment = Moment::arbitrary(&mut input).unwrap();
        let vmcs = Vmcs::arbitrary(&mut input).unwrap();
        let verdict = Checker::new(&processor)
            .at(moment)
            .check(&vmcs, &mut Discard);
        assert!(!verdict.enters(), "random words do not enter");
    }
}

#[test]
#[cfg(feature = "serde")]
fn violations_are_json() {
    let processor = presets::core_i7_5600u();
    let mut vmcs = Seed::LongMode.vmcs(&processor);
    vmcs.write(fields::GUEST_RFLAGS, 0).unwrap();
    let mut json = String::new();
    Checker::new(&processor).check(&vmcs, &mut |violation: &Violation| {
        json = serde_json::to_string(violation).unwrap();
    });
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["rule"]["id"], "guest.rflags.reserved");
    assert_eq!(value["place"]["Field"], 0x6820);
    assert_eq!(value["expected"]["Bits"]["must_be_one"], 2);
}
