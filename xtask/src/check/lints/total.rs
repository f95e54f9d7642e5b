// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `total`: what faces a guest's, a device's or a file's bytes may not panic, and the compiler is told so.

use std::path::Path;

use crate::check::lint::{Finding, Report, Rule, Sources};

pub(crate) const RULE: Rule = Rule {
    name: "total",
    why: "a parser that panics is a denial of service; clippy sees every place where one could",
    look,
};

/// The lints that such a module denies.
const LINTS: [&str; 5] = [
    "clippy::indexing_slicing",
    "clippy::arithmetic_side_effects",
    "clippy::unwrap_used",
    "clippy::expect_used",
    "clippy::panic",
];

/// Modules that face bytes of others and hold this rule: with a `mod.rs` or a `lib.rs` all below it. A module that comes to
/// hold it is added, none is taken away.
const FACING: &[&str] = &[
    "examples/vmm/src/acpi/mod.rs",
    "examples/vmm/src/boot/mod.rs",
    "examples/vmm/src/bus.rs",
    "examples/vmm/src/chipset.rs",
    "examples/vmm/src/cli/mod.rs",
    "examples/vmm/src/console/mod.rs",
    "examples/vmm/src/interrupts/mod.rs",
    "examples/vmm/src/lib.rs",
    "examples/vmm/src/machine/mod.rs",
    "examples/vmm/src/dirty_log/mod.rs",
    "examples/vmm/src/passthrough/mod.rs",
    "examples/vmm/src/peer/mod.rs",
    "examples/vmm/src/pci/mod.rs",
    "examples/vmm/src/served/mod.rs",
    "examples/vmm/src/snapshot/mod.rs",
    "examples/vmm/src/vfio_user/mod.rs",
    "examples/vmm/src/viommu/mod.rs",
    "examples/inspect/src/main.rs",
    "ept/src/lib.rs",
    "page-table/src/lib.rs",
    "shadow-paging/src/lib.rs",
    "virtio-devices/src/balloon/mod.rs",
    "virtio-devices/src/block/mod.rs",
    "virtio-devices/src/bytes.rs",
    "virtio-devices/src/console/mod.rs",
    "virtio-devices/src/counters.rs",
    "virtio-devices/src/device.rs",
    "virtio-devices/src/entropy.rs",
    "virtio-devices/src/features.rs",
    "virtio-devices/src/iommu/mod.rs",
    "virtio-devices/src/limit.rs",
    "virtio-devices/src/listener.rs",
    "virtio-devices/src/net/mod.rs",
    "virtio-devices/src/patience.rs",
    "virtio-devices/src/pci/mod.rs",
    "virtio-devices/src/pmem.rs",
    "virtio-devices/src/queue/mod.rs",
    "virtio-devices/src/reclaim.rs",
    "virtio-devices/src/resources.rs",
    "virtio-devices/src/serve.rs",
    "virtio-devices/src/transport/mod.rs",
    "virtio-devices/src/vectored.rs",
    "virtio-devices/src/vhost_user/mod.rs",
    "virtio-devices/src/vsock/mod.rs",
    "virtio-devices/src/worker.rs",
    "vmcs/src/capability/mod.rs",
    "vmcs/src/check/mod.rs",
    "vmcs/src/controls/mod.rs",
    "vmcs/src/dump.rs",
    "vmcs/src/exit/mod.rs",
    "vmcs/src/fields/mod.rs",
    "vmcs/src/lib.rs",
    "vmcs/src/store/mod.rs",
    "vmx/src/lib.rs",
    "vtd-iommu/src/lib.rs",
];

fn look(sources: &Sources, report: &mut Report<'_>) {
    for path in FACING {
        let mut say = |what: String| {
            report(Finding {
                rule: RULE.name,
                path: (*path).into(),
                line: 1,
                what,
            });
        };
        let file = sources.files.iter().find(|f| f.path == Path::new(path));
        let Some(file) = file else {
            say("is gone: say in this rule where its code went".to_owned());
            continue;
        };
        let denied = denied(&file.text);
        for lint in LINTS {
            if !denied.contains(lint) {
                say(format!("does not deny {lint}"));
            }
        }
    }
}

/// What the file's inner attributes deny, as text.
fn denied(text: &str) -> String {
    let mut all = String::new();
    let text: String = text.split_whitespace().collect();
    for part in text.split("#![").skip(1) {
        let attribute = part.split(")]").next().unwrap_or_default();
        if attribute.starts_with("deny(") || attribute.starts_with("cfg_attr(not(test),deny(") {
            all.push_str(attribute);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_inner_attributes_that_deny_count() {
        let text = "#![deny(\n    clippy::panic,\n    clippy::unwrap_used\n)]\n#![warn(clippy::expect_used)]\n#[deny(clippy::indexing_slicing)]\nfn f() {}\n";
        let denied = denied(text);
        assert!(denied.contains("clippy::panic") && denied.contains("clippy::unwrap_used"));
        assert!(!denied.contains("expect_used") && !denied.contains("indexing_slicing"));
    }
}
