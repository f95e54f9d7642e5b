// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What changes about a disk while a guest uses it: its size, and whether writes are cached; on raw words.
//!
//! "Device configuration layout" (5.2.4), "Device Initialization" (5.2.5).

use std::fs;
use std::time::{Duration, Instant};

use hvkit_virtio_devices::block::{
    Access, Block, Capacity, Engine, Format, HostCache, Options, ResizeError,
};
use hvkit_virtio_devices::device::{Device, StateError};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::Ring;
use hvkit_virtio_devices::features::Features;

use crate::formats::qcow2;
use crate::moved::moved;
use crate::support::guest::{Bus, Guest, Memory, TRANSPORTS, Transport};
use crate::support::{header, image, pattern};

/// VIRTIO_BLK_F_RO and VIRTIO_BLK_F_CONFIG_WCE, by their numbers (5.2.3).
const RO: u64 = 1 << 5;
const CONFIG_WCE: u64 = 1 << 11;
/// VIRTIO_BLK_F_FLUSH.
const FLUSH: u64 = 1 << 9;

/// `writeback` in configuration space.
const WRITEBACK: u64 = 0x20;

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x9000;
const DATA: u64 = 0xa000;

fn disk(options: Options, transport: Transport) -> (Guest, Capacity) {
    let block = Block::open(options).unwrap();
    let capacity = block.capacity();
    (Guest::new(Box::new(block), transport), capacity)
}

/// The status byte that a request of one sector is answered with.
fn request(guest: &mut Guest, ring: &mut Ring, kind: u32, sector: u64) -> u8 {
    guest.write(HEADER, &header(kind, sector));
    guest.write(STATUS, &[0xee]);
    let data = match kind {
        1 => Readable(DATA, 512),
        _ => Writable(DATA, 512),
    };
    ring.submit(&[Readable(HEADER, 16), data, Writable(STATUS, 1)]);
    guest.run(0);
    let begun = Instant::now();
    // What goes by a ring is the host's to end.
    while ring.take().is_none() {
        assert!(begun.elapsed().as_secs() < 60, "it is not answered");
        std::thread::sleep(Duration::from_millis(1));
        guest.step();
    }
    guest.read(STATUS, 1)[0]
}

/// VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT; VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR.
const IN: u32 = 0;
const OUT: u32 = 1;
const OK: u8 = 0;
const IOERR: u8 = 1;

/// The generation, and whether the driver was told of a change since the last look.
fn told(guest: &mut Guest) -> (u64, bool) {
    match &mut guest.bus {
        Bus::Pci(driver) => {
            let generation = driver.get(driver.common, 0x15, 1);
            (generation, guest.vectors.delivered().contains(&0))
        }
        Bus::Mmio(driver) => {
            let pending = driver.get(0x060);
            driver.put(0x064, pending);
            (driver.get(0x0fc).into(), pending & 2 != 0)
        }
    }
}

#[test]
fn a_disk_that_grows_is_told_and_used() {
    for transport in TRANSPORTS {
        for cache in [HostCache::Used, HostCache::Bypassed] {
            let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let path = folder.path().join("disk.img");
            fs::write(&path, vec![1; 64 * 512]).unwrap();
            let options = Options::new(&path).with_host_cache(cache);
            let (mut guest, capacity) = disk(options, transport);
            let mut ring = guest.start(u64::MAX, &[0]).remove(0);
            let (generation, _) = told(&mut guest);
            assert_eq!(request(&mut guest, &mut ring, IN, 64), IOERR);
            assert_eq!(told(&mut guest), (generation, false));

            // Of the same length: nothing to tell.
            assert_eq!(capacity.look_again().unwrap(), 64);
            assert_eq!(told(&mut guest), (generation, false));

            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_len(0x12_0000 * 512).unwrap();
            assert_eq!(guest.config(0, 8), 64, "before anybody has looked");
            assert_eq!(capacity.look_again().unwrap(), 0x12_0000);
            assert_eq!(capacity.sectors(), 0x12_0000);
            assert_eq!(guest.config(0, 8), 0x12_0000);
            let (now, changed) = told(&mut guest);
            assert!(now != generation && changed, "{generation} {now} {changed}");
            assert_eq!(request(&mut guest, &mut ring, IN, 64), OK);
            assert_eq!(guest.read(DATA, 512), [0; 512]);
            guest.write(DATA, &[9; 512]);
            assert_eq!(request(&mut guest, &mut ring, OUT, 0x11_ffff), OK);
            assert_eq!(request(&mut guest, &mut ring, IN, 0x12_0000), IOERR);
        }
    }
}

/// I/O errors beyond the end, and nothing else: neither is the image made longer again.
#[test]
fn a_disk_that_shrinks_refuses_what_is_gone() {
    for transport in TRANSPORTS {
        for (cache, engine) in [
            (HostCache::Used, Engine::Calls),
            (HostCache::Bypassed, Engine::Calls),
            (HostCache::Bypassed, Engine::Ring),
        ] {
            let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let path = folder.path().join("disk.img");
            fs::write(&path, vec![1; 64 * 512]).unwrap();
            let options = Options::new(&path)
                .with_host_cache(cache)
                .with_engine(engine);
            let (mut guest, capacity) = disk(options, transport);
            let mut ring = guest.start(u64::MAX, &[0]).remove(0);
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_len(16 * 512).unwrap();
            assert_eq!(capacity.look_again().unwrap(), 16);
            assert_eq!(guest.config(0, 8), 16);
            assert!(told(&mut guest).1);
            for kind in [IN, OUT] {
                assert_eq!(request(&mut guest, &mut ring, kind, 16), IOERR);
                assert_eq!(request(&mut guest, &mut ring, kind, 63), IOERR);
                assert_eq!(request(&mut guest, &mut ring, kind, u64::MAX), IOERR);
            }
            assert_eq!(file.metadata().unwrap().len(), 16 * 512);
            assert_eq!(guest.status() & 0x40, 0);
        }
        // What there is still is.
        let file = image(64);
        let (mut guest, capacity) = disk(Options::new(file.path()), transport);
        let mut ring = guest.start(u64::MAX, &[0]).remove(0);
        file.as_file().set_len(16 * 512).unwrap();
        capacity.look_again().unwrap();
        assert_eq!(request(&mut guest, &mut ring, IN, 15), OK);
        assert_eq!(request(&mut guest, &mut ring, OUT, 15), OK);
    }
}

#[test]
fn lengths_that_no_disk_has_change_nothing() {
    let file = image(64);
    let (mut guest, capacity) = disk(Options::new(file.path()), Transport::Pci);
    guest.start(u64::MAX, &[0]);
    for length in [0, 1, 511, 513, 64 * 512 + 1] {
        file.as_file().set_len(length).unwrap();
        let error = capacity.look_again().unwrap_err();
        let ResizeError::Length {
            length: found,
            block: 512,
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(
            (found, capacity.sectors(), guest.config(0, 8)),
            (length, 64, 64)
        );
    }
    assert!(!told(&mut guest).1);
    // Of an image with a format of its own the length says nothing.
    let other = tempfile::NamedTempFile::new().unwrap();
    qcow2(other.path(), &pattern(0, 1 << 20), None);
    let options = Options::new(other.path()).with_format(Format::Qcow2);
    let capacity = Block::open(options).unwrap().capacity();
    assert!(matches!(
        capacity.look_again().unwrap_err(),
        ResizeError::Format
    ));
    assert_eq!(capacity.sectors(), 1 << 11);
}

/// A size that changes while no driver is there, or before it is set up, is what the next one finds.
#[test]
fn a_driver_that_comes_later_finds_the_size() {
    for transport in TRANSPORTS {
        let file = image(64);
        let (mut guest, capacity) = disk(Options::new(file.path()), transport);
        file.as_file().set_len(32 * 512).unwrap();
        capacity.look_again().unwrap();
        assert_eq!(guest.config(0, 8), 32);
        guest.start(u64::MAX, &[0]);
        guest.set_status(0);
        file.as_file().set_len(48 * 512).unwrap();
        let before = told(&mut guest);
        capacity.look_again().unwrap();
        assert_eq!(told(&mut guest), (before.0, false), "nobody is there");
        assert_eq!(guest.config(0, 8), 48);
    }
}

#[test]
fn who_may_write_may_choose_whether_writes_are_cached() {
    for transport in TRANSPORTS {
        let file = image(64);
        let plain = Options::new(file.path());
        let read_only = plain.clone().with_access(Access::ReadOnly);
        let (mut guest, _) = disk(read_only, transport);
        assert_eq!(guest.offered() & (RO | CONFIG_WCE), RO);
        assert_eq!(guest.config(WRITEBACK, 1), 0);
        drop(guest);
        let (mut guest, _) = disk(plain, transport);
        assert_eq!(guest.offered() & (RO | CONFIG_WCE), CONFIG_WCE);
        guest.start(u64::MAX, &[0]);
        assert_eq!(guest.config(WRITEBACK, 1), 1);
        guest.set_config(WRITEBACK, &[0]);
        assert_eq!(guest.config(WRITEBACK, 1), 0);
        // Its neighbours are nobody's, and a wider write reaches it.
        guest.set_config(WRITEBACK + 1, &[1]);
        guest.set_config(WRITEBACK - 1, &[1]);
        assert_eq!(guest.config(WRITEBACK, 1), 0);
        if transport == Transport::Mmio {
            guest.set_config(WRITEBACK - 1, &[0, 1, 0]);
            assert_eq!(guest.config(WRITEBACK, 1), 1);
            guest.set_config(WRITEBACK, &[0]);
        }
        // After a reset it is as it was, and so for a driver that cannot choose.
        guest.set_status(0);
        assert_eq!(guest.config(WRITEBACK, 1), 1);
        guest.start(!CONFIG_WCE, &[0]);
        guest.set_config(WRITEBACK, &[0]);
        assert_eq!(guest.config(WRITEBACK, 1), 1);
    }
}

#[test]
fn the_choice_goes_along_with_a_machine() {
    for transport in TRANSPORTS {
        for chosen in [0u8, 1] {
            let (old, new) = (image(64), image(64));
            let (mut guest, _) = disk(Options::new(old.path()), transport);
            guest.start(u64::MAX, &[0]);
            guest.set_config(WRITEBACK, &[chosen]);
            let block = Block::open(Options::new(new.path())).unwrap();
            let mut guest = moved(&mut guest, Box::new(block));
            assert_eq!(guest.config(WRITEBACK, 1), u64::from(chosen));
        }
    }
    let file = image(64);
    let mut block = Block::open(Options::new(file.path())).unwrap();
    assert!(Device::<Memory>::save(&block).unwrap().is_empty());
    let mut restore = |state: &[u8]| Device::<Memory>::restore(&mut block, state);
    for value in [1, 2, 0xff] {
        assert_eq!(restore(&[value]), Err(StateError::Content { at: 0 }));
    }
    let length = StateError::Length {
        saved: 2,
        expected: 1,
    };
    assert_eq!(restore(&[0, 0]), Err(length));
    restore(&[0]).unwrap();
    assert_eq!(Device::<Memory>::save(&block).unwrap(), [0]);
}

/// "If VIRTIO_BLK_F_CONFIG_WCE is negotiated but VIRTIO_BLK_F_FLUSH is not, the device MUST initialize writeback to 0" (5.2.5.2):
/// each time that a driver accepts features, for of the reset between two drivers the VMM that a disk is served to says nothing.
#[test]
fn who_cannot_flush_begins_without_a_cache_each_time() {
    let file = image(64);
    let mut block = Block::open(Options::new(file.path())).unwrap();
    let writeback = |block: &Block| {
        let mut raw = [0xee];
        Device::<Memory>::config_read(block, WRITEBACK, &mut raw);
        raw[0]
    };
    let choose =
        |block: &mut Block, value| Device::<Memory>::config_write(block, WRITEBACK, &[value]);
    for features in [CONFIG_WCE, CONFIG_WCE, CONFIG_WCE | 1 << 2] {
        let features = Features::from_bits_retain(features);
        Device::<Memory>::negotiated(&mut block, features);
        assert_eq!(writeback(&block), 0);
        choose(&mut block, 1);
        assert_eq!(writeback(&block), 1);
    }
    // Of who can flush, what was chosen stays.
    let both = Features::from_bits_retain(CONFIG_WCE | FLUSH);
    for chosen in [0, 1] {
        Device::<Memory>::negotiated(&mut block, both);
        choose(&mut block, chosen);
        Device::<Memory>::negotiated(&mut block, both);
        assert_eq!(writeback(&block), chosen);
    }
}

/// An activation says no features that were not accepted before: it comes with each change of queues, too.
#[test]
fn what_was_chosen_stays_over_an_activation() {
    for transport in TRANSPORTS {
        let file = image(64);
        let (mut guest, _) = disk(Options::new(file.path()), transport);
        guest.negotiate(CONFIG_WCE | 1 << 32);
        assert_eq!(guest.config(WRITEBACK, 1), 0);
        guest.set_config(WRITEBACK, &[1]);
        guest.place(0, [0x1_0000, 0x1_1000, 0x1_2000]);
        assert_eq!(guest.set_status(0xf), 0xf);
        assert_eq!(guest.config(WRITEBACK, 1), 1);
    }
}
