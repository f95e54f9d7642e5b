// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control queue: how many pairs of queues the driver uses, that it has announced itself, and which frames it wants.
//!
//! ```text
//!   class:8  command:8  data        the device reads
//!   ack:8                           and writes: 0 done, 1 refused
//! ```
//!
//! "Control Virtqueue" (5.1.6.5).

use std::io;

use vm_memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use super::filter::{Filter, Obeyed, exactly};
use super::link::{Announce, Link};
use crate::device::ConfigEvents;
use crate::queue::{Buffers, Chain, Reach};
use crate::serve::{Answer, Handler, Served};

/// VIRTIO_NET_CTRL_MQ and VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const PAIRS_SET: [u8; 2] = [4, 0];
/// VIRTIO_NET_CTRL_ANNOUNCE and VIRTIO_NET_CTRL_ANNOUNCE_ACK.
const ANNOUNCED: [u8; 2] = [3, 0];
/// VIRTIO_NET_OK.
const OK: u8 = 0;
/// VIRTIO_NET_ERR.
const REFUSED: u8 = 1;

/// Has so many pairs used.
type Set = Box<dyn FnMut(u16) -> io::Result<()> + Send>;

/// Obeys the driver.
pub(crate) struct Control {
    set: Set,
    /// Which a driver that can may announce.
    link: Option<Link>,
    /// What it may set, and who is told when the card's address is another.
    filter: Option<(Filter, Option<ConfigEvents>)>,
    /// How many pairs the driver knows of.
    known: u16,
    /// Wakes who serves each receive queue: a wire that frames come from again says nothing of those that came before.
    wake: Vec<EventFd>,
}

impl Control {
    pub(crate) fn new(
        set: impl FnMut(u16) -> io::Result<()> + Send + 'static,
        known: u16,
        wake: Vec<EventFd>,
    ) -> Self {
        Self {
            set: Box::new(set),
            link: None,
            filter: None,
            known,
            wake,
        }
    }

    /// For a driver that announces itself when it is asked to.
    pub(super) fn announcing(self, link: Option<Link>) -> Self {
        Self { link, ..self }
    }

    /// For a driver that says what it wants; `address` is told of another address of the card.
    pub(super) fn filtering(self, filter: Filter, address: Option<ConfigEvents>) -> Self {
        let filter = Some((filter, address));
        Self { filter, ..self }
    }

    fn obey<M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'_, M>,
        asked: Buffers<'_>,
    ) -> Result<u8, io::Error> {
        let (head, data) = asked.split_at(2);
        // One that is not in memory is none at all.
        let Some(command) = exactly(reach, head) else {
            return Ok(REFUSED);
        };
        match (command, &self.link, &self.filter) {
            (PAIRS_SET, ..) => match exactly(reach, data) {
                Some(used) => self.use_pairs(u16::from_le_bytes(used)),
                None => Ok(REFUSED),
            },
            (ANNOUNCED, Some(link), _) if data.is_empty() => {
                link.ask(Announce::Done);
                Ok(OK)
            }
            ([class, number], _, Some((filter, address))) => {
                Ok(match filter.obey(reach, class, number, data) {
                    Obeyed::Done => OK,
                    Obeyed::Address(given) => {
                        match address {
                            // A driver reads it in parts.
                            Some(events) => events.changes(|| filter.give(given)),
                            None => filter.give(given),
                        }
                        OK
                    }
                    Obeyed::No => REFUSED,
                })
            }
            _ => Ok(REFUSED),
        }
    }

    fn use_pairs(&mut self, used: u16) -> Result<u8, io::Error> {
        if !(1..=self.known).contains(&used) {
            return Ok(REFUSED);
        }
        (self.set)(used)?;
        for kick in &self.wake {
            // Fails only if the counter is full, and then it is readable.
            let _ = kick.write(1);
        }
        Ok(OK)
    }
}

impl<A> Handler<A> for Control {
    fn name(&self) -> String {
        "net-ctrl".to_owned()
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let room = chain.writable();
        if room.is_empty() {
            return Answer::Unanswerable;
        }
        let (ack, trouble) = match self.obey(reach, chain.readable()) {
            Ok(ack) => (ack, None),
            Err(error) => (REFUSED, Some(error)),
        };
        // An acknowledgement that is not in memory is the driver's own loss.
        let written = room.split_at(1).0.write(reach, &[ack]).unwrap_or(0);
        Answer::Done(Served {
            written: u32::from(written > 0),
            moved: 0,
            trouble,
        })
    }
}
