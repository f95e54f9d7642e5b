// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernels written byte by byte, and the real `vmm` run on them.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// Where test kernels are loaded and entered.
pub(crate) const ENTRY: u64 = 0x10_0000;

/// A folder for one test, readable by any user.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let folder = TempDir::new().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Folder(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// The real program.
pub(crate) fn vmm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.stdin(Stdio::null());
    command
}

/// Runs `command` to its end; its exit status (none for a signal) and what it said.
pub(crate) fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// One program header of an ELF64 file: type, offset, physical address, bytes in file and memory.
fn program_header(kind: u32, offset: u64, address: u64, length: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(kind.to_le_bytes());
    header.extend(7u32.to_le_bytes());
    for word in [offset, address, address, length, length, 4] {
        header.extend(word.to_le_bytes());
    }
    header
}

/// An ELF file whose one segment, `code`, is loaded at [`ENTRY`]; with `note`, its PVH note says so.
pub(crate) fn elf(code: &[u8], note: Option<u64>) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    const LOAD: u32 = 1;
    const NOTE: u32 = 4;
    // Name of 4 bytes, descriptor of 8, type 18 (XEN_ELFNOTE_PHYS32_ENTRY).
    let mut note_bytes = Vec::new();
    for word in [4u32, 8, if note.is_some() { 18 } else { 1 }] {
        note_bytes.extend(word.to_le_bytes());
    }
    note_bytes.extend(b"Xen\0");
    note_bytes.extend(note.unwrap_or(0).to_le_bytes());

    let mut file = Vec::new();
    // 64-bit, little-endian, version 1; executable, x86-64, version 1.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [ENTRY, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    assert_eq!(file.len(), 64);
    let note_length = note_bytes.len() as u64;
    file.extend(program_header(NOTE, HEADERS, 0, note_length));
    let code_at = HEADERS + note_length;
    file.extend(program_header(LOAD, code_at, ENTRY, code.len() as u64));
    file.extend(note_bytes);
    file.extend(code);
    file
}

/// A kernel that executes `code` in protected mode.
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    elf(code, Some(ENTRY))
}

/// Whether this user can use this machine's KVM. Where not, the test that asked counts as skipped.
pub(crate) fn has_kvm() -> bool {
    let mut device = fs::File::options();
    match device.read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            skip(&format!("/dev/kvm: {error}"));
            false
        }
    }
}

/// Says loudly that the test that calls it did not run, and why.
fn skip(why: &str) {
    let thread = std::thread::current();
    let line = format!("{}: {why}", thread.name().unwrap_or("a test"));
    eprintln!("SKIPPED {line}");
    // `cargo xtask test` counts these lines.
    let file = xtask::paths::logs().join("skipped");
    if let Ok(mut file) = fs::File::options().append(true).open(file) {
        writeln!(file, "{line}").unwrap();
    }
}
