// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The self-test that newer models must pass is one that this machine's models pass.

use std::path::Path;

use lab_kit::bochs::Bochs;
use lab_kit::models::self_test::{self, Wrong};
use lab_kit::{bochs, qtest};

#[test]
fn this_machines_bochs_can_be_believed() {
    lab_kit::skip_if!(bochs::missing());
    let version = self_test::bochs(Bochs::new()).unwrap();
    assert!(version.starts_with("Bochs x86 Emulator "), "{version}");
}

#[test]
fn this_machines_qemu_can_be_believed() {
    lab_kit::skip_if!(qtest::missing());
    let version = self_test::qemu(Path::new("qemu-system-x86_64")).unwrap();
    assert!(version.starts_with("QEMU emulator version "), "{version}");
}

#[test]
fn a_processor_without_long_mode_fails() {
    lab_kit::skip_if!(bochs::missing());
    let error = self_test::bochs(Bochs::new().cpu("p4_willamette")).unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(Wrong::Unfinished(_))),
        "{error:#}"
    );
}

#[test]
fn a_processor_without_vmx_fails() {
    lab_kit::skip_if!(bochs::missing());
    let error = self_test::bochs(Bochs::new().cpu("athlon64_venice")).unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(Wrong::NoVmx)),
        "{error:#}"
    );
}
