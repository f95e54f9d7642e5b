// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit inspect kvm-nested`: what `KVM_GET_NESTED_STATE` returned.
//!
//! ```text
//!   0  flags (guest mode, run pending, eVMCS)   4  size
//!   8  vmxon_pa   16  vmcs12_pa   24  smm flags   32  preemption timer deadline
//! 128  VMCS12, 4096 bytes    4224  shadow VMCS12, 4096 bytes
//! ```

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use hvkit_vmcs::store::{Snapshot, Vmcs12};

use crate::vmcs::{On, Report};
use crate::{Form, Found, input};

/// Bytes before the VMCS12.
const HEADER: usize = 128;
/// `KVM_STATE_NESTED_FORMAT_VMX`.
const FORMAT_VMX: u16 = 0;
/// The names of the low flags.
const FLAGS: [(u16, &str); 3] = [
    (1, "guest mode"),
    (2, "run pending"),
    (4, "enlightened VMCS"),
];

/// What to look at.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The bytes of a `struct kvm_nested_state` with what follows it. `-` is the standard input.
    file: PathBuf,
    #[command(flatten)]
    on: On,
    #[command(flatten)]
    form: Form,
}

/// Prints a nested state: the header, then the VMCS12 as `inspect vmcs` does.
pub(crate) fn inspect(options: &Options) -> Result<Found> {
    let bytes = input::read(&options.file)?;
    let name = options.file.display();
    ensure!(
        bytes.len() >= HEADER,
        "{name}: a nested state has at least {HEADER} bytes, not {}",
        bytes.len()
    );
    let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let long = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let format = short(2);
    ensure!(
        format == FORMAT_VMX,
        "{name}: offset 2: format {format} is not VMX's, {FORMAT_VMX}"
    );
    let flags = short(0);
    let names: Vec<_> = FLAGS
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    let (vmxon, current) = (long(8), long(16));
    if !options.form.json {
        println!(
            "flags {flags:#x} ({}), VMXON region {vmxon:#x}, current VMCS {current:#x}",
            names.join(", ")
        );
    }
    if vmxon == u64::MAX {
        println!("the vCPU is not in VMX operation: there is no VMCS12");
        return Ok(Found::Nothing);
    }
    if current == u64::MAX {
        println!("there is no current VMCS");
        return Ok(Found::Nothing);
    }
    let rest = bytes.get(HEADER..).unwrap_or_default();
    let vmcs12 = Vmcs12::new(rest).with_context(|| format!("{name}: at offset {HEADER}"))?;
    let vmcs = Snapshot::of(&vmcs12);
    let report = Report::new(&vmcs, &options.on.processor()?, None);
    report.print(&format!("{name}: the VMCS12"), options.form)
}
