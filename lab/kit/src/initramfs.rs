// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes an initramfs: for the machines of the laboratory, and for the guests that run in them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cpio::{self, kind};
use crate::kernel::{Kernel, module_bytes};

/// Debian's static busybox.
const BUSYBOX: &str = "/usr/bin/busybox";
const STRIP: &str = "/usr/bin/strip";
/// Where modules go, and the list that says in which order they are loaded.
const MODULE_FOLDER: &str = "lab/modules";
/// The list of module files, one path a line, in the order to insert them.
pub const MODULE_LIST: &str = "/lab/modules/order";

/// An initramfs in the making: paths and what lies there.
///
/// A path given twice holds what was given last. Parents of a path are made.
#[derive(Clone, Debug, Default)]
pub struct Initramfs {
    // Sorted, so that a folder comes before what is in it, as the kernel needs.
    nodes: BTreeMap<String, Node>,
}

#[derive(Clone, Debug)]
struct Node {
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

impl Initramfs {
    /// The empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// One with busybox under all its names in `/bin`, the usual empty folders and a console.
    pub fn with_busybox() -> Result<Self> {
        let output = Command::new(BUSYBOX)
            .arg("--list")
            .output()
            .with_context(|| format!("no {BUSYBOX} (Debian package busybox-static)"))?;
        let mut made = Self::new();
        made.copy(Path::new(BUSYBOX), "/bin/busybox", 0o755)?;
        for applet in String::from_utf8_lossy(&output.stdout).lines() {
            if applet != "busybox" {
                made.link(&format!("/bin/{applet}"), "busybox");
            }
        }
        for folder in ["/proc", "/sys", "/dev", "/tmp", "/root"] {
            made.folder(folder);
        }
        made.link("/sbin", "bin");
        // The kernel opens it for init before there is a devtmpfs.
        made.put("/dev/console", kind::CHARACTER | 0o600, (5, 1), Vec::new());
        Ok(made)
    }

    /// A file with the given content. `mode` holds the permission bits.
    pub fn file(&mut self, path: &str, mode: u32, data: impl Into<Vec<u8>>) -> &mut Self {
        self.put(path, kind::FILE | mode & 0o7777, (0, 0), data.into())
    }

    /// A file of this machine, links followed.
    pub fn copy(&mut self, from: &Path, path: &str, mode: u32) -> Result<&mut Self> {
        let data = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        Ok(self.file(path, mode, data))
    }

    /// A folder of this machine with all that is in it, links followed, permissions kept.
    pub fn tree(&mut self, from: &Path, path: &str) -> Result<&mut Self> {
        self.folder(path);
        let entries =
            fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name
                .to_str()
                .with_context(|| format!("{} is not UTF-8", entry.path().display()))?;
            let inside = format!("{path}/{name}");
            // A link that leads nowhere is left out: packages ship some.
            let Ok(metadata) = fs::metadata(entry.path()) else {
                continue;
            };
            if metadata.is_dir() {
                self.tree(&entry.path(), &inside)?;
            } else {
                self.copy(&entry.path(), &inside, metadata.permissions().mode())?;
            }
        }
        Ok(self)
    }

    /// A program of this machine at `path`, and the shared libraries it needs where it looks for
    /// them.
    pub fn program(&mut self, from: &Path, path: &str) -> Result<&mut Self> {
        self.copy(from, path, 0o755)?;
        let output = Command::new("ldd")
            .arg(from)
            .output()
            .context("cannot start ldd")?;
        // A static program makes ldd fail, and needs nothing.
        for library in libraries(&String::from_utf8_lossy(&output.stdout))
            .with_context(|| format!("{} cannot run here", from.display()))?
        {
            self.copy(Path::new(library), library, 0o755)?;
        }
        Ok(self)
    }

    /// The same, without what only a debugger reads: a guest has it in its memory.
    pub fn stripped(&mut self, from: &Path, path: &str) -> Result<&mut Self> {
        let folder = tempfile::tempdir()?;
        let small = folder.path().join("program");
        let status = Command::new(STRIP)
            .arg(from)
            .arg("-o")
            .arg(&small)
            .status()
            .with_context(|| format!("no {STRIP} (Debian package binutils)"))?;
        ensure!(status.success(), "{STRIP} {}: {status}", from.display());
        self.program(&small, path)
    }

    /// An empty folder.
    pub fn folder(&mut self, path: &str) -> &mut Self {
        self.put(path, kind::DIRECTORY | 0o755, (0, 0), Vec::new())
    }

    /// A symbolic link at `path` that leads to `target`.
    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.put(path, kind::LINK | 0o777, (0, 0), target.into())
    }

    /// Modules of `kernel` with all that they need, listed in [`MODULE_LIST`].
    pub fn modules(&mut self, kernel: &Kernel, names: &[&str]) -> Result<&mut Self> {
        let mut list = String::new();
        for module in kernel.modules(names)? {
            let path = format!("{MODULE_FOLDER}/{}.ko", module.name);
            self.file(&path, 0o644, module_bytes(&module.path)?);
            list.push_str(&format!("/{path}\n"));
        }
        Ok(self.file(MODULE_LIST, 0o644, list))
    }

    /// The archive, not compressed: under an emulator, unpacking costs more than copying.
    pub fn build(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (inode, (name, node)) in (1..).zip(&self.nodes) {
            let entry = cpio::Entry {
                name,
                mode: node.mode,
                device: node.device,
                data: &node.data,
            };
            cpio::append(&mut out, inode, &entry)?;
        }
        cpio::finish(&mut out)?;
        Ok(out)
    }

    /// Writes the archive to `path`; returns its length in bytes.
    pub fn write(&self, path: &Path) -> Result<u64> {
        let archive = self.build()?;
        fs::write(path, &archive).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(archive.len() as u64)
    }

    fn put(&mut self, path: &str, mode: u32, device: (u32, u32), data: Vec<u8>) -> &mut Self {
        let name = path.trim_matches('/').to_owned();
        for (at, _) in name.match_indices('/') {
            self.nodes
                .entry(name[..at].to_owned())
                .or_insert_with(|| Node {
                    mode: kind::DIRECTORY | 0o755,
                    device: (0, 0),
                    data: Vec::new(),
                });
        }
        self.nodes.insert(name, Node { mode, device, data });
        self
    }
}

/// The library files in the output of `ldd`; fails if one was not found.
fn libraries(listing: &str) -> Result<Vec<&str>> {
    let mut found = Vec::new();
    for line in listing.lines().map(str::trim) {
        ensure!(!line.ends_with("not found"), "{line}");
        let path = line.split(" => ").last().unwrap_or(line);
        let path = path.split(" (0x").next().unwrap_or(path);
        if path.starts_with('/') {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_comes_before_what_is_in_it() {
        let mut made = Initramfs::new();
        made.file("/a/b/c", 0o600, "x").link("/a-b", "a");
        let archive = made.build().unwrap();
        let names: Vec<_> = cpio::entries(&archive)
            .unwrap()
            .iter()
            .map(|e| (e.name.to_owned(), e.mode))
            .collect();
        let expected = [
            ("a", 0o040_755),
            ("a-b", 0o120_777),
            ("a/b", 0o040_755),
            ("a/b/c", 0o100_600),
        ];
        assert_eq!(names, expected.map(|(n, m)| (n.to_owned(), m)));
    }

    #[test]
    fn a_program_that_cannot_be_stripped_is_named() {
        let error = Initramfs::new()
            .stripped(Path::new("/proc/version"), "/bin/version")
            .unwrap_err();
        assert!(error.to_string().contains("/proc/version"), "{error}");
    }

    #[test]
    fn what_ldd_prints_is_understood() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries(listing).unwrap(),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
        assert!(libraries("\tlibx.so.1 => not found\n").is_err());
        assert!(
            libraries("\tnot a dynamic executable\n")
                .unwrap()
                .is_empty()
        );
    }
}
