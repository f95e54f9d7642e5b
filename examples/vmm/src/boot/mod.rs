// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loading a kernel and starting it: files into guest memory, boot data beside them, and the first
//! processor's registers.
//!
//! | file | protocol | entered in |
//! |---|---|---|
//! | bzImage | Linux x86 boot protocol, 64-bit | long mode, with identity-mapped page tables |
//! | ELF with a PVH note | Xen's direct boot for HVM guests | protected mode, paging off |
//!
//! The Linux/x86 boot protocol is cited by section title; PVH is Xen's `docs/misc/pvh.pandoc`.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod bzimage;
mod command_line;
mod elf;
mod error;
mod initramfs;
mod layout;
mod memory_map;
mod registers;

pub use error::BootError;
pub use registers::EntryState;

use crate::machine::address_map::AddressMap;
use crate::machine::memory::GuestRam;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// A bzImage or an ELF file.
    pub kernel: &'a Path,
    /// An initial RAM file system.
    pub initramfs: Option<&'a Path>,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// Where the ACPI root pointer is.
    pub rsdp: Option<u64>,
}

/// A kernel's file, and what it is.
enum Kernel {
    BzImage(File),
    Elf(File),
}

/// Loads `payload` into `ram`; the result says how its first processor starts.
pub fn load(
    payload: &Payload<'_>,
    map: &AddressMap,
    ram: &GuestRam,
) -> Result<EntryState, BootError> {
    match open(payload.kernel)? {
        Kernel::BzImage(file) => bzimage::load(file, payload, map, ram),
        Kernel::Elf(file) => elf::load(file, payload, map, ram),
    }
}

/// Opens a regular file, and no other: of a pipe or a device the length is none. That, too.
fn open_file(
    path: &Path,
    unreadable: fn(PathBuf, io::Error) -> BootError,
) -> Result<(File, u64), BootError> {
    let fail = |error| unreadable(path.to_owned(), error);
    // A pipe that nobody writes to is not waited for.
    let mut options = File::options();
    let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if metadata.is_dir() {
        return Err(fail(io::ErrorKind::IsADirectory.into()));
    }
    if !metadata.is_file() {
        let why = "no regular file, whose length could be told";
        return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, why)));
    }
    Ok((file, metadata.len()))
}

/// Opens the kernel and finds out what it is.
fn open(path: &Path) -> Result<Kernel, BootError> {
    /// ELF: `e_ident`, magic number.
    const ELF: [u8; 4] = *b"\x7fELF";
    /// "The Real-Mode Kernel Header": `header` at 0x202.
    const HDRS: [u8; 4] = *b"HdrS";
    const HDRS_AT: usize = 0x202;
    const HDRS_END: usize = HDRS_AT + HDRS.len();

    let unreadable = |path, source| BootError::KernelFile { path, source };
    let (mut file, length) = open_file(path, unreadable)?;
    if length == 0 {
        return Err(BootError::KernelEmpty(path.to_owned()));
    }
    let fail = |error| unreadable(path.to_owned(), error);
    let mut start = Vec::with_capacity(HDRS_END);
    Read::by_ref(&mut file)
        .take(HDRS_END as u64)
        .read_to_end(&mut start)
        .map_err(fail)?;
    file.seek(SeekFrom::Start(0)).map_err(fail)?;
    if start.starts_with(&ELF) {
        Ok(Kernel::Elf(file))
    } else if start.get(HDRS_AT..) == Some(&HDRS) {
        Ok(Kernel::BzImage(file))
    } else {
        Err(BootError::NotAKernel(path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    /// As the shell's `--initramfs <(...)` is.
    #[test]
    fn what_has_no_length_is_not_taken_for_an_empty_file() {
        let (pipe, mut end) = io::pipe().unwrap();
        end.write_all(b"07070100").unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", pipe.as_raw_fd()));
        let unreadable = |path, source| BootError::InitramfsFile { path, source };
        for path in [path, "/dev/zero".into()] {
            let error = open_file(&path, unreadable).unwrap_err().to_string();
            let name = path.display();
            let line = format!(
                "cannot read initramfs {name}: no regular file, whose length could be told"
            );
            assert_eq!(error, line);
        }
        // A pipe with a name, of which nobody has the other end.
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        assert!(open_file(&fifo, unreadable).is_err());
        assert!(matches!(open(&fifo), Err(BootError::KernelFile { .. })));
        let file = folder.path().join("file");
        std::fs::write(&file, "0707").unwrap();
        assert_eq!(open_file(&file, unreadable).unwrap().1, 4);
    }
}
