// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The socket device, by the words of "Socket Device" (5.10).

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use hvkit_virtio_devices::device::{Activation, ActiveQueue, Device, Failure, Interrupts, Trouble};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::Ring;
use hvkit_virtio_devices::features::Features;
use hvkit_virtio_devices::queue::{Position, Queue, QueueConfig};
use hvkit_virtio_devices::vsock::{Vsock, VsockError};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::moved::moved;
use crate::support::guest::{Guest, Memory, TRANSPORTS, Transport, ring_at};
use crate::support::memory;

/// Operations.
pub(crate) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// A header, field by field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Context identifier and port.
    pub(crate) from: (u64, u32),
    pub(crate) to: (u64, u32),
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) buf_alloc: u32,
    pub(crate) fwd_cnt: u32,
}

impl Packet {
    pub(crate) fn read(raw: &[u8]) -> Self {
        let field = |at: usize, length: usize| {
            let bytes = raw[at..at + length].iter().rev();
            bytes.fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        Self {
            from: (field(0, 8), field(16, 4) as u32),
            to: (field(8, 8), field(20, 4) as u32),
            len: field(24, 4) as u32,
            kind: field(28, 2) as u16,
            op: field(30, 2) as u16,
            flags: field(32, 4) as u32,
            buf_alloc: field(36, 4) as u32,
            fwd_cnt: field(40, 4) as u32,
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut raw = Vec::new();
        raw.extend(self.from.0.to_le_bytes());
        raw.extend(self.to.0.to_le_bytes());
        raw.extend(self.from.1.to_le_bytes());
        raw.extend(self.to.1.to_le_bytes());
        raw.extend(self.len.to_le_bytes());
        raw.extend(self.kind.to_le_bytes());
        raw.extend(self.op.to_le_bytes());
        raw.extend(self.flags.to_le_bytes());
        raw.extend(self.buf_alloc.to_le_bytes());
        raw.extend(self.fwd_cnt.to_le_bytes());
        raw
    }

    /// One back, of a guest with 64 KiB of room.
    pub(crate) fn answer(&self, op: u16, len: u32) -> Self {
        Self {
            from: self.to,
            to: self.from,
            len,
            op,
            kind: 1,
            flags: 0,
            buf_alloc: 0x1_0000,
            fwd_cnt: 0,
        }
    }
}

const CID: u64 = 42;
const HEADER: u64 = 0x8000;
const DATA: u64 = 0x4_0000;
/// Buffers for packets to the guest.
const PLACES: u64 = 0x10_0000;
const PLACE: u64 = 0x2000;

struct Sockets {
    guest: Guest,
    rings: Vec<Ring>,
    folder: TempDir,
    /// Buffers that the device has, by the head of their chain.
    given: Vec<(u32, u64)>,
    next: u64,
}

impl Sockets {
    fn new(transport: Transport) -> Self {
        let folder = TempDir::new().unwrap();
        let vsock = Vsock::new(CID, &folder.path().join("vsock")).unwrap();
        let mut guest = Guest::new(Box::new(vsock), transport);
        assert_eq!(guest.config(0, 8), CID);
        let rings = guest.start(u64::MAX, &[0, 1, 2]);
        let mut sockets = Self {
            guest,
            rings,
            folder,
            given: Vec::new(),
            next: 0,
        };
        for _ in 0..8 {
            sockets.give();
        }
        sockets
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn give(&mut self) {
        let place = PLACES + PLACE * (self.next % 64);
        self.next += 1;
        let head =
            self.rings[0].submit(&[Writable(place, 30), Writable(place + 30, PLACE as u32 - 30)]);
        self.given.push((head.into(), place));
    }

    fn send(&mut self, packet: Packet, data: &[u8]) {
        self.guest.write(HEADER, &packet.bytes());
        self.guest.write(DATA, data);
        self.rings[1].submit(&[Readable(HEADER, 44), Readable(DATA, data.len() as u32)]);
        self.guest.run(1);
        assert!(self.rings[1].take().is_some());
    }

    /// What came for the guest, with data.
    fn received(&mut self) -> Vec<(Packet, Vec<u8>)> {
        let mut packets = Vec::new();
        loop {
            self.guest.run(0);
            let Some(used) = self.rings[0].take() else {
                return packets;
            };
            let at = self
                .given
                .iter()
                .position(|given| given.0 == used.head)
                .unwrap();
            let (_, place) = self.given.remove(at);
            let raw = self.guest.read(place, used.length as usize);
            let packet = Packet::read(&raw);
            assert_eq!(packet.len as usize, raw.len() - 44);
            assert_eq!((packet.from.0, packet.to.0, packet.kind), (2, CID, 1));
            packets.push((packet, raw[44..].to_vec()));
            self.give();
        }
    }

    fn one(&mut self) -> (Packet, Vec<u8>) {
        let mut packets = self.received();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    /// A connection from the guest's port 1000 to the host's `port`, and its other end.
    fn connect(&mut self, port: u32) -> (Packet, UnixStream) {
        let listener = UnixListener::bind(self.path(&format!("vsock_{port}"))).unwrap();
        self.send(request(1000, port), b"");
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let (response, _) = self.one();
        assert_eq!(response.op, op::RESPONSE);
        assert_eq!((response.from.1, response.to.1), (port, 1000));
        // What we grant, and nothing taken yet.
        assert_eq!((response.buf_alloc, response.fwd_cnt), (256 << 10, 0));
        (response, stream)
    }
}

fn request(from: u32, to: u32) -> Packet {
    Packet {
        from: (CID, from),
        to: (2, to),
        len: 0,
        kind: 1,
        op: op::REQUEST,
        flags: 0,
        buf_alloc: 0x1_0000,
        fwd_cnt: 0,
    }
}

fn heard(mut stream: &UnixStream) -> Vec<u8> {
    let mut data = Vec::new();
    match stream.read_to_end(&mut data) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    data
}

#[test]
fn the_guest_connects_and_both_speak() {
    for transport in TRANSPORTS {
        let mut sockets = Sockets::new(transport);
        let (peer, mut stream) = sockets.connect(52);
        sockets.send(peer.answer(op::RW, 5), b"hello");
        assert_eq!(heard(&stream), b"hello");
        stream.write_all(b"good day").unwrap();
        let (packet, data) = sockets.one();
        assert_eq!((packet.op, &data[..]), (op::RW, &b"good day"[..]));
        // Everything that was sent has been taken.
        assert_eq!(packet.fwd_cnt, 5);
        // The guest closes: what it sent is all there, and it is told that this is the end.
        sockets.send(
            Packet {
                flags: 3,
                ..peer.answer(op::SHUTDOWN, 0)
            },
            b"",
        );
        assert_eq!(sockets.one().0.op, op::RST);
        assert_eq!((&stream).read(&mut [0; 1]).unwrap(), 0);
    }
}

#[test]
fn the_host_connects_by_a_line() {
    let mut sockets = Sockets::new(Transport::Pci);
    let mut client = UnixStream::connect(sockets.path("vsock")).unwrap();
    client.set_nonblocking(true).unwrap();
    // What follows the line at once is data.
    client.write_all(b"CONNECT 99\nearly").unwrap();
    let (asked, _) = sockets.one();
    assert_eq!((asked.op, asked.to), (op::REQUEST, (CID, 99)));
    assert_eq!(heard(&client), b"");
    sockets.send(asked.answer(op::RESPONSE, 0), b"");
    assert_eq!(heard(&client), format!("OK {}\n", asked.from.1).as_bytes());
    let (packet, data) = sockets.one();
    assert_eq!((packet.op, &data[..]), (op::RW, &b"early"[..]));
    // The guest refuses another, which sees its end.
    let mut other = UnixStream::connect(sockets.path("vsock")).unwrap();
    other.write_all(b"CONNECT 98\n").unwrap();
    let (asked, _) = sockets.one();
    sockets.send(asked.answer(op::RST, 0), b"");
    assert_eq!(other.read(&mut [0; 1]).unwrap(), 0);
    // And who says something else is not served.
    let mut rude = UnixStream::connect(sockets.path("vsock")).unwrap();
    rude.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(sockets.received().is_empty());
    let end = rude.read(&mut [0; 1]);
    assert!(
        matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    );
}

#[test]
fn a_direction_can_be_closed_alone() {
    let mut sockets = Sockets::new(Transport::Mmio);
    let (peer, mut stream) = sockets.connect(1);
    // The host has no more to say: VIRTIO_VSOCK_SHUTDOWN_F_SEND.
    stream.write_all(b"last").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let packets = sockets.received();
    let ops: Vec<_> = packets.iter().map(|(p, _)| (p.op, p.flags)).collect();
    assert_eq!(ops, [(op::RW, 0), (op::SHUTDOWN, 2)]);
    // The guest still has.
    sockets.send(peer.answer(op::RW, 3), b"and");
    sockets.send(
        Packet {
            flags: 2,
            ..peer.answer(op::SHUTDOWN, 0)
        },
        b"",
    );
    let mut all = Vec::new();
    stream.set_nonblocking(false).unwrap();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"and");
}

#[test]
fn an_end_that_is_gone_is_told() {
    let mut sockets = Sockets::new(Transport::Pci);
    let (peer, stream) = sockets.connect(1);
    drop(stream);
    let (packet, _) = sockets.one();
    assert_eq!((packet.op, packet.flags), (op::SHUTDOWN, 3));
    // From then on there is no such connection.
    sockets.send(peer.answer(op::RW, 3), b"and");
    assert_eq!(sockets.one().0.op, op::RST);
    sockets.send(peer.answer(op::RST, 0), b"");
    assert!(sockets.received().is_empty());
}

#[test]
fn nobody_sends_more_than_there_is_room_for() {
    let mut sockets = Sockets::new(Transport::Pci);
    let (peer, mut stream) = sockets.connect(1);
    // The guest has room for 64 KiB, of which the host sends all and no more.
    let data: Vec<u8> = (0..0x1_8000u32).map(|i| i as u8).collect();
    let mut sent = 0;
    let mut got = Vec::new();
    let mut asks = 0;
    while got.len() < 0x1_0000 {
        if sent < data.len() {
            sent += stream.write(&data[sent..]).unwrap_or(0);
        }
        for (packet, bytes) in sockets.received() {
            asks += usize::from(packet.op == op::CREDIT_REQUEST);
            got.extend(bytes);
        }
    }
    assert_eq!(got, data[..0x1_0000]);
    for (packet, bytes) in sockets.received() {
        asks += usize::from(packet.op == op::CREDIT_REQUEST);
        assert!(bytes.is_empty());
    }
    // It asks once, and goes on when there is room.
    assert_eq!(asks, 1);
    assert!(sockets.received().is_empty());
    stream.write_all(&data[sent..]).unwrap();
    let update = Packet {
        fwd_cnt: 0x1_0000,
        ..peer.answer(op::CREDIT_UPDATE, 0)
    };
    sockets.send(update, b"");
    let rest: Vec<u8> = sockets.received().into_iter().flat_map(|p| p.1).collect();
    assert_eq!(rest, data[0x1_0000..]);
}

#[test]
fn what_the_host_does_not_take_waits_and_is_bounded() {
    let mut sockets = Sockets::new(Transport::Pci);
    let (peer, stream) = sockets.connect(1);
    let part = vec![0x77; 0x1_0000];
    // Until the socket of the host is full, and then 256 KiB more.
    let mut total = 0usize;
    let mut refused = false;
    for _ in 0..64 {
        sockets.send(peer.answer(op::RW, part.len() as u32), &part);
        let packets = sockets.received();
        if packets.iter().any(|(packet, _)| packet.op == op::RST) {
            refused = true;
            break;
        }
        total += part.len();
    }
    assert!(refused, "no end to what a guest may send");
    assert!(total >= 256 << 10);
    // And one that keeps to it loses nothing.
    drop(stream);
    let mut sockets = Sockets::new(Transport::Pci);
    let (peer, stream) = sockets.connect(1);
    let (mut sent, mut taken, mut heard_bytes) = (0u32, 0u32, 0usize);
    for _ in 0..200 {
        if sent.wrapping_sub(taken) + 0x1_0000 <= 256 << 10 {
            sockets.send(peer.answer(op::RW, 0x1_0000), &part);
            sent += 0x1_0000;
        } else {
            heard_bytes += heard(&stream).len();
        }
        for (packet, _) in sockets.received() {
            assert_ne!(packet.op, op::RST);
            taken = packet.fwd_cnt;
        }
    }
    for _ in 0..10 {
        heard_bytes += heard(&stream).len();
        sockets.received();
    }
    assert_eq!(heard_bytes, sent as usize);
    assert!(sent > 4 << 20);
}

#[test]
fn what_is_nobody_s_is_answered_so() {
    let mut sockets = Sockets::new(Transport::Pci);
    // No listener there.
    sockets.send(request(1000, 7), b"");
    assert_eq!(sockets.one().0.op, op::RST);
    // No such connection, no such operation, no such type.
    for op in [
        op::RW,
        op::SHUTDOWN,
        op::CREDIT_UPDATE,
        op::CREDIT_REQUEST,
        op::RESPONSE,
        0,
        99,
    ] {
        sockets.send(
            Packet {
                op,
                ..request(1, 1)
            },
            b"",
        );
        assert_eq!(sockets.one().0.op, op::RST, "{op}");
    }
    let seqpacket = Packet {
        kind: 2,
        ..request(1, 1)
    };
    sockets.guest.write(HEADER, &seqpacket.bytes());
    sockets.rings[1].submit(&[Readable(HEADER, 44)]);
    sockets.guest.run(1);
    let used = sockets.rings[0].take().unwrap();
    let place = sockets
        .given
        .iter()
        .find(|given| given.0 == used.head)
        .unwrap()
        .1;
    let answer = Packet::read(&sockets.guest.read(place, 44));
    assert_eq!((answer.op, answer.kind), (op::RST, 2));
    // Another's name, another's address, half a header: nothing at all.
    let foreign = Packet {
        from: (CID + 1, 1),
        ..request(1, 1)
    };
    let elsewhere = Packet {
        to: (3, 1),
        ..request(1, 1)
    };
    sockets.rings[1].take();
    for packet in [foreign, elsewhere] {
        sockets.send(packet, b"");
    }
    sockets.rings[1].submit(&[Readable(HEADER, 43)]);
    sockets.guest.run(1);
    assert_eq!(sockets.rings[0].take(), None);
}

#[test]
fn a_guest_that_does_not_listen_is_not_listened_to() {
    let mut sockets = Sockets::new(Transport::Pci);
    let mut taken = 0;
    for _ in 0..40 {
        for _ in 0..16 {
            sockets.guest.write(HEADER, &request(1, 1).bytes());
            sockets.rings[1].submit(&[Readable(HEADER, 44)]);
        }
        sockets.guest.run(1);
        while sockets.rings[1].take().is_some() {
            taken += 1;
        }
        if taken % 16 != 0 {
            break;
        }
    }
    // 8 buffers, and 256 answers that wait.
    assert_eq!(taken, 264);
    // When it takes them, it goes on.
    let mut answers = 0;
    for _ in 0..8 {
        answers += sockets.received().len();
    }
    assert!(answers >= 264, "{answers}");
    assert!(sockets.rings[1].take().is_some());
}

#[test]
fn a_socket_that_cannot_be_is_told_by_name() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("s");
    for cid in [0, 1, 2, 0xffff_ffff, 1 << 40] {
        let error = Vsock::new(cid, &path).unwrap_err();
        assert!(
            error.to_string().contains("from 3 to 4294967294"),
            "{error}"
        );
    }
    let error = Vsock::new(3, &folder.path().join("no/s")).unwrap_err();
    assert!(error.to_string().contains("no/s: cannot listen"), "{error}");
    let first = Vsock::new(3, &path).unwrap();
    let error = Vsock::new(4, &path).unwrap_err();
    assert!(matches!(error, VsockError::InUse { .. }), "{error}");
    drop(first);
    assert!(!path.exists());
    // One that was left behind is replaced; what is no socket never is.
    drop(UnixListener::bind(&path).unwrap());
    drop(Vsock::new(3, &path).unwrap());
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(
        Vsock::new(3, &path),
        Err(VsockError::InUse { .. })
    ));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

/// What a guest has ended is forgotten whole, also that there was something to say about it.
#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let mut sockets = Sockets::new(Transport::Pci);
    // Its buffers are used up first, by answers to what nobody listens for.
    for port in 0..8 {
        sockets.send(request(1000, port), b"");
    }
    let listener = UnixListener::bind(sockets.path("vsock_7000")).unwrap();
    let rst = Packet {
        op: op::RST,
        ..request(1000, 7000)
    };
    sockets.guest.write(HEADER, &request(1000, 7000).bytes());
    sockets.guest.write(DATA, &rst.bytes());
    for _ in 0..3000 {
        for packet in [HEADER, DATA] {
            sockets.rings[1].submit(&[Readable(packet, 44)]);
        }
        sockets.guest.run(1);
        for _ in 0..2 {
            assert!(sockets.rings[1].take().is_some());
        }
        listener.accept().unwrap();
    }
    while sockets.rings[0].take().is_some() {}
    // With room at last, there is nothing to look through.
    sockets.give();
    sockets.guest.kick(0);
    let rounds = sockets.guest.workers.step(1000);
    assert!(rounds <= 2, "{rounds} rounds for nothing");
    assert_eq!(sockets.rings[0].take(), None);
}

/// "avail_event" (2.7.10): behind the 64 elements of the used ring.
#[test]
fn the_driver_is_asked_to_tell_of_its_next_buffer_for_an_event() {
    for transport in TRANSPORTS {
        let folder = TempDir::new().unwrap();
        let vsock = |name: &str| Box::new(Vsock::new(CID, &folder.path().join(name)).unwrap());
        let mut guest = Guest::new(vsock("a"), transport);
        let mut rings = guest.start(u64::MAX, &[0, 1, 2]);
        let event = &mut rings[2];
        let avail_event = event.used + 4 + 8 * 64;
        event.submit(&[Writable(DATA, 4)]);
        let mut guest = moved(&mut guest, vsock("b"));
        guest.run(2);
        assert!(event.take().is_some());
        // The next reset has no buffer to be told in: the driver is to say when there is one.
        let mut guest = moved(&mut guest, vsock("c"));
        guest.step();
        assert_eq!(guest.read(avail_event, 2), [1, 0]);
        event.submit(&[Writable(DATA, 4)]);
        guest.run(2);
        assert!(event.take().is_some());
    }
}

/// Nobody to be told.
struct Quiet;

impl Interrupts for Quiet {
    fn queue(&self, _index: u16) {}
    fn config(&self) {}
    fn needs_reset(&self, why: &Failure) {
        panic!("{why}");
    }
    fn trouble(&self, trouble: &Trouble) {
        panic!("{trouble}");
    }
}

/// A device as it is served to the VMM of another process: activated whenever its queues or memory have changed, and told of no reset.
struct Apart {
    device: Vsock,
    memory: Memory,
    rings: Vec<Ring>,
    positions: Vec<Position>,
    folder: TempDir,
}

impl Apart {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let mut apart = Self {
            device: Vsock::new(CID, &folder.path().join("vsock")).unwrap(),
            memory: memory(),
            rings: Vec::new(),
            positions: Vec::new(),
            folder,
        };
        apart.begin_anew();
        apart
    }

    /// A driver has its queues where they begin.
    fn begin_anew(&mut self) {
        let ring = |queue| Ring::new(self.memory.clone(), ring_at(queue), 64);
        self.rings = (0..3).map(ring).collect();
        self.positions = vec![Position::default(); 3];
        self.rings[0].submit(&[Writable(PLACES, PLACE as u32)]);
    }

    /// Activates it, has it do all that there is to do, and stops it.
    fn serve(&mut self) {
        let queue = |((ring, position), index): ((&Ring, &Position), u16)| {
            let config = QueueConfig {
                size: ring.size,
                descriptor_area: ring.table,
                driver_area: ring.available,
                device_area: ring.used,
            };
            let features = Features::VERSION_1;
            let queue = Queue::restored(&config, features, &*self.memory, *position);
            ActiveQueue {
                index,
                queue: queue.unwrap(),
                kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            }
        };
        let activation = Activation {
            memory: self.memory.clone(),
            features: Features::VERSION_1,
            queues: self
                .rings
                .iter()
                .zip(&self.positions)
                .zip(0..)
                .map(queue)
                .collect(),
            interrupts: Arc::new(Quiet),
        };
        let mut workers = self.device.activate(activation).unwrap();
        assert_eq!(workers.len(), 1);
        for _ in 0..8 {
            workers[0].ready(0);
        }
        let positions = workers[0].positions();
        self.positions = positions.iter().map(|(_, position)| *position).collect();
    }

    fn send(&mut self, packet: Packet) {
        let at = GuestAddress(HEADER);
        self.memory.write_slice(&packet.bytes(), at).unwrap();
        self.rings[1].submit(&[Readable(HEADER, 44)]);
        self.serve();
        assert!(self.rings[1].take().is_some());
    }

    /// The packet that came for the guest, without its data; its buffer is given back.
    fn received(&mut self) -> Option<Packet> {
        let length = self.rings[0].take()?.length as usize;
        let mut raw = vec![0; length];
        let at = GuestAddress(PLACES);
        self.memory.read_slice(&mut raw, at).unwrap();
        self.rings[0].submit(&[Writable(PLACES, PLACE as u32)]);
        Some(Packet::read(&raw))
    }

    /// A connection from the guest's port 1000 to the host's 5000.
    fn connect(&mut self) -> UnixStream {
        let path = self.folder.path().join("vsock_5000");
        let listener = UnixListener::bind(&path).unwrap();
        self.send(request(1000, 5000));
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(self.received().unwrap().op, op::RESPONSE);
        stream
    }

    /// Whether the driver is told that all its connections are gone (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET).
    fn is_told_of_an_end(&mut self) -> bool {
        self.rings[2].submit(&[Writable(DATA, 4)]);
        self.serve();
        self.rings[2].take().is_some()
    }
}

/// "What the driver has set is as it was": it knows of no end of its connections.
#[test]
fn connections_outlive_a_change_of_queues() {
    let mut apart = Apart::new();
    let mut stream = apart.connect();
    stream.write_all(b"hello").unwrap();
    apart.serve();
    let packet = apart.received().expect("nothing came");
    assert_eq!((packet.op, packet.len), (op::RW, 5));
    assert_eq!((packet.from.1, packet.to.1), (5000, 1000));
    assert!(!apart.is_told_of_an_end());
}

/// Nobody tells of the reset, but queues that begin again do: of what the driver before has left, this one knows nothing.
#[test]
fn a_driver_that_begins_anew_has_no_connections() {
    let mut apart = Apart::new();
    let mut stream = apart.connect();
    // One that the host wants, and no driver has heard of.
    let mut client = UnixStream::connect(apart.folder.path().join("vsock")).unwrap();
    client.write_all(b"CONNECT 7\n").unwrap();
    apart.begin_anew();
    apart.rings[0] = Ring::new(apart.memory.clone(), ring_at(0), 64);
    apart.serve();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "it is open");
    assert!(apart.is_told_of_an_end());
    // Before that driver has taken or sent anything.
    apart.rings[0].submit(&[Writable(PLACES, PLACE as u32)]);
    apart.serve();
    let packet = apart.received().expect("nothing came");
    assert_eq!((packet.op, packet.to.1), (op::REQUEST, 7));
}

#[test]
fn a_reset_ends_connections_and_nobody_is_told() {
    let mut apart = Apart::new();
    let mut stream = apart.connect();
    Device::<Memory>::reset(&mut apart.device);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "it is open");
    apart.begin_anew();
    assert!(!apart.is_told_of_an_end());
}
