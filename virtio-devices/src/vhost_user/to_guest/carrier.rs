// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The worker: connections, messages either way, and the kicks of the other machine's driver.
//!
//! Kick events are the other process's. They are watched for the change and never read, so that nothing here waits for
//! what that process does with them.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use vm_memory::{GuestAddressSpace, GuestMemory};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::link::{Link, MOST, Meaning, Message, PeerError};
use super::shared::{BACKEND_UP, FRONTEND_UP, Shared};
use crate::device::{ActiveQueue, Failure, Interrupts};
use crate::queue::{Chain, Mapped, Notify, Position, QueueError};
use crate::vhost_user::Request;
use crate::worker::{Progress, Worker};

/// Messages that are carried in one call, each way.
const BATCH: usize = 16;
/// What is watched beside kicks, which have the numbers of their queues.
const OTHERS: u64 = u64::MAX;

/// To whom the beginning and the end of a connection are told.
pub(super) type Report = dyn Fn(Option<&PeerError>) + Send + Sync;

/// A connection, and what of it has not reached the driver.
struct Connected {
    link: Link,
    /// A message for which the driver has no room yet.
    waiting: Option<Message>,
    /// By queue.
    kicks: Vec<Option<EventFd>>,
}

pub(super) struct Carrier<A> {
    shared: Arc<Shared>,
    listener: UnixListener,
    report: Arc<Report>,
    memory: A,
    interrupts: Arc<dyn Interrupts>,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    /// Watches for changes: the listener, the status, the connection, kicks.
    epoll: Epoll,
    connected: Option<Connected>,
    chain: Chain,
}

impl<A: GuestAddressSpace> Carrier<A> {
    pub(super) fn new(
        shared: Arc<Shared>,
        listener: UnixListener,
        report: Arc<Report>,
        memory: A,
        interrupts: Arc<dyn Interrupts>,
        [receive, transmit]: [ActiveQueue; 2],
    ) -> std::io::Result<Self> {
        let epoll = Epoll::new()?;
        watch(&epoll, listener.as_raw_fd(), OTHERS)?;
        watch(&epoll, shared.wake().as_raw_fd(), OTHERS)?;
        Ok(Self {
            shared,
            listener,
            report,
            memory,
            interrupts,
            receive,
            transmit,
            epoll,
            connected: None,
            chain: Chain::new(),
        })
    }

    /// Passes kicks on.
    fn look(&mut self) {
        // An error means that there was no change.
        let _ = self.shared.wake().read();
        let mut events = [EpollEvent::default(); BATCH];
        // Each of them once: there are no more.
        let calls = usize::from(self.shared.queues()).div_ceil(BATCH);
        for _ in 0..=calls.saturating_add(1) {
            let Ok(count @ 1..) = self.epoll.wait(0, &mut events) else {
                return;
            };
            for event in events.iter().take(count) {
                if let Ok(queue) = u16::try_from(event.data()) {
                    self.interrupts.notification(queue);
                }
            }
        }
    }

    /// Ends a connection that the driver does not want, and takes one that it does.
    fn follow(&mut self) -> Result<(), PeerError> {
        let status = self.shared.status();
        if self.connected.is_some() {
            return match self.shared.take_failure() {
                Some(failure) => Err(failure.into()),
                None if status & FRONTEND_UP == 0 => Err(PeerError::Driver),
                None => Ok(()),
            };
        }
        if status != BACKEND_UP {
            return Ok(());
        }
        let socket = match self.listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let link = Link::new(socket)?;
        watch(&self.epoll, link.fd(), OTHERS)?;
        if self.shared.connected() {
            self.connected = Some(Connected {
                link,
                waiting: None,
                kicks: (0..self.shared.queues()).map(|_| None).collect(),
            });
            self.interrupts.config();
            (self.report)(None);
        }
        Ok(())
    }

    fn hang_up(&mut self, why: &PeerError) -> Progress {
        (self.report)(Some(why));
        let Some(mut was) = self.connected.take() else {
            // What the host refuses now it may grant when something else has changed.
            return Progress::Wait;
        };
        for index in 0..self.shared.queues() {
            was.forget_kick(&self.epoll, index);
        }
        drop(was);
        self.shared.hung_up();
        self.interrupts.config();
        // Another may be waiting to be taken.
        Progress::More
    }

    /// Carries messages to the driver. Whether there may be more.
    fn carry_messages<M: GuestMemory + ?Sized>(&mut self, memory: &M) -> Result<Progress, Ended> {
        let Some(connected) = &mut self.connected else {
            return Ok(Progress::Wait);
        };
        let index = self.receive.index;
        let mut queue = self.receive.queue.map(memory);
        let carried = connected.carry(&self.epoll, &self.shared, &mut queue, &mut self.chain);
        // What came before something went wrong has come, and is not to be the first of the next connection.
        if queue.publish().map_err(broken(index))? == Notify::Yes {
            self.interrupts.queue(index);
        }
        let mut progress = carried.map_err(|why| why.of(index))?;
        if connected.waiting.is_some() && queue.enable_kicks().map_err(broken(index))? {
            progress = Progress::More;
        }
        Ok(progress)
    }

    /// Carries answers from the driver, or drops them where nobody waits for them. Whether there may be more.
    fn carry_answers<M: GuestMemory + ?Sized>(&mut self, memory: &M) -> Result<Progress, Ended> {
        let index = self.transmit.index;
        let mut queue = self.transmit.queue.map(memory);
        let carried = carry_answers(
            self.connected.as_mut(),
            self.shared.queues(),
            &mut queue,
            &mut self.chain,
        );
        if queue.publish().map_err(broken(index))? == Notify::Yes {
            self.interrupts.queue(index);
        }
        let mut progress = carried.map_err(|why| why.of(index))?;
        if progress == Progress::Wait && queue.enable_kicks().map_err(broken(index))? {
            progress = Progress::More;
        }
        Ok(progress)
    }

    fn work(&mut self) -> Result<Progress, Ended> {
        self.look();
        self.follow()?;
        let address_space = self.memory.clone();
        let memory = address_space.memory();
        let answers = self.carry_answers(&*memory)?;
        let messages = self.carry_messages(&*memory)?;
        Ok(match (answers, messages) {
            (Progress::Wait, Progress::Wait) => Progress::Wait,
            _ => Progress::More,
        })
    }
}

impl Connected {
    /// Puts messages into `queue`, a bounded number of them. Whether there may be more.
    fn carry<M: GuestMemory + ?Sized>(
        &mut self,
        epoll: &Epoll,
        shared: &Shared,
        queue: &mut Mapped<'_, M>,
        chain: &mut Chain,
    ) -> Result<Progress, Stopped> {
        for _ in 0..BATCH {
            let message = match self.waiting.take() {
                Some(message) => message,
                None => {
                    let Some((message, files)) = self.link.receive()? else {
                        return Ok(Progress::Wait);
                    };
                    let meaning = Link::take(&message, files, shared)?;
                    if let Meaning::Kick { index, event } = meaning {
                        self.set_kick(epoll, index, event)?;
                    }
                    message
                }
            };
            let Some(head) = queue.pop(chain)? else {
                self.waiting = Some(message);
                return Ok(Progress::Wait);
            };
            let room = chain.writable();
            if room.len() < message.len() as u64 {
                queue.fail();
                return Err(Stopped::NoRoom(head.index()));
            }
            // Memory that is not there is the driver's own loss.
            let written = room.write(queue.reach(), &message).unwrap_or(0);
            queue.complete(head, written as u32)?;
        }
        Ok(Progress::More)
    }

    fn set_kick(
        &mut self,
        epoll: &Epoll,
        index: u16,
        event: Option<EventFd>,
    ) -> Result<(), PeerError> {
        self.forget_kick(epoll, index);
        if let (Some(event), Some(place)) = (event, self.kicks.get_mut(usize::from(index))) {
            let asked = Request::SET_VRING_KICK;
            watch(epoll, event.as_raw_fd(), index.into())
                .map_err(|source| PeerError::Event { asked, source })?;
            *place = Some(event);
        }
        Ok(())
    }

    /// Closing it is not enough: while the other process has it open, it would be watched still.
    fn forget_kick(&mut self, epoll: &Epoll, index: u16) {
        let place = self.kicks.get_mut(usize::from(index));
        if let Some(event) = place.and_then(Option::take) {
            let none = EpollEvent::default();
            // It is there: it was added.
            let _ = epoll.ctl(ControlOperation::Delete, event.as_raw_fd(), none);
        }
    }
}

/// Sends what `queue` has to whoever is `connected`, of a device of so many `queues`; a bounded number of answers. Whether there may be
/// more.
fn carry_answers<M: GuestMemory + ?Sized>(
    mut connected: Option<&mut Connected>,
    queues: u16,
    queue: &mut Mapped<'_, M>,
    chain: &mut Chain,
) -> Result<Progress, Stopped> {
    for _ in 0..BATCH {
        let Some(head) = queue.pop(chain)? else {
            return Ok(Progress::Wait);
        };
        let answer = chain.readable();
        let length = usize::try_from(answer.len()).unwrap_or(usize::MAX);
        let mut sent = Ok(());
        if let Some(connected) = &mut connected {
            let mut message = vec![0; length.min(MOST)];
            let read = answer.read(queue.reach(), &mut message).ok();
            let whole = length <= MOST && read == Some(length);
            sent = match whole {
                true => connected.link.send(message, queues),
                false => Err(PeerError::Answer { length }),
            };
        }
        queue.complete(head, 0)?;
        sent?;
    }
    Ok(Progress::More)
}

/// Why no more are carried.
enum Stopped {
    Link(PeerError),
    Queue(Box<QueueError>),
    /// The chain from that descriptor has no room for one.
    NoRoom(u16),
}

impl Stopped {
    /// As what it ends, of queue `index`.
    fn of(self, index: u16) -> Ended {
        match self {
            Self::Link(why) => Ended::Link(why),
            Self::Queue(source) => Ended::Device(Failure::Queue { index, source }),
            Self::NoRoom(head) => Ended::Device(Failure::Unanswerable { index, head }),
        }
    }
}

impl From<PeerError> for Stopped {
    fn from(why: PeerError) -> Self {
        Self::Link(why)
    }
}

impl From<Box<QueueError>> for Stopped {
    fn from(why: Box<QueueError>) -> Self {
        Self::Queue(why)
    }
}

/// What ends a connection, or the device.
enum Ended {
    Link(PeerError),
    Device(Failure),
}

impl From<PeerError> for Ended {
    fn from(why: PeerError) -> Self {
        Self::Link(why)
    }
}

/// What the driver did to queue `index` ends the device.
fn broken(index: u16) -> impl Fn(Box<QueueError>) -> Ended {
    move |source| Ended::Device(Failure::Queue { index, source })
}

fn watch(epoll: &Epoll, fd: RawFd, data: u64) -> std::io::Result<()> {
    let changes = EventSet::IN | EventSet::EDGE_TRIGGERED;
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(changes, data))
}

impl<A: GuestAddressSpace + Send> Worker for Carrier<A> {
    fn name(&self) -> String {
        "vhost-guest".to_owned()
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![
            self.epoll.as_raw_fd(),
            self.receive.kick.as_raw_fd(),
            self.transmit.kick.as_raw_fd(),
        ]
    }

    fn positions(&self) -> Vec<(u16, Position)> {
        vec![self.receive.position(), self.transmit.position()]
    }

    fn ready(&mut self, _index: usize) -> Progress {
        // Before looking, so that none is lost. An error means that there was none.
        let _ = self.receive.kick.read();
        let _ = self.transmit.kick.read();
        if self.receive.queue.is_failed() || self.transmit.queue.is_failed() {
            return Progress::Done;
        }
        match self.work() {
            Ok(progress) => progress,
            Err(Ended::Link(why)) => self.hang_up(&why),
            Err(Ended::Device(why)) => {
                self.interrupts.needs_reset(&why);
                Progress::Done
            }
        }
    }
}
