// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes that come from elsewhere: VMCS12 images, listings, kernel logs, capability dumps.

use std::collections::BTreeMap;

use hvkit_vmcs::capability::{Processor, parse_dump};
use hvkit_vmcs::check::{Checker, Discard};
use hvkit_vmcs::dump::{Dump, Listing};
use hvkit_vmcs::fields::ALL;
use hvkit_vmcs::seed::Seed;
use hvkit_vmcs::store::{Fields, FieldsMut, Snapshot, Vmcs12, Vmcs12Error, logged, parse_listing};

/// Each does the first of these that its first byte says.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 4 {
        0 => vmcs12(rest),
        1 => listing(rest),
        2 => log(rest),
        _ => capabilities(rest),
    }
}

/// As an image, and as a list of writes: two bytes for the field, eight for the value.
fn vmcs12(data: &[u8]) {
    match Vmcs12::new(data) {
        Ok(image) => shown(&Snapshot::of(&image)),
        Err(Vmcs12Error::Length { have }) => assert!(have == data.len() && have < 4096),
        Err(Vmcs12Error::Revision { have }) => assert_ne!(have, Vmcs12::<&[u8]>::REVISION),
    }
    let mut bytes = [0; 4096];
    bytes[..4].copy_from_slice(&Vmcs12::<&[u8]>::REVISION.to_le_bytes());
    let mut image = Vmcs12::new(bytes).expect("the revision is there");
    let mut expected = BTreeMap::new();
    for action in data.as_chunks::<10>().0.iter().take(32) {
        let [a, b, value @ ..] = *action;
        let info = &ALL[usize::from(u16::from_le_bytes([a, b])) % ALL.len()];
        let value = u64::from_le_bytes(value);
        let stored = image.set(info.encoding, value);
        assert_eq!(stored.is_ok(), info.vmcs12_offset.is_some());
        if stored.is_ok() {
            expected.insert(info.encoding.0, value & info.encoding.width().mask());
        }
    }
    // No field lies over another.
    for info in &ALL {
        let value = expected.get(&info.encoding.0).copied();
        let present = info.vmcs12_offset.map(|_| value.unwrap_or(0));
        assert_eq!(image.get(info.encoding), present, "{}", info.name);
    }
    assert!(!image.is_shadow() && image.abort() == 0 && image.launch_state() == 0);
    shown(&Snapshot::of(&image));
}

/// What is printed of a VMCS says all of it.
fn shown(vmcs: &Snapshot) {
    let text = Listing(vmcs).to_string();
    assert!(
        parse_listing(text.as_bytes()).as_ref() == Ok(vmcs),
        "{text}"
    );
    assert!(!Dump(vmcs).to_string().is_empty());
}

fn listing(text: &[u8]) {
    match parse_listing(text) {
        Ok(vmcs) => shown(&vmcs),
        Err(error) => in_text(text, error.line, error.offset),
    }
}

fn log(text: &[u8]) {
    let mut line = 0;
    for found in logged(text) {
        match found {
            Ok(found) => {
                assert!(found.line > line, "in order, and each from its own line on");
                line = found.line;
                shown(&found.vmcs);
            }
            Err(error) => in_text(text, error.line, error.offset),
        }
    }
}

fn capabilities(text: &[u8]) {
    let vmx = match parse_dump(text) {
        Ok(vmx) => vmx,
        Err(error) => return in_text(text, error.line, error.offset),
    };
    // Whatever a processor says it can do, there is an answer for it.
    let processor = Processor::new(vmx);
    for seed in Seed::ALL {
        let vmcs = seed.vmcs(&processor);
        let verdict = Checker::new(&processor).check(&vmcs, &mut Discard);
        assert!(verdict.may_report(verdict.outcome()));
    }
}

/// An error points into the text.
fn in_text(text: &[u8], line: usize, offset: usize) {
    let before = text.get(..offset).expect("the offset is in the text");
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines + 1, line);
}
