// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the demo's guest is given: a kernel, an initramfs that checks, and a disk.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;

/// Virtual processors.
pub(super) const CPUS: u32 = 2;
/// Memory, in MiB.
pub(super) const MEMORY_MIB: u64 = 256;
/// Length of the disk.
pub(super) const DISK_BYTES: u64 = 16 << 20;
/// The part of the disk that the guest reads: from its start.
const READ_BYTES: usize = 1 << 20;
/// The part of the disk that the guest writes: MiB at which it starts, and its length in MiB.
pub(super) const WRITTEN_MIB: (u64, u64) = (4, 1);

/// The kernel's command line: all of it the guest's own choice but for the console.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet";

/// The guest in the making.
#[derive(Debug)]
pub(super) struct Guest {
    folder: TempDir,
    kernel: Kernel,
    read_digest: String,
}

impl Guest {
    /// Fetches the kernel, builds the initramfs, fills a disk with what nobody can guess.
    pub(super) fn make() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hvkit-demo").tempdir()?;
        let kernel = Kernel::fetch()?;
        let mut initramfs = Initramfs::with_busybox()?;
        initramfs.modules(
            &kernel,
            &["virtio_pci", "virtio_blk", "virtio_rng", "virtio_console"],
        )?;
        initramfs.file("/init", 0o755, include_str!("init.sh"));
        initramfs.write(&folder.path().join("initramfs"))?;

        let mut disk = vec![0; READ_BYTES];
        fs::File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut disk))
            .context("cannot read /dev/urandom")?;
        let read_digest = digest(&disk);
        let path = folder.path().join("disk.img");
        fs::write(&path, &disk)
            .and_then(|()| {
                fs::File::options()
                    .write(true)
                    .open(&path)?
                    .set_len(DISK_BYTES)
            })
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Guest {
            folder,
            kernel,
            read_digest,
        })
    }

    /// The release of the kernel, such as 6.1.0-40-cloud-amd64.
    pub(super) fn kernel_release(&self) -> &str {
        self.kernel.release()
    }

    /// The kernel, a bzImage.
    pub(super) fn kernel(&self) -> PathBuf {
        self.kernel.bzimage()
    }

    /// The initramfs.
    pub(super) fn initramfs(&self) -> PathBuf {
        self.folder.path().join("initramfs")
    }

    /// The disk's image.
    pub(super) fn disk(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    /// Where the guest's paravirtual console leads.
    pub(super) fn console(&self) -> PathBuf {
        self.folder.path().join("console.log")
    }

    /// SHA-256 of what the guest is to read.
    pub(super) fn read_digest(&self) -> &str {
        &self.read_digest
    }

    /// SHA-256 of what the guest wrote, read from an image on this machine.
    pub(super) fn written_digest(&self) -> Result<String> {
        let image = fs::read(self.disk()).context("cannot read the disk's image back")?;
        let from = usize::try_from(WRITTEN_MIB.0 << 20)?;
        let length = usize::try_from(WRITTEN_MIB.1 << 20)?;
        let part = image
            .get(from..from + length)
            .context("the disk's image has become shorter")?;
        Ok(digest(part))
    }
}

/// The VMM's arguments for a guest whose files are at the given places.
pub(super) fn arguments(
    kernel: &Path,
    initramfs: &Path,
    disk: &Path,
    console: &Path,
    more: &str,
) -> Vec<String> {
    let cmdline = format!("{CMDLINE} {more}");
    [
        "--kernel".to_owned(),
        kernel.display().to_string(),
        "--initramfs".to_owned(),
        initramfs.display().to_string(),
        "--cmdline".to_owned(),
        cmdline.trim_end().to_owned(),
        "--cpus".to_owned(),
        format!("boot={CPUS}"),
        "--memory".to_owned(),
        format!("size={MEMORY_MIB}M"),
        "--disk".to_owned(),
        format!("path={}", disk.display()),
        "--rng".to_owned(),
        "--console".to_owned(),
        format!("file={}", console.display()),
        "--serial".to_owned(),
        "tty".to_owned(),
    ]
    .into()
}

fn digest(data: &[u8]) -> String {
    Sha256::digest(data)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_sha256sum() {
        // The first test vector of FIPS 180-2.
        let wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(b"abc"), wanted);
    }
}
