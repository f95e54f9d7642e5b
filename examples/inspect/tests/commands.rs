// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit inspect` as people call it: files in, text and exit status out.

mod support;

use std::path::Path;
use std::process::Output;

use hvkit_vmcs::{capability::presets, dump::Listing, seed::Seed};
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
[ 1.0] kvm_intel: VMExit: intr_info=00000000 errcode=00000000 ilen=00000000
[ 1.0] kvm_intel:         reason=80000021 qualification=0000000000000000
[ 1.0] kvm_intel: IDTVectoring: info=00000000 errcode=00000000
";

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn file(folder: &TempDir, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    path
}

fn name(path: &Path) -> &str {
    path.to_str().expect("plain")
}

/// A log in which a device has a name that would speak to a terminal, and end an element of a picture.
const SPEAKING: &str = "DMAR: [DMA Read] Request device [\u{1b}[2J</text>\u{9b}] fault addr 0x1000 [fault reason 0x06] x\n";

#[test]
fn a_file_does_not_speak_to_the_terminal() {
    let faults = |form: &[&str]| {
        let output = hvkit(&[&["vtd-faults", "-"], form].concat(), SPEAKING.as_bytes());
        assert_eq!(output.status.code(), Some(1));
        output
    };
    let shown = text(&faults(&[]));
    assert!(
        shown.starts_with("\u{fffd}[2J</text>\u{fffd} DMA Read"),
        "{shown}"
    );
    let picture = text(&faults(&["--svg"]));
    assert!(
        picture.contains("\u{fffd}[2J&lt;/text&gt;\u{fffd} DMA Read"),
        "{picture}"
    );
    // A program is told what is there.
    let device = json(&faults(&["--json"]))[0]["device"].clone();
    assert_eq!(device, "\u{1b}[2J</text>\u{9b}");
    // Nor does an error.
    let output = hvkit(&["vmcs", "/no\u{1b}where"], b"");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("/no\u{fffd}where"), "{error}");
}

#[test]
fn who_reads_no_more_is_told_no_more() {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_hvkit"))
        .args(["inspect", "vmcs", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().expect("piped");
    std::io::Write::write_all(&mut stdin, LOG.as_bytes()).expect("read");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_log_is_explained() {
    let output = hvkit(&["vmcs", "-", "--failure", "exit 33"], LOG.as_bytes());
    let text = text(&output);
    assert!(
        text.starts_with(
            "-: logged at line 1, 16 fields
"
        ),
        "{text}"
    );
    assert!(text.contains("RIP = 000000000000fff0"), "{text}");
    assert!(
        text.contains("Last exit\n  VM-entry failure due to invalid guest state (0x80000021)"),
        "{text}"
    );
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
            "The processor will say, as far as the file says: exit reason 33, VM-entry failure due to invalid guest state, qualification 0\n"
        ),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(1));
}

/// An unrestricted guest in real mode, whose SS and CS have other RPLs than they could have otherwise: without the controls, who knows.
#[test]
fn what_hangs_on_a_field_that_is_not_there_is_not_decided() {
    let listing = "guest_cs_selector = 0xf000\nguest_ss_selector = 0x3\nguest_ss_access_rights = 0x93\nguest_rflags = 2\n";
    let few = hvkit(&["vmcs", "-"], listing.as_bytes());
    let told = text(&few);
    assert!(!told.contains("guest.ss.rpl:"), "{told}");
    assert!(!told.contains("guest.ss.dpl-rpl:"), "{told}");
    assert!(told.contains("guest.ss.dpl-rpl, guest.ss.rpl"), "{told}");
    assert!(
        told.ends_with("The processor will say, as far as the file says: the guest runs\n"),
        "{told}"
    );
    assert_eq!(few.status.code(), Some(0));
    let missing = json(&hvkit(&["vmcs", "-", "--json"], listing.as_bytes()))["missing"].clone();
    let missing = missing.as_array().expect("a list");
    assert!(missing.contains(&"PRIMARY_CONTROLS".into()), "{missing:?}");
    // Neither control is set, says the file now, and the rules are decided.
    let controls = "primary_controls = 0\nsecondary_controls = 0\n";
    let told = text(&hvkit(
        &["vmcs", "-"],
        format!("{listing}{controls}").as_bytes(),
    ));
    assert!(told.contains("guest.ss.rpl:"), "{told}");
    assert!(told.contains("guest.ss.dpl-rpl:"), "{told}");
}

/// Every field is there, and an MSR-load area that is in no file.
#[test]
fn what_hangs_on_memory_is_not_decided() {
    let all = Seed::LongMode.vmcs(&presets::everything());
    let listing = Listing(&all).to_string();
    let told = text(&hvkit(&["vmcs", "-"], listing.as_bytes()));
    assert!(
        told.ends_with("The processor will say: the guest runs\n"),
        "{told}"
    );
    let listing = listing + "entry_msr_load_count = 1\nentry_msr_load_address = 0x9000\n";
    let told = text(&hvkit(&["vmcs", "-"], listing.as_bytes()));
    assert!(told.contains("\nNot decided, "), "{told}");
    assert!(
        told.ends_with("The processor will say, as far as the file says: the guest runs\n"),
        "{told}"
    );
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

/// A `struct kvm_nested_state`, by the offsets of Linux's `asm/kvm.h`, with what follows the header.
fn nested(vmxon: u64, current: u64, rest: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes[0] = 1; // KVM_STATE_NESTED_GUEST_MODE
    bytes[8..16].copy_from_slice(&vmxon.to_le_bytes());
    bytes[16..24].copy_from_slice(&current.to_le_bytes());
    bytes.extend(rest.concat());
    let size = u32::try_from(bytes.len()).expect("short");
    bytes[4..8].copy_from_slice(&size.to_le_bytes());
    bytes
}

/// KVM's VMCS12 with this revision identifier and guest RIP.
fn vmcs12(revision: u32, rip: u64) -> Vec<u8> {
    let mut vmcs12 = vec![0; 4096];
    vmcs12[..4].copy_from_slice(&revision.to_le_bytes());
    vmcs12[544..552].copy_from_slice(&rip.to_le_bytes());
    vmcs12
}

const REVISION: u32 = 0x11e5_7ed0;
/// Bit 31: a shadow VMCS. SDM 3C, "Format of the VMCS Region".
const SHADOW: u32 = REVISION | 1 << 31;

#[test]
fn a_nested_state() {
    let bytes = nested(0x1000, 0x2000, &[&vmcs12(REVISION, 0x7c00)]);
    let text = text(&hvkit(&["kvm-nested", "-"], &bytes));
    assert!(
        text.starts_with("flags 0x1 (guest mode), VMXON region 0x1000, current VMCS 0x2000\n"),
        "{text}"
    );
    assert!(text.contains("RIP = 0000000000007c00"), "{text}");
    assert!(!text.contains("shadow VMCS12"), "{text}");
}

#[test]
fn a_nested_state_with_a_shadow_vmcs() {
    let rest = [vmcs12(REVISION, 0x7c00), vmcs12(SHADOW, 0xabc0)];
    let mut bytes = nested(0x1000, 0x2000, &[&rest[0], &rest[1]]);
    let told = text(&hvkit(&["kvm-nested", "-"], &bytes));
    let (first, shadow) = told.split_once("-: the shadow VMCS12, ").expect(&told);
    assert!(first.contains("RIP = 0000000000007c00"), "{told}");
    assert!(shadow.contains("RIP = 000000000000abc0"), "{told}");
    let output = hvkit(&["kvm-nested", "-", "--json"], &bytes);
    let value = json(&output);
    assert_eq!(value["vmcs12"]["vmcs"]["GUEST_RIP"], "0x7c00");
    assert_eq!(value["shadow_vmcs12"]["GUEST_RIP"], "0xabc0");
    // What the state's size leaves out is not the state's.
    bytes[4..8].copy_from_slice(&(128_u32 + 4096).to_le_bytes());
    let output = hvkit(&["kvm-nested", "-", "--json"], &bytes);
    assert!(json(&output)["shadow_vmcs12"].is_null());
}

#[test]
fn a_nested_state_is_json_in_every_state() {
    for (vmxon, current, rest, header) in [
        (u64::MAX, u64::MAX, None, (None, None)),
        (0x1000, u64::MAX, None, (Some(0x1000), None)),
        (0x1000, 0x2000, Some(0x7c00), (Some(0x1000), Some(0x2000))),
    ] {
        let rest = rest.map(|rip| vmcs12(REVISION, rip)).unwrap_or_default();
        let bytes = nested(vmxon, current, &[&rest]);
        let output = hvkit(&["kvm-nested", "-", "--json"], &bytes);
        let value = json(&output);
        assert_eq!(value["source"], "-");
        assert_eq!(value["header"]["flags"], 1);
        assert_eq!(value["header"]["flag_names"][0], "guest mode");
        assert_eq!(value["header"]["size"], 128 + rest.len());
        assert_eq!(value["header"]["vmxon"].as_u64(), header.0);
        assert_eq!(value["header"]["current_vmcs"].as_u64(), header.1);
        assert_eq!(value["vmcs12"].is_null(), rest.is_empty());
        assert!(value["shadow_vmcs12"].is_null());
        assert_eq!(output.status.code(), Some(i32::from(!rest.is_empty())));
    }
}

/// An enlightened VMCS is at no address that KVM tells.
#[test]
fn an_enlightened_vmcs_is_shown() {
    let mut bytes = nested(0x1000, u64::MAX, &[&vmcs12(REVISION, 0x7c00)]);
    bytes[0] = 1 | 4; // KVM_STATE_NESTED_EVMCS
    let text = text(&hvkit(&["kvm-nested", "-"], &bytes));
    let first =
        "flags 0x5 (guest mode, enlightened VMCS), VMXON region 0x1000, current VMCS none\n";
    assert!(text.starts_with(first), "{text}");
    assert!(text.contains("RIP = 0000000000007c00"), "{text}");
}

#[test]
fn nested_states_without_a_vmcs() {
    let none = hvkit(&["kvm-nested", "-"], &nested(u64::MAX, u64::MAX, &[]));
    assert!(text(&none).contains("not in VMX operation"));
    assert_eq!(none.status.code(), Some(0));
    let none = hvkit(&["kvm-nested", "-"], &nested(0x1000, u64::MAX, &[]));
    assert!(text(&none).contains("no current VMCS"));
    let mut cut = nested(0x1000, 0x2000, &[&vmcs12(REVISION, 0)]);
    cut.pop();
    for (bytes, complaint) in [
        (vec![0; 127], "has at least 128 bytes, not 127"),
        (
            nested(0x1000, 0x2000, &[]),
            "at offset 128: a VMCS12 has 4096 bytes, not 0",
        ),
        (
            nested(0x1000, 0x2000, &[&vmcs12(REVISION, 0), &[0; 8]]),
            "at offset 4224: a VMCS12 has 4096 bytes, not 8",
        ),
        (cut, "offset 4: the state has 4224 bytes, and the file 4223"),
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
fn one_address_explained_to_a_program() {
    let explain = |address| {
        let arguments = ["ept", "-", "--eptp", "0x101e", "--json", "--explain"];
        let output = hvkit(&[&arguments[..], &[address]].concat(), &image());
        (json(&output), output.status.code())
    };
    let (why, status) = explain("0x401234");
    assert_eq!(why["guest_physical"], 0x40_1234);
    let levels = why["entries"].as_array().expect("a list");
    let levels: Vec<_> = levels.iter().map(|entry| entry["level"].as_u64()).collect();
    assert_eq!(levels, [4, 3, 2, 1].map(Some));
    assert_eq!(why["entries"][3]["at"], 0x4008);
    assert_eq!(why["entries"][3]["entry"], "0x0000000001001035");
    assert_eq!(why["to"]["address"], 0x0100_1234);
    assert_eq!(why["to"]["page"], 4096);
    assert!(why["fault"].is_null());
    assert_eq!(why["accesses"][0]["access"], "read");
    assert!(why["accesses"][0]["refused"].is_null());
    let refused = why["accesses"][1]["refused"].as_str().expect("words");
    assert!(
        refused.starts_with("EPT violation at 0x401234"),
        "{refused}"
    );
    assert_eq!(status, Some(1));
    // A misconfigured entry leads nowhere.
    let (why, status) = explain("0x600000");
    assert!(why["to"].is_null() && why["fault"].is_string(), "{why}");
    assert_eq!(status, Some(1));
    // And memory that may be read, written and executed.
    let (why, status) = explain("0x1000");
    assert_eq!(
        (&why["to"]["address"], status),
        (&0x80_1000.into(), Some(0))
    );
}

/// The addresses and where they lead, each in order, and what is wrong in red.
#[test]
fn the_picture_of_an_ept() {
    let output = hvkit(&["ept", "-", "--eptp", "0x101e", "--svg"], &image());
    let picture = text(&output);
    assert!(picture.starts_with("<svg xmlns=") && picture.ends_with("</svg>\n"));
    let words: Vec<_> = picture
        .lines()
        .filter_map(|line| Some(line.strip_suffix("</text>")?.split_once('>')?.1))
        .collect();
    assert_eq!(
        words,
        [
            "EPT 0x101e: guest-physical, and where it leads",
            "0x0-0x1fffff rwx WriteBack",
            "0x400000-0x400fff rwx WriteBack",
            "0x401000-0x401fff r-x WriteBack",
            "0x600000 level 2 entry 0x2 is malformed: Misconfigured(\u{2026}",
            "0x800000-0x9fffff 2 MiB",
            "0x1000000-0x1000fff 4 KiB",
            "0x1001000-0x1001fff 4 KiB",
        ]
    );
    assert_eq!(picture.matches("<path ").count(), 3, "{picture}");
    assert_eq!(output.status.code(), Some(1));
    // No more lines than were asked for, and that there are more is said.
    let few = hvkit(
        &["ept", "-", "--eptp", "0x101e", "--svg", "--lines", "1"],
        &image(),
    );
    assert!(text(&few).contains(">... 0 more read, and on from 0x400000</text>"));
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

/// The page that users read shows what these commands print.
#[test]
fn the_readme_shows_what_is_printed() {
    const README: &str = include_str!("../README.md");
    let nested = nested(0x1000, u64::MAX, &[]);
    let cases: [(&[&str], &[u8]); 4] = [
        (&["vmcs", "-", "--failure", "exit 33"], LOG.as_bytes()),
        (&["kvm-nested", "-"], &nested),
        (&["ept", "-", "--eptp", "0x101e"], &image()),
        (
            &["ept", "-", "--eptp", "0x101e", "--explain", "0x401234"],
            &image(),
        ),
    ];
    for (arguments, input) in cases {
        let printed = text(&hvkit(arguments, input));
        assert!(README.contains(&printed), "{arguments:?}:\n{printed}");
    }
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
