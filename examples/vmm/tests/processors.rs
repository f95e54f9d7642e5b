// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! More processors than a byte can number, on this machine's own KVM, also one that only emulates: each is started by a
//! message to its 32-bit identifier, and says who it is.

#[path = "support/elf.rs"]
mod elf;
#[path = "support/kvm.rs"]
mod kvm;
mod support;

use elf::kernel;
use kvm::has_kvm;
use kvm_ioctls::Kvm;
use support::{Folder, run, vmm};

/// Where the others begin: the kernel has their code from here on.
const OTHERS: usize = 0x80;
/// Processors.
const COUNT: u32 = 300;

/// The first processor is in x2APIC mode, sends INIT and SIPI to each identifier from 1 up, waits until that one has
/// counted, and powers off if each has counted once and the identifiers add up; if not, it panics.
///
/// One after the other, so that those which run see what is sent to the others: identifier 255 is a broadcast to every
/// local APIC that is not in x2APIC mode.
///
/// SDM 3A, "Extended XAPIC (x2APIC)": IA32_APIC_BASE is 0x1b, its bit 10 the mode; the interrupt command register is 0x830,
/// with the destination in EDX; 0x4500 is INIT, 0x4608 SIPI to 0x8000.
fn first() -> Vec<u8> {
    let mut code = vec![
        0xbe, 0x80, 0x00, 0x10, 0x00, // MOV ESI, 0x100080
        0xbf, 0x00, 0x80, 0x00, 0x00, // MOV EDI, 0x8000
        0xb9, 0x40, 0x00, 0x00, 0x00, // MOV ECX, 0x40
        0xf3, 0xa4, // REP MOVSB
        0xb9, 0x1b, 0x00, 0x00, 0x00, // MOV ECX, 0x1b
        0x0f, 0x32, // RDMSR
        0xf6, 0xc4, 0x04, // TEST AH, 4
        0x74, 0x4c, // JZ Wrong
        0xbb, 0x01, 0x00, 0x00, 0x00, // MOV EBX, 1
        // Next:
        0x89, 0xda, // MOV EDX, EBX
        0xb9, 0x30, 0x08, 0x00, 0x00, // MOV ECX, 0x830
        0xb8, 0x00, 0x45, 0x00, 0x00, // MOV EAX, 0x4500
        0x0f, 0x30, // WRMSR
        0xb8, 0x08, 0x46, 0x00, 0x00, // MOV EAX, 0x4608
        0x0f, 0x30, // WRMSR
        // Wait:
        0xf3, 0x90, // PAUSE
        0x39, 0x1d, 0x00, 0x90, 0x00, 0x00, // CMP [0x9000], EBX
        0x72, 0xf6, // JB Wait
        0x43, // INC EBX
        0x81, 0xfb, // CMP EBX, COUNT
    ];
    code.extend(COUNT.to_le_bytes());
    code.extend([0x75, 0xd8]); // JNE Next
    code.extend([0x81, 0x3d, 0x00, 0x90, 0x00, 0x00]); // CMP [0x9000], all others
    code.extend((COUNT - 1).to_le_bytes());
    code.extend([0x75, 0x13]); // JNE Wrong
    code.extend([0x81, 0x3d, 0x04, 0x90, 0x00, 0x00]); // CMP [0x9004], 1 + 2 + ...
    code.extend((COUNT * (COUNT - 1) / 2).to_le_bytes());
    code.extend([0x75, 0x07]); // JNE Wrong
    code.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]); // OUT 0x600, 0x34: power off
    code.extend([0x66, 0xba, 0x05, 0x05, 0xb0, 0x01, 0xee]); // Wrong: OUT 0x505, 1: panic
    code.extend([0xeb, 0xfe]); // a jump to itself
    assert!(code.len() <= OTHERS, "the others' code begins there");
    code.resize(OTHERS, 0);
    code
}

/// In real mode: adds its x2APIC identifier (leaf 0xb of CPUID, EDX) to a sum, counts itself, and halts.
const OTHER: &[u8] = &[
    0x66, 0xb8, 0x0b, 0x00, 0x00, 0x00, // MOV EAX, 0xb
    0x66, 0x31, 0xc9, // XOR ECX, ECX
    0x0f, 0xa2, // CPUID
    0x31, 0xc0, // XOR AX, AX
    0x8e, 0xd8, // MOV DS, AX
    0x66, 0xf0, 0x01, 0x16, 0x04, 0x90, // LOCK ADD [0x9004], EDX
    0x66, 0xf0, 0xff, 0x06, 0x00, 0x90, // LOCK INC [0x9000]
    0xf4, // Rest: HLT
    0xeb, 0xfd, // JMP Rest
];

/// What `vmm` made of the kernel with these options.
fn machine(options: &[&str]) -> (Option<i32>, String) {
    let folder = Folder::new();
    let path = folder.file("kernel", &kernel(&[&first(), OTHER].concat()));
    let mut command = vmm();
    command.args(["--memory", "size=8M"]).args(options);
    let (code, _, stderr) = run(command.arg("--kernel").arg(path));
    (code, stderr)
}

#[test]
fn three_hundred_processors_are_started_by_their_identifiers() {
    if !has_kvm() {
        return;
    }
    if Kvm::new().unwrap().get_max_vcpus() < COUNT as usize {
        lab_kit::skip::skip("this host's KVM runs fewer than 300 processors");
        return;
    }
    let (code, stderr) = machine(&["--cpus", "boot=300", "--vtd"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
}

#[test]
fn without_remapped_interrupts_they_are_refused_in_a_line() {
    if !has_kvm() {
        return;
    }
    if Kvm::new().unwrap().get_max_vcpus() < COUNT as usize {
        lab_kit::skip::skip("this host's KVM runs fewer than 300 processors");
        return;
    }
    let line =
        "vmm: 300 processors: interrupts reach 254 of them, unless a unit remaps them: add --vtd\n";
    for options in [
        &["--cpus", "300"][..],
        &["--cpus", "300", "--vtd", "intremap=off"],
    ] {
        assert_eq!(machine(options), (Some(44), line.to_owned()), "{options:?}");
    }
}
