// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit inspect kvm-nested`: what `KVM_GET_NESTED_STATE` returned.
//!
//! ```text
//!   0  flags (guest mode, run pending, eVMCS, MTF pending)   4  size of all
//!   8  vmxon_pa   16  vmcs12_pa   24  smm flags   32  preemption timer deadline
//! 128  VMCS12, 4096 bytes    4224  shadow VMCS12, 4096 bytes
//! ```
//!
//! What is not there is not in `size` either. An enlightened VMCS has no address: there is one by the flag.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use hvkit_vmcs::dump::Dump;
use hvkit_vmcs::store::{Snapshot, Vmcs12};
use serde::Serialize;

use crate::page::Page;
use crate::vmcs::{On, Report};
use crate::{Form, Found, input};

/// Bytes before the VMCS12.
const HEADER: usize = 128;
/// Where the shadow VMCS12 is.
const SHADOW: usize = HEADER + Vmcs12::<&[u8]>::SIZE;
/// `KVM_STATE_NESTED_FORMAT_VMX`.
const FORMAT_VMX: u16 = 0;
/// `KVM_STATE_NESTED_EVMCS`.
const ENLIGHTENED: u16 = 4;
/// The names of the low flags.
const FLAGS: [(u16, &str); 4] = [
    (1, "guest mode"),
    (2, "run pending"),
    (ENLIGHTENED, "enlightened VMCS"),
    (8, "MTF pending"),
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

/// What is before the VMCS12.
#[derive(Debug, Serialize)]
struct Header {
    flags: u16,
    /// What those flags mean that have a name.
    flag_names: Vec<&'static str>,
    /// Bytes of all.
    size: u32,
    /// The physical address of the VMXON region; none outside VMX operation.
    vmxon: Option<u64>,
    /// The physical address of the current VMCS; none without one, and of an enlightened one.
    current_vmcs: Option<u64>,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let flags = u16::from_le_bytes(*bytes.first_chunk()?);
        let pointer = |at: usize| {
            let word = bytes.get(at..)?.first_chunk()?;
            Some(u64::from_le_bytes(*word)).filter(|&pointer| pointer != u64::MAX)
        };
        let names = FLAGS.iter().filter(|(bit, _)| flags & bit != 0);
        Some(Header {
            flags,
            flag_names: names.map(|(_, name)| *name).collect(),
            size: u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?),
            vmxon: pointer(8),
            current_vmcs: pointer(16),
        })
    }

    /// Whether a VMCS12 follows.
    fn has_vmcs12(&self) -> bool {
        self.vmxon.is_some() && (self.current_vmcs.is_some() || self.flags & ENLIGHTENED != 0)
    }

    fn line(&self) -> String {
        let pointer = |pointer: Option<u64>| match pointer {
            Some(pointer) => format!("{pointer:#x}"),
            None => "none".to_owned(),
        };
        format!(
            "flags {:#x} ({}), VMXON region {}, current VMCS {}",
            self.flags,
            self.flag_names.join(", "),
            pointer(self.vmxon),
            pointer(self.current_vmcs)
        )
    }
}

/// The VMCS12 at `offset`, if the state goes on there.
fn vmcs12(state: &[u8], offset: usize, name: &str) -> Result<Snapshot> {
    let bytes = state.get(offset..).unwrap_or_default();
    let vmcs12 = Vmcs12::new(bytes).with_context(|| format!("{name}: at offset {offset}"))?;
    Ok(Snapshot::of(&vmcs12))
}

/// Prints a nested state: the header, the VMCS12 as `inspect vmcs` does, and the shadow VMCS12 that it links to.
pub(crate) fn inspect(options: &Options, page: &mut Page<'_>) -> Result<Found> {
    let bytes = input::read(&options.file)?;
    let name = options.file.display().to_string();
    let too_short = || {
        let length = bytes.len();
        format!("{name}: a nested state has at least {HEADER} bytes, not {length}")
    };
    let (header, _) = bytes
        .split_first_chunk::<HEADER>()
        .with_context(too_short)?;
    let [_, _, low, high, ..] = *header;
    let format = u16::from_le_bytes([low, high]);
    ensure!(
        format == FORMAT_VMX,
        "{name}: offset 2: format {format} is not VMX's, {FORMAT_VMX}"
    );
    let header = Header::read(header).with_context(too_short)?;
    let size = usize::try_from(header.size)?;
    let state = bytes.get(..size).with_context(|| {
        let length = bytes.len();
        format!("{name}: offset 4: the state has {size} bytes, and the file {length}")
    })?;
    let has_vmcs12 = header.has_vmcs12();
    let current = has_vmcs12.then(|| vmcs12(state, HEADER, &name));
    let current = current.transpose()?;
    let has_shadow = has_vmcs12 && state.len() > SHADOW;
    let shadow = has_shadow.then(|| vmcs12(state, SHADOW, &name));
    let shadow = shadow.transpose()?;

    let processor = options.on.processor()?;
    let report = current
        .as_ref()
        .map(|vmcs| Report::new(vmcs, &processor, None));
    let source = format!("{name}: the VMCS12");
    if options.form.json {
        let value = serde_json::json!({
            "source": name,
            "header": header,
            "vmcs12": report.as_ref().map(|report| report.json(&source)),
            "shadow_vmcs12": shadow,
        });
        page.json(&value)?;
    } else {
        page.line(header.line())?;
        match &report {
            Some(report) => report.text(&source, page)?,
            None if header.vmxon.is_none() => {
                page.line("the vCPU is not in VMX operation: there is no VMCS12")?;
            }
            None => page.line("there is no current VMCS")?,
        }
        if let Some(shadow) = &shadow {
            let count = shadow.len();
            page.line(format_args!(
                "\n{name}: the shadow VMCS12, {count} fields\n"
            ))?;
            page.line(Dump(shadow))?;
        }
    }
    Ok(report.map_or(Found::Nothing, |report| report.found()))
}
