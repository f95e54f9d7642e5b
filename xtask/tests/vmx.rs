// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit-vmx` on a processor model: what `lab/payloads/vmx` says, against what the manual says.

use std::collections::BTreeMap;

use lab_kit::bochs::{Bochs, Exit};
use lab_kit::paths;
use lab_kit::payload::build_payload;

/// Failures by their numbers. SDM Vol. 3C, "VM Instruction Error Numbers".
const UNSUPPORTED_FIELD: &str =
    "Valid(InstructionError(12: VMREAD/VMWRITE from/to unsupported VMCS component))";
const BAD_OPERAND: &str =
    "Err(Failed(Valid(InstructionError(28: invalid operand to INVEPT/INVVPID))))";
const BAD_ADDRESS: &str = "Err(Valid(InstructionError(2: VMCLEAR with invalid physical address)))";

#[test]
fn every_instruction_does_and_fails_as_the_manual_says() {
    lab_kit::skip_if!(lab_kit::bochs::missing());
    let payload = build_payload(&paths::root().join("lab/payloads/vmx")).unwrap();
    let report = Bochs::new().run(&payload).unwrap();
    assert_eq!(report.exit, Exit::Shutdown, "{report}");
    let text = report.text();
    let said: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once(": "))
        .collect();
    let unsupported = format!("Err({UNSUPPORTED_FIELD})");
    let wanted = [
        // Detecting, enabling, the host.
        ("no task", "Err(NoTask(0))"),
        ("enabled", "Ok(FeatureControl(LOCK | VMX_OUTSIDE_SMX))"),
        // Which VMCS is current, and failures without one.
        ("nothing current", "None"),
        ("VMXON in root, nothing current", "Err(Invalid)"),
        ("current is the first", "true"),
        ("current is the second", "true"),
        ("another value", "true"),
        ("kept", "Some(123456789abc)"),
        ("nothing current again", "None"),
        // Fields.
        ("write", "Ok(())"),
        ("read", "Some(123456789abc)"),
        ("a 16-bit field", "Some(2345)"),
        ("a high half", "Some(1020304)"),
        ("no such field, read", &unsupported),
        ("no such field, write", &unsupported),
        ("its error", "Some(12)"),
        ("as a store", "None Err(NoSuchField(0x7ffe))"),
        ("launch state", "Clear"),
        // Regions that are none.
        ("VMCLEAR, unaligned", BAD_ADDRESS),
        ("VMCLEAR, beyond the address width", BAD_ADDRESS),
        (
            "VMCLEAR of the VMXON region",
            "Err(Valid(InstructionError(3: VMCLEAR with VMXON pointer)))",
        ),
        (
            "VMXON in root",
            "Err(Valid(InstructionError(15: VMXON executed in VMX root operation)))",
        ),
        ("clear", "Ok(())"),
        ("a shadow VMCS is loaded", "Ok(())"),
        // Invalidations.
        ("INVEPT, all", "Ok(())"),
        ("INVEPT, one", "Ok(())"),
        ("INVVPID, all", "Ok(())"),
        ("INVVPID, one", "Ok(())"),
        ("INVVPID, address", "Ok(())"),
        ("INVVPID, not global", "Ok(())"),
        ("INVEPT of no EPTP", BAD_OPERAND),
        ("INVVPID of 0", BAD_OPERAND),
        ("INVVPID, not canonical", BAD_OPERAND),
        // The guest complements 15 registers and CR2, and counts DR0 and DR3 up; three times.
        (
            "round 1",
            "15 registers, cr2 true, debug Some([11, 11, 12, 14])",
        ),
        (
            "round 2",
            "15 registers, cr2 true, debug Some([12, 11, 12, 15])",
        ),
        (
            "round 3",
            "15 registers, cr2 true, debug Some([13, 11, 12, 16])",
        ),
        // Each round adds XMM14 to XMM15.
        ("vectors 1", "true 0x6700000000000000cd 0x30000000000000005"),
        ("vectors 3", "true 0x6d00000000000000d7 0x30000000000000005"),
        ("the host's debug registers", "true"),
        ("registers", "Ok(())"),
        ("launch state after runs", "Launched"),
        ("and after VMCLEAR", "Clear"),
        // Bitmaps, lists, the virtual-APIC page, the timer. Other MSRs and ports would have shown here.
        ("RDMSR 0x277, TSC_AUX was 0x1111", ""),
        ("stored TSC_AUX", "Some(77)"),
        ("port 0xcf9, 1 bytes, In", ""),
        ("timer", "VMX-preemption timer expired"),
        ("task priority", "0x50"),
        ("the host's TSC_AUX", "0x2222"),
        ("exits", "Ok(())"),
        ("failures", "Ok(())"),
        // A guest in Rust: VMCALL adds, VMFUNC shows memory elsewhere.
        ("the sum", "123"),
        ("the second view", "0x5ec7e7"),
        ("VMFUNC without an entry", "VMFUNC"),
        ("views", "Ok(())"),
        ("leave", "Ok(())"),
        ("again", "Ok(())"),
    ];
    for (name, value) in wanted {
        if value.is_empty() {
            assert!(text.lines().any(|line| line == name), "{name}\n{report}");
        } else {
            assert_eq!(said.get(name), Some(&value), "{name}\n{report}");
        }
    }
    let exits = text
        .lines()
        .filter(|l| l.starts_with("RDMSR") || l.starts_with("port"));
    assert_eq!(exits.count(), 2, "{report}");
    let failed = |number: u8, why: &str| {
        format!(
            "Some(Failed(Valid(InstructionError({number}: VM entry with invalid {why} field(s)))))"
        )
    };
    let refused = |qualification: u8| {
        format!(
            "Some(Refused {{ reason: ExitReason(0x80000021: VM-entry failure due to invalid guest state), \
             qualification: {qualification} }})"
        )
    };
    for (name, value) in [
        ("control", failed(7, "control")),
        ("host", failed(8, "host-state")),
        ("host size", failed(8, "host-state")),
        ("guest", refused(0)),
        ("link pointer", refused(4)),
    ] {
        assert_eq!(said.get(name), Some(&value.as_str()), "{report}");
        let foretold = said.get(format!("{name}, foretold").as_str());
        assert_eq!(foretold, Some(&"true"), "{name}\n{report}");
        let launch_state = said.get(format!("{name}, launch state").as_str());
        assert_eq!(launch_state, Some(&"Clear"), "{name}\n{report}");
    }
    assert!(text.ends_with("done\n"), "{report}");
}

#[test]
fn a_processor_without_vmx_is_told_apart() {
    lab_kit::skip_if!(lab_kit::bochs::missing());
    let payload = build_payload(&paths::root().join("lab/payloads/vmx")).unwrap();
    let report = Bochs::new().cpu("athlon64_venice").run(&payload).unwrap();
    assert_eq!(report.exit, Exit::Shutdown, "{report}");
    assert!(
        report.text().starts_with("detect: CPUID.01H:ECX is 0x"),
        "{report}"
    );
    assert!(report.text().contains("bit 5, VMX, is clear"), "{report}");
}
