// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bochs as a test uses it, with the laboratory's own payload.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use xtask::lab::bochs::{Bochs, Exit};
use xtask::lab::payload::build_payload;
use xtask::paths;

/// Where `payload_rt::INPUT` is.
const INPUT: u64 = 0x100_0000;

fn hello() -> PathBuf {
    build_payload(&paths::root().join("lab/payloads/hello")).unwrap()
}

#[test]
fn a_rust_payload_runs_on_a_processor_with_vmx() {
    xtask::skip_if!(xtask::lab::bochs::missing());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watched = Arc::clone(&seen);
    let report = Bochs::new()
        .image(*b"0123456789abcdef", INPUT)
        .watch(move |bytes| watched.lock().unwrap().extend_from_slice(bytes))
        .run(&hello())
        .unwrap();
    assert_eq!(report.exit, Exit::Shutdown, "{report}");
    let text = report.text();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
    };
    assert_eq!(value("vmx="), "1");
    let basic = u64::from_str_radix(value("vmx-basic=").trim_start_matches("0x"), 16).unwrap();
    // SDM 3D, A.1 "Basic VMX Information": a region of at most 4096 bytes in bits 44:32, bit 31
    // clear; memory type write-back (6) in bits 53:50.
    assert!((1..=4096).contains(&(basic >> 32 & 0x1fff)), "{basic:#x}");
    assert_eq!(basic >> 31 & 1, 0, "{basic:#x}");
    assert_eq!(basic >> 50 & 0xf, 6, "{basic:#x}");
    assert_eq!(value("bss="), "true");
    assert_eq!(value("pi="), "3.142");
    assert_eq!(
        value("input="),
        "[30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 61, 62, 63, 64, 65, 66]"
    );
    assert_eq!(*seen.lock().unwrap(), report.serial, "what was watched");
    assert!(
        report
            .version()
            .is_some_and(|v| v.starts_with("Bochs x86 Emulator "))
    );
}

#[test]
fn the_model_of_the_processor_can_be_chosen() {
    xtask::skip_if!(xtask::lab::bochs::missing());
    let report = Bochs::new().cpu("athlon64_venice").run(&hello()).unwrap();
    assert_eq!(report.exit, Exit::Shutdown, "{report}");
    assert!(report.text().starts_with("vmx=0\n"), "{report}");
}

#[test]
fn a_triple_fault_and_a_panic_are_no_orderly_end() {
    xtask::skip_if!(xtask::lab::bochs::missing());
    let fault = Bochs::new().image(*b"f", INPUT).run(&hello()).unwrap();
    assert_eq!(fault.exit, Exit::TripleFault, "{fault}");
    let panic = Bochs::new().image(*b"p", INPUT).run(&hello()).unwrap();
    assert_eq!(panic.exit, Exit::TripleFault, "{panic}");
    assert!(panic.text().contains("the payload panicked"), "{panic}");
    assert!(panic.text().contains("as asked"), "{panic}");
}

#[test]
fn a_hang_is_a_time_out_and_what_it_said_is_kept() {
    xtask::skip_if!(xtask::lab::bochs::missing());
    let payload = hello();
    // The second try is for a machine so busy that the first ends before the payload speaks.
    let reports = [4, 40].map(|seconds| {
        let hanging = Bochs::new().image(*b"h", INPUT);
        move |payload| hanging.time_out(Duration::from_secs(seconds)).run(payload)
    });
    for run in reports {
        let report = run(&payload).unwrap();
        assert_eq!(report.exit, Exit::TimedOut, "{report}");
        if report.text().contains("vmx=1") {
            return;
        }
    }
    panic!("nothing of what the payload said was kept");
}

#[test]
fn what_bochs_refuses_is_told() {
    xtask::skip_if!(xtask::lab::bochs::missing());
    let report = Bochs::new().cpu("no_such_cpu").run_bytes(b"\xf4").unwrap();
    match &report.exit {
        Exit::Panic(words) => assert!(words.contains("cpu directive"), "{words}"),
        other => panic!("{other:?}"),
    }
    let error = Bochs::new().run_bytes(b"").unwrap_err();
    assert!(error.to_string().contains("empty"), "{error:#}");
    let error = Bochs::new()
        .memory_mib(32)
        .image([0], 32 << 20)
        .run_bytes(b"\xf4")
        .unwrap_err();
    assert!(error.to_string().contains("0x2000000"), "{error:#}");
    let error = Bochs::new()
        .image([0], 0x300_0000)
        .image([0], 0x301_0000)
        .image([0], 0x302_0000)
        .image([0], 0x303_0000)
        .run_bytes(b"\xf4")
        .unwrap_err();
    assert!(error.to_string().contains("4 images"), "{error:#}");
    let missing = Bochs::new()
        .program("/no/such/bochs", "/usr/share/bochs")
        .run_bytes(b"\xf4")
        .unwrap();
    assert!(matches!(missing.exit, Exit::Error(_)), "{missing}");
}

#[test]
fn a_payload_that_does_not_build_shows_why() {
    xtask::skip_if!(xtask::lab::bochs::missing());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("Cargo.toml"),
        "[package]\nname = \"broken\"\nedition = \"2024\"\n[workspace]\n",
    )
    .unwrap();
    std::fs::create_dir(folder.path().join("src")).unwrap();
    std::fs::write(
        folder.path().join("src/main.rs"),
        "fn main() { nonsense() }",
    )
    .unwrap();
    let error = build_payload(folder.path()).unwrap_err();
    assert!(format!("{error:#}").contains("nonsense"), "{error:#}");
}
