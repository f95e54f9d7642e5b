// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Persistent memory, by the words of "PMEM Device" (5.19).

use std::os::unix::fs::FileExt;

use hvkit_virtio_devices::block::{Block, Options};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::pmem::{Backing, Pmem, PmemError, Writes};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::support::END;
use crate::support::guest::{Guest, TRANSPORTS, Transport};

const PLACE: u64 = 0x1_2000_0000;

fn file(length: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(length).unwrap();
    file
}

#[test]
fn the_driver_finds_where_it_is_and_has_it_written_out() {
    for transport in TRANSPORTS {
        let file = file(4 << 20);
        let backing = Backing::open(file.path(), Writes::Kept).unwrap();
        let pmem = Pmem::new(backing, PLACE).unwrap();
        let counters = pmem.counters().clone();
        let mut guest = Guest::new(Box::new(pmem), transport);
        assert_eq!((guest.config(0, 8), guest.config(8, 8)), (PLACE, 4 << 20));
        let mut rings = guest.start(u64::MAX, &[0]);
        guest.write(0x8000, &0u32.to_le_bytes());
        guest.write(0x9000, &[0xee; 4]);
        rings[0].submit(&[Readable(0x8000, 4), Writable(0x9000, 4)]);
        guest.run(0);
        assert_eq!(rings[0].take().unwrap().length, 4);
        assert_eq!(guest.read(0x9000, 4), [0; 4]);
        // A request that there is not, one that is cut short, one that is not in memory: -1.
        guest.write(0x8000, &1u32.to_le_bytes());
        for request in [Readable(0x8000, 4), Readable(0x8000, 3), Readable(END, 4)] {
            guest.write(0x9000, &[0xee; 4]);
            rings[0].submit(&[request, Writable(0x9000, 2), Writable(0x9002, 2)]);
            guest.run(0);
            assert_eq!(rings[0].take().unwrap().length, 4);
            assert_eq!(guest.read(0x9000, 4), [0xff; 4]);
        }
        assert_eq!(counters.read().chains, 4);
        // No room for an answer is more than a bad request.
        rings[0].submit(&[Readable(0x8000, 4), Writable(0x9000, 3)]);
        guest.run(0);
        assert_ne!(guest.status() & 0x40, 0);
    }
}

#[test]
fn what_is_written_there_is_in_the_file_or_not() {
    for (writes, expected) in [(Writes::Kept, *b"hello"), (Writes::Discarded, [0; 5])] {
        let file = file(2 << 20);
        let mapping = Backing::open(file.path(), writes).unwrap().map().unwrap();
        let region = GuestRegionMmap::new(mapping, GuestAddress(PLACE)).unwrap();
        let memory = GuestMemoryMmap::<()>::from_regions(vec![region]).unwrap();
        memory.write_slice(b"hello", GuestAddress(PLACE)).unwrap();
        let mut data = [0xee; 5];
        file.as_file().read_exact_at(&mut data, 0).unwrap();
        assert_eq!(data, expected);
    }
}

/// A disk's lock is the same: the other guest has the file as memory, or as a disk.
#[test]
fn one_guest_writes_a_file_and_several_read_it() {
    let file = file(2 << 20);
    let open = |writes| Backing::open(file.path(), writes);
    let locked = |error: PmemError| {
        let line = format!("{}: in use by another VMM", file.path().display());
        assert!(matches!(error, PmemError::Locked { .. }), "{error:?}");
        assert_eq!(error.to_string(), line);
    };
    // Held for as long as the device is there.
    let writer = Pmem::new(open(Writes::Kept).unwrap(), PLACE).unwrap();
    locked(open(Writes::Kept).unwrap_err());
    locked(open(Writes::Discarded).unwrap_err());
    Block::open(Options::new(file.path())).unwrap_err();
    drop(writer);
    let readers = [(); 2].map(|()| open(Writes::Discarded).unwrap());
    locked(open(Writes::Kept).unwrap_err());
    drop(readers);
    let disk = Block::open(Options::new(file.path())).unwrap();
    locked(open(Writes::Discarded).unwrap_err());
    drop(disk);
    open(Writes::Kept).unwrap();
}

#[test]
fn what_cannot_be_is_told_by_name() {
    let open = |path: &std::path::Path| Backing::open(path, Writes::Kept);
    let missing = open(std::path::Path::new("/nowhere/pmem")).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("/nowhere/pmem: cannot be opened")
    );
    let folder = tempfile::tempdir().unwrap();
    let directory = open(folder.path()).unwrap_err();
    assert!(
        directory.to_string().ends_with(": not a file"),
        "{directory}"
    );
    for length in [0, 4096, (2 << 20) + 1] {
        let file = file(length);
        let error = open(file.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("{length} bytes, which is not a multiple of 2 MiB"))
        );
    }
    let file = file(2 << 20);
    for address in [4096, !0x1f_ffff] {
        let backing = open(file.path()).unwrap();
        let error = Pmem::new(backing, address).unwrap_err();
        assert!(matches!(error, PmemError::Place { .. }), "{error}");
    }
    // A file that may only be read, for a guest whose writes are not kept.
    let mut permissions = file.as_file().metadata().unwrap().permissions();
    permissions.set_readonly(true);
    file.as_file().set_permissions(permissions).unwrap();
    let backing = Backing::open(file.path(), Writes::Discarded).unwrap();
    assert_eq!(backing.length(), 2 << 20);
    assert_eq!(
        Guest::new(Box::new(Pmem::new(backing, 0).unwrap()), Transport::Pci).offered() & 0xff_ffff,
        0
    );
}
