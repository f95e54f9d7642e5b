// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a file is the disk that the saved machine had: how long it is, and what is in some places of it.
//!
//! A whole disk is too much to read each time. So an image that was exchanged, cut, or used since is found out most of the
//! time and not always: 64 places of 4 KiB are compared, spread over all of it. Of a qcow2 image only the guest's size is: its own
//! tables may still be written when the machine ends.

use super::error::SnapshotError;
use crate::config::{Config, Disk, Format, Pmem};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Places that are looked at, and bytes of each.
const PLACES: u64 = 64;
const PLACE: u64 = 4096;

/// Where a qcow2 image has the size that the guest sees, a big-endian number. "qcow2 Image File Format", "Header".
const QCOW2_SIZE: u64 = 24;

/// What is remembered of a disk's image, or of a file that the guest has as memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskState {
    /// Bytes that the guest sees.
    pub bytes: u64,
    /// A digest of the places; none of a qcow2 image. It is a safeguard against mistakes, not against malice.
    pub digest: Option<u64>,
}

/// An image, opened while files can be.
#[derive(Debug)]
struct Image {
    path: PathBuf,
    file: File,
    size: Size,
}

/// Where the size comes from that the guest sees.
#[derive(Clone, Copy, Debug)]
enum Size {
    /// A raw image's is its length, which can be another whenever one looks.
    Length,
    /// A qcow2 image's is in its header, in bytes, and does not change while a guest has it.
    Header(u64),
}

/// The images of a machine.
#[derive(Debug, Default)]
pub struct Images(Vec<Image>);

fn failed(path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_path_buf();
    move |source| SnapshotError::File {
        action: "read",
        path,
        source,
    }
}

impl Images {
    /// Those of the disks and the persistent memory of `config`.
    ///
    /// # Errors
    ///
    /// One cannot be read.
    pub fn open(config: &Config) -> Result<Self, SnapshotError> {
        let disks = config
            .disks
            .iter()
            .map(|Disk { path, format, .. }| (path, *format));
        let pmems = config
            .pmems
            .iter()
            .map(|Pmem { path, .. }| (path, Format::Raw));
        let open =
            |(path, format): (&PathBuf, _)| Image::open(path.clone(), format).map_err(failed(path));
        disks
            .chain(pmems)
            .map(open)
            .collect::<Result<_, _>>()
            .map(Images)
    }

    /// What they are now, while nothing writes to them.
    ///
    /// # Errors
    ///
    /// One cannot be read.
    pub fn save(&self) -> Result<Vec<DiskState>, SnapshotError> {
        let state = |image: &Image| image.state().map_err(failed(&image.path));
        self.0.iter().map(state).collect()
    }

    /// Whether they are what they were.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::DiskLength`] and [`SnapshotError::DiskContent`]: the first that is not; and the host's.
    pub fn check(&self, saved: &[DiskState]) -> Result<(), SnapshotError> {
        SnapshotError::unless_same("disks", saved.len(), self.0.len())?;
        for ((image, saved), ours) in self.0.iter().zip(saved).zip(self.save()?) {
            let path = image.path.clone();
            if saved.bytes != ours.bytes {
                let (saved, ours) = (saved.bytes, ours.bytes);
                return Err(SnapshotError::DiskLength { path, saved, ours });
            }
            if saved.digest != ours.digest {
                return Err(SnapshotError::DiskContent { path });
            }
        }
        Ok(())
    }
}

impl Image {
    fn open(path: PathBuf, format: Format) -> io::Result<Self> {
        let file = File::open(&path)?;
        let size = match format {
            Format::Raw => Size::Length,
            Format::Qcow2 => {
                let mut size = [0; 8];
                file.read_exact_at(&mut size, QCOW2_SIZE)?;
                Size::Header(u64::from_be_bytes(size))
            }
        };
        Ok(Image { path, file, size })
    }

    fn state(&self) -> io::Result<DiskState> {
        match self.size {
            Size::Length => {
                // Also of a block device. It may have grown or shrunk since it was opened, and the guest with it.
                let bytes = (&self.file).seek(SeekFrom::End(0))?;
                let digest = Some(self.digest(bytes)?);
                Ok(DiskState { bytes, digest })
            }
            Size::Header(bytes) => Ok(DiskState {
                bytes,
                digest: None,
            }),
        }
    }

    /// Of the places of the file, which has so many bytes.
    fn digest(&self, bytes: u64) -> io::Result<u64> {
        let length = bytes.min(PLACE);
        let mut digest = Fnv::default();
        // Fits: it is a page at most.
        let mut place = vec![0; length as usize];
        for at in places(bytes) {
            self.file.read_exact_at(&mut place, at)?;
            digest.add(&place);
        }
        Ok(digest.0)
    }
}

/// Where a file of `bytes` is looked at: at both ends, and at equal distances between.
fn places(bytes: u64) -> impl Iterator<Item = u64> {
    let last = u128::from(bytes.saturating_sub(PLACE));
    let steps = u128::from(PLACES.saturating_sub(1)).max(1);
    (0..PLACES).map(move |step| {
        let at = last.saturating_mul(step.into()).checked_div(steps);
        at.and_then(|at| u64::try_from(at).ok()).unwrap_or(0)
    })
}

/// FNV-1a of 64 bits: the same in every build.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The vectors of FNV's authors.
    #[test]
    fn the_digest_is_fnv_1a() {
        for (text, digest) in [
            ("", 0xcbf2_9ce4_8422_2325),
            ("a", 0xaf63_dc4c_8601_ec8c),
            ("foobar", 0x8594_4171_f739_67e8),
        ] {
            let mut fnv = Fnv::default();
            fnv.add(text.as_bytes());
            assert_eq!(fnv.0, digest, "{text}");
        }
    }

    #[test]
    fn places_are_inside_and_reach_both_ends() {
        for bytes in [0, 1, 4096, 4097, 1 << 20, u64::MAX] {
            let places: Vec<_> = places(bytes).collect();
            assert_eq!(places.len(), 64);
            let last = bytes.saturating_sub(4096);
            assert_eq!((places[0], places[63]), (0, last));
            assert!(places.is_sorted());
        }
    }

    fn images(path: &Path, format: Format) -> Images {
        let disk = Disk {
            format,
            ..Disk::new(path.into())
        };
        let config = Config {
            disks: vec![disk],
            ..Config::new("k".into())
        };
        Images::open(&config).unwrap()
    }

    #[test]
    fn another_image_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let content: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
        fs::write(&path, &content).unwrap();
        let saved = images(&path, Format::Raw).save().unwrap();
        let line = || {
            let checked = images(&path, Format::Raw).check(&saved);
            checked.map_or_else(|error| error.to_string(), |()| "the same".to_owned())
        };
        assert_eq!(line(), "the same");
        let name = path.display();
        fs::write(&path, &content[..512]).unwrap();
        assert_eq!(
            line(),
            format!("--restore: {name} has 512 bytes, and had 1048576 when the machine was saved")
        );
        for at in [0, 4095, (1 << 20) - 1, (1 << 20) - 4096] {
            let mut other = content.clone();
            other[at] ^= 1;
            fs::write(&path, other).unwrap();
            assert_eq!(
                line(),
                format!("--restore: {name} is not what it was when the machine was saved"),
                "{at}"
            );
        }
        let none = Images::default().check(&saved).unwrap_err().to_string();
        assert!(none.contains("saved with 1 disks, and the options say 0"));
        assert!(
            Images::open(&Config {
                disks: vec![Disk::new(folder.path().join("none"))],
                ..Config::new("k".into())
            })
            .is_err()
        );
    }

    /// As after the line `resize` at a disk's socket.
    #[test]
    fn a_disk_is_saved_as_long_as_it_is_by_then() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let of_the_start = images(&path, Format::Raw);
        let file = File::options().write(true).open(&path).unwrap();
        for bytes in [3 << 20, 1 << 16, 512] {
            file.set_len(bytes).unwrap();
            let saved = of_the_start.save().unwrap();
            assert_eq!(saved[0].bytes, bytes);
            images(&path, Format::Raw).check(&saved).unwrap();
            // It is its end that was looked at, too.
            let at = bytes - 1;
            let mut last = [0];
            file_at(&path).read_exact_at(&mut last, at).unwrap();
            file.write_all_at(&[!last[0]], at).unwrap();
            let error = images(&path, Format::Raw).check(&saved).unwrap_err();
            assert!(
                matches!(error, SnapshotError::DiskContent { .. }),
                "{error}"
            );
            file.write_all_at(&last, at).unwrap();
        }
    }

    fn file_at(path: &Path) -> File {
        File::open(path).unwrap()
    }

    #[test]
    fn of_qcow2_the_guests_size_is_compared() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let mut header = vec![0; 512];
        header[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        fs::write(&path, &header).unwrap();
        let saved = images(&path, Format::Qcow2).save().unwrap();
        let (bytes, digest) = (1 << 30, None);
        assert_eq!(saved, [DiskState { bytes, digest }]);
        // Its own tables are not the guest's.
        header[100] = 7;
        fs::write(&path, &header).unwrap();
        images(&path, Format::Qcow2).check(&saved).unwrap();
        header[24] = 1;
        fs::write(&path, &header).unwrap();
        let error = images(&path, Format::Qcow2).check(&saved).unwrap_err();
        assert!(matches!(error, SnapshotError::DiskLength { .. }));
    }
}
