// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit inspect` as people call it: files in, text and exit status out.

mod support;

use std::path::Path;
use std::process::Output;

use support::hvkit;
use tempfile::TempDir;

/// A log of a guest whose entry failed: an interrupt was to be injected with RFLAGS.IF clear.
const LOG: &str = "\
[ 1.0] kvm_intel: *** Guest State ***
[ 1.0] kvm_intel: RSP = 0x000000000000fffe  RIP = 0x000000000000fff0
[ 1.0] kvm_intel: RFLAGS=0x00000002         DR7 = 0x0000000000000400
[ 1.0] kvm_intel: Interruptibility = 00000000  ActivityState = 00000000
[ 1.0] kvm_intel: *** Control State ***
[ 1.0] kvm_intel: VMEntry: intr_info=800000ec errcode=00000000 ilen=00000000
";

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn file(folder: &TempDir, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    path
}

fn name(path: &Path) -> &str {
    path.to_str().expect("plain")
}

#[test]
fn a_log_is_explained() {
    let output = hvkit(&["vmcs", "-", "--failure", "exit 33"], LOG.as_bytes());
    let text = text(&output);
    assert!(
        text.starts_with(
            "-: logged at line 1, 9 fields
"
        ),
        "{text}"
    );
    assert!(text.contains("RIP = 000000000000fff0"), "{text}");
    assert!(
        text.contains("guest.rflags.if: Guest RFLAGS is 0x2."),
        "{text}"
    );
    // The log does not show CS: no rule about it is called broken, and the reader is told.
    assert!(!text.contains("guest.cs.type:"), "{text}");
    assert!(
        text.contains("Not decided, because the file does not say: "),
        "{text}"
    );
    assert!(
        text.ends_with(
            "exit reason 33, VM-entry failure due to invalid guest state, qualification 0\n"
        ),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_failure_that_the_vmcs_does_not_show() {
    let output = hvkit(&["vmcs", "-", "--failure", "error 8"], LOG.as_bytes());
    let text = text(&output);
    assert!(
        text.contains("Rules that show as \"VMfailValid: error 8"),
        "{text}"
    );
    assert!(
        text.contains("none: this VMCS, the processor or the moment is not the one of the failure"),
        "{text}"
    );
    assert!(text.contains("guest.rflags.if: "), "{text}");
}

#[test]
fn json_of_a_listing() {
    let output = hvkit(
        &["vmcs", "-", "--json"],
        b"guest_rflags = 0\nguest_rip = 0x1000\n",
    );
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(value["vmcs"]["GUEST_RIP"], "0x1000");
    assert_eq!(value["broken"][0]["rule"]["id"], "guest.rflags.reserved");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn which_of_several() {
    let two = format!("{LOG}{}", LOG.replace("fff0", "abc0"));
    let last = text(&hvkit(&["vmcs", "-"], two.as_bytes()));
    assert!(
        last.contains("number 2 of 2") && last.contains("RIP = 000000000000abc0"),
        "{last}"
    );
    let first = text(&hvkit(&["vmcs", "-", "--number", "1"], two.as_bytes()));
    assert!(
        first.contains("number 1 of 2") && first.contains("RIP = 000000000000fff0"),
        "{first}"
    );
    let none = hvkit(&["vmcs", "-", "--number", "3"], two.as_bytes());
    assert_eq!(none.status.code(), Some(2));
    assert_eq!(
        String::from_utf8_lossy(&none.stderr),
        "error: - holds 2 VMCSs; there is no number 3\n"
    );
}

#[test]
fn capabilities_decide_about_controls() {
    let folder = TempDir::new().expect("a folder");
    // Pin-based controls: bits 1, 2 and 4 must be 1, nothing else may be.
    let msrs = file(
        &folder,
        "msrs",
        b"IA32_VMX_BASIC = 0x00da040000000010\n0x481: 1600000016\n",
    );
    let listing = b"pin_based_controls = 0x17\n";
    let open = text(&hvkit(&["vmcs", "-"], listing));
    assert!(!open.contains("execution.pin-based"), "{open}");
    let text = text(&hvkit(
        &["vmcs", "-", "--capabilities", name(&msrs)],
        listing,
    ));
    assert!(
        text.contains(
            "Pin-based VM-execution controls is 0x17; allowed: bits 0x16 set, and none outside 0x16"
        ),
        "{text}"
    );
}

#[test]
fn what_changed() {
    let folder = TempDir::new().expect("a folder");
    let before = file(&folder, "before", b"guest_rip = 0x1000\nguest_rsp = 0x10\n");
    let after = file(&folder, "after", b"guest_rip = 0x1003\nguest_rsp = 0x10\n");
    let output = hvkit(&["vmcs-diff", name(&before), name(&after)], b"");
    assert_eq!(text(&output), "Guest RIP: 0x1000 -> 0x1003\n");
    assert_eq!(output.status.code(), Some(1));
    let output = hvkit(&["vmcs-diff", name(&before), name(&before)], b"");
    assert_eq!(
        (text(&output).as_str(), output.status.code()),
        ("", Some(0))
    );
}

/// The header of a `struct kvm_nested_state`, by the offsets of Linux's `asm/kvm.h`.
fn nested(vmxon: u64, current: u64) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes[0] = 1; // KVM_STATE_NESTED_GUEST_MODE
    bytes[8..16].copy_from_slice(&vmxon.to_le_bytes());
    bytes[16..24].copy_from_slice(&current.to_le_bytes());
    bytes
}

#[test]
fn a_nested_state() {
    let mut bytes = nested(0x1000, 0x2000);
    let mut vmcs12 = vec![0; 4096];
    vmcs12[..4].copy_from_slice(&[0xd0, 0x7e, 0xe5, 0x11]);
    vmcs12[544..552].copy_from_slice(&0x7c00_u64.to_le_bytes()); // guest RIP
    bytes.extend_from_slice(&vmcs12);
    let text = text(&hvkit(&["kvm-nested", "-"], &bytes));
    assert!(
        text.starts_with("flags 0x1 (guest mode), VMXON region 0x1000, current VMCS 0x2000\n"),
        "{text}"
    );
    assert!(text.contains("RIP = 0000000000007c00"), "{text}");
}

#[test]
fn nested_states_without_a_vmcs() {
    let none = hvkit(&["kvm-nested", "-"], &nested(u64::MAX, u64::MAX));
    assert!(text(&none).contains("not in VMX operation"));
    assert_eq!(none.status.code(), Some(0));
    let none = hvkit(&["kvm-nested", "-"], &nested(0x1000, u64::MAX));
    assert!(text(&none).contains("no current VMCS"));
    for (bytes, complaint) in [
        (vec![0; 127], "has at least 128 bytes, not 127"),
        (
            nested(0x1000, 0x2000),
            "at offset 128: a VMCS12 has 4096 bytes, not 0",
        ),
        (
            [&[0, 0, 1, 0][..], &[0; 124]].concat(),
            "offset 2: format 1 is not VMX's, 0",
        ),
    ] {
        let output = hvkit(&["kvm-nested", "-"], &bytes);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(complaint), "{error}");
        assert_eq!(output.status.code(), Some(2));
    }
}

/// An image with an EPT at 0x1000: 2 MiB of memory at 0 by one large page, two 4-KiB pages at 4 MiB, of which
/// the second cannot be written; a misconfigured entry at 6 MiB.
fn image() -> Vec<u8> {
    let mut bytes = vec![0; 0x5000];
    let mut put = |at: usize, entry: u64| bytes[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    put(0x1000, 0x2007);
    put(0x2000, 0x3007);
    put(0x3000, 0x0080_00b7); // 2 MiB at 8 MiB, write-back
    put(0x3010, 0x4007);
    put(0x3018, 0x2); // written and not read
    put(0x4000, 0x0100_0037);
    put(0x4008, 0x0100_1035);
    bytes
}

#[test]
fn the_map_of_an_ept() {
    let output = hvkit(&["ept", "-", "--eptp", "0x101e"], &image());
    let text = text(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "0x000000000000-0x000000200000 -> 0x000000800000  1 of 2 MiB  rwx WriteBack"
    );
    assert_eq!(
        lines[1],
        "0x000000400000-0x000000401000 -> 0x000001000000  1 of 4 KiB  rwx WriteBack"
    );
    assert_eq!(
        lines[2],
        "0x000000401000-0x000000402000 -> 0x000001001000  1 of 4 KiB  r-x WriteBack"
    );
    assert!(
        lines[3].contains("level 2 entry 0x2 is malformed"),
        "{text}"
    );
    assert_eq!((lines.len(), output.status.code()), (4, Some(1)));
}

#[test]
fn one_address_explained() {
    let arguments = ["ept", "-", "--eptp", "0x101e", "--explain", "0x401234"];
    let text = text(&hvkit(&arguments, &image()));
    assert!(
        text.contains("level 1 entry at 0x4008: 0x0000000001001035  r-x WriteBack"),
        "{text}"
    );
    assert!(
        text.contains("leads to 0x1001234, a page of 4 KiB"),
        "{text}"
    );
    assert!(
        text.contains("read: granted\nwrite: EPT violation at 0x401234"),
        "{text}"
    );
}

#[test]
fn an_ept_that_leads_into_itself_ends() {
    let mut bytes = vec![0; 0x2000];
    for slot in 0..512 {
        bytes[0x1000 + slot * 8..][..8].copy_from_slice(&0x1037_u64.to_le_bytes());
    }
    let output = hvkit(&["ept", "-", "--eptp", "0x101e", "--lines", "3"], &bytes);
    assert!(text(&output).contains("3 lines"), "{}", text(&output));
}

#[test]
fn files_that_are_none_of_it() {
    for (arguments, input, complaint) in [
        (
            &["vmcs", "/nonexistent"][..],
            &b""[..],
            "cannot open /nonexistent: No such file",
        ),
        (&["vmcs", "-"], b"", "there is no VMCS in it"),
        (
            &["vmcs", "-"],
            b"\xff\xfe",
            "line 1, byte 0: this is not a VMCS field",
        ),
        (&["ept", "-", "--eptp", "0x1000"], b"", "EPTP 0x1000: "),
    ] {
        let output = hvkit(arguments, input);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(complaint), "{error}");
        assert_eq!(output.status.code(), Some(2), "{error}");
    }
    let usage = hvkit(&["vmcs", "-", "--failure", "exit"], b"");
    assert!(String::from_utf8_lossy(&usage.stderr).contains("give \"invalid\", \"error N\""));
}
