// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reference VMM's command line.

fn main() {
    match hvkit_vmm::hello::run(std::path::Path::new("/dev/kvm")) {
        Ok(report) => print!("{report}"),
        Err(e) => eprintln!("{e}"),
    }
}
