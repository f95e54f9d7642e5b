// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images that are not raw, and files around which the host keeps no cache. The qcow2 images are made and read here by
//! hand, from QEMU's "The QCOW2 image format".

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hvkit_virtio_devices::block::{
    Access, Backing, Block, Engine, Format, HostCache, Metadata, OpenError, Options,
};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use tempfile::{TempDir, tempdir};

use crate::support::{Machine, header, pattern};

pub(crate) const CLUSTER: u64 = 1 << 16;
const COPIED: u64 = 1 << 63;
/// Where the parts of our images are, in clusters: header, first level, reference counts' table and block, second
/// level, and the first cluster of data.
const L1: u64 = 1;
const COUNTS: u64 = 2;
const BLOCK: u64 = 3;
const L2: u64 = 4;
const FIRST: u64 = 5;
/// Clusters of the disk.
const CLUSTERS: u64 = 16;

/// An image whose cluster 0 has data, and whose others have none; of version 2, or of version 3 if it names a backing
/// file.
pub(crate) fn qcow2(path: &Path, data: &[u8], backing: Option<&str>) {
    let file = File::create(path).unwrap();
    let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).unwrap();
    let name = backing.unwrap_or_default();
    let mut header = Vec::new();
    header.extend(b"QFI\xfb");
    let (version, name_at) = if name.is_empty() {
        (2u32, 0u64)
    } else {
        (3, 160)
    };
    header.extend(version.to_be_bytes());
    header.extend(name_at.to_be_bytes());
    header.extend((name.len() as u32).to_be_bytes());
    header.extend(16u32.to_be_bytes());
    header.extend((CLUSTERS * CLUSTER).to_be_bytes());
    header.extend(0u32.to_be_bytes());
    header.extend(1u32.to_be_bytes());
    header.extend((L1 * CLUSTER).to_be_bytes());
    header.extend((COUNTS * CLUSTER).to_be_bytes());
    header.extend(1u32.to_be_bytes());
    header.extend(0u32.to_be_bytes());
    header.extend(0u64.to_be_bytes());
    assert_eq!(header.len(), 72);
    if version == 3 {
        // Three words of features, counts of 2^4 bits, and the header's length.
        header.extend([0; 24]);
        header.extend(4u32.to_be_bytes());
        header.extend(104u32.to_be_bytes());
    }
    put(0, &header);
    // An extension that names the backing file's format, and the end of extensions.
    if backing.is_some() {
        put(104, &0xe279_2acau32.to_be_bytes());
        put(108, &3u32.to_be_bytes());
        put(112, b"raw\0\0\0\0\0");
        put(120, &[0; 8]);
    }
    put(name_at.max(160), name.as_bytes());
    put(L1 * CLUSTER, &((L2 * CLUSTER) | COPIED).to_be_bytes());
    put(COUNTS * CLUSTER, &(BLOCK * CLUSTER).to_be_bytes());
    for cluster in 0..=FIRST {
        put(BLOCK * CLUSTER + 2 * cluster, &1u16.to_be_bytes());
    }
    put(L2 * CLUSTER, &((FIRST * CLUSTER) | COPIED).to_be_bytes());
    put(FIRST * CLUSTER, data);
    file.set_len((FIRST + 1) * CLUSTER).unwrap();
}

/// What the image says that the disk's cluster holds: nothing, or a cluster of the file.
fn cluster(path: &Path, index: u64) -> Option<Vec<u8>> {
    let file = fs::read(path).unwrap();
    let word = |at: u64| {
        let at = at as usize;
        u64::from_be_bytes(file[at..at + 8].try_into().unwrap())
    };
    let host = |entry: u64| entry & 0x00ff_ffff_ffff_fe00;
    let l2 = host(word(host(word(40))));
    let data = host(word(l2 + 8 * index)) as usize;
    (data != 0).then(|| file[data..data + CLUSTER as usize].to_vec())
}

struct Disk {
    machine: Machine,
    ring: hvkit_virtio_devices::fake::Ring,
}

impl Disk {
    fn new(options: Options) -> Self {
        let mut machine = Machine::with_disk(options);
        let ring = machine.start(u64::MAX);
        Self { machine, ring }
    }

    /// A request with `data` either way; its status.
    fn request(&mut self, kind: u32, sector: u64, length: u32, data: &[u8]) -> u8 {
        self.machine.write(0x8000, &header(kind, sector));
        self.machine.write(0x9000, &[0xee]);
        if !data.is_empty() {
            self.machine.write(0x1_0000, data);
        }
        let buffer = match data.is_empty() {
            true => Writable(0x1_0000, length),
            false => Readable(0x1_0000, data.len() as u32),
        };
        self.ring
            .submit(&[Readable(0x8000, 16), buffer, Writable(0x9000, 1)]);
        self.machine.run();
        assert!(self.ring.take().is_some());
        self.machine.read(0x9000, 1)[0]
    }

    fn read(&mut self, sector: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.request(0, sector, length, &[]), 0);
        self.machine.read(0x1_0000, length as usize)
    }

    fn write(&mut self, sector: u64, data: &[u8]) {
        assert_eq!(self.request(1, sector, 0, data), 0);
    }

    fn flush(&mut self) {
        assert_eq!(self.request(4, 0, 0, &[]), 0);
    }

    /// A discard or write-zeroes request of one segment.
    fn hole(&mut self, kind: u32, sector: u64, count: u32, flags: u32) -> u8 {
        let mut segment = sector.to_le_bytes().to_vec();
        segment.extend(count.to_le_bytes());
        segment.extend(flags.to_le_bytes());
        self.request(kind, 0, 0, &segment)
    }
}

fn image(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("disk.qcow2");
    qcow2(&path, &pattern(0, CLUSTER), None);
    path
}

#[test]
fn a_qcow2_disk_is_what_its_tables_say() {
    let folder = tempdir().unwrap();
    let path = image(&folder);
    let options = Options::new(&path).with_format(Format::Qcow2);
    let mut disk = Disk::new(options);
    // Its capacity is the header's, not the file's.
    let device = disk.machine.driver.device;
    assert_eq!(
        disk.machine.driver.get(device, 0, 8),
        CLUSTERS * CLUSTER / 512
    );
    assert_eq!(disk.read(5, 1024), pattern(5 * 512, 1024));
    // The end of what has data, and what has none.
    assert_eq!(
        disk.read(127, 1024),
        [pattern(127 * 512, 512), vec![0; 512]].concat()
    );
    // A part of a cluster that has no data yet, over 256 KiB of clusters, and one that has.
    let data: Vec<u8> = (0..0x5_0000u32).map(|i| (i * 7 % 253) as u8).collect();
    disk.write(3 * 128 + 1, &data);
    disk.write(1, &[0x77; 512]);
    assert_eq!(disk.read(3 * 128 + 1, 0x5_0000), data);
    disk.flush();
    let third = cluster(&path, 3).unwrap();
    assert_eq!(third[..512], [0; 512]);
    assert_eq!(third[512..], data[..0xfe00]);
    assert_eq!(cluster(&path, 4).unwrap(), data[0xfe00..0x1_fe00]);
    assert_eq!(cluster(&path, 0).unwrap()[512..1024], [0x77; 512]);
    assert_eq!(cluster(&path, 9), None);
    // A discard of whole clusters, and zeros that stay.
    assert_eq!(disk.hole(11, 4 * 128, 128, 0), 0);
    assert_eq!(disk.hole(13, 2, 3, 0), 0);
    disk.flush();
    assert_eq!(disk.read(4 * 128, 0x1_0000), vec![0; 0x1_0000]);
    assert_eq!(disk.read(1, 2560)[512..2048], [0; 1536]);
    assert_eq!(disk.read(5, 512), pattern(5 * 512, 512));
    // Behind the end is an error, not a larger image.
    assert_eq!(disk.request(1, CLUSTERS * 128, 0, &[1; 512]), 1);
}

/// The file as it is at this moment, as whoever opens it finds it after the process that has it open was killed.
fn as_it_is(path: &Path) -> PathBuf {
    let now = path.with_extension("now");
    fs::copy(path, &now).unwrap();
    now
}

#[test]
fn what_was_completed_outlives_the_process_if_that_was_asked() {
    let folder = tempdir().unwrap();
    let path = image(&folder);
    let options = Options::new(&path).with_format(Format::Qcow2);
    let mut disk = Disk::new(options.with_metadata(Metadata::WrittenThrough));
    let data: Vec<u8> = (0..CLUSTER).map(|i| (i % 241) as u8).collect();
    // Clusters that have no data yet, one of them in part; no flush follows.
    disk.write(3 * 128, &data);
    disk.write(7 * 128 + 5, &data[..512]);
    let now = as_it_is(&path);
    assert_eq!(cluster(&now, 3).unwrap(), data);
    assert_eq!(cluster(&now, 7).unwrap()[5 * 512..6 * 512], data[..512]);
    // Their references are counted: the next one does not give them away.
    let mut next = Disk::new(Options::new(&now).with_format(Format::Qcow2));
    next.write(9 * 128, &[0x99; CLUSTER as usize]);
    assert_eq!(next.read(3 * 128, CLUSTER as u32), data);
    assert_eq!(next.read(7 * 128 + 5, 512), data[..512]);
    drop(next);
    // Holes too: of whole clusters, given back.
    assert_eq!(disk.hole(11, 3 * 128, 128, 0), 0);
    assert_eq!(disk.hole(13, 7 * 128, 128, 0), 0);
    let mut next = Disk::new(Options::new(as_it_is(&path)).with_format(Format::Qcow2));
    for gone in [3, 7] {
        assert_eq!(
            next.read(gone * 128, CLUSTER as u32),
            vec![0; CLUSTER as usize],
            "{gone}"
        );
    }
}

#[test]
fn a_disk_that_is_saved_is_in_its_file() {
    let folder = tempdir().unwrap();
    let path = image(&folder);
    let mut disk = Disk::new(Options::new(&path).with_format(Format::Qcow2));
    disk.write(3 * 128, &[0x33; CLUSTER as usize]);
    disk.machine.driver.function.pause();
    disk.machine.driver.function.save().unwrap();
    let now = as_it_is(&path);
    assert_eq!(cluster(&now, 3).unwrap(), [0x33; CLUSTER as usize]);
}

#[test]
fn a_read_only_qcow2_is_not_written() {
    let folder = tempdir().unwrap();
    let path = image(&folder);
    let before = fs::read(&path).unwrap();
    let options = Options::new(&path)
        .with_format(Format::Qcow2)
        .with_access(Access::ReadOnly);
    let mut disk = Disk::new(options);
    assert_eq!(disk.read(0, 512), pattern(0, 512));
    assert_eq!(disk.request(1, 0, 0, &[1; 512]), 1);
    drop(disk);
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_format_is_never_guessed() {
    let folder = tempdir().unwrap();
    let path = image(&folder);
    // A qcow2 image taken as raw is its own bytes.
    let mut disk = Disk::new(Options::new(&path));
    assert_eq!(disk.read(0, 512)[..4], *b"QFI\xfb");
    drop(disk);
    // And a raw one is no qcow2, nor is one that is cut off.
    for length in [512, 1 << 20] {
        let raw = folder.path().join("raw");
        fs::write(&raw, pattern(0, length)).unwrap();
        let error = Block::open(Options::new(&raw).with_format(Format::Qcow2)).unwrap_err();
        assert!(
            error.to_string().contains("raw: not a qcow2 image: "),
            "{error}"
        );
    }
    let error = Block::open(
        Options::new(&path)
            .with_format(Format::Qcow2)
            .with_queues(0),
    );
    assert!(matches!(error, Err(OpenError::Queues { count: 0 })));
}

#[test]
fn another_file_is_opened_only_if_that_is_allowed() {
    let folder = tempdir().unwrap();
    let base = folder.path().join("base.img");
    let below: Vec<u8> = pattern(0, CLUSTERS * CLUSTER)
        .iter()
        .map(|byte| !byte)
        .collect();
    fs::write(&base, &below).unwrap();
    let path = folder.path().join("disk.qcow2");
    // By a name that is relative to the image's folder.
    qcow2(&path, &pattern(0, CLUSTER), Some("base.img"));
    let options = Options::new(&path).with_format(Format::Qcow2);
    let error = Block::open(options.clone()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("disk.qcow2: the image names another file, ")
            && error.to_string().contains("base.img"),
        "{error}"
    );
    let mut disk = Disk::new(options.clone().with_backing(Backing::Allowed));
    assert_eq!(disk.read(0, 512), pattern(0, 512));
    assert_eq!(disk.read(7 * 128, 512), below[7 << 16..][..512]);
    // A write of a part copies the rest, and the file below stays as it is.
    disk.write(7 * 128 + 1, &[0x55; 512]);
    disk.flush();
    assert_eq!(cluster(&path, 7).unwrap()[..512], below[7 << 16..][..512]);
    assert_eq!(cluster(&path, 7).unwrap()[512..1024], [0x55; 512]);
    drop(disk);
    assert_eq!(fs::read(&base).unwrap(), below);
    // One that is not there, a folder, and an image that names itself, without end.
    for name in ["absent.img", "."] {
        qcow2(&path, &[0; 512], Some(name));
        let error = Block::open(options.clone().with_backing(Backing::Allowed)).unwrap_err();
        let named = folder.path().join(name);
        assert!(
            error.to_string().starts_with(named.to_str().unwrap()),
            "{error}"
        );
    }
    // A format that is none, and no format at all.
    qcow2(&path, &[0; 512], Some("base.img"));
    let file = File::options().write(true).open(&path).unwrap();
    for (format, said) in [(*b"vmdk", "vmdk"), (*b"\xe2\x79\x2a\xca", "nothing")] {
        match said {
            "nothing" => file.write_all_at(&[0; 16], 104).unwrap(),
            _ => {
                file.write_all_at(&4u32.to_be_bytes(), 108).unwrap();
                file.write_all_at(&format, 112).unwrap();
            }
        }
        let error = Block::open(options.clone().with_backing(Backing::Allowed)).unwrap_err();
        let expected =
            format!("base.img: an image is built on it and says that its format is {said}");
        assert!(error.to_string().contains(&expected), "{error}");
    }
    qcow2(&path, &[0; 512], Some("disk.qcow2"));
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&5u32.to_be_bytes(), 108).unwrap();
    file.write_all_at(b"qcow2\0\0\0", 112).unwrap();
    let error = Block::open(options.with_backing(Backing::Allowed)).unwrap_err();
    // Who has it open to write has locked it. To be read, it can be opened many times, but not without end.
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    let options = Options::new(&path).with_format(Format::Qcow2);
    let options = options
        .with_access(Access::ReadOnly)
        .with_backing(Backing::Allowed);
    let error = Block::open(options).unwrap_err();
    assert!(matches!(error, OpenError::NamesAnother { .. }), "{error}");
}

#[test]
fn a_file_without_the_host_s_cache_is_the_same_disk() {
    // Not where other temporary files are: that may be memory, which has no other cache.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("disk.img");
    let mut model = pattern(0, 1 << 20);
    fs::write(&path, &model).unwrap();
    let options = Options::new(&path)
        .with_host_cache(HostCache::Bypassed)
        .with_engine(Engine::Calls);
    let mut disk = match Block::open(options.clone()) {
        Ok(block) => {
            drop(block);
            Disk::new(options)
        }
        Err(error) => {
            // A file system without O_DIRECT: that much must be said.
            assert!(
                error.to_string().contains("cannot bypass its cache"),
                "{error}"
            );
            return;
        }
    };
    for (sector, length) in [(0, 512u32), (1, 512), (7, 1024), (8, 4096), (3, 0x4_0600)] {
        let at = sector as usize * 512;
        assert_eq!(disk.read(sector, length), model[at..at + length as usize]);
        let data = vec![sector as u8 + 1; length as usize];
        disk.write(sector, &data);
        model[at..at + length as usize].copy_from_slice(&data);
    }
    assert_eq!(disk.hole(13, 9, 14, 0), 0);
    model[9 * 512..23 * 512].fill(0);
    disk.flush();
    assert_eq!(fs::read(&path).unwrap(), model);
    // A last sector that is alone.
    disk.write(2047, &[9; 512]);
    model[2047 * 512..].fill(9);
    assert_eq!(fs::read(&path).unwrap(), model);
}
