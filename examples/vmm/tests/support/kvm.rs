// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! This machine's own KVM.

use std::fs;

/// Whether this user can use this machine's KVM. Where not, the test that asked counts as skipped.
pub(crate) fn has_kvm() -> bool {
    let mut device = fs::File::options();
    match device.read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            lab_kit::skip::skip(&format!("/dev/kvm: {error}"));
            false
        }
    }
}
