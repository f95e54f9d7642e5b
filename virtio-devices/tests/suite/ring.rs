// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk whose requests go by an io_uring: many under way, whatever order they end in, and a driver that does not wait.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hvkit_virtio_devices::block::{Block, HostCache, NoRing, Options};
use hvkit_virtio_devices::fake::{Buffer, ByHand, Driver, Ring, Used, Vectors};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::worker::Threads;
use tempfile::TempDir;

use crate::support::{Machine, header, memory, pattern};

use Buffer::{Readable, Writable};

const ALL: u64 = u64::MAX;
/// VIRTIO_BLK_F_FLUSH.
const FLUSH_BIT: u64 = 1 << 9;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;

const OK: u8 = 0;
const IOERR: u8 = 1;

const HEADERS: u64 = 0x8000;
const STATUSES: u64 = 0xa000;
const DATA: u64 = 0x2_0000;

/// An image of 2,048 sectors, not where other temporary files are: that may be memory, which has no other cache.
/// `None`: this host has no rings for it, and the test is skipped.
fn disk() -> Option<(TempDir, PathBuf, Options)> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("disk.img");
    fs::write(&path, pattern(0, 1 << 20)).unwrap();
    let options = Options::new(&path).with_host_cache(HostCache::Bypassed);
    let refused = match Block::open(options.clone()) {
        Ok(block) => block.no_ring().map(ToString::to_string),
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = refused {
        lab_kit::skip::skip(&format!("no io_uring here: {why}"));
        return None;
    }
    Some((folder, path, options))
}

/// Makes one request available; its header and status are at that place among the others.
fn submit(
    machine: &mut Machine,
    ring: &mut Ring,
    place: u64,
    kind: u32,
    sector: u64,
    data: &[Buffer],
) -> u32 {
    let (head, status) = (HEADERS + 16 * place, STATUSES + place);
    machine.write(head, &header(kind, sector));
    machine.write(status, &[0xee]);
    let mut buffers = vec![Readable(head, 16)];
    buffers.extend_from_slice(data);
    buffers.push(Writable(status, 1));
    ring.submit(&buffers).into()
}

/// What is used, once that many are: a host that never ends is a failure, in a minute.
fn used(machine: &mut Machine, ring: &mut Ring, count: usize) -> Vec<Used> {
    machine.driver.kick(0);
    let start = Instant::now();
    let mut all = vec![];
    while all.len() < count {
        assert!(start.elapsed() < Duration::from_secs(60), "{all:?}");
        assert!(machine.workers.step(100) < 100, "no rest");
        all.extend(std::iter::from_fn(|| ring.take()));
        thread::yield_now();
    }
    all
}

fn status(machine: &Machine, place: u64) -> u8 {
    machine.read(STATUSES + place, 1)[0]
}

#[test]
fn many_at_once_read_and_write_where_they_are_told() {
    let Some((_folder, path, options)) = disk() else {
        return;
    };
    let mut model = pattern(0, 1 << 20);
    let mut machine = Machine::with_disk(options);
    let mut ring = machine.start(ALL);
    // More than fit a ring at once; every other one is written. None touches another's sectors.
    const COUNT: u64 = 80;
    let mut heads = vec![];
    for place in 0..COUNT {
        let (sector, at) = (place * 20 + 1, DATA + place * 0x1000);
        let (kind, data) = if place % 2 == 0 {
            let data = vec![place as u8 + 1; 1024];
            machine.write(at, &data);
            model[sector as usize * 512..][..1024].copy_from_slice(&data);
            (OUT, [Readable(at, 1024)])
        } else {
            (IN, [Writable(at, 1024)])
        };
        heads.push(submit(&mut machine, &mut ring, place, kind, sector, &data));
    }
    let mut all = used(&mut machine, &mut ring, heads.len());
    assert_eq!(ring.take(), None, "answered twice");
    all.sort_by_key(|used| heads.iter().position(|head| *head == used.head));
    for (place, used) in (0..).zip(all) {
        assert_eq!(used.head, heads[place as usize]);
        assert_eq!(used.length, if place % 2 == 0 { 1 } else { 1025 });
        assert_eq!(status(&machine, place), OK);
        if place % 2 == 1 {
            let (from, at) = ((place as usize * 20 + 1) * 512, DATA + place * 0x1000);
            let read = machine.read(at, 1024);
            assert_eq!(read, model[from..from + 1024], "request {place}");
        }
    }
    submit(&mut machine, &mut ring, 0, FLUSH, 0, &[]);
    used(&mut machine, &mut ring, 1);
    assert_eq!(status(&machine, 0), OK);
    assert_eq!(fs::read(&path).unwrap(), model);
}

#[test]
fn what_a_ring_does_not_do_is_done_beside_it() {
    let Some((_folder, path, options)) = disk() else {
        return;
    };
    let mut model = pattern(0, 1 << 20);
    let mut machine = Machine::with_disk(options.with_serial("ring"));
    let mut ring = machine.start(ALL);
    // Larger than any buffer of the ring's.
    const LARGE: u32 = 0x8_0000;
    machine.write(DATA, &[0x5a; LARGE as usize]);
    model[..LARGE as usize].fill(0x5a);
    let hole = [u128::from(1500u64) | 10 << 64].map(u128::to_le_bytes);
    machine.write(0x1_0000, &hole[0]);
    model[1500 * 512..1510 * 512].fill(0);
    submit(&mut machine, &mut ring, 0, OUT, 0, &[Readable(DATA, LARGE)]);
    submit(
        &mut machine,
        &mut ring,
        1,
        GET_ID,
        0,
        &[Writable(0x1_1000, 20)],
    );
    submit(
        &mut machine,
        &mut ring,
        2,
        DISCARD,
        0,
        &[Readable(0x1_0000, 16)],
    );
    submit(&mut machine, &mut ring, 3, IN, 5, &[]);
    used(&mut machine, &mut ring, 4);
    assert_eq!([0, 1, 2, 3].map(|place| status(&machine, place)), [OK; 4]);
    assert_eq!(machine.read(0x1_1000, 5), b"ring\0");
    assert_eq!(fs::read(&path).unwrap(), model);
}

#[test]
fn errors_are_of_the_request_and_the_host_s_are_told() {
    let Some((_folder, path, options)) = disk() else {
        return;
    };
    let mut machine = Machine::with_disk(options);
    let mut ring = machine.start(ALL);
    // Beyond the disk; part of a sector; from where there is no memory; to where there is none.
    let nowhere = 0x7000_0000;
    submit(
        &mut machine,
        &mut ring,
        0,
        IN,
        2047,
        &[Writable(DATA, 1024)],
    );
    submit(&mut machine, &mut ring, 1, OUT, 0, &[Readable(DATA, 100)]);
    submit(
        &mut machine,
        &mut ring,
        2,
        OUT,
        0,
        &[Readable(nowhere, 512)],
    );
    submit(&mut machine, &mut ring, 3, IN, 0, &[Writable(nowhere, 512)]);
    // And one that somebody has cut off under the disk.
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 19)
        .unwrap();
    submit(&mut machine, &mut ring, 4, IN, 2000, &[Writable(DATA, 512)]);
    submit(&mut machine, &mut ring, 5, IN, 1, &[Writable(DATA, 512)]);
    used(&mut machine, &mut ring, 6);
    let said = [0, 1, 2, 3, 4, 5].map(|place| status(&machine, place));
    assert_eq!(said, [IOERR, IOERR, IOERR, IOERR, IOERR, OK]);
    assert_eq!(machine.read(DATA, 512), pattern(512, 512));
}

/// A driver that cannot ask for a flush: each write is on stable storage when it is answered, and none is lost on the way
/// there.
#[test]
fn a_driver_that_cannot_flush_has_each_write_flushed() {
    let Some((_folder, path, options)) = disk() else {
        return;
    };
    let mut machine = Machine::with_disk(options);
    let mut ring = machine.start(ALL & !FLUSH_BIT);
    // In pieces that lie apart, and so is what is read.
    machine.write(DATA, &[7; 100]);
    machine.write(DATA + 0x400, &[8; 412]);
    let pieces = [Readable(DATA, 100), Readable(DATA + 0x400, 412)];
    submit(&mut machine, &mut ring, 0, OUT, 3, &pieces);
    used(&mut machine, &mut ring, 1);
    assert_eq!(status(&machine, 0), OK);
    let mut read = [0; 512];
    let file = File::open(&path).unwrap();
    file.read_exact_at(&mut read, 3 * 512).unwrap();
    assert_eq!((&read[..100], &read[100..]), (&[7; 100][..], &[8; 412][..]));
    let pieces = [Writable(DATA + 0x800, 500), Writable(DATA + 0xc00, 12)];
    submit(&mut machine, &mut ring, 0, IN, 3, &pieces);
    used(&mut machine, &mut ring, 1);
    assert_eq!(machine.read(DATA + 0x800, 500), read[..500]);
    assert_eq!(machine.read(DATA + 0xc00, 12), read[500..]);
}

/// The driver resets while writes are under way: when the reset is done, none of them comes any more, guest memory is
/// not touched again, and the same ring serves the next driver.
#[test]
fn a_reset_waits_for_what_is_under_way() {
    let Some((_folder, path, options)) = disk() else {
        return;
    };
    let mut machine = Machine::with_disk(options);
    for round in 1..=20u8 {
        let mut ring = machine.start(ALL);
        machine.write(DATA, &[round; 0x1_0000]);
        for place in 0..40 {
            let (kind, data) = match place % 2 {
                0 => (OUT, Readable(DATA, 4096)),
                _ => (IN, Writable(DATA + 0x2_0000, 4096)),
            };
            submit(&mut machine, &mut ring, place, kind, place * 8, &[data]);
        }
        machine.driver.kick(0);
        // One look, which starts them; then the reset, whatever has become of them.
        machine.workers.step(1);
        assert_eq!(machine.driver.set_status(0), 0);
        let before = fs::read(&path).unwrap();
        machine.write(0, &vec![0xc3; 0x10_0000]);
        for place in (0..40).step_by(2) {
            // In full or not at all begun; what was begun is over.
            let there = &before[place * 4096..][..4096];
            assert!(
                there.iter().all(|byte| *byte == there[0]),
                "request {place}"
            );
        }
        thread::sleep(Duration::from_millis(5));
        assert_eq!(machine.read(0, 0x10_0000), vec![0xc3; 0x10_0000]);
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}

/// The same by a thread, which waits for the driver and the ring at once, and is stopped in the middle.
#[test]
fn a_thread_serves_a_ring_and_stops_when_it_is_asked() {
    let Some((_folder, path, options)) = disk() else {
        return;
    };
    let memory = memory();
    let vectors = Arc::new(Vectors::default());
    let spawn = |name, body| thread::Builder::new().name(name).spawn(body).map(drop);
    let function = VirtioPci::new(
        Box::new(Block::open(options).unwrap()),
        Arc::clone(&memory),
        vectors.clone(),
        Box::new(Threads::new(spawn)),
    );
    let mut machine = Machine {
        memory,
        vectors,
        // Nobody's.
        workers: ByHand::default(),
        driver: Driver::probe(function.unwrap()),
    };
    for round in 1..=5u8 {
        let mut ring = machine.start(ALL);
        machine.write(DATA, &[round; 4096]);
        // One at a time: each wakes the thread twice, for the driver and for the ring.
        for place in 0..8 {
            let data = [Readable(DATA, 4096)];
            submit(&mut machine, &mut ring, place, OUT, place * 8, &data);
            used(&mut machine, &mut ring, 1);
            assert_eq!(status(&machine, place), OK);
        }
        assert_eq!(fs::read(&path).unwrap()[..0x8000], [round; 0x8000]);
        for place in 0..40 {
            let data = [Readable(DATA, 4096)];
            submit(&mut machine, &mut ring, place, OUT, 64 + place * 8, &data);
        }
        machine.driver.kick(0);
        let start = Instant::now();
        machine.driver.set_status(0);
        while machine.driver.status() != 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "never reset");
        }
    }
}

#[test]
fn who_uses_the_host_s_cache_needs_no_ring() {
    let image = crate::support::image(8);
    let block = Block::open(Options::new(image.path())).unwrap();
    assert!(matches!(block.no_ring(), Some(NoRing::Cached)));
}
