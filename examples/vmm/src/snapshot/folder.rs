// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The folder that a machine is saved to, opened before the VMM gives up its files; and the one that it comes from.

use super::error::SnapshotError;
use super::manifest::{LIMIT, Manifest, parse};
use super::memory;
use crate::machine::memory::GuestRam;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MANIFEST: &str = "manifest.json";
const MEMORY: &str = "memory";

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_path_buf();
    move |source| SnapshotError::File {
        action,
        path,
        source,
    }
}

/// Where a machine may be saved. Its files are removed with it, unless one was.
#[derive(Debug)]
pub struct Destination {
    folder: PathBuf,
    manifest: File,
    memory: File,
    saved: bool,
}

impl Destination {
    /// Makes the folder, if it is not there, and its files, which none but the user may read: the guest's secrets will be in
    /// them.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Taken`], [`SnapshotError::InUse`], [`SnapshotError::Foreign`], and the host's.
    pub fn create(folder: &Path) -> Result<Self, SnapshotError> {
        fs::create_dir_all(folder).map_err(failed("make", folder))?;
        let open = |name| {
            let path = folder.join(name);
            let mut options = File::options();
            let options = options.write(true).create(true).truncate(false).mode(0o600);
            options.open(&path).map_err(failed("write", &path))
        };
        let length = |file: &File| {
            let data = file.metadata().map_err(failed("look at", folder))?;
            Ok::<_, SnapshotError>(data.len())
        };
        let path = || folder.to_path_buf();
        let manifest = open(MANIFEST)?;
        // It goes with the file, however we end.
        flock(&manifest, FlockOperation::NonBlockingLockExclusive).map_err(
            |error| match error {
                Errno::WOULDBLOCK => SnapshotError::InUse { path: path() },
                error => failed("lock", folder)(error.into()),
            },
        )?;
        if length(&manifest)? > 0 {
            return Err(SnapshotError::Taken { path: path() });
        }
        let memory = open(MEMORY)?;
        if length(&memory)? > 0 {
            let path = folder.join(MEMORY);
            return Err(SnapshotError::Foreign { path });
        }
        Ok(Destination {
            folder: folder.to_path_buf(),
            manifest,
            memory,
            saved: false,
        })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a machine, its manifest last.
    ///
    /// # Errors
    ///
    /// The host's. What was written is no snapshot; it may be tried again.
    pub fn save(&mut self, manifest: &Manifest, ram: &GuestRam) -> Result<(), SnapshotError> {
        let written = self.memory.set_len(0);
        written
            .and_then(|()| memory::write(ram, &self.memory))
            .and_then(|()| self.memory.sync_all())
            .map_err(failed("write", &self.folder.join(MEMORY)))?;
        let bytes = serde_json::to_vec(manifest).map_err(io::Error::other);
        let written = bytes.and_then(|bytes| {
            self.manifest.write_all_at(&bytes, 0)?;
            self.manifest.sync_all()
        });
        written.map_err(|error| {
            // Half a manifest is none. If that fails, too, it is no JSON, and refused for that.
            let _ = self.manifest.set_len(0);
            failed("write", &self.folder.join(MANIFEST))(error)
        })?;
        self.saved = true;
        Ok(())
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if !self.saved {
            for name in [MANIFEST, MEMORY] {
                // Where that is not possible, an empty file stays, which the next machine takes.
                let _ = fs::remove_file(self.folder.join(name));
            }
        }
    }
}

/// A snapshot that was read, but for the memory.
#[derive(Debug)]
pub struct Source {
    /// All but the memory. It is what a file says.
    pub manifest: Manifest,
    path: PathBuf,
    memory: File,
}

impl Source {
    /// Reads the manifest in `folder`.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Manifest`], and the host's.
    pub fn open(folder: &Path) -> Result<Self, SnapshotError> {
        let path = folder.join(MANIFEST);
        let file = File::open(&path).map_err(failed("read", &path))?;
        let mut bytes = Vec::new();
        // One byte more than is allowed tells that there are more.
        file.take(LIMIT + 1)
            .read_to_end(&mut bytes)
            .map_err(failed("read", &path))?;
        let manifest = parse(&bytes).map_err(|source| SnapshotError::Manifest {
            path: path.clone(),
            source,
        })?;
        let path = folder.join(MEMORY);
        let memory = File::open(&path).map_err(failed("read", &path))?;
        let data = memory.metadata().map_err(failed("look at", &path))?;
        if !data.is_file() {
            return Err(failed("read", &path)(io::ErrorKind::InvalidInput.into()));
        }
        Ok(Source {
            manifest,
            path,
            memory,
        })
    }

    /// Fills `ram`, which nobody has written to yet.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::MemoryLength`], and the host's.
    pub fn read_memory(&self, ram: &GuestRam) -> Result<(), SnapshotError> {
        let data = self.memory.metadata();
        let saved = data.map_err(failed("look at", &self.path))?.len();
        let ours = memory::length(ram);
        if saved != ours {
            let path = self.path.clone();
            return Err(SnapshotError::MemoryLength { path, saved, ours });
        }
        memory::read(ram, &self.memory).map_err(failed("read", &self.path))
    }
}
