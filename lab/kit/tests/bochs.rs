// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bochs as a test uses it, with the laboratory's own payload.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab_kit::bochs::{Bochs, Exit};
use lab_kit::paths;
use lab_kit::payload::build_payload;

/// Where `payload_rt::INPUT` is.
const INPUT: u64 = 0x100_0000;

fn hello() -> PathBuf {
    build_payload(&paths::root().join("lab/payloads/hello")).unwrap()
}

#[test]
fn a_rust_payload_runs_on_a_processor_with_vmx() {
    lab_kit::skip_if!(lab_kit::bochs::missing());
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

/// Bochs's own loading of images loses what lies beyond 128 KiB: these are read from the disk.
#[test]
fn images_of_megabytes_arrive_whole() {
    lab_kit::skip_if!(lab_kit::bochs::missing());
    // 32-bit code: sums up the doublewords from 16 MiB on, and sends the sum.
    #[rustfmt::skip]
    let mut payload = vec![
        0xbe, 0x00, 0x00, 0x00, 0x01,                   // mov esi, 0x1000000
        0xb9, 0x01, 0x00, 0x0c, 0x00,                   // mov ecx, 0xc0001
        0x31, 0xdb,                                     // xor ebx, ebx
        0xad, 0xd1, 0xc3, 0x01, 0xc3, 0xe2, 0xf9,       // lodsd; rol ebx, 1; add ebx, eax; loop
        0xa1, 0xfc, 0xff, 0x27, 0x00,                   // mov eax, [0x27fffc]: the payload's own end
        0x31, 0xc3,                                     // xor ebx, eax
        0x66, 0xba, 0xfb, 0x03, 0xb0, 0x80, 0xee,       // mov dx, 0x3fb; mov al, 0x80; out dx, al
        0xb2, 0xf8, 0xb0, 0x01, 0xee,                   // mov dl, 0xf8; mov al, 1; out dx, al
        0x42, 0xb0, 0x00, 0xee,                         // inc edx; mov al, 0; out dx, al
        0xb2, 0xfb, 0xb0, 0x03, 0xee,                   // mov dl, 0xfb; mov al, 3; out dx, al
        0xb9, 0x04, 0x00, 0x00, 0x00,                   // mov ecx, 4
        0xb2, 0xfd, 0xec, 0xa8, 0x20, 0x74, 0xfb,       // next: mov dl, 0xfd; in al, dx; test al, 0x20; jz
        0xb2, 0xf8, 0x88, 0xd8, 0xee,                   // mov dl, 0xf8; mov al, bl; out dx, al
        0xc1, 0xeb, 0x08, 0xe2, 0xef,                   // shr ebx, 8; loop next
        0xb2, 0xfd, 0xec, 0xa8, 0x40, 0x74, 0xf9,       // mov dl, 0xfd; in al, dx; test al, 0x40; jz
        0x66, 0xba, 0x00, 0x89,                         // mov dx, 0x8900
        0xbe, 0x64, 0x00, 0x20, 0x00,                   // mov esi, text
        0xac, 0xee, 0xeb, 0xfc,                         // lodsb; out dx, al; jmp
    ];
    payload.resize(0x64, 0x90);
    payload.extend_from_slice(b"Shutdown");
    payload.resize(0x8_0000 - 4, 0x90);
    payload.extend_from_slice(&0x1234_5678u32.to_le_bytes());
    let image: Vec<u8> = (0..0x30_0003u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    let sum = image.chunks(4).fold(0u32, |sum, bytes| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        sum.rotate_left(1).wrapping_add(u32::from_le_bytes(word))
    });
    let report = Bochs::new()
        .image([0xee; 8], INPUT + 0x30_0004)
        .image(image, INPUT)
        .image([0xdd; 700], INPUT - 700)
        .run_bytes(&payload)
        .unwrap();
    assert_eq!(report.exit, Exit::Shutdown, "{report}");
    assert_eq!(report.serial, (sum ^ 0x1234_5678).to_le_bytes(), "{report}");
}

#[test]
fn the_model_of_the_processor_can_be_chosen() {
    lab_kit::skip_if!(lab_kit::bochs::missing());
    let report = Bochs::new().cpu("athlon64_venice").run(&hello()).unwrap();
    assert_eq!(report.exit, Exit::Shutdown, "{report}");
    assert!(report.text().starts_with("vmx=0\n"), "{report}");
}

#[test]
fn a_triple_fault_and_a_panic_are_no_orderly_end() {
    lab_kit::skip_if!(lab_kit::bochs::missing());
    let fault = Bochs::new().image(*b"f", INPUT).run(&hello()).unwrap();
    assert_eq!(fault.exit, Exit::TripleFault, "{fault}");
    let panic = Bochs::new().image(*b"p", INPUT).run(&hello()).unwrap();
    assert_eq!(panic.exit, Exit::TripleFault, "{panic}");
    assert!(panic.text().contains("the payload panicked"), "{panic}");
    assert!(panic.text().contains("as asked"), "{panic}");
}

/// The profile of the workspace, which checks sums in release builds, does not reach a payload.
#[test]
fn a_sum_that_wraps_is_a_panic() {
    lab_kit::skip_if!(lab_kit::bochs::missing());
    let wrapped = Bochs::new().image(*b"o", INPUT).run(&hello()).unwrap();
    assert_eq!(wrapped.exit, Exit::TripleFault, "{wrapped}");
    assert!(wrapped.text().contains("overflow"), "{wrapped}");
}

#[test]
fn a_hang_is_a_time_out_and_what_it_said_is_kept() {
    lab_kit::skip_if!(lab_kit::bochs::missing());
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
    lab_kit::skip_if!(lab_kit::bochs::missing());
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
    let mut crowded = Bochs::new();
    for number in 0..24 {
        crowded = crowded.image([0], 0x300_0000 + number * 0x1000);
    }
    let error = crowded.run_bytes(b"\xf4").unwrap_err();
    assert!(error.to_string().starts_with("25 images"), "{error:#}");
    // Over the payload, over each other, in the BIOS's memory, where 32 bits do not reach.
    for (bytes, address) in [
        (vec![0; 2], 0x20_0000),
        (vec![0; 0x10_0001], 0x10_0000),
        (vec![0; 2], 0xf_ffff),
        (vec![0; 2], 1 << 32),
    ] {
        let bochs = Bochs::new().memory_mib(8192).image(bytes, address);
        let error = bochs.run_bytes(b"\xf4").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("begin below") || text.contains("do not fit"),
            "{text}"
        );
    }
    let missing = Bochs::new()
        .program("/no/such/bochs", "/usr/share/bochs")
        .run_bytes(b"\xf4")
        .unwrap();
    assert!(matches!(missing.exit, Exit::Error(_)), "{missing}");
}

#[test]
fn a_payload_that_does_not_build_shows_why() {
    lab_kit::skip_if!(lab_kit::bochs::missing());
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
