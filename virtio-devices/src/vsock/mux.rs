// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All connections of a guest: who is meant by a packet, and whose turn it is.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vm_memory::GuestMemory;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::HOST_CID;
use super::connection::{Connection, Outgoing, Owed, ROOM, Stage};
use super::host::{self, Greeting, greeting};
use super::packet::{HEADER, Header, Operation, Ports, STREAM, Shut};
use crate::listener::Listener;
use crate::queue::{Buffers, Chain, Reach};

/// Connections at once.
const CONNECTIONS: usize = 1024;
/// Clients on the host that have not said yet what they want.
const GREETINGS: usize = 64;
/// Resets that wait for room in the guest's queue; with more, the guest is not listened to.
const REPLIES: usize = 256;
/// Looks at one call: the worker is to see a request to stop.
const LOOKS: usize = 64;
/// The first port that a client on the host is given.
const FIRST_PORT: u32 = 1 << 30;
/// The port that is none (VMADDR_PORT_ANY), which marks events that belong to no connection.
const NO_PORT: u32 = u32::MAX;
const LISTENER: Ports = Ports {
    guest: NO_PORT,
    host: NO_PORT,
};

/// A chain without room for a packet.
#[derive(Debug)]
pub(super) struct TooSmall;

/// The connections, and both ends of them.
#[derive(Debug)]
pub(super) struct Mux {
    cid: u64,
    host: Arc<Listener>,
    epoll: Epoll,
    connections: BTreeMap<Ports, Connection>,
    greetings: BTreeMap<u32, UnixStream>,
    next_greeting: u32,
    next_port: u32,
    /// Connections that may have something for the guest: each once, and none that is over.
    listed: VecDeque<Ports>,
    replies: VecDeque<Header>,
}

fn token(ports: Ports) -> u64 {
    u64::from(ports.guest) << 32 | u64::from(ports.host)
}

/// Truncations on purpose: one half each.
fn ports(token: u64) -> Ports {
    Ports {
        guest: (token >> 32) as u32,
        host: token as u32,
    }
}

impl Mux {
    pub(super) fn new(cid: u64, host: Arc<Listener>) -> io::Result<Self> {
        let mux = Self {
            cid,
            epoll: Epoll::new()?,
            connections: BTreeMap::new(),
            greetings: BTreeMap::new(),
            next_greeting: 0,
            next_port: FIRST_PORT,
            listed: VecDeque::new(),
            replies: VecDeque::new(),
            host,
        };
        mux.watch(&*mux.host, EventSet::IN, LISTENER)?;
        Ok(mux)
    }

    /// A driver that begins anew knows of no connection: ends those that the one before it knew of. Whether there were any.
    pub(super) fn begin_anew(&mut self) -> bool {
        let connections = self.connections.iter();
        let known = connections.filter(|(_, connection)| !connection.owed.contains(Owed::REQUEST));
        let known: Vec<_> = known.map(|(ports, _)| *ports).collect();
        known.iter().for_each(|ports| self.forget(*ports));
        self.replies.clear();
        !known.is_empty()
    }

    fn watch(&self, file: &impl AsFd, events: EventSet, ports: Ports) -> io::Result<()> {
        let event = EpollEvent::new(events | EventSet::EDGE_TRIGGERED, token(ports));
        let file = file.as_fd().as_raw_fd();
        self.epoll.ctl(ControlOperation::Add, file, event)
    }

    /// Readable when the host has something.
    pub(super) fn source(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Whether the guest must take what it is owed before it may send more.
    pub(super) fn is_full(&self) -> bool {
        self.replies.len() >= REPLIES
    }

    /// Whether there may be something for the guest.
    pub(super) fn has_something(&self) -> bool {
        !self.replies.is_empty() || !self.listed.is_empty()
    }

    /// Takes note of what has happened on the host. Whether all of it was seen.
    pub(super) fn look(&mut self) -> bool {
        let mut events = [EpollEvent::default(); 64];
        for _ in 0..LOOKS {
            // Interrupted: another look is cheap.
            let count = self.epoll.wait(0, &mut events).unwrap_or(0);
            for event in events.iter().take(count) {
                match ports(event.data()) {
                    LISTENER => self.accept(),
                    Ports {
                        guest: NO_PORT,
                        host: number,
                    } => self.greet(number),
                    ports => self.stream(ports, event.event_set()),
                }
            }
            if count < events.len() {
                return true;
            }
        }
        false
    }

    fn accept(&mut self) {
        // Edge-triggered: as long as somebody is there. More at once than may wait push each other out.
        for _ in 0..CONNECTIONS {
            let Ok(stream) = host::accept(&self.host) else {
                return;
            };
            if self.greetings.len() >= GREETINGS {
                self.greetings.pop_first();
            }
            let number = self.next_greeting;
            self.next_greeting = match number.wrapping_add(1) {
                NO_PORT => 0,
                next => next,
            };
            let at = Ports {
                guest: NO_PORT,
                host: number,
            };
            if self.watch(&stream, EventSet::IN, at).is_ok() {
                self.greetings.insert(number, stream);
            }
        }
    }

    fn greet(&mut self, number: u32) {
        let Some(stream) = self.greetings.get(&number) else {
            return;
        };
        let guest = match greeting(stream) {
            Greeting::Incomplete => return,
            Greeting::Connect(port) if port != NO_PORT => Some(port),
            Greeting::Connect(_) | Greeting::Wrong => None,
        };
        let stream = self.greetings.remove(&number);
        if let (Some(guest), Some(stream)) = (guest, stream) {
            let _ = self.epoll.ctl(
                ControlOperation::Delete,
                stream.as_raw_fd(),
                EpollEvent::default(),
            );
            let host = self.free_port(guest);
            self.add(Ports { guest, host }, stream, Stage::Asked);
        }
    }

    /// A port of the host's that has no connection with `guest` yet.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = match host.wrapping_add(1) {
                NO_PORT => FIRST_PORT,
                next => next,
            };
            if !self.connections.contains_key(&Ports { guest, host }) {
                // There are far more ports than connections.
                return host;
            }
        }
    }

    /// Adds a connection, if there is room.
    fn add(&mut self, ports: Ports, stream: UnixStream, stage: Stage) -> bool {
        let all = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP;
        let full = self.connections.len() >= CONNECTIONS;
        if full || self.watch(&stream, all, ports).is_err() {
            return false;
        }
        let connection = Connection::new(stream, stage);
        self.connections.insert(ports, connection);
        self.list(ports);
        true
    }

    /// Something has happened to a stream.
    fn stream(&mut self, ports: Ports, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&ports) else {
            return;
        };
        connection.readable |= events != EventSet::OUT;
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            connection.deaf();
        }
        connection.flush();
        self.settle(ports);
    }

    /// Ends a connection that is over, or gives it a turn.
    fn settle(&mut self, ports: Ports) {
        match self.connections.get(&ports) {
            Some(connection) if connection.is_over() => self.reset(ports, STREAM),
            Some(_) => self.list(ports),
            None => {}
        }
    }

    fn list(&mut self, ports: Ports) {
        if let Some(connection) = self.connections.get_mut(&ports)
            && !connection.listed
            && connection.has_something()
        {
            connection.listed = true;
            self.listed.push_back(ports);
        }
    }

    /// Forgets a connection, if there is one, and its turn: a guest can make and end as many as it likes before it takes
    /// what it is owed.
    fn forget(&mut self, ports: Ports) {
        let forgotten = self.connections.remove(&ports);
        if forgotten.is_some_and(|connection| connection.listed) {
            self.listed.retain(|listed| *listed != ports);
        }
    }

    /// Forgets a connection, if there is one, and tells the guest that there is none.
    fn reset(&mut self, ports: Ports, kind: u16) {
        self.forget(ports);
        self.replies.push_back(Header {
            kind,
            room: 0,
            ..self.header(ports, Operation::RST)
        });
    }

    fn header(&self, ports: Ports, operation: Operation) -> Header {
        Header {
            source_cid: HOST_CID,
            destination_cid: self.cid,
            source_port: ports.host,
            destination_port: ports.guest,
            length: 0,
            kind: STREAM,
            operation,
            flags: 0,
            room: ROOM,
            forwarded: 0,
        }
    }

    /// Takes a packet from the guest; how many bytes of data it had.
    pub(super) fn take<M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'_, M>,
        chain: &Chain,
    ) -> u64 {
        let (head, data) = chain.readable().split_at(HEADER as u64);
        let mut raw = [0; HEADER];
        if head.read(reach, &mut raw).ok() != Some(HEADER) {
            return 0;
        }
        let header = Header::decode(&raw);
        // Nobody may speak for another, and there is nobody else to speak to.
        if header.source_cid != self.cid || header.destination_cid != HOST_CID {
            return 0;
        }
        let ports = Ports {
            guest: header.source_port,
            host: header.destination_port,
        };
        let length = u64::from(header.length);
        let right = header.kind == STREAM && length <= data.len() && ports.guest != NO_PORT;
        if right && self.obey(reach, ports, &header, data.split_at(length).0) {
            self.settle(ports);
        } else if header.operation != Operation::RST {
            self.reset(ports, header.kind);
        } else {
            self.forget(ports);
        }
        length
    }

    /// Does what a packet says; whether its connection goes on.
    fn obey<M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'_, M>,
        ports: Ports,
        header: &Header,
        data: Buffers<'_>,
    ) -> bool {
        let operation = header.operation;
        if operation == Operation::REQUEST {
            let known = self.connections.contains_key(&ports) || ports.host == NO_PORT;
            let stream = (!known).then(|| host::connect(&self.host, ports.host));
            let Some(Ok(stream)) = stream else {
                return false;
            };
            if !self.add(ports, stream, Stage::Open) {
                return false;
            }
        }
        let Some(connection) = self.connections.get_mut(&ports) else {
            return false;
        };
        connection.credit(header);
        match (operation, connection.stage) {
            (Operation::REQUEST, _) => true,
            (Operation::RESPONSE, Stage::Asked) => {
                connection.stage = Stage::Open;
                let line = format!("OK {}\n", ports.host);
                // Into an empty buffer.
                connection.stream.write_all(line.as_bytes()).is_ok()
            }
            (Operation::SHUTDOWN, Stage::Open) => {
                connection.shut(Shut::from_bits_truncate(header.flags));
                true
            }
            (Operation::RW, Stage::Open) => connection.receive(reach, data).is_ok(),
            (Operation::CREDIT_UPDATE, Stage::Open) => true,
            (Operation::CREDIT_REQUEST, Stage::Open) => {
                connection.owed |= Owed::CREDIT;
                true
            }
            _ => false,
        }
    }

    /// Puts the next packet in a chain; how many bytes it has, and how many of them are data.
    pub(super) fn give<M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'_, M>,
        chain: &Chain,
    ) -> Result<Option<(u32, u32)>, TooSmall> {
        let (head, room) = chain.writable().split_at(HEADER as u64);
        if head.len() < HEADER as u64 {
            return Err(TooSmall);
        }
        if let Some(reply) = self.replies.pop_front() {
            // A buffer that is not in memory loses what was in it.
            let _ = head.write(reach, &reply.encode());
            return Ok(Some((HEADER as u32, 0)));
        }
        for _ in 0..LOOKS {
            let Some(ports) = self.listed.pop_front() else {
                return Ok(None);
            };
            let Some(connection) = self.connections.get_mut(&ports) else {
                continue;
            };
            connection.listed = false;
            let (operation, shut, length) = match connection.next(reach, room) {
                Outgoing::Bare(operation, shut) => (operation, shut, 0),
                Outgoing::Data(length) => (Operation::RW, Shut::empty(), length),
                Outgoing::Nothing => {
                    self.list(ports);
                    continue;
                }
                Outgoing::NoRoom => return Err(TooSmall),
            };
            let forwarded = connection.tell();
            // Whatever still comes for it is answered as for a connection that never was.
            if operation == Operation::SHUTDOWN && connection.hung_up() {
                self.forget(ports);
            }
            self.list(ports);
            let header = Header {
                length,
                flags: shut.bits(),
                forwarded,
                ..self.header(ports, operation)
            };
            let _ = head.write(reach, &header.encode());
            return Ok(Some((length.saturating_add(HEADER as u32), length)));
        }
        Ok(None)
    }
}
