// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other half: a device of this crate, served to the VMM of another process.
//!
//! ```text
//!   VMM --- socket --- BackEnd --- Device --- activate --> workers --- queues in the guest's memory
//! ```
//!
//! Behind an IOMMU of the guest's, the VMM hears that a translation is gone when no worker uses what it led to any more; at most ten seconds are
//! waited for that, and then the connection ends. A worker that asks the VMM itself is not waited for, since that may not answer before:
//! it looks again, with the answer, whether all leads where it did. So what remains is a driver that unmaps a queue that is served: the queue may be
//! written where it lay until the worker that asked returns.
//!
//! What a disk has in flight is noted in memory that the VMM keeps: should this process be killed, the next one finishes it.
//!
//! The VMM is not believed either: each request has its length and its files, queues are checked as a driver's are,
//! and the first request that makes no sense ends the connection. It can end this process all the same, by making the
//! memory that it shares shorter.

mod error;
mod in_flight;
mod memory;
pub(super) mod rings;
mod translated;
mod translator;
mod uses;
mod watched;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{GuestMemoryMmap, IommuMemory};

pub use self::error::ServeError;
use self::in_flight::Noted;
use self::memory::Given;
pub use self::rings::event;
use self::rings::{Calls, Report, Ring};
pub use self::translator::Translator;
use super::base;
use super::channel::Channel;
use super::message::{
    HEADER, Header, LONGEST, NEED_REPLY, PROTOCOL_FEATURES, Protocol, REPLY, Request, VERSION,
    VERSION_MASK, halves,
};
use super::translation::Message;
use crate::device::{ActivateError, Activation, ActiveQueue, Device, Interrupts};
use crate::features::{DeviceType, Features};
use crate::net::feature as net;
use crate::patience::end_of;
use crate::queue::{Layout, Left, Position, Queue};
use crate::worker::{Runner, Running, Stopped};

/// The memory that a device of a [`BackEnd`] is over: the guest's, by the guest's addresses or by those of an IOMMU of the
/// guest's.
pub type Memory = Arc<IommuMemory<GuestMemoryMmap, Translator>>;

/// How long a request may take to come, once it has begun, and a worker to stop.
const PATIENCE: Duration = Duration::from_secs(10);
/// What we can do of the protocol.
const OFFERED: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::CONFIG);
/// The same of a device that notes what is in flight.
const NOTING: Protocol = OFFERED.union(Protocol::INFLIGHT_SHMFD);
/// VHOST_USER_SET_CONFIG.
const SET_CONFIG: Request = Request(25);
/// In the payload of SET_VRING_KICK and its like: there is no file.
pub(super) const NO_FILE: u64 = 1 << 8;

/// A device that is served to one VMM.
pub struct BackEnd {
    channel: Channel,
    device: Box<dyn Device<Memory>>,
    runner: Box<dyn Runner>,
    calls: Arc<Calls>,
    offered: Features,
    accepted: Features,
    acknowledges: bool,
    /// The VMM enables rings: it has accepted VHOST_USER_F_PROTOCOL_FEATURES, or nothing yet.
    enables: bool,
    /// Where the device's addresses lead, if they are translated.
    translator: Translator,
    /// How long a worker may take to end what it uses, or itself.
    patience: Duration,
    given: Option<Given>,
    rings: Vec<Ring>,
    running: Vec<Box<dyn Running>>,
    /// For notes of what is in flight, if the device has any.
    room: Option<File>,
    noted: Option<Noted>,
}

impl std::fmt::Debug for BackEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackEnd")
            .field("rings", &self.rings)
            .finish_non_exhaustive()
    }
}

impl BackEnd {
    /// Serves `device` to the VMM at `socket`, its workers run by `runner`. What the device has to say is told to
    /// `report`.
    pub fn new(
        socket: UnixStream,
        device: Box<dyn Device<Memory>>,
        runner: Box<dyn Runner>,
        report: impl Fn(&dyn std::error::Error) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let queues = device.queue_sizes().len();
        let ours = device.features() | device.queue_features() | Features::VERSION_1;
        let (queues, ours) = if device.device_type() == DeviceType::NETWORK {
            // A card's control queue is the VMM's to serve: it enables the pairs that the driver uses.
            (queues & !1, ours.difference(net::CTRL_VQ))
        } else {
            (queues, ours)
        };
        let report: Report = Box::new(report);
        let ours = ours | Features::ACCESS_PLATFORM;
        Ok(Self {
            channel: Channel::new(socket)?,
            calls: Calls::new(queues, report),
            offered: ours,
            accepted: Features::empty(),
            acknowledges: false,
            enables: true,
            translator: Translator::default(),
            patience: PATIENCE,
            given: None,
            rings: (0..queues).map(|_| Ring::default()).collect(),
            running: Vec::new(),
            room: in_flight::room(device.device_type()),
            noted: None,
            device,
            runner,
        })
    }

    /// Chooses how long the VMM has to say where an address of the device's leads, 0.7 s if this is not called. The request whose
    /// address it is fails then.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.translator = Translator::with_patience(patience);
        self
    }

    /// Serves until the VMM hangs up.
    pub fn run(mut self) -> Result<(), ServeError> {
        let served = self.serve();
        // A worker that does not stop ends with the process.
        let _ = self.stop();
        served
    }

    fn serve(&mut self) -> Result<(), ServeError> {
        loop {
            self.channel.wait_for_more()?;
            let end = end_of(PATIENCE);
            let (mut head, mut files) = ([0; HEADER], Vec::new());
            match self.channel.receive(&mut head, &mut files, end) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                received => received?,
            }
            let header = Header::of(head);
            let asked = Request(header.request);
            let length = header.size;
            let senseless = ServeError::Request { asked, length };
            if length > LONGEST || header.flags & (VERSION_MASK | REPLY) != VERSION {
                return Err(senseless);
            }
            let mut payload = vec![0; length as usize];
            self.channel.receive(&mut payload, &mut files, end)?;
            let (answer, beside) = match asked {
                Request::GET_INFLIGHT_FD if files.is_empty() => self
                    .make_notes(&payload)
                    .map(|(answer, file)| (Some(answer), Some(file))),
                _ => self
                    .handle(asked, &payload, files)
                    .map(|answer| (answer, None)),
            }
            .ok_or(senseless)?;
            let wanted = self.acknowledges && header.flags & NEED_REPLY != 0;
            let answer = answer.or_else(|| wanted.then(|| vec![0; 8]));
            if let Some(answer) = answer {
                let header = Header {
                    request: header.request,
                    flags: VERSION | REPLY,
                    // No longer than what was asked with.
                    size: answer.len() as u32,
                };
                let message = [&header.bytes()[..], &answer].concat();
                let beside: Vec<_> = beside.iter().map(File::as_fd).collect();
                self.channel.send(&message, &beside, end_of(PATIENCE))?;
            }
        }
    }

    /// The layout of the queues.
    fn layout(&self) -> Layout {
        Layout::of(self.accepted)
    }

    fn protocol(&self) -> Protocol {
        if self.room.is_some() { NOTING } else { OFFERED }
    }

    /// Does what was asked. The result is nothing if that makes no sense, or else what is answered, if anything is.
    fn handle(
        &mut self,
        asked: Request,
        payload: &[u8],
        files: Vec<OwnedFd>,
    ) -> Option<Option<Vec<u8>>> {
        let number = |value: u64| Some(Some(value.to_ne_bytes().to_vec()));
        match asked {
            Request::SET_MEM_TABLE => {
                self.stop()?;
                self.given = Some(Given::map(payload, files)?);
                // What they led to was in the old table's terms.
                self.translator.clear();
                self.start()?;
                return Some(None);
            }
            Request::SET_BACKEND_REQ_FD => {
                let Ok([file]) = <[OwnedFd; 1]>::try_from(files) else {
                    return None;
                };
                let own = Channel::new(UnixStream::from(file)).ok()?;
                self.translator.ask_by(own);
                return Some(None);
            }
            Request::SET_INFLIGHT_FD => {
                self.take_notes(payload, files)?;
                return Some(None);
            }
            Request::SET_VRING_KICK | Request::SET_VRING_CALL | Request::SET_VRING_ERR => {
                self.set_event(asked, payload, files)?;
                return Some(None);
            }
            _ if !files.is_empty() => return None,
            _ => {}
        }
        match asked {
            Request::GET_FEATURES => return number(self.offered.bits() | PROTOCOL_FEATURES),
            Request::GET_PROTOCOL_FEATURES => return number(self.protocol().bits()),
            Request::GET_QUEUE_NUM => {
                // A card's are counted in pairs.
                let pairs = self.device.device_type() == DeviceType::NETWORK;
                return number((self.rings.len() >> u8::from(pairs)) as u64);
            }
            Request::SET_OWNER => {}
            Request::SET_PROTOCOL_FEATURES => {
                let settled = Protocol::from_bits_retain(word(payload)?);
                if !self.protocol().contains(settled) {
                    return None;
                }
                self.acknowledges = settled.contains(Protocol::REPLY_ACK);
            }
            Request::SET_FEATURES => {
                let bits = word(payload)?;
                let accepted = Features::from_bits_retain(bits & !PROTOCOL_FEATURES);
                if !self.offered.contains(accepted) {
                    return None;
                }
                self.stop()?;
                self.accepted = accepted;
                self.begin_rings(bits & PROTOCOL_FEATURES != 0);
                self.device.negotiated(accepted);
                self.start()?;
            }
            Request::GET_CONFIG | SET_CONFIG => return self.config(asked, payload),
            Request::SET_VRING_ADDR => self.place(payload)?,
            Request::IOTLB_MSG => {
                self.translate(Message::of(payload)?)?;
                // It is acknowledged whatever was settled.
                return number(0);
            }
            _ => return self.set_state(asked, payload),
        }
        Some(None)
    }

    /// How rings begin: disabled if the VMM enables them, and else enabled ("Ring states"). Said again, it changes nothing.
    fn begin_rings(&mut self, enables: bool) {
        if std::mem::replace(&mut self.enables, enables) != enables {
            for ring in &mut self.rings {
                ring.enabled = !enables;
            }
        }
    }

    fn config(&mut self, asked: Request, payload: &[u8]) -> Option<Option<Vec<u8>>> {
        let (about, data) = payload.split_at_checked(12)?;
        let offset = u64::from(u32::from_ne_bytes(*about.first_chunk()?));
        let size = u32::from_ne_bytes(*about.get(4..)?.first_chunk()?);
        if size as usize != data.len() {
            return None;
        }
        if asked == SET_CONFIG {
            self.device.config_write(offset, data);
            return Some(None);
        }
        let mut answer = payload.to_vec();
        self.device.config_read(offset, answer.get_mut(12..)?);
        Some(Some(answer))
    }

    /// Where a queue is: index and flags, then descriptors, used ring, available ring and log.
    fn place(&mut self, payload: &[u8]) -> Option<()> {
        let (words, rest) = payload.as_chunks::<8>();
        let [about, table, used, available, _] = *words else {
            return None;
        };
        let (index, flags) = halves(u64::from_ne_bytes(about));
        let given = self.given.as_ref()?;
        let translated = self.translated();
        let guest = |bytes| {
            let address = u64::from_ne_bytes(bytes);
            if translated {
                return Some(address);
            }
            given.guest(address)
        };
        let places = [guest(table)?, guest(available)?, guest(used)?];
        let ring = self.rings.get_mut(index as usize)?;
        if flags != 0 || !rest.is_empty() || ring.kick.is_some() {
            return None;
        }
        [
            ring.config.descriptor_area,
            ring.config.driver_area,
            ring.config.device_area,
        ] = places;
        Some(())
    }

    /// What is said of a queue by its index and one number.
    fn set_state(&mut self, asked: Request, payload: &[u8]) -> Option<Option<Vec<u8>>> {
        let (index, value) = halves(word(payload)?);
        let at = index as usize;
        let most = *self.device.queue_sizes().get(at)?;
        let layout = self.layout();
        let ring = self.rings.get_mut(at)?;
        match asked {
            Request::SET_VRING_NUM if ring.kick.is_none() && value <= most.into() => {
                ring.config.size = u16::try_from(value).ok()?;
            }
            Request::SET_VRING_BASE if ring.kick.is_none() => {
                // One that has no size yet is checked against it when it starts.
                let size = match ring.config.size {
                    0 => most,
                    size => size,
                };
                ring.base = base::position(layout, size, value)?;
            }
            Request::SET_VRING_ENABLE if value <= 1 => {
                self.stop()?;
                self.rings.get_mut(at)?.enabled = value == 1;
                self.start()?;
            }
            Request::GET_VRING_BASE => {
                self.finish(at);
                self.stop()?;
                let ring = self.rings.get_mut(at)?;
                ring.kick = None;
                let base = base::said(layout, ring.base);
                self.start()?;
                let state = [index, base].map(u32::to_ne_bytes);
                return Some(Some(state.concat()));
            }
            _ => return None,
        }
        Some(None)
    }

    fn set_event(&mut self, asked: Request, payload: &[u8], files: Vec<OwnedFd>) -> Option<()> {
        let value = word(payload)?;
        let at = usize::try_from(value & !NO_FILE).ok()?;
        let mut files = files.into_iter();
        let file = match (value & NO_FILE == 0, files.next(), files.next()) {
            (true, Some(file), None) => Some(event(file)?),
            (false, None, None) => None,
            _ => return None,
        };
        if at >= self.rings.len() {
            return None;
        }
        match asked {
            Request::SET_VRING_CALL => self.calls.set_call(at, file),
            Request::SET_VRING_ERR => self.calls.set_error(at, file),
            _ => {
                // Without notifications we would have to look all the time.
                let kick = file?;
                self.stop()?;
                self.rings.get_mut(at)?.kick = Some(kick);
                self.start()?;
            }
        }
        Some(())
    }

    /// Has the device serve all queues that are live; nothing if one of them makes no sense.
    fn start(&mut self) -> Option<()> {
        let live = || self.rings.iter().filter(|ring| ring.is_live());
        let translated = self.translated();
        // Without a queue nothing is served, and one that lies nowhere is when the VMM says where.
        if live().next().is_none() || translated && !live().all(|ring| self.foresee(ring)) {
            return Some(());
        }
        let mut queues = Vec::new();
        let memory = self.given.as_ref().map(|given| {
            let (memory, translator) = (given.memory.clone(), self.translator.clone());
            Arc::new(IommuMemory::new(memory, translator, translated, ()))
        });
        for (ring, index) in self.rings.iter().zip(0..) {
            if ring.is_live() {
                let memory = memory.as_deref()?;
                let left = self.left(index, ring, memory)?;
                let position = match &left {
                    Some(Left { used, .. }) => Position {
                        available: *used,
                        used: *used,
                    },
                    None => ring.base,
                };
                let restored = Queue::restored(&ring.config, self.accepted, memory, position);
                let mut queue = restored.ok()?;
                if let Some(left) = left {
                    self.note(index, &mut queue, memory, left)?;
                }
                let kick = ring.kick.as_ref()?.try_clone().ok()?;
                queues.push(ActiveQueue { index, queue, kick });
            }
        }
        self.calls.forget_failures();
        let workers = self.device.activate(Activation {
            memory: memory?,
            features: self.accepted,
            queues,
            interrupts: Arc::clone(&self.calls) as Arc<dyn Interrupts>,
        });
        let workers = match workers {
            Ok(workers) => workers,
            Err(ActivateError::QueueMissing { .. }) => {
                // The VMM starts one after the other, and some devices need several.
                return Some(());
            }
            Err(_) => return None,
        };
        for worker in workers {
            let worker = match translated {
                true => self.translator.watch(worker),
                false => worker,
            };
            self.running.push(self.runner.start(worker).ok()?);
        }
        Some(())
    }

    /// Stops all workers, and notes where each queue goes on; nothing if one does not stop in time, for nobody else may
    /// serve its queues then. No driver has reset anything: of that a VMM says nothing by this protocol.
    fn stop(&mut self) -> Option<()> {
        for worker in &mut self.running {
            worker.request_stop();
        }
        let end = end_of(self.patience);
        for mut worker in self.running.drain(..) {
            let left = end.saturating_duration_since(Instant::now());
            let Stopped::With(worker) = worker.stopped(left) else {
                return None;
            };
            for (index, position) in worker.positions() {
                if let Some(ring) = self.rings.get_mut(usize::from(index)) {
                    ring.base = position;
                }
            }
        }
        Some(())
    }
}

/// A payload of eight bytes.
fn word(payload: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(payload.try_into().ok()?))
}
