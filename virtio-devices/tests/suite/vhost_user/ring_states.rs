// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When our back end serves a ring, by "Ring states" of the vhost-user protocol: in raw words.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use hvkit_virtio_devices::balloon::{self, Balloon};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::Ring;
use hvkit_virtio_devices::reclaim::{Reclaim, ReclaimError};
use hvkit_virtio_devices::vhost_user::back_end;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::ours::{serve, serve_device};
use super::{DATA, HEADER, PATIENCE, STATUS, shared_memory};
use crate::support::guest::Memory;
use crate::support::{header, image, pattern};

const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;
/// Where the VMM has the guest's memory.
const THEIRS: u64 = 1 << 40;
const SIZE: u16 = 16;

/// A front end in raw words.
struct Raw {
    socket: UnixStream,
    memory: Memory,
}

impl Raw {
    /// One that has accepted `features`, and told where memory is.
    fn new(socket: UnixStream, features: u64) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let memory = shared_memory();
        let mut raw = Self { socket, memory };
        raw.send(3, &[], &[]);
        raw.send(2, &features.to_ne_bytes(), &[]);
        let (mut table, mut files) = (vec![2u64], Vec::new());
        let memory = raw.memory.clone();
        for region in memory.iter() {
            let start = region.start_addr().0;
            let file = region.file_offset().unwrap();
            table.extend([start, region.len(), THEIRS + start, file.start()]);
            files.push(file.file().as_raw_fd());
        }
        let table: Vec<_> = table.into_iter().flat_map(u64::to_ne_bytes).collect();
        raw.send(5, &table, &files);
        raw
    }

    fn send(&mut self, request: u32, payload: &[u8], files: &[RawFd]) {
        let head = [request, 1, payload.len() as u32].map(u32::to_ne_bytes);
        let message = [&head.concat()[..], payload].concat();
        self.socket.send_with_fds(&[&message[..1]], files).unwrap();
        self.socket.write_all(&message[1..]).unwrap();
    }

    /// A question, and what comes behind the head of the answer.
    fn ask(&mut self, request: u32, payload: &[u8]) -> Vec<u8> {
        self.send(request, payload, &[]);
        let mut head = [0; 12];
        self.socket.read_exact(&mut head).unwrap();
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (request, 5));
        let mut answer = vec![0; word(8) as usize];
        self.socket.read_exact(&mut answer).unwrap();
        answer
    }

    fn state(&mut self, request: u32, queue: u32, value: u32) {
        let state = [queue, value].map(u32::to_ne_bytes).concat();
        self.send(request, &state, &[]);
    }

    /// SET_VRING_NUM, _BASE, _ADDR and _KICK of queue 0, which goes on at `base`.
    fn start(&mut self, ring: &Ring, base: u32, kick: &EventFd) {
        self.state(8, 0, SIZE.into());
        self.state(10, 0, base);
        let at = |address: u64| THEIRS + address;
        let place = [0, at(ring.table), at(ring.used), at(ring.available), 0];
        self.send(9, &place.map(u64::to_ne_bytes).concat(), &[]);
        self.send(12, &0u64.to_ne_bytes(), &[kick.as_raw_fd()]);
    }

    /// SET_VRING_ENABLE.
    fn enable(&mut self, value: u32) {
        self.state(18, 0, value);
    }

    /// GET_VRING_BASE of queue 0.
    fn stop(&mut self) -> u32 {
        let answer = self.ask(11, &[0; 8]);
        assert_eq!(answer[..4], [0; 4]);
        u32::from_ne_bytes(answer[4..].try_into().unwrap())
    }

    /// Reads `sector` of a disk by queue 0.
    fn submit(&self, ring: &mut Ring, sector: u64) {
        let asked = header(0, sector);
        let write = |bytes: &[u8], to| self.memory.write_slice(bytes, GuestAddress(to)).unwrap();
        write(&asked, HEADER);
        write(&[0xee], STATUS);
        ring.submit(&[
            Readable(HEADER, 16),
            Writable(DATA, 512),
            Writable(STATUS, 1),
        ]);
    }

    fn data(&self) -> Vec<u8> {
        let mut data = vec![0; 512];
        let at = GuestAddress(DATA);
        self.memory.read_slice(&mut data, at).unwrap();
        data
    }
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn answered(ring: &mut Ring) {
    let end = Instant::now() + PATIENCE;
    while ring.take().is_none() {
        assert!(Instant::now() < end, "no answer");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Without VHOST_USER_F_PROTOCOL_FEATURES a ring begins enabled, with it disabled.
#[test]
fn a_ring_is_enabled_from_the_start_if_nobody_would_enable_it() {
    let image = image(64);
    let (socket, serving) = serve(&image);
    let mut raw = Raw::new(socket, VERSION_1);
    let mut ring = Ring::new(raw.memory.clone(), 0x1_0000, SIZE);
    let kick = event();
    raw.start(&ring, 0, &kick);
    raw.submit(&mut ring, 3);
    kick.write(1).unwrap();
    answered(&mut ring);
    assert_eq!(raw.data(), pattern(3 * 512, 512));
    assert_eq!(raw.stop(), 1);
    // Said again, it changes nothing.
    raw.send(2, &VERSION_1.to_ne_bytes(), &[]);
    raw.start(&ring, 1, &kick);
    raw.submit(&mut ring, 4);
    kick.write(1).unwrap();
    answered(&mut ring);
    assert_eq!(raw.stop(), 2);
    // From now on the VMM enables them.
    let both = VERSION_1 | PROTOCOL_FEATURES;
    raw.send(2, &both.to_ne_bytes(), &[]);
    raw.start(&ring, 2, &kick);
    raw.submit(&mut ring, 5);
    kick.write(1).unwrap();
    // An answer to something else says that all before it was heard.
    raw.ask(1, &[]);
    thread::sleep(Duration::from_millis(50));
    assert!(ring.take().is_none(), "served, and not enabled");
    raw.enable(1);
    raw.send(2, &both.to_ne_bytes(), &[]);
    answered(&mut ring);
    assert_eq!(raw.data(), pattern(5 * 512, 512));
    drop(raw);
    assert_eq!(serving.join().unwrap(), "hung up; ");
}

/// What can never be finished is not waited for: a chain in which there is no room for a status.
#[test]
fn a_queue_that_has_failed_is_not_waited_for() {
    let image = image(64);
    let (socket, serving) = serve(&image);
    let mut raw = Raw::new(socket, VERSION_1 | PROTOCOL_FEATURES);
    // Notes for one queue of 16: 16 bytes, and 16 for each descriptor, to a multiple of 64.
    let file = tempfile::tempfile().unwrap();
    file.set_len(320).unwrap();
    let mut about = [320u64, 0].map(u64::to_ne_bytes).concat();
    about.extend([1, SIZE, 0, 0].map(u16::to_ne_bytes).concat());
    raw.send(32, &about, &[file.as_raw_fd()]);
    let mut ring = Ring::new(raw.memory.clone(), 0x1_0000, SIZE);
    let [kick, error] = [(); 2].map(|()| event());
    raw.send(14, &0u64.to_ne_bytes(), &[error.as_raw_fd()]);
    raw.start(&ring, 0, &kick);
    raw.enable(1);
    ring.submit(&[Readable(HEADER, 16)]);
    kick.write(1).unwrap();
    let end = Instant::now() + PATIENCE;
    while error.read().is_err() {
        assert!(Instant::now() < end, "nobody is told");
        thread::sleep(Duration::from_millis(1));
    }
    let asked = Instant::now();
    raw.stop();
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    drop(raw);
    let said = serving.join().unwrap();
    assert!(said.contains("has no room for an answer"), "{said}");
}

#[derive(Debug)]
struct Nothing;

impl Reclaim for Nothing {
    fn reclaim(&self, _address: u64, _length: u64) -> Result<(), ReclaimError> {
        Ok(())
    }
}

/// What a driver has set is its device's also while too few of the queues run: VHOST_USER_SET_CONFIG is 25, _GET_CONFIG 24.
#[test]
fn what_a_driver_has_set_stays() {
    let balloon = Balloon::new(balloon::Options::new(), std::sync::Arc::new(Nothing));
    let balloon: Box<dyn Device<back_end::Memory>> = Box::new(balloon.unwrap());
    let (socket, serving) = serve_device(balloon);
    let mut raw = Raw::new(socket, VERSION_1 | PROTOCOL_FEATURES);
    // `actual` is at 4 (5.5.4).
    let about = [4u32, 4, 0].map(u32::to_ne_bytes).concat();
    raw.send(25, &[&about[..], &7u32.to_le_bytes()].concat(), &[]);
    let ring = Ring::new(raw.memory.clone(), 0x1_0000, SIZE);
    raw.start(&ring, 0, &event());
    // It needs another queue, too.
    raw.enable(1);
    raw.enable(0);
    let read = raw.ask(24, &[&about[..], &[0; 4]].concat());
    assert_eq!(read[12..], 7u32.to_le_bytes());
    drop(raw);
    assert_eq!(serving.join().unwrap(), "hung up; ");
}
