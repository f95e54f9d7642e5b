// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guides, one a module. Each is a page of Markdown beside this crate; `cargo test` compiles and runs what it shows.

macro_rules! guides {
    ($($name:ident $file:literal;)*) => {$(
        #[doc = include_str!(concat!("../", $file))]
        pub mod $name {}
    )*};
}

guides! {
    add_vtd_to_your_vmm "add-vtd-to-your-vmm.md";
    hypervisor_in_an_afternoon "hypervisor-in-an-afternoon.md";
    integrate "integrate.md";
    why_did_my_vm_entry_fail "why-did-my-vm-entry-fail.md";
}
