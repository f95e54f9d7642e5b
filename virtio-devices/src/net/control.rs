// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control queue: how many pairs of queues the driver uses, and that it has announced itself.
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

use super::link::{Announce, Link};
use crate::queue::{Chain, Reach};
use crate::serve::{Answer, Handler, Served};

/// VIRTIO_NET_CTRL_MQ and VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const PAIRS_SET: [u8; 2] = [4, 0];
/// VIRTIO_NET_CTRL_ANNOUNCE and VIRTIO_NET_CTRL_ANNOUNCE_ACK.
const ANNOUNCED: [u8; 2] = [3, 0];
/// VIRTIO_NET_OK.
const OK: u8 = 0;
/// VIRTIO_NET_ERR.
const REFUSED: u8 = 1;

/// Bytes of the longest command.
const LONGEST: usize = 4;

/// Has so many pairs used.
type Set = Box<dyn FnMut(u16) -> io::Result<()> + Send>;

/// Obeys the driver.
pub(crate) struct Control {
    set: Set,
    /// Which a driver that can may announce.
    link: Option<Link>,
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
            known,
            wake,
        }
    }

    /// For a driver that announces itself when it is asked to.
    pub(super) fn announcing(self, link: Option<Link>) -> Self {
        Self { link, ..self }
    }

    fn obey(&mut self, command: &[u8]) -> Result<u8, io::Error> {
        match (command, &self.link) {
            ([class, number, low, high], _) if [*class, *number] == PAIRS_SET => {
                self.use_pairs(u16::from_le_bytes([*low, *high]))
            }
            ([class, number], Some(link)) if [*class, *number] == ANNOUNCED => {
                link.ask(Announce::Done);
                Ok(OK)
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
        let mut command = [0; LONGEST];
        let asked = chain.readable();
        // A longer one is none that we know; one that is not in memory is none at all.
        let length = match asked.len() <= LONGEST as u64 {
            true => asked.read(reach, &mut command).unwrap_or(0),
            false => 0,
        };
        let obeyed = self.obey(command.get(..length).unwrap_or_default());
        let (ack, trouble) = match obeyed {
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
