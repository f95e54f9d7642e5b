// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Our own back end: with our front end, with rust-vmm's, and with front ends that ask for nonsense.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hvkit_virtio_devices::block::{self, Block};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::Ring;
use hvkit_virtio_devices::net::{self, FrameStream, MacAddress, Net, Wire};
use hvkit_virtio_devices::vhost_user::{BackEnd, Options, back_end};
use hvkit_virtio_devices::worker::Threads;
use tempfile::NamedTempFile;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{DATA, HEADER, PATIENCE, STATUS, guest, request, shared_memory};
use crate::support::{header, image, pattern};

const ALL: u64 = u64::MAX;

/// A device of ours, served to the socket that is returned; the thread ends with how serving ended.
pub(super) fn serve_device(
    device: Box<dyn Device<back_end::Memory>>,
) -> (UnixStream, JoinHandle<String>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let threads =
        Threads::new(|name, body| thread::Builder::new().name(name).spawn(body).map(drop));
    let serving = thread::spawn(move || {
        let told = Arc::<Mutex<Vec<String>>>::default();
        let report = told.clone();
        let report =
            move |why: &dyn std::error::Error| report.lock().unwrap().push(why.to_string());
        let served = BackEnd::new(theirs, device, Box::new(threads), report);
        // Once a test waits that long, and else for somebody who answers at once.
        let served = served.unwrap().with_patience(Duration::from_secs(5));
        let served = served.run();
        let told = told.lock().unwrap().join(", ");
        served.map_or_else(|error| error.to_string(), |()| format!("hung up; {told}"))
    });
    (ours, serving)
}

/// A disk of ours, served to the socket that is returned; the thread ends with how serving ended.
pub(super) fn serve(image: &NamedTempFile) -> (UnixStream, JoinHandle<String>) {
    let options = block::Options::new(image.path()).with_queues(2);
    serve_device(Box::new(Block::open(options).unwrap()))
}

#[test]
fn our_disk_for_our_guest() {
    let image = image(128);
    let (socket, serving) = serve(&image);
    let mut guest = guest(socket, Options::block().with_queues(2));
    assert_eq!(guest.config(0, 8), 128);
    let mut rings = guest.start(ALL, &[0, 1]);
    for round in 0..70u64 {
        assert_eq!(request(&mut guest, &mut rings[0], 0, round, 1024), 0);
        assert_eq!(
            guest.read(DATA, 1024),
            pattern(round * 512, 1024),
            "{round}"
        );
        if round % 20 == 7 {
            guest.pause();
            guest.resume();
        }
    }
    guest.write(DATA, &[0xab; 512]);
    assert_eq!(request(&mut guest, &mut rings[0], 1, 5, 512), 0);
    assert_eq!(
        fs::read(image.path()).unwrap()[5 * 512..6 * 512],
        [0xab; 512]
    );
    // A reset, and the other queue alone.
    assert_eq!(guest.set_status(0), 0);
    let mut rings = guest.start(ALL, &[1]);
    guest.write(HEADER, &header(0, 5));
    rings[0].submit(&[
        Readable(HEADER, 16),
        Writable(DATA, 512),
        Writable(STATUS, 1),
    ]);
    guest.kick(1);
    super::taken(&mut guest, &mut rings[0]);
    assert_eq!(guest.read(STATUS, 1), [0]);
    assert!(guest.told.lock().unwrap().is_empty());
    drop(guest);
    assert_eq!(serving.join().unwrap(), "hung up; ");
}

#[test]
fn our_card_for_our_guest() {
    let (mut wire, theirs) = UnixStream::pair().unwrap();
    wire.set_read_timeout(Some(PATIENCE)).unwrap();
    let card = Net::new(
        net::Options::new(),
        Wire::Stream(FrameStream::new(theirs).unwrap()),
    );
    let (socket, serving) = serve_device(Box::new(card));
    let mac = MacAddress([0x52, 0x54, 0, 1, 2, 3]);
    let mut guest = guest(socket, Options::net(Some(mac), None));
    assert_eq!(
        guest.config(0, 8),
        u64::from_le_bytes([0x52, 0x54, 0, 1, 2, 3, 1, 0])
    );
    let mut rings = guest.start(ALL, &[0, 1]);
    // Out: behind a header of 12 bytes, and on the wire behind its length.
    let frame = pattern(7, 60);
    guest.write(HEADER, &[0; 12]);
    guest.write(DATA, &frame);
    rings[1].submit(&[Readable(HEADER, 12), Readable(DATA, 60)]);
    guest.kick(1);
    super::taken(&mut guest, &mut rings[1]);
    let mut came = [0; 64];
    wire.read_exact(&mut came).unwrap();
    assert_eq!(came[..4], 60u32.to_be_bytes());
    assert_eq!(came[4..], frame);
    // And in.
    rings[0].submit(&[Writable(DATA + 0x1000, 2048)]);
    guest.kick(0);
    wire.write_all(&[&100u32.to_be_bytes()[..], &pattern(9, 100)].concat())
        .unwrap();
    assert_eq!(super::taken(&mut guest, &mut rings[0]).length, 112);
    assert_eq!(guest.read(DATA + 0x1000 + 12, 100), pattern(9, 100));
    drop(guest);
    assert_eq!(serving.join().unwrap(), "hung up; ");
}

#[test]
fn our_disk_for_rust_vmms_front_end() {
    let image = image(64);
    let (socket, serving) = serve(&image);
    let mut front = Frontend::from_stream(socket, 2);
    let features = front.get_features().unwrap();
    // The protocol's, VERSION_1, RING_PACKED, IN_ORDER.
    let ours = 1 << 30 | 1 << 32 | 1 << 34 | 1 << 35;
    assert_eq!(features & ours, ours);
    front.set_owner().unwrap();
    let protocol = front.get_protocol_features().unwrap();
    assert_eq!(protocol.bits(), 0b1_0010_0010_1001);
    front
        .set_protocol_features(protocol & VhostUserProtocolFeatures::all())
        .unwrap();
    assert_eq!(front.get_queue_num().unwrap(), 2);
    let none = VhostUserConfigFlags::empty();
    let (_, config) = front.get_config(0, 8, none, &[0; 8]).unwrap();
    assert_eq!(config, 64u64.to_le_bytes());
    front.set_features(1 << 30 | 1 << 32).unwrap();
    let memory = shared_memory();
    let regions: Vec<_> = memory
        .iter()
        .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
        .collect();
    front.set_mem_table(&regions).unwrap();
    let mut ring = Ring::new(memory.clone(), 0x1_0000, 16);
    let host = |address| memory.get_host_address(GuestAddress(address)).unwrap() as u64;
    front.set_vring_num(0, 16).unwrap();
    front.set_vring_base(0, 0).unwrap();
    let place = VringConfigData {
        queue_max_size: 256,
        queue_size: 16,
        flags: 0,
        desc_table_addr: host(ring.table),
        used_ring_addr: host(ring.used),
        avail_ring_addr: host(ring.available),
        log_addr: None,
    };
    front.set_vring_addr(0, &place).unwrap();
    let (kick, call) = (
        EventFd::new(EFD_NONBLOCK).unwrap(),
        EventFd::new(EFD_NONBLOCK).unwrap(),
    );
    front.set_vring_call(0, &call).unwrap();
    front.set_vring_kick(0, &kick).unwrap();
    front.set_vring_enable(0, true).unwrap();
    memory
        .write_slice(&header(0, 3), GuestAddress(HEADER))
        .unwrap();
    ring.submit(&[
        Readable(HEADER, 16),
        Writable(DATA, 1024),
        Writable(STATUS, 1),
    ]);
    kick.write(1).unwrap();
    let end = Instant::now() + PATIENCE;
    while call.read().is_err() {
        assert!(Instant::now() < end, "no interrupt");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(ring.take().unwrap().length, 1025);
    let mut data = vec![0; 1024];
    memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
    assert_eq!(data, pattern(3 * 512, 1024));
    assert_eq!(front.get_vring_base(0).unwrap(), 1);
    drop(front);
    assert_eq!(serving.join().unwrap(), "hung up; ");
}

/// One request, with `files` files beside it: what the back end says to that.
fn ask(request: u32, flags: u32, payload: &[u8], files: usize) -> String {
    let image = image(8);
    let (mut socket, serving) = serve(&image);
    let head = [request, flags, payload.len() as u32]
        .map(u32::to_ne_bytes)
        .concat();
    let message = [&head[..], payload].concat();
    let beside = vec![image.as_file().as_raw_fd(); files];
    socket.send_with_fds(&[&message[..1]], &beside).unwrap();
    // It may have gone at the first byte.
    let _ = socket.write_all(&message[1..]);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    serving.join().unwrap()
}

#[test]
fn requests_that_make_no_sense() {
    let bytes = |words: &[u64]| {
        words
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect::<Vec<_>>()
    };
    let state = |queue: u32, value: u32| [queue, value].map(u32::to_ne_bytes).concat();
    assert_eq!(ask(1, 1, &[], 0), "hung up; ");
    for (request, payload, files) in [
        // Unknown; files that nobody needs; no features that we offer.
        (99, vec![], 0),
        (1, vec![], 1),
        (2, bytes(&[1 << 32 | 1 << 63]), 0),
        (2, vec![0; 7], 0),
        (16, bytes(&[1 << 13]), 0),
        // Notes for no queue, for more than there are, of larger queues, of no memory.
        (31, [bytes(&[0, 0]), vec![0; 8]].concat(), 0),
        (
            31,
            [bytes(&[0, 0]), vec![3, 0, 16, 0, 0, 0, 0, 0]].concat(),
            0,
        ),
        (
            31,
            [bytes(&[0, 0]), vec![1, 0, 1, 2, 0, 0, 0, 0]].concat(),
            0,
        ),
        (31, vec![0; 16], 0),
        (
            32,
            [bytes(&[1 << 40, 0]), vec![1, 0, 16, 0, 0, 0, 0, 0]].concat(),
            1,
        ),
        (
            32,
            [bytes(&[272, u64::MAX]), vec![1, 0, 16, 0, 0, 0, 0, 0]].concat(),
            1,
        ),
        (
            32,
            [bytes(&[271, 0]), vec![1, 0, 16, 0, 0, 0, 0, 0]].concat(),
            1,
        ),
        (
            32,
            [bytes(&[272, 0]), vec![1, 0, 16, 0, 0, 0, 0, 0]].concat(),
            0,
        ),
        // Memory in no file, and a file of 4 KiB that is said to be larger.
        (5, [bytes(&[1]), bytes(&[0, 0x1000, 0, 0])].concat(), 0),
        (5, [bytes(&[1]), bytes(&[0, 0x10_0000, 0, 0])].concat(), 1),
        (5, vec![], 0),
        // Queues that are not there, larger than they may be, or without memory.
        (8, state(2, 16), 0),
        (8, state(0, 512), 0),
        (8, state(u32::MAX, 16), 0),
        (10, state(0, 0x1_0000), 0),
        (9, bytes(&[0, 0, 0, 0, 0]), 0),
        (9, bytes(&[0, 0, 0]), 0),
        (11, state(7, 0), 0),
        (18, state(0, 2), 0),
        (18, state(9, 1), 0),
        // Events: none where one must be, two, another queue's, and no notifications at all.
        (12, bytes(&[0]), 0),
        (12, bytes(&[0]), 2),
        (12, bytes(&[7]), 1),
        (12, bytes(&[1 << 8]), 0),
        (13, bytes(&[1 << 40]), 1),
        (14, vec![0; 9], 1),
        // Configuration of another length than is said.
        (24, [state(0, 100), vec![0; 4], vec![0; 99]].concat(), 0),
        (24, vec![0; 11], 0),
    ] {
        let said = ask(request, 1, &payload, files);
        assert!(
            said.ends_with(&format!("of {} bytes makes no sense", payload.len())),
            "{request} {payload:x?}: {said}"
        );
    }
    for flags in [0, 2, 5] {
        assert!(ask(1, flags, &[], 0).ends_with("makes no sense"));
    }
    // Nothing is allocated at its word.
    let image = image(8);
    let (mut socket, serving) = serve(&image);
    let head = [1u32, 1, u32::MAX].map(u32::to_ne_bytes).concat();
    socket.write_all(&head).unwrap();
    assert!(
        serving
            .join()
            .unwrap()
            .ends_with("of 4294967295 bytes makes no sense")
    );
    // A queue that cannot be where it is said to be ends it when it is to start.
    let (mut socket, serving) = serve(&image);
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let kick = [12u32, 1, 8].map(u32::to_ne_bytes).concat();
    let kick = [&kick[..], &0u64.to_ne_bytes()].concat();
    let enable = [18u32, 1, 8].map(u32::to_ne_bytes).concat();
    socket
        .send_with_fds(&[&kick[..]], &[event.as_raw_fd()])
        .unwrap();
    socket
        .write_all(&[&enable[..], &state(0, 1)].concat())
        .unwrap();
    assert_eq!(
        serving.join().unwrap(),
        "the VMM's SET_VRING_ENABLE of 8 bytes makes no sense"
    );
}
