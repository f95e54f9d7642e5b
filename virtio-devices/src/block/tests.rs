// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When writes are put on stable storage, seen from the storage.

#[cfg(feature = "vhost-user")]
mod served;

use std::io;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::bounce::Bounced;
use super::image::Image;
use super::transfer::Hole;
use super::{Block, Options};
use crate::device::{Device, StateError};
use crate::fake::Buffer::{Readable, Writable};
use crate::fake::{ByHand, Driver, Vectors};
use crate::transport::pci::VirtioPci;

/// VIRTIO_BLK_F_FLUSH and VIRTIO_BLK_F_CONFIG_WCE, by their numbers (5.2.3).
const FLUSH: u64 = 1 << 9;
const CONFIG_WCE: u64 = 1 << 11;

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x9000;
const DATA: u64 = 0xa000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Written,
    Holed,
    Flushed,
}

/// Storage that only remembers what was done.
#[derive(Clone, Debug, Default)]
struct Ledger(Arc<Mutex<Vec<Done>>>);

impl Ledger {
    fn note(&self, done: Done) -> io::Result<()> {
        self.0.lock().unwrap().push(done);
        Ok(())
    }
}

impl Bounced for Ledger {
    fn read(&self, _offset: u64, _buffer: &mut [u8]) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _offset: u64, _buffer: &[u8]) -> io::Result<()> {
        self.note(Done::Written)
    }

    fn flush(&self) -> io::Result<()> {
        self.note(Done::Flushed)
    }

    fn hole(&self, _offset: u64, _length: u64, _kind: Hole) -> io::Result<()> {
        self.note(Done::Holed)
    }
}

/// Storage that is full.
#[derive(Debug)]
struct Full;

impl Bounced for Full {
    fn read(&self, _offset: u64, _buffer: &mut [u8]) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _offset: u64, _buffer: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn hole(&self, _offset: u64, _length: u64, _kind: Hole) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_disk_is_saved_only_with_what_was_written() {
    type Memory = Arc<GuestMemoryMmap<()>>;
    let of = |store: Box<dyn Bounced>| Block::over(Image::of(store, 64), Options::new("store"));
    let ledger = Ledger::default();
    let block = of(Box::new(ledger.clone()));
    assert_eq!(Device::<Memory>::save(&block), Ok(Vec::new()));
    assert_eq!(*ledger.0.lock().unwrap(), [Done::Flushed]);
    let kind = io::ErrorKind::StorageFull;
    let saved = Device::<Memory>::save(&of(Box::new(Full)));
    assert_eq!(saved, Err(StateError::Storage { kind }));
}

/// What is done for a request of this type, from a driver that has accepted `features` and then written this to
/// `writeback`; and what it reads there before.
fn done(features: u64, writes: &[u64], kind: u32, data: &[u8]) -> (u64, Vec<Done>) {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]);
    let memory = Arc::new(memory.unwrap());
    let ledger = Ledger::default();
    let block = Block::over(
        Image::of(Box::new(ledger.clone()), 64),
        Options::new("ledger"),
    );
    let (workers, vectors) = (ByHand::default(), Arc::new(Vectors::default()));
    let runner = Box::new(workers.clone());
    let function = VirtioPci::new(Box::new(block), Arc::clone(&memory), vectors, runner);
    let mut driver = Driver::probe(function.unwrap());
    driver.negotiate(features);
    let device = driver.device;
    let found = driver.get(device, 0x20, 1);
    let mut ring = driver.queue(0, &memory, 0x1000, 16);
    assert_eq!(driver.set_status(0xf), 0xf);
    for value in writes {
        driver.put(device, 0x20, 1, *value);
    }
    let head = u128::from(kind).to_le_bytes();
    memory.write_slice(&head, GuestAddress(HEADER)).unwrap();
    memory.write_slice(data, GuestAddress(DATA)).unwrap();
    let data = Readable(DATA, data.len() as u32);
    ring.submit(&[Readable(HEADER, 16), data, Writable(STATUS, 1)]);
    driver.kick(0);
    workers.step(10);
    assert_eq!(ring.take().unwrap().length, 1);
    let mut status = [0xee];
    memory
        .read_slice(&mut status, GuestAddress(STATUS))
        .unwrap();
    assert_eq!(status, [0]);
    let done = ledger.0.lock().unwrap().clone();
    (found, done)
}

/// "Device Operation" (5.2.6.2): when a write that is completed is stable.
#[test]
fn a_write_is_on_stable_storage_when_the_specification_says() {
    use Done::{Flushed, Holed, Written};
    let neither = !(FLUSH | CONFIG_WCE);
    // Features, what is written to `writeback`; what is found there; whether each write is flushed.
    type Case<'a> = (u64, &'a [u64], u64, bool);
    let cases: [Case<'_>; 13] = [
        (neither, &[], 1, true),
        (neither, &[1], 1, true),
        (!CONFIG_WCE, &[], 1, false),
        // Who has not accepted the feature cannot choose.
        (!CONFIG_WCE, &[0], 1, false),
        (u64::MAX, &[], 1, false),
        (u64::MAX, &[0], 1, true),
        (u64::MAX, &[0, 1], 1, false),
        (u64::MAX, &[1, 0], 1, true),
        // No value of the field.
        (u64::MAX, &[2], 1, false),
        (u64::MAX, &[0, 0xff], 1, true),
        // "MUST initialize writeback to 0" (5.2.5.2).
        (!FLUSH, &[], 0, true),
        (!FLUSH, &[0], 0, true),
        (!FLUSH, &[1], 0, false),
    ];
    for (features, writes, found, flushed) in cases {
        let flush = flushed.then_some(Flushed);
        let expected = |first| (found, [first].into_iter().chain(flush).collect::<Vec<_>>());
        // VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES of one sector.
        let out = done(features, writes, 1, &[7; 512]);
        assert_eq!(out, expected(Written), "{features:#x} {writes:?}");
        let zeroes = done(features, writes, 13, &(1u128 << 64).to_le_bytes());
        assert_eq!(zeroes, expected(Holed), "{features:#x} {writes:?}");
    }
}
