// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The folder that a machine is saved to, opened before the VMM gives up its files; and the one that it comes from.

use super::error::SnapshotError;
use super::manifest::{LIMIT, Manifest, parse};
use super::memory;
use crate::machine::memory::GuestRam;
use rustix::fs::{FlockOperation, flock, fstat};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
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

/// A file that was made, and is removed again unless it is kept.
struct Made<'a>(Option<&'a Path>);

impl Made<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            // Where that is not possible, an empty file stays, which the next machine takes.
            let _ = fs::remove_file(path);
        }
    }
}

/// Opens the file at `path`, or makes it, so that none but the user may read it; and what removes it if it was made.
fn open_or_make(path: &Path) -> Result<(File, Made<'_>), SnapshotError> {
    let mut options = File::options();
    let options = options.write(true).truncate(false).mode(0o600);
    let (opened, made) = match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            (options.create(true).open(path), None)
        }
        opened => (opened, Some(path)),
    };
    let file = opened.map_err(failed("write", path))?;
    Ok((file, Made(made)))
}

/// How often the manifest is looked for again, because who had it before removed it between our opening and locking it.
const ATTEMPTS: u32 = 1000;

/// The manifest of `folder`, opened or made, which is this process's now, and what removes it if it was made. The lock goes
/// with the file, however we end.
fn take<'a>(at: &'a Path, folder: &Path) -> Result<(File, Made<'a>), SnapshotError> {
    for _ in 0..ATTEMPTS {
        let (manifest, made) = open_or_make(at)?;
        match flock(&manifest, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if leads_to(at, &manifest).map_err(failed("look at", at))? => {
                return Ok((manifest, made));
            }
            // What is locked has no name any more, and what may be at its place is not ours to remove.
            Ok(()) => made.keep(),
            Err(Errno::WOULDBLOCK) => {
                // Also if another was between our making it and now.
                made.keep();
                break;
            }
            Err(error) => return Err(failed("lock", folder)(error.into())),
        }
    }
    let path = folder.to_path_buf();
    Err(SnapshotError::InUse { path })
}

/// Whether `path` is a name of `file`.
fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether somebody removed `file`: it has no name in any folder. It asks by `fstat`, which a process may that gave up
/// its files, and not by a path.
fn is_removed(file: &File) -> io::Result<bool> {
    Ok(fstat(file)?.st_nlink == 0)
}

/// Has the names in a folder be on stable storage.
fn sync_names(folder: &File) -> io::Result<()> {
    match folder.sync_all() {
        // fsync(2), "ERRORS": a file system that has nothing to write for a folder.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

/// Where a machine may be saved. Its files are removed with it, unless one was.
#[derive(Debug)]
pub struct Destination {
    folder: PathBuf,
    /// The folder, and the one that it is in if that can be opened: it may be new there.
    names: Vec<File>,
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
        let length = |file: &File| {
            let data = file.metadata().map_err(failed("look at", folder))?;
            Ok::<_, SnapshotError>(data.len())
        };
        let path = || folder.to_path_buf();
        let mut names = vec![File::open(folder).map_err(failed("read", folder))?];
        names.extend(File::open(folder.join("..")));
        let manifest_at = folder.join(MANIFEST);
        let (manifest, made_manifest) = take(&manifest_at, folder)?;
        if length(&manifest)? > 0 {
            return Err(SnapshotError::Taken { path: path() });
        }
        let memory_at = folder.join(MEMORY);
        let (memory, made_memory) = open_or_make(&memory_at)?;
        if length(&memory)? > 0 {
            let path = memory_at.clone();
            return Err(SnapshotError::Foreign { path });
        }
        made_manifest.keep();
        made_memory.keep();
        Ok(Destination {
            folder: folder.to_path_buf(),
            names,
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

    /// Writes a machine, its manifest last. All of it is on stable storage when this returns; its devices' files are
    /// others' business.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Removed`]: somebody removed a file of the folder, so that nobody could find what is written to it;
    /// and the host's. Nothing of what was written stays, for the storage may be full of it; it may be tried again.
    pub fn save(&mut self, manifest: &Manifest, ram: &GuestRam) -> Result<(), SnapshotError> {
        let saved = self.write(manifest, ram);
        self.saved = saved.is_ok();
        if saved.is_err() {
            // Half a manifest is none. Where that fails, too, it is no JSON, and refused for that; and memory without a
            // manifest is no machine.
            let _ = self.manifest.set_len(0);
            let _ = self.memory.set_len(0);
        }
        saved
    }

    /// Whether what is written has a name. A folder that was given another name has it still.
    fn check_names(&self) -> Result<(), SnapshotError> {
        for (file, name) in self.files() {
            let path = self.folder.join(name);
            if is_removed(file).map_err(failed("look at", &path))? {
                return Err(SnapshotError::Removed { path });
            }
        }
        Ok(())
    }

    /// The memory is first, and the manifest, whose lock is on both, is last.
    fn files(&self) -> [(&File, &'static str); 2] {
        [(&self.memory, MEMORY), (&self.manifest, MANIFEST)]
    }

    fn write(&self, manifest: &Manifest, ram: &GuestRam) -> Result<(), SnapshotError> {
        // Before all of the memory is written in vain.
        self.check_names()?;
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
        written.map_err(failed("write", &self.folder.join(MANIFEST)))?;
        let mut names = self.names.iter();
        names
            .try_for_each(sync_names)
            .map_err(failed("write", &self.folder))?;
        self.check_names()
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if !self.saved {
            // In this order: who makes another manifest must not find memory that is removed right after. And what is at the
            // place of a file that was removed is another's.
            for (file, name) in self.files() {
                if !is_removed(file).unwrap_or(false) {
                    // Where that is not possible, an empty file stays, which the next machine takes.
                    let _ = fs::remove_file(self.folder.join(name));
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{ChipsetState, Controllers, Description, VERSION};
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::time::{Duration, Instant};
    use tempfile::tempdir;
    use vm_memory::{Bytes, GuestAddress};

    fn ram() -> GuestRam {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        ram.write_slice(&[7; 4096], GuestAddress(0x8000)).unwrap();
        ram
    }

    fn manifest() -> Manifest {
        Manifest {
            version: VERSION,
            machine: Description {
                memory: 1 << 20,
                processors: 0,
                address_bits: 40,
                features: Vec::new(),
            },
            processors: Vec::new(),
            clock: Default::default(),
            interrupts: Controllers::Kvm(Default::default()),
            chipset: ChipsetState::default(),
            units: Vec::new(),
            serial: None,
            watchdog: None,
            disks: Vec::new(),
            devices: Vec::new(),
        }
    }

    fn lengths(folder: &Path) -> [u64; 2] {
        [MANIFEST, MEMORY].map(|name| folder.join(name).metadata().unwrap().len())
    }

    #[test]
    fn what_was_not_saved_takes_no_room_and_may_be_tried_again() {
        let folder = tempdir().unwrap();
        let at = folder.path();
        let mut to = Destination::create(at).unwrap();
        // A manifest that cannot be written, when all of the memory was.
        let writable = std::mem::replace(&mut to.manifest, File::open(at.join(MANIFEST)).unwrap());
        let error = to.save(&manifest(), &ram()).unwrap_err().to_string();
        assert!(error.contains(MANIFEST), "{error}");
        assert_eq!(lengths(at), [0, 0]);
        to.manifest = writable;
        // Memory that can be made long, and not be written.
        let sealed = memfd_create("memory", MemfdFlags::ALLOW_SEALING).unwrap();
        fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
        let sealed = File::from(sealed);
        let writable = std::mem::replace(&mut to.memory, sealed.try_clone().unwrap());
        to.save(&manifest(), &ram()).unwrap_err();
        assert_eq!(sealed.metadata().unwrap().len(), 0);
        assert_eq!(lengths(at), [0, 0]);
        to.memory = writable;
        // Names that cannot be: the manifest was there already.
        let names = std::mem::replace(&mut to.names, vec![memory_only()]);
        to.save(&manifest(), &ram()).unwrap_err();
        assert_eq!(lengths(at), [0, 0]);
        to.names = names;

        to.save(&manifest(), &ram()).unwrap();
        drop(to);
        assert_eq!(lengths(at)[1], 1 << 20);
        assert!(Source::open(at).is_ok());
    }

    #[test]
    fn what_is_written_to_a_file_that_was_removed_is_no_snapshot() {
        for removed in [&[MANIFEST, MEMORY][..], &[MANIFEST], &[MEMORY]] {
            let folder = tempdir().unwrap();
            let at = folder.path();
            let mut to = Destination::create(at).unwrap();
            for name in removed {
                fs::remove_file(at.join(name)).unwrap();
            }
            let error = to.save(&manifest(), &ram()).unwrap_err();
            assert!(matches!(error, SnapshotError::Removed { .. }), "{error}");
            let line = error.to_string();
            assert!(line.contains("was removed while"), "{line}");
            // Another machine may have the folder now, and its files are not removed with this one.
            let _ = fs::remove_file(at.join(MANIFEST));
            let _ = fs::remove_file(at.join(MEMORY));
            let mut other = Destination::create(at).unwrap();
            drop(to);
            other.save(&manifest(), &ram()).unwrap();
            assert!(Source::open(at).is_ok());
        }
    }

    #[test]
    fn a_file_that_is_removed_between_its_opening_and_its_lock_is_not_taken() {
        let folder = tempdir().unwrap();
        let at = folder.path();
        let tries = || {
            let (mut taken, mut tried, begun) = (0, 0, Instant::now());
            // Whom the others leave no turn has it when they are done.
            while tried < 3000 || taken == 0 && begun.elapsed() < Duration::from_secs(60) {
                tried += 1;
                match Destination::create(at) {
                    Ok(to) => {
                        taken += 1;
                        for (file, name) in to.files() {
                            assert!(leads_to(&at.join(name), file).unwrap(), "{name}");
                        }
                    }
                    Err(SnapshotError::InUse { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            taken
        };
        let taken = std::thread::scope(|scope| {
            let threads = [(); 3].map(|()| scope.spawn(tries));
            threads.map(|thread| thread.join().unwrap())
        });
        assert!(taken.into_iter().all(|times| times > 0), "{taken:?}");
        assert_eq!(fs::read_dir(at).unwrap().count(), 0);
    }

    /// What has no storage and says so otherwise than by [`io::ErrorKind::InvalidInput`]: a descriptor of a path alone.
    fn memory_only() -> File {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        File::from(rustix::fs::open("/", flags, rustix::fs::Mode::empty()).unwrap())
    }

    #[test]
    fn a_start_that_fails_leaves_a_folder_as_it_was() {
        let folder = tempdir().unwrap();
        let at = folder.path();
        fs::write(at.join(MEMORY), "of the years at sea").unwrap();
        let error = Destination::create(at).unwrap_err();
        assert!(matches!(error, SnapshotError::Foreign { .. }), "{error}");
        assert!(!at.join(MANIFEST).exists());
        // Where the other file cannot be had at all.
        fs::remove_file(at.join(MEMORY)).unwrap();
        fs::create_dir(at.join(MEMORY)).unwrap();
        Destination::create(at).unwrap_err();
        assert!(!at.join(MANIFEST).exists());
        fs::remove_dir(at.join(MEMORY)).unwrap();
        // What was there is not removed, empty as it is.
        fs::write(at.join(MANIFEST), "").unwrap();
        fs::write(at.join(MEMORY), "x").unwrap();
        Destination::create(at).unwrap_err();
        assert!(at.join(MANIFEST).exists());
    }
}
