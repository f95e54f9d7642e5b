// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Exits, whatever the fields say: unknown values are values.

use arbitrary::{Arbitrary, Unstructured};
use hvkit_vmcs::Vmcs;
use hvkit_vmcs::check::Outcome;
use hvkit_vmcs::exit::{ExitInformation, ExitReason, Instruction, Qualification};
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::FieldsMut;

#[derive(Arbitrary, Debug)]
struct Input {
    reason: u32,
    qualification: u64,
    event: u32,
    instruction: u32,
}

/// Decodes, and compares what must be alike.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let mut vmcs = Vmcs::new();
    for (field, value) in [
        (f::EXIT_REASON.encoding(), u64::from(input.reason)),
        (f::EXIT_QUALIFICATION.encoding(), input.qualification),
        (f::EXITING_EVENT.encoding(), u64::from(input.event)),
        (
            f::EXIT_INSTRUCTION_INFORMATION.encoding(),
            u64::from(input.instruction),
        ),
    ] {
        vmcs.set(field, value).expect("the field exists");
    }
    let exit = ExitInformation::read(&vmcs).expect("the fields exist");
    assert_eq!(exit.reason.0, input.reason);
    assert_eq!(exit.raw_qualification, input.qualification);
    assert_eq!(
        (exit.event.0, exit.raw_instruction),
        (input.event, input.instruction)
    );
    assert!(!exit.to_string().is_empty());
    let said = format!(
        "{:?} {:?} {:?}",
        exit.qualification(),
        exit.instruction(),
        exit.event
    );
    assert!(!said.is_empty());
    // Bits 30:16 of the reason are facts by themselves: they change nothing that is read.
    let plain = ExitReason(input.reason & 0x8000_ffff);
    assert_eq!(
        Qualification::decode(plain, input.qualification, exit.event),
        exit.qualification()
    );
    assert_eq!(
        Instruction::decode(plain, input.instruction),
        exit.instruction()
    );
    assert!(plain.is(exit.reason));
    // Only 33, 34 and 41 with bit 31 are failures of entries.
    let outcome = Outcome::from_exit(exit.reason, input.qualification);
    if !exit.reason.is_entry_failure() {
        assert_eq!(outcome, Outcome::Enters, "{exit}");
    }
    assert!(!outcome.to_string().is_empty());
}
