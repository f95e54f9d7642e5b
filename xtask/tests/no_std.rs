// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The library crates in a program without `std`: `lab/payloads/no-std` on a processor model.

use lab_kit::bochs::{Bochs, Exit};
use lab_kit::paths;
use lab_kit::payload::build_payload;

#[test]
fn every_no_std_crate_works_in_a_program_without_std() {
    lab_kit::skip_if!(lab_kit::bochs::missing());
    let payload = build_payload(&paths::root().join("lab/payloads/no-std")).unwrap();
    let report = Bochs::new().run(&payload).unwrap();
    assert_eq!(report.exit, Exit::Shutdown, "{report}");
    assert_eq!(
        report.text().lines().collect::<Vec<_>>(),
        [
            "ept: true",
            "guest: true",
            // SDM Vol. 3C, "Checks on Guest RIP, RFLAGS, and SSP": canonical in 64-bit mode.
            "vmcs: true 1 exit reason 33, VM-entry failure due to invalid guest state, qualification 0",
            "dmar: Ok(1)",
            "vmx: true",
        ],
        "{report}"
    );
}
